"""``dmpt gallery add`` and ``rebuild``, with the tiny adapter that ships and drawn pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dmpt
from dmpt.cli import main
from dmpt.gallery.changes import label, remove
from dmpt.gallery.store import open_gallery

ADD = ("--model", "package:tiny", "--precision", "fp32", "--workers", "1")


def pictures(folder: Path, count: int, seed: int = 0) -> None:
    draw = np.random.default_rng(seed)
    for modality in ("rgb", "nir", "tir"):
        (folder / modality).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw.integers(0, 255, (128, 64, 3), np.uint8)).save(folder / modality / f"{number}.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pictures(tmp_path / "photos", 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    main(["gallery", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["gallery", *arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.long
def test_add_and_rebuild(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = found(capsys, "add", "g.lance", "photos", *ADD, "--camera", "3")
    assert (first["version"], first["added"], first["kept"]) == (2, 4, 0)
    again = found(capsys, "add", "g.lance", "photos", *ADD)
    assert (again["version"], again["added"], again["kept"]) == (2, 0, 4)
    pictures(here / "photos" / "day2", 2, seed=1)
    inside = found(capsys, "add", "g.lance", "photos/day2", *ADD, "--pid", "Åsa")
    assert (inside["version"], inside["added"]) == (3, 2)
    named = found(capsys, "add", "g.lance", "photos/day2", *ADD, "--pid", "Bo")
    assert (named["version"], named["kept"]) == (4, 2)
    gallery = open_gallery("g.lance")
    rows = {row["key"]: (row["pid"], row["camera"]) for row in gallery.read(["key", "pid", "camera"]).to_pylist()}
    assert rows["rgb/0.png"] == (None, "3")
    assert rows["day2/rgb/0.png"] == ("Bo", None)
    vectors = gallery.embeddings("key = 'day2/rgb/0.png'")
    model = dmpt.load("package:tiny", precision="fp32")
    own = model.embed(*(here / "photos" / "day2" / modality / "0.png" for modality in ("rgb", "nir", "tir")))
    np.testing.assert_allclose(vectors.flat, own.flat, atol=1e-5)
    pictures(here / "other", 1)
    assert f"have the keys of others, from {here}/photos, such as rgb/0.png, and would replace" in error(
        capsys, "add", "g.lance", "other", *ADD
    )
    assert "holds vectors of precision fp32, these are of bf16" in error(
        capsys, "add", "g.lance", "photos", *ADD[:2], "--precision", "bf16"
    )

    label(gallery, {"rgb/1.png": "Cleo"})
    remove(gallery, ["rgb/2.png"])
    anew = ("rebuild", "g.lance", "--model", "package:tiny", "--precision", "bf16", "--workers", "1")
    shutil.rmtree("photos/day2")
    assert f"2 samples of g.lance are not in {here}/photos, such as day2/rgb/0.png" in error(capsys, *anew)
    remove(gallery, where="key LIKE 'day2/%'")
    shutil.move("photos/nir/3.png", "3.png")
    (here / "photos/nir/3.png").write_bytes(b"no picture")
    assert "1 samples of g.lance could not be embedded" in error(capsys, *anew)
    assert gallery.refresh().model.precision == "fp32"
    shutil.move("3.png", "photos/nir/3.png")
    done = found(capsys, *anew)
    assert (done["version"], done["changed"]) == (8, 3)
    gallery.refresh()
    assert gallery.model.precision == "bf16"
    rows = {row["key"]: row["pid"] for row in gallery.read(["key", "pid"]).to_pylist()}
    assert rows == {"rgb/0.png": None, "rgb/1.png": "Cleo", "rgb/3.png": None}
    model = dmpt.load("package:tiny", precision="bf16")
    own = model.embed(*(here / "photos" / modality / "3.png" for modality in ("rgb", "nir", "tir")))
    np.testing.assert_allclose(gallery.embeddings("key = 'rgb/3.png'").flat, own.flat, atol=1e-2)
    assert [one["what"] for one in found(capsys, "history", "g.lance")][-1] == "rebuilt"
    assert not list(here.glob("g.rebuild*"))
    assert found(capsys, "rollback", "g.lance", "3")["version"] == 9
    assert gallery.refresh().model.precision == "fp32"
