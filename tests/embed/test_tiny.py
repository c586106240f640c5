"""``package:tiny``: small, whole, its calibration its own; it loads anywhere, and nothing is written to it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dmpt
from dmpt.adapter.calibration import load as load_calibration
from dmpt.adapter.files import adapter_folder
from dmpt.cli import main
from dmpt.embed.embedder import Embedder
from dmpt.synthetic.world import World
from runs import toy

README = Path(__file__).parents[2] / "README.md"
FOLDER = adapter_folder(Path("package:tiny"))


def draw(pid: int, camera: int = 1) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """A person of a world that the adapter has not seen."""
    shot = World(seed=3, cameras=4).shoot(pid, camera, 0)
    return {"rgb": shot.rgb, "nir": shot.nir, "tir": shot.tir}


@pytest.fixture(scope="module")
def model() -> Embedder:
    return dmpt.load("package:tiny")


def test_it_is_small_and_its_calibration_is_its_own(model: Embedder) -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sorted(files) == ["adapter.safetensors", "calibration.json", "config.json"]
    assert sum(files.values()) <= 3e6
    calibration = load_calibration(FOLDER, model.precision)  # checks the hash
    assert calibration is not None
    assert {len(table.common) for table in calibration.tables} >= {1, 2, 3}
    assert all(table.threshold(0.01) is not None for table in calibration.tables)


def texts(content: Any) -> Iterator[str]:
    """Every text in what JSON holds."""
    if isinstance(content, dict | list):
        for each in [*content, *(content.values() if isinstance(content, dict) else ())]:
            yield from texts(each)
    elif isinstance(content, str):
        yield content


def test_its_card_says_what_it_is_of_and_names_no_path() -> None:
    card = json.loads((FOLDER / "config.json").read_text())
    assert "Apache-2.0" in card["licence"]
    assert card["data"]["name"].startswith("drawn persons")
    assert card["data"]["made"]["command"].startswith("python tools/package_tiny.py")
    found = [*texts(card), *texts(json.loads((FOLDER / "calibration.json").read_text()))]
    assert [text for text in found if text.startswith(("/", "~")) or "\\" in text or "/tmp" in text] == []


def test_batches_of_1_7_and_64_give_the_same_in_fp32(model: Embedder) -> None:
    people = [draw(1 + index, 1 + index % 4) for index in range(8)] * 8
    pictures = {name: [person[name] for person in people] for name in ("rgb", "nir", "tir")}
    whole = model.embed(**pictures).flat  # type: ignore[arg-type]
    assert whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    for size in (1, 7):
        some = {name: own[:14] for name, own in pictures.items()}
        np.testing.assert_allclose(model.embed(**some, batch_size=size).flat, whole[:14], atol=1e-5)  # type: ignore[arg-type]


OFFLINE = """
import socket
def refuse(*_):
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
"""


def test_the_lines_of_the_readme_in_a_fresh_process_offline(tmp_path: Path) -> None:
    section = README.read_text(encoding="utf-8").partition("## Use a trained model\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (.*)$", section, re.MULTILINE)
    assert lines[0] == "import dmpt"
    for name, pixels in zip(("a.jpg", "b.jpg", "c.png"), draw(1).values(), strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    for name, pid in (("d.jpg", 1), ("e.jpg", 2)):
        Image.fromarray(draw(pid, 2)["rgb"]).save(tmp_path / name)
    last = "verdict = " + lines[-1]
    check = "assert vectors.flat.shape == (1, 576) and vectors.present.all() and 0 < verdict.fmr <= 1, verdict"
    code = "\n".join([OFFLINE, *lines[:-1], last, check, "print(verdict.modalities, type(verdict.same).__name__)"])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("('rgb',) bool\n", "")


def test_verbs_that_take_a_run_take_it_and_write_nothing_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in FOLDER.iterdir()}
    data = str(toy(tmp_path / "data", size=(64, 32)))
    main(["evaluate", "package:tiny", "--data.root", data, "--data.workers", "0", "--json"])
    assert json.loads(capsys.readouterr().out)["queries"] == 24
    with pytest.raises(SystemExit) as end:
        main(["report", "package:tiny", "--data.root", data])
    assert end.value.code == 2
    said = "an adapter that comes with dmpt keeps no pages; say with --out where this one goes"
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert {path.name: path.stat().st_mtime_ns for path in FOLDER.iterdir()} == before


def test_a_name_that_does_not_come_with_it() -> None:
    with pytest.raises(dmpt.UserError, match="package:small: no such adapter comes with dmpt; there is package:tiny"):
        dmpt.load("package:small")
