"""``dmpt search``: from files to hits, as text, as JSON and as a page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import dmpt
from dmpt.cli import main
from dmpt.gallery.changes import add
from dmpt.gallery.queries import of_source
from dmpt.gallery.schema import Model
from dmpt.gallery.store import Gallery, create_gallery
from dmpt.retrieval.embeddings import join
from dmpt.synthetic.world import World
from runs import fit, settings, toy, with_

NAME = "000009_cam1_0_00.jpg"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run``, calibrated by nobody, ``data``, and ``g.lance`` with the test samples, half of them labelled."""
    folder = tmp_path_factory.mktemp("search")
    config = with_(settings(toy(folder / "data"), epochs=0), missing={"dropout": 0.3})
    fit(config, folder / "run")
    model = dmpt.load(folder / "run", precision="fp32")
    own = Model.of(model)
    queries = of_source(model, folder / "data" / "test")
    gallery = create_gallery(folder / "g.lance", own, [pa.field("site", pa.string())], str(folder / "data" / "test"))
    keys = [query.name for query in queries]
    pids = [None if "_cam2" in key else key[4:10].lstrip("0") for key in keys]
    cameras = [key.partition("_cam")[2][0] for key in keys]
    add(gallery, own, join(*(query.embeddings for query in queries)), keys, pid=pids, camera=cameras)
    create_gallery(folder / "empty.lance", own)
    other = replace(own, adapter="b" * 64)
    add(create_gallery(folder / "other.lance", other), other, queries[0].embeddings, ["x"])
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        main(["search", *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def flags(home: Path, *spectra: str, name: str = NAME) -> list[Any]:
    given = [[f"--{spectrum}", home / "data" / "test" / folder / name] for spectrum, folder in FOLDERS.items()]
    return [part for pair in given if pair[0][2:] in spectra for part in pair]


FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}


def test_a_sample_finds_itself(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--model", home / "run", "--gallery", home / "g.lance"]
    code, out, _ = run(capsys, *flags(home, "rgb", "nir", "tir"), *common, "--json")
    assert code == 0
    result = json.loads(out)
    assert {name: result[name] for name in ("items", "calibrated", "precision")} == {
        "items": 24,
        "calibrated": False,
        "precision": "fp32",
    }
    (query,) = result["queries"]
    best = query["hits"][0]
    assert (best["key"], best["score"], best["pid"], best["camera"]) == (f"RGB/{NAME}", 1.0, "9", "1")
    assert best["modalities"] == ["rgb", "nir", "tir"]
    assert set(best) == {"rank", "key", "score", "modalities", "has", "pid", "camera", "fmr", "expected_false_matches",
                         "distance", "columns", "spectra"}  # fmt: skip
    assert set(best["spectra"]) == {"rgb", "nir", "tir"}
    labelled = [hit["pid"] for hit in query["hits"] if hit["pid"]]
    assert len(set(labelled)) == len(labelled)

    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    page = tmp_path / "found.html"
    word = home / "data" / "test" / "NI" / NAME
    code, out, err = run(capsys, word, *common, "--camera", "1", "--k", 30, "--page", page, "--open", "--group", "none")
    assert code == 0
    assert "(nir, 1 shot)" in out
    assert "Not calibrated: a score orders items, and no more can be said" in out
    assert "note: --k is 30, and 12 items count: all are ranked" in err
    assert shown == [page.as_uri()]
    text = page.read_text(encoding="utf-8")
    assert text.count("<img ") == 13
    assert "without RGB" in text  # the query
    assert text.count("in RGB, near-infrared and thermal") == 0
    assert text.count("in RGB, NIR and TIR") == 12

    two = [*flags(home, "tir"), *flags(home, "tir", name="000009_cam2_0_01.jpg")]
    code, out, _ = run(capsys, *two, *common, "--shots", "max", "--rerank", "--json")
    (query,) = json.loads(out)["queries"]
    assert (query["shots"], query["aggregated"], query["modalities"]) == (2, "max", ["tir"])
    assert [hit["distance"] for hit in query["hits"]] == sorted(hit["distance"] for hit in query["hits"])

    code, out, _ = run(capsys, "--query", home / "data" / "test", *common, "--k", 1, "--json")
    assert [one["hits"][0]["key"] for one in json.loads(out)["queries"]] == [
        one["query"] for one in json.loads(out)["queries"]
    ]


def test_a_broken_query_is_left_out(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", home / "run", "--gallery", home / "g.lance", "--k", 1, "--json"]
    (tmp_path / "RGB").mkdir()
    (tmp_path / "RGB" / "a.jpg").write_bytes(b"?")
    code, out, errors = run(capsys, "--query", tmp_path, *common)
    assert (code, out) == (2, "")
    assert "note: left out: " in errors  # once a process
    assert "RGB/a.jpg is damaged or no image" in errors
    assert f"none of the samples of {tmp_path} can be used" in errors
    (tmp_path / "RGB" / "b.jpg").write_bytes((home / "data" / "test" / "RGB" / NAME).read_bytes())
    code, out, _ = run(capsys, "--query", tmp_path, *common)
    assert (code, [query["query"] for query in json.loads(out)["queries"]]) == (0, ["RGB/b.jpg"])


def test_what_stands_outside_the_lists_of_an_index(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(home / "g.lance", tmp_path / "g.lance")
    monkeypatch.setattr("dmpt.gallery.index._LIST", 1)
    main(["gallery", "index", str(path)])
    asked = [*flags(home, "rgb"), "--model", home / "run", "--gallery", path, "--index"]
    assert "none of its lists" not in run(capsys, *asked)[1]
    gallery = Gallery(path)
    rows = of_source(dmpt.load(home / "run", precision="fp32"), home / "data" / "test")[:2]
    add(gallery, gallery.model, join(*(row.embeddings for row in rows)), ["new0", "new1"])
    said = "2 samples are in none of its lists, so all are compared (dmpt gallery index).\n"
    assert said in run(capsys, *asked)[1]
    assert json.loads(run(capsys, *asked, "--json")[1])["index_outside"] == 2


def test_without_a_shared_part_nothing_in_common_means_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, shot = dmpt.load("package:tiny"), World(seed=3, cameras=4).shoot(1, 1, 0)
    own = Model.of(model)
    rows = model.embed(rgb=[shot.rgb, None], tir=[None, shot.tir])
    add(create_gallery(tmp_path / "g.lance", own), own, rows[np.array([0])], ["a"])
    Image.fromarray(shot.tir).save(tmp_path / "t.png")
    page = tmp_path / "found.html"
    asked = ["--tir", tmp_path / "t.png", "--model", "package:tiny", "--gallery", tmp_path / "g.lance", "--page", page]
    _, out, err = run(capsys, *asked)
    assert "no modality in common with any item: mean features, which nothing was trained to align, are compared" in err
    assert "│ mean features │" in out
    said = "Mean features: nothing in common, and nothing was trained to align them; no rate is known.\n"
    assert said in out
    assert said.strip() in page.read_text(encoding="utf-8")
    assert "shared parts" not in out + err + page.read_text(encoding="utf-8")
    add(Gallery(tmp_path / "g.lance"), own, rows[np.array([1])], ["b"])
    _, out, err = run(capsys, *asked, "--where", "key = 'b'")
    assert "mean features" not in (out + err).lower()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a picture or a folder of shots; or --rgb, --nir, --tir; or --query"),
        (["a.jpg", "--query", "b"], "give a picture or a folder of shots; or --rgb, --nir, --tir; or --query"),
        (["a.jpg"], "a.jpg does not exist; give a picture, or a folder of shots of one"),
        (["a.jpg", "--where", "nothing = 1"], "nothing"),
        (["a.jpg", "--camera"], "argument --camera: expected at least one argument"),
        (["a.jpg", "--gallery", "empty.lance"], "empty.lance is empty; fill it with dmpt gallery add"),
        (["a.jpg", "--gallery", "no.lance"], "no.lance does not exist; dmpt embed or dmpt gallery add makes a gallery"),
        (["a.jpg", "--gallery", "other.lance"], "other.lance holds vectors of adapter bbbbbbbbbbbb, these are of "),
        (["--known-only", *["--rgb", f"data/test/RGB/{NAME}"]], "the model is not calibrated, so nothing says who is"),
        (["a.jpg", "--version", "99"], "dmpt gallery history lists the versions that there are"),
    ],
)
def test_what_cannot_be_searched(
    home: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)
    code, out, err = run(capsys, "--model", "run", "--gallery", "g.lance", *arguments)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert line.startswith("dmpt search: error: ")
    assert said in line
