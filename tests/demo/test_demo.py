"""The demo, and what the tiny CLIP and the synthetic world prove together: that the method learns what it should."""

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dmpt
import dmpt.demo.demo as demo_module
import dmpt.evaluation.opened as opened_module
from clip_files import tiny_clip
from dmpt.adapter import folder as adapter
from dmpt.adapter.calibration import load as load_calibration
from dmpt.base.errors import UserError
from dmpt.data.layouts import load_dataset
from dmpt.data.loader import SampleDataset, test_batches
from dmpt.data.records import Dataset, Record
from dmpt.data.transforms import TestTransform
from dmpt.demo.demo import _QUICK, _ROWS, _configure, demo
from dmpt.demo.own_files import clear
from dmpt.settings.config import Config
from dmpt.settings.shipped import read_settings, settings_file
from dmpt.settings.values import flatten, from_dict, nest
from dmpt.synthetic.cached import IMAGES, world
from dmpt.training.trainer import Trainer
from runs import with_
from small_world import MARGIN, SMALL, root, score

__all__ = ["root"]


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first row, and the last one trained."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}
    for row in ("frozen", "DMPT"):
        runs[row] = folder / row
        Trainer(_configure(root, row, SMALL.epochs), runs[row]).fit()
    return runs


# --- the demo itself


def test_rows_differ_in_what_their_names_say(root: Path) -> None:
    frozen, full, advised = (_configure(root, row, 3) for row in _ROWS)
    assert (frozen.semantic.length, frozen.modality.length, frozen.bind.depth, frozen.train.epochs) == (0, 0, 0, 0)
    standard = Config()
    assert (full.semantic, full.modality, full.bind, full.loss) == (
        standard.semantic,
        standard.modality,
        standard.bind,
        standard.loss,
    )
    assert full.text.loss == "modality"
    assert (full.backbone, full.text) == tiny_clip()
    path = settings_file("decoupled")
    assert path is not None
    decoupled = read_settings(path, "decoupled")
    assert advised == from_dict(nest(flatten(asdict(full)) | decoupled))


def test_a_world_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dmpt.synthetic.cached.IMAGES", 2)
    first = world(train_ids=2, test_ids=2)
    monkeypatch.setattr("dmpt.synthetic.cached.write_world", None)
    assert world(train_ids=2, test_ids=2) == first
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.name]


def test_an_interrupted_rendering_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dmpt.synthetic.cached.IMAGES", 2)
    monkeypatch.setattr("dmpt.synthetic.write._write_captions", stop)  # which comes last
    with pytest.raises(KeyboardInterrupt):
        world(train_ids=2, test_ids=2)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_read_only_cache_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set DMPT_CACHE to another folder"):
        world(train_ids=2, test_ids=2)


@pytest.mark.long
def test_the_demo_prints_a_table_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_module, "_QUICK", replace(_QUICK, test_ids=12, epochs=1))
    demo(tmp_path / "demo", quick=True)
    said = capsys.readouterr().out
    page = (tmp_path / "demo" / "report.html").read_text()
    for row in _ROWS:
        assert row in said
        assert row in page
    assert "dmpt train --config rgbnt201 " in said
    (line,) = re.findall(r"dmpt serve (\S+) --gallery (\S+)", said)
    advised, gallery = (Path(part) for part in line)
    assert load_calibration(advised / "best") is not None
    found = dmpt.open_gallery(gallery)
    assert len(found) == 12 * IMAGES
    assert found.model.adapter == dmpt.load(advised).adapter
    assert "http://" not in page.replace("http://www.w3.org", "")
    clear(tmp_path / "demo")  # everything in it is its own
    assert list((tmp_path / "demo").iterdir()) == []


def test_without_galleries_the_demo_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "sys.modules['lance'] = None\n"
        "from dmpt.demo.demo import _embed\n"
        f"print(_embed(Path({str(tmp_path)!r}), Path({str(tmp_path)!r})))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == (
        "To search these persons, a gallery needs lance, which is not installed; pip install 'dmpt[gallery]'; then run "
        "the demo again.\n"
    )


# --- the tiny CLIP


def test_the_tiny_clip_loads_as_any_clip_does(root: Path, tmp_path: Path) -> None:
    trainer = Trainer(_configure(root, "DMPT", 0), tmp_path / "run")
    trainer.fit()
    _, card = adapter.load(tmp_path / "run" / "last")
    assert card.config.backbone.weights.startswith("package:")  # no path of this machine
    assert trainer.model.tower.projection is not None
    assert replace(tiny_clip()[0], grid=(8, 8)) == card.config.backbone  # which its table shows


# --- what training proves


@pytest.mark.long
def test_training_beats_frozen_features(trained: dict[str, Path]) -> None:
    frozen, full = score(trained["frozen"]), score(trained["DMPT"])
    print(f"frozen {frozen:.1f} DMPT {full:.1f}")
    assert full > frozen + MARGIN


def test_data(change: Any) -> Any:
    """``load_dataset`` whose test records are changed."""

    def load(*arguments: Any) -> Dataset:
        dataset = load_dataset(*arguments)
        test = tuple(change(dataset.gallery))
        return replace(dataset, query=test, gallery=test)

    return load


test_data.__test__ = False  # type: ignore[attr-defined]  # a helper


@pytest.mark.long
def test_swapped_modalities_cost(trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    before = score(trained["DMPT"])
    swap = {"rgb": "tir", "nir": "rgb", "tir": "nir"}

    def swapped(records: Sequence[Record]) -> list[Record]:
        return [replace(r, paths={m: r.paths[swap[m]] for m in r.paths}) for r in records]

    monkeypatch.setattr(opened_module, "load_dataset", test_data(swapped))
    after = score(trained["DMPT"])
    print(f"aligned {before:.1f} swapped {after:.1f}")
    assert after < before - MARGIN


@cache
def images_of(root: Path) -> torch.Tensor:
    """A test batch, ``(3, B, 3, H, W)``."""
    config = _configure(root, "DMPT", 0)
    half = (0.5, 0.5, 0.5)
    dataset = SampleDataset(
        load_dataset("rgbnt201", root).gallery, TestTransform(config.data.size, half, half), (0, 65535)
    )
    return next(iter(test_batches(dataset, 6, workers=0))).images


@pytest.mark.long
@pytest.mark.parametrize("bind", [True, False])
def test_only_the_bind_prompt_lets_spectra_know_of_each_other(trained: dict[str, Path], root: Path, bind: bool) -> None:
    network, _ = adapter.load(trained["DMPT"] / "last")
    network.eval()
    if not bind:
        network.bind = None
    images = images_of(root)
    changed = images.clone()
    changed[2] = changed[2].flip(0)  # another one's thermal picture
    with torch.no_grad():
        one, other = network(images).features.x, network(changed).features.x
    assert not torch.equal(one[2], other[2])
    assert torch.equal(one[0], other[0]) != bind
    assert torch.equal(one[1], other[1]) != bind


@pytest.mark.long
def test_cameras_decide_what_counts(trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With wrong cameras the rule takes out other pictures.

    In a drawn world those of one camera are hardly easier, so the number moves little, and not always down.
    """
    before = score(trained["DMPT"])

    def shuffled(records: Sequence[Record]) -> list[Record]:
        cameras = np.random.default_rng(0).permutation([record.camera for record in records]).tolist()
        return [replace(record, camera=camera) for record, camera in zip(records, cameras, strict=True)]

    monkeypatch.setattr(opened_module, "load_dataset", test_data(shuffled))
    after = score(trained["DMPT"])
    print(f"cameras {before:.1f}, shuffled {after:.1f}")
    assert after != before


_EXTERNAL = "bind.layers.0.external."  # exchanges semantic prompts, so it cannot be without them


@pytest.mark.parametrize(
    ("without", "tensors", "term"),
    [
        ({"semantic": {"length": 0}, "bind": {"external": False}}, ("prompts.semantic.", _EXTERNAL), None),
        ({"bind": {"external": False}}, (_EXTERNAL,), None),
        ({"modality": {"length": 0}}, ("prompts.modality.",), None),
        ({"bind": {"depth": 0}}, ("bind.",), None),
        ({"text": {"loss": "off"}}, (), "text"),
        ({"loss": {"centre": 0.0}}, (), "centre"),
        ({"loss": {"metric_weight": 0.0}}, (), "metric"),
    ],
)
def test_a_component_switched_off_takes_its_own_and_no_more(
    root: Path, tmp_path: Path, without: dict[str, Any], tensors: tuple[str, ...], term: str | None
) -> None:
    """What it trained and what it added to the loss."""
    whole = with_(_configure(root, "DMPT", 1), train={"ids": 2, "instances": 2})
    full, less = (Trainer(c, tmp_path / str(n)) for n, c in enumerate((whole, with_(whole, **without))))
    gone = {name for name in full.trained if name.startswith(tensors)} if tensors else set()
    assert bool(gone) == bool(tensors)
    assert set(full.trained) - set(less.trained) == gone
    assert set(less.trained) <= set(full.trained)
    steps = [t._step(next(t.data.batches(t.config, epoch=0, start=0, process=0, processes=1)), 1) for t in (full, less)]
    assert set(steps[0]["losses"]) - set(steps[1]["losses"]) == ({term} if term else set())
    assert steps[0]["loss"] != steps[1]["loss"]
