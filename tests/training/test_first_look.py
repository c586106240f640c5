"""What training makes of its pictures before it starts: looked at once by all, doubts told, the value range settled."""

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import dmpt.data.check.looks as looking
from dmpt.adapter.folder import load_card
from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.data.check import check
from dmpt.data.check.pictures import _PERCENT, Deep
from dmpt.data.check.value_range import measure_range
from dmpt.evaluation.evaluate import evaluate
from dmpt.settings.config import Config, DataConfig
from dmpt.training.data import read
from dmpt.training.trainer import Trainer
from runs import flags, settings, torchrun, toy, with_

FILES = 3 * 8 * 6
"""Of the training set; the test set has half as many."""
TIR = "train_8/TI/000001_cam1_0_00"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    toy(tmp_path / "data")
    age(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were looked at, remembered in a cache of this test's own."""
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    found: list[Path] = []
    decode = looking.decode
    monkeypatch.setattr(looking, "decode", lambda path, convert: (found.append(path), decode(path, convert))[1])
    return found


def age(root: Path) -> None:
    for path in root.rglob("*.*"):
        os.utime(path, (time.time() - 3600,) * 2)


def deepen(root: Path, low: float, high: float, kind: type = np.uint16) -> None:
    """Thermal pictures with values from ``low`` up to ``high``; floats as TIFF."""
    for path in root.glob("*/TI/*.jpg"):
        grey = np.asarray(Image.open(path), dtype=np.float64)
        values = low + (grey - grey.min()) / np.ptp(grey) * (high - low)
        Image.fromarray(values.astype(kind)).save(path.with_suffix(".png" if kind is np.uint16 else ".tif"))
        path.unlink()
    age(root)


def auto(root: Path, **train: Any) -> Config:
    return with_(settings(root, **{"epochs": 1} | train), data={"value_range": "auto"})


def notes(root: Path, **data: Any) -> list[str]:
    return read(with_(settings(root), data=data), skip_broken=False).notes


def test_a_second_start_a_resume_and_an_evaluation_decode_nothing_to_check(
    data: Path, decoded: list[Path], tmp_path: Path
) -> None:
    config = settings(data, epochs=1, select="test")
    Trainer(config, tmp_path / "run").fit()
    assert sorted(decoded) == sorted(data.rglob("*.jpg"))  # each once, the test images too
    decoded.clear()
    Trainer(config, tmp_path / "again").close()
    Trainer(config, tmp_path / "run", resume=True).close()
    Trainer(with_(config, data={"value_range": (0, 100), "modalities": ("rgb", "tir")}), tmp_path / "other").close()
    evaluate(tmp_path / "run")
    check("rgbnt201", data)
    assert decoded == []


def test_a_broken_picture_of_the_test_set_does_not_keep_from_training(data: Path) -> None:
    broken = data / "test/TI/000009_cam1_0_00.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    config = settings(data)
    assert read(config, skip_broken=False).skipped == []
    with pytest.raises(UserError, match=f"{broken} is truncated"):
        read(with_(config, train={"select": "test"}), skip_broken=False)


COUNT_OPENED = """
import os, sys
def opened(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".jpg"):
        line = f"{os.environ.get('RANK')} {arguments[0]}\\n"
        file = os.open(os.environ["OPENED"] + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, line.encode())
        os.close(file)
sys.addaudithook(opened)
"""


def in_two_processes(config: Config, out: Path, tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What came of it, and each opening of a picture: the process and the path. Nothing can be remembered."""
    (tmp_path / "sitecustomize.py").write_text(COUNT_OPENED)
    (tmp_path / "no_folder").touch()
    here = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "OPENED": str(tmp_path / "opened"),
        "DMPT_CACHE": str(tmp_path / "no_folder" / "cache"),
    }
    command = torchrun("train", *flags(config), f"--out={out}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=here)
    log = tmp_path / "opened.log"
    return done, log.read_text().splitlines() if log.exists() else []


@pytest.mark.long
def test_of_two_processes_one_looks_at_every_picture_once(data: Path, tmp_path: Path) -> None:
    done, opened = in_two_processes(auto(data, epochs=0), tmp_path / "run", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(opened) == sorted(f"0 {path}" for path in data.rglob("*.jpg"))
    assert done.stderr.count("48 samples of 8 identities") == 1


@pytest.mark.long
def test_a_broken_picture_ends_all_processes_with_one_line(data: Path, tmp_path: Path) -> None:
    broken = data / f"{TIR}.jpg"
    broken.write_bytes(b"")
    done, _ = in_two_processes(settings(data), tmp_path / "run", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("dmpt train: error: ") == 1
    assert f"dmpt train: error: {broken} is empty (0 bytes)" in done.stderr
    assert "dmpt/training" not in done.stderr  # no traceback of ours
    assert not (tmp_path / "run").exists()


def test_nothing_is_said_of_healthy_pictures(data: Path) -> None:
    assert notes(data) == notes(data, value_range="auto") == []


def copy_into_test(root: Path) -> None:
    shutil.copy(root / f"{TIR}.jpg", root / "test/TI/000009_cam1_0_00.jpg")


def copy_to_another_identity(root: Path) -> None:
    for number in (0, 2):
        name = f"cam1_0_{number:02d}.jpg"
        shutil.copy(root / f"train_8/RGB/000001_{name}", root / f"train_8/RGB/000002_{name}")


def exchange(root: Path) -> None:
    rgb, tir = root / f"{TIR.replace('TI', 'RGB')}.jpg", root / f"{TIR}.jpg"
    rgb.rename(root / "aside")
    tir.rename(rgb)
    (root / "aside").rename(tir)


def copy_infrared(root: Path) -> None:
    shutil.copy(root / f"{TIR.replace('TI', 'NI')}.jpg", root / f"{TIR}.jpg")


def colour(root: Path) -> None:
    path = root / f"{TIR.replace('TI', 'RGB')}.jpg"
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / f"{TIR}.jpg", quality=95)


def copies_in_test(root: Path) -> None:
    """None of the training's business."""
    shutil.copy(root / "test/RGB/000009_cam1_0_00.jpg", root / "test/RGB/000010_cam1_0_00.jpg")
    shutil.copy(root / "test/NI/000009_cam1_0_00.jpg", root / "test/TI/000009_cam1_0_00.jpg")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: deepen(root, 7200, 7710), "16-bit images whose contrast the value range takes away: 48, the"),
        (copy_into_test, "pictures of train that are in test too: 1, the first: "),
        (copy_to_another_identity, "one picture under two labels: 2, the first: "),
        (exchange, "modalities that look exchanged: 1, the first: "),
        (copy_infrared, "the same picture in two modalities: 1, the first: "),
        (colour, "colour pictures among the infrared: 1, the first: "),
        (copies_in_test, None),
    ],
)
def test_what_check_calls_an_error_is_told_in_one_line_a_kind(data: Path, damage: Any, said: str | None) -> None:
    damage(data)
    found = {finding.kind for finding in check("rgbnt201", data).findings} - {"counts"}
    assert len(found) == (1 if said else 2)  # it is there
    lines = notes(data)
    assert len(lines) == (said is not None)
    for line in lines:
        assert line.startswith(said or "")
        assert line.endswith(" (dmpt check lists them)")
        assert str(data) in line


def test_modalities_that_are_not_used_are_no_matter(data: Path) -> None:
    copy_infrared(data)
    deepen(data, 7200, 7710)
    assert notes(data)
    assert notes(data, modalities=("rgb", "nir")) == []


def test_training_says_it_once_and_goes_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deepen(data, 7200, 7710)
    out = tmp_path / "run"
    for more in ([], ["--resume"]):
        main(["train", *flags(settings(data, epochs=1)), f"--out={out}", *more])
        said = capsys.readouterr().err
        (line,) = [line for line in said.splitlines() if "dmpt check" in line]
        assert "is left fewer than 8 of 256 levels; set data.value_range to auto, which is [72" in line
    assert (out / "last" / "config.json").exists()


@pytest.mark.parametrize(
    ("low", "high", "kind"), [(7200, 7710, np.uint16), (18.2, 37.5, np.float32), (-5.0, 0.5, np.float32)]
)
def test_auto_measures_the_training_set_and_fixes_it_for_good(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], low: float, high: float, kind: type
) -> None:
    deepen(data, low, high, kind)
    out, config = tmp_path / "run", auto(data)
    trainer = Trainer(config, out)
    bottom, top = trainer.config.data.black_and_white
    width = high - low
    assert low - 0.02 * width < bottom < low + 0.1 * width
    assert high - 0.1 * width < top < high + 0.02 * width
    trainer.fit()
    said = capsys.readouterr().err
    assert f"data.value_range, measured on the training images: [{bottom:g},{top:g}]" in said
    assert "dmpt check" not in said
    fixed = [bottom, top]
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["value_range"] == fixed
    assert json.loads((out / "last" / "config.json").read_text())["config"]["data"]["value_range"] == fixed
    assert load_card(out / "last").config.data.black_and_white == (bottom, top)
    evaluate(out)
    report = check("rgbnt201", data, DataConfig(value_range="auto"))
    assert report.value_range == (bottom, top)
    assert report.errors == 0
    assert f"value range [{bottom:g},{top:g}]" in next(report.lines())


def test_a_run_goes_on_with_the_range_that_it_began_with(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deepen(data, 7200, 7710)
    out, config = tmp_path / "run", auto(data, epochs=2)
    begun = Trainer(config, out)
    begun.close()
    for path in data.rglob("train_8/TI/*.png"):  # other pictures under the old names
        Image.fromarray((np.asarray(Image.open(path)) * 2).astype(np.uint16)).save(path)
    capsys.readouterr()
    resumed = Trainer(config, out, resume=True)
    resumed.close()
    assert resumed.config == begun.config
    assert "measured" not in capsys.readouterr().err
    other = with_(config, data={"value_range": (0.0, 9.0)})
    with pytest.raises(UserError, match=r"data.value_range was \[7\d\d\d.0, 7\d\d\d.0\], now it is \[0.0, 9.0\]"):
        Trainer(other, out, resume=True)


def test_of_eight_bits_there_is_nothing_to_measure(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(auto(data), tmp_path / "run")
    trainer.close()
    assert trainer.config.data == replace(
        settings(data).data, mean=trainer.config.data.mean, std=trainer.config.data.std
    )
    assert trainer.data.lines() == read(settings(data), skip_broken=False).lines()


def deep(*values: float) -> Deep:
    return Deep(tuple(np.percentile(values, _PERCENT).tolist()), rich=True)


def test_the_measured_range_heeds_neither_hot_pixels_nor_odd_frames() -> None:
    draw = np.random.default_rng(0)
    frames = [deep(*draw.uniform(7200, 7710, 5000)) for _ in range(60)]
    plain = measure_range(frames)
    assert plain is not None
    assert plain == pytest.approx((7203, 7707), abs=2)
    hot = [deep(*draw.uniform(7200, 7710, 5000), *[65535] * 5, *[0] * 5) for _ in range(60)]
    assert measure_range(hot) == pytest.approx(plain, abs=2)
    assert measure_range([*frames, deep(*[65535] * 50, 20000)]) == pytest.approx(plain, abs=2)
    assert measure_range([*frames, deep(*[0] * 50)]) == pytest.approx(plain, abs=2)
    both = measure_range([*frames, *[deep(*draw.uniform(3000, 4000, 5000)) for _ in range(60)]])
    assert both == pytest.approx((3005, 7707), abs=20)  # neither camera is odd
    assert measure_range([]) is None
    assert measure_range([deep(5, 5)] * 9) is None
    assert measure_range(frames[:1]) == pytest.approx(plain, abs=3)


def test_one_range_that_cannot_serve_two_cameras_is_not_proposed(data: Path) -> None:
    """Near-infrared of 16 bits beside thermal of 14."""
    deepen(data, 7200, 7710)
    for path in data.glob("*/NI/*.jpg"):
        grey = np.asarray(Image.open(path), dtype=np.uint16)
        Image.fromarray(grey * 257).save(path.with_suffix(".png"))
        path.unlink()
    for value_range in ((0.0, 65535.0), "auto"):
        (line,) = [line for line in notes(data, value_range=value_range) if "dmpt check" in line]
        assert "no one data.value_range serves all modalities: bring tir to 8 bits by [72" in line
