"""Several shots as one item."""

import numpy as np
import pytest

from dmpt.retrieval.embeddings import averaged, join, unit
from items import SETS, items


@pytest.mark.parametrize("present", SETS)
def test_of_shots_with_the_same_modalities_it_is_the_mean_at_length_1(present: np.ndarray) -> None:  # type: ignore[type-arg]
    shots = items(5, 1, present, standardised=True)
    found = averaged(shots)
    np.testing.assert_allclose(found.flat, unit(shots.flat.mean(axis=0, keepdims=True)), atol=1e-6)
    assert found.present.tolist() == [present.tolist()]
    assert shots.shared is not None
    np.testing.assert_allclose(found.shared, unit(shots.shared.mean(axis=0, keepdims=True)), atol=1e-6)  # type: ignore[arg-type]
    assert found.standardisation is shots.standardisation
    assert found.features.dtype == np.float32


def test_one_shot_is_itself_and_order_and_repetition_change_nothing() -> None:
    shots = items(6, 2, shared=False)
    np.testing.assert_allclose(averaged(shots[:1]).flat, shots[:1].flat, atol=1e-6)
    expected = averaged(shots)
    assert expected.shared is None
    assert expected.present.tolist() == [shots.present.any(axis=0).tolist()]
    for other in (shots[::-1], join(shots, shots)):
        np.testing.assert_allclose(averaged(other).flat, expected.flat, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expected.flat), 1, atol=1e-6)


def test_a_shot_with_one_modality_does_not_outweigh_one_with_three() -> None:
    whole = items(1, 3, np.ones(3, np.bool_))
    rgb = items(1, 4, np.array([True, False, False]))
    found = averaged(join(whole, rgb))
    np.testing.assert_allclose(
        found.features[0] / np.linalg.norm(found.features[0, 1]),
        np.concatenate([(whole.features[0, :1] + rgb.features[0, :1] / np.sqrt(3)) / 2, whole.features[0, 1:]])
        / np.linalg.norm(whole.features[0, 1]),
        atol=1e-5,
    )
