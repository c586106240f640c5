"""Features of a test set: their length, their standardisation, and the precision in which they are computed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmpt.data.records import Record
from dmpt.embed.extract import extract, look
from dmpt.evaluation.evaluate import open_adapter
from dmpt.extensions.shared import shared_part
from dmpt.settings.config import DataConfig
from runs import fit, settings, toy, with_


def test_features_have_length_1_and_the_standardisation_of_their_network(tmp_path: Path) -> None:
    fit(with_(settings(toy(tmp_path / "data"), epochs=1), missing={"dropout": 0.4}), tmp_path / "run")
    opened = open_adapter(tmp_path / "run", None)
    found = extract(opened.network, opened.dataset.gallery, opened.data)
    assert found.shared is not None
    assert np.linalg.norm(found.shared, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(found.flat, axis=1) == pytest.approx(1, abs=1e-5)
    part = shared_part(opened.network)
    assert part is not None
    assert found.calibration is not None
    assert np.array_equal(found.calibration, part.standardisation().numpy())


def test_both_sides_are_looked_at_in_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[Any, Any]]()
    monkeypatch.setattr("dmpt.embed.extract.extract", lambda _, records, __, **how: seen.append((records, how)))
    query, gallery = ([Record({"rgb": Path(name)}, 1, 1)] for name in ("q", "g"))
    look(None, DataConfig(), (query, gallery), "bf16", 7)  # type: ignore[arg-type]
    how = {"precision": torch.bfloat16, "batch_size": 7}
    assert sorted(seen, key=str) == sorted([(query, how), (gallery, how)], key=str)
