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
from dmpt.data.records import Record
from dmpt.embed.extract import extract, look
from dmpt.evaluation.opened import open_adapter
from dmpt.extensions.shared import shared_part
from dmpt.settings.config import DataConfig
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

    backbone, also = SimpleNamespace(wrapped=False), ()

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.nn.Parameter(torch.empty(1, device="meta"))
        self.asked = list[tuple[Any, ...]]()

    def bake(self) -> str:
        return "baked"

    def forward(self, *asked: Any) -> Any:
        self.asked.append(asked)
        return SimpleNamespace(features=asked[0].shape[1])

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
    monkeypatch.setattr("dmpt.embed.extract.extract", lambda _, records, data, **how: seen.append((records, how)))
    query, gallery = ([Record({"rgb": Path(name)}, 1, 1)] for name in ("q", "g"))
    look(None, DataConfig(), (query, gallery), "bf16", 7)  # type: ignore[arg-type]
    how = {"precision": torch.bfloat16, "batch_size": 7}
    assert sorted(seen, key=str) == sorted([(query, how), (gallery, how)], key=str)
