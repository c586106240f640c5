"""Features of a test set: their length, their standardisation, and the precision in which they are computed."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dmpt.data.layouts import load_dataset
from dmpt.data.missing import restrict
from dmpt.data.records import Record
from dmpt.embed.extract import extract, extract_views, look
from dmpt.evaluation.opened import open_adapter
from dmpt.extensions.shared import shared_part
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES
from runs import fit, settings, toy, with_


def test_features_have_length_1_and_the_standardisation_of_their_network(tmp_path: Path) -> None:
    fit(with_(settings(toy(tmp_path / "data"), epochs=1), missing={"dropout": 0.4}), tmp_path / "run")
    opened = open_adapter(tmp_path / "run")
    found = extract(opened.network, opened.dataset.gallery, opened.data)
    assert found.shared is not None
    assert np.linalg.norm(found.shared, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(found.flat, axis=1) == pytest.approx(1, abs=1e-5)
    part = shared_part(opened.network)
    assert part is not None
    assert found.standardisation is not None
    assert np.array_equal(found.standardisation, part.standardisation().numpy())


class Elsewhere(torch.nn.Module):
    """A network on a device without content, which looks at what it is given."""

    backbone, also, dense = SimpleNamespace(wrapped=False), (), False

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.nn.Parameter(torch.empty(1, device="meta"))
        self.asked = list[tuple[Any, ...]]()

    def bake(self) -> str:
        return "baked"

    def tokens(self, *asked: Any) -> Any:
        self.asked.append(asked)
        return asked[0]

    def read(self, tokens: Any, present: Any) -> Any:
        return SimpleNamespace(features=tokens.shape[1])

    def test_feature(self, count: int) -> torch.Tensor:
        return torch.zeros(count, 12)


def test_images_and_what_is_present_go_where_the_network_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    root = toy(tmp_path / "data")
    config = settings(root).data
    records = list(load_dataset("rgbnt201", root).gallery)[:4]
    records[3] = replace(records[3], paths={"nir": records[3].paths["nir"]})
    network = Elsewhere()
    half = (0.5, 0.5, 0.5)
    extract(network, records, replace(config, mean=half, std=half), batch_size=2)  # type: ignore[arg-type]
    (whole, complete, baked), (images, present, again) = network.asked
    assert whole.device.type == images.device.type == present.device.type == "meta"
    assert complete is None
    assert present.shape == (3, 2)
    assert baked == again == "baked"


def test_both_sides_are_looked_at_in_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[Any, Any]]()

    def spy(_: Any, records: Any, data: Any, **how: Any) -> Any:
        seen.append((records, how))
        return {MODALITIES: records}

    monkeypatch.setattr("dmpt.embed.extract.extract_views", spy)
    query, gallery = ([Record({"rgb": Path(name)}, 1, 1)] for name in ("q", "g"))
    found = look(None, DataConfig(), (query, gallery), "bf16", 7)  # type: ignore[arg-type]
    assert found[:2] == (query, gallery)
    how = {"views": [MODALITIES], "precision": torch.bfloat16, "batch_size": 7}
    assert sorted(seen, key=str) == sorted([(query, how), (gallery, how)], key=str)
    seen.clear()
    assert look(None, DataConfig(), (query, query), "bf16", 7)[0] is query  # type: ignore[arg-type]
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("design", "passes"),
    [
        ({}, 3),  # of incomplete samples each modality passes the tower by itself
        ({"bind": {"external": False, "share": True}}, 3),
        ({"bind": {"layers": (0,)}}, 7),  # modalities meet in the tower
        ({"missing": {"dropout": 0.3}}, 3),
        ({"missing": {"dropout": 0.3, "absent": "learned"}}, 3),
    ],
)
def test_a_view_is_what_samples_cut_down_to_it_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, design: dict[str, Any], passes: int
) -> None:
    """For samples that lack modalities too, in one pass of the tower where that is possible."""
    root = toy(tmp_path / "data")
    fit(with_(settings(root, epochs=1), **design), tmp_path / "run")
    opened = open_adapter(tmp_path / "run")
    records = list(opened.dataset.gallery)[:7]
    records[2] = replace(records[2], paths={"nir": records[2].paths["nir"]})
    records[5] = replace(records[5], paths={m: records[5].paths[m] for m in ("rgb", "tir")})
    views = [tuple(m for i, m in enumerate(MODALITIES) if code >> i & 1) for code in range(1, 8)]
    ran, run = [], type(opened.network.backbone).forward
    monkeypatch.setattr(type(opened.network.backbone), "forward", lambda *a, **b: ran.append(1) or run(*a, **b))
    found = extract_views(opened.network, records, opened.data, views, batch_size=7)
    assert len(ran) == passes
    for kept, own in found.items():
        expected = extract(opened.network, restrict(records, kept), opened.data)
        assert np.array_equal(own.present, expected.present)
        np.testing.assert_allclose(own.features, expected.features, atol=2e-5)
        assert (own.shared is None) == (expected.shared is None)
        if own.shared is not None:
            np.testing.assert_allclose(own.shared, expected.shared, atol=2e-5)
