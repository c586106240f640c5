"""``dmpt export``: from a trained model to a file that anybody can run, and back into every verb."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dmpt
from dmpt.cli import main
from dmpt.export import parity
from dmpt.runtime.exported import Exported, read, write
from dmpt.synthetic.world import World
from dmpt.synthetic.write import write_world
from without_torch import run_without_torch

NAMES = ("rgb", "nir", "tir")


def people(count: int) -> dict[str, list[np.ndarray]]:  # type: ignore[type-arg]
    world = World(seed=3, cameras=4, size=(150, 80))  # so that they are resized
    shots = [world.shoot(1 + number // 2, 1 + number % 4, number) for number in range(count)]
    return {name: [getattr(shot, name) for shot in shots] for name in NAMES}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``package:tiny`` as a file."""
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    done = subprocess.run(
        [sys.executable, "-m", "dmpt", "export", "package:tiny", "--out", path, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert 0 < said["difference_from_torch"] < 1e-6
    assert (said["inputs"], said["compared_on"], said["calibrated"]) == ([*NAMES], "7 drawn samples", True)
    assert (done.stderr, said["bytes"]) == ("", path.stat().st_size)
    return path


@pytest.mark.long
def test_the_same_vectors_and_verdicts_without_torch(tiny: Path, tmp_path: Path) -> None:
    torch_s, given = dmpt.load("package:tiny"), people(6)
    given["tir"][0] = given["nir"][2] = None  # type: ignore[call-overload]
    expected = torch_s.embed(**given)  # type: ignore[arg-type]
    np.savez(
        tmp_path / "given.npz",
        **{f"{name}{n}": x for name in NAMES for n, x in enumerate(given[name]) if x is not None},
    )
    code = f"""
import dmpt, json, numpy as np
said = np.load("given.npz")
given = {{name: [said.get(f"{{name}}{{n}}") for n in range(6)] for name in ("rgb", "nir", "tir")}}
model = dmpt.load({str(tiny)!r})
found = model.embed(**given)
np.savez("found.npz", flat=found.flat, present=found.present)
verdicts = [model.compare(found[[0, 1]], found[[n]]) for n in (1, 3, 5)]
print(json.dumps([[one.same, one.fmr, one.modalities] for one in verdicts]))
"""
    out = run_without_torch(code, tmp_path)
    found = np.load(tmp_path / "found.npz")
    assert (found["present"] == expected.present).all()
    apart = float(np.abs(found["flat"] - expected.flat).max())
    assert 0 < apart < 1e-3, apart  # Pillow's resize; without one it is 1e-6
    rows = [np.array([n]) for n in (1, 3, 5)]
    verdicts = [torch_s.compare(expected[np.array([0, 1])], expected[row]) for row in rows]
    for said, verdict in zip(json.loads(out), verdicts, strict=True):
        assert (said[0], said[2]) == (verdict.same, [*verdict.modalities])
        assert said[1] == pytest.approx(verdict.fmr, rel=0.2)


@pytest.mark.long
def test_pictures_of_the_models_size_give_the_same_to_a_millionth(tiny: Path) -> None:
    shots = [World(seed=5, size=(128, 64)).shoot(pid, 1, 0) for pid in (1, 2, 3)]
    given: Any = {name: [getattr(shot, name) for shot in shots] for name in NAMES}
    expected = dmpt.load("package:tiny", precision="fp32").embed(**given).flat
    np.testing.assert_allclose(dmpt.load(tiny).embed(**given).flat, expected, atol=1e-6)
    pytest.importorskip("openvino")
    exact, native = (dmpt.load(tiny, runtime="openvino", precision=p) for p in ("fp32", "bf16"))  # type: ignore[arg-type]
    np.testing.assert_allclose(exact.embed(**given).flat, expected, atol=1e-6)
    assert (exact.precision, native.precision, native.calibration) == ("fp32", "bf16", None)
    coarse = native.embed(**given).flat
    assert np.abs(coarse - expected).max() < 5e-3


@pytest.mark.long
def test_a_gallery_of_torch_is_searched_with_the_file_and_not_in_another_precision(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = people(6)
    for name in NAMES:
        for number, pixels in enumerate(given[name]):
            place = tmp_path / "photos" / name / f"{number // 2}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)
    main(["embed", "photos", "--model", "package:tiny", "--out", "g.lance"])
    query = ["search", "photos/rgb/1/2.png", "--modality", "rgb", "--gallery", "g.lance", "--group", "none", "--json"]
    main([*query, "--model", str(tiny)])
    found = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert (found["precision"], found["calibrated"]) == ("fp32", True)
    assert found["queries"][0]["hits"][0]["key"] == "rgb/1/2.png"
    main(["gallery", "add", "g.lance", "photos", "--model", str(tiny)])
    assert "all 6 samples are there already" in capsys.readouterr().out
    pytest.importorskip("openvino")
    with pytest.raises(SystemExit):
        main([*query, "--model", str(tiny), "--runtime", "openvino", "--precision", "bf16"])
    assert "g.lance holds vectors of precision fp32, these are of bf16" in capsys.readouterr().err


@pytest.mark.long
def test_one_modality_for_trackers_and_what_they_ask_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["export", "package:tiny", "--out", "rgb.onnx", "--modality", "rgb", "--input", "pixels"])
    assert "takes rgb (pixels)" in capsys.readouterr().out
    files = sorted(str(path.relative_to("rgb.recipes")) for path in Path("rgb.recipes").rglob("*") if path.is_file())
    assert files == ["boxmot_embeddings.py", "deepstream_tracker.yml", "preprocess.json", "triton/rgb/config.pbtxt"]
    config = Path("rgb.recipes/triton/rgb/config.pbtxt").read_text()
    assert '{ name: "images", data_type: TYPE_FP32, dims: [ 3, 128, 64 ] }' in config
    assert '{ name: "features", data_type: TYPE_FP32, dims: [ 192 ] }' in config
    deepstream = Path("rgb.recipes/deepstream_tracker.yml").read_text()
    assert "inferDims: [3, 128, 64]" in deepstream
    assert "netScaleFactor: 1.0" in deepstream
    recipe = runpy.run_path("rgb.recipes/boxmot_embeddings.py")
    frame = people(1)["rgb"][0]
    whole = np.array([[0, 0, frame.shape[1], frame.shape[0]]])
    found = recipe["embeddings"](frame[..., ::-1], whole)
    expected = dmpt.load("package:tiny", precision="fp32").embed(rgb=frame).features[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert recipe["embeddings"](frame, whole[:0]).shape == (0, 192)

    session: Any = pytest.importorskip("onnxruntime").InferenceSession("rgb.onnx")
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(float)", [3, 128, 64])
    assert isinstance(images.shape[0], str)
    config = (tiny.with_suffix(".recipes") / "triton/model/config.pbtxt").read_text()
    assert re.findall(r'name: "(\w+)"', config) == ["model", *NAMES, "present", "features"]
    assert not (tiny.with_suffix(".recipes") / "boxmot_embeddings.py").exists()


@pytest.mark.long
def test_int8_says_what_it_costs_and_what_its_own_scores_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_world(Path("world"), train_ids=2, test_ids=12, images=4, workers=1)
    data = ["--data.root", "world", "--data.workers", "0"]
    main(["export", "package:tiny", "--out", "model.onnx", "--int8", *data[:2]])
    out = capsys.readouterr().out
    assert re.search(r"mAP % +│ +\d+\.\d\d +│ +\d+\.\d\d", out), out
    assert "FMR % above 0." in out
    found = read(Path("model.onnx"))
    assert found.cost is not None
    main(["evaluate", "package:tiny", *data, "--precision", "fp32", "--json"])
    assert found.cost["mAP"] == pytest.approx(json.loads(capsys.readouterr().out)["mAP"], abs=0.2)
    assert abs(found.cost["mAP_int8"] - found.cost["mAP"]) < 3
    assert 0.99 < found.cost["cosine"] < 1
    assert re.search(r"int8 moves a vector by at most \d+(\.\d+)? % of what two samples lie apart", out), out
    assert 0 < found.cost["moved"] < 0.5
    assert 1e-4 < found.cost["batch"] < 0.05
    assert f"changes numbers of a vector by up to {found.cost['batch']:.1g}; dmpt does not" in out
    assert found.cost["rates"][0]["fmr"] == pytest.approx(0.1, abs=0.01)
    model = dmpt.load("model.onnx")
    assert model.precision == "int8"
    assert model.calibration is not None
    assert (model.calibration.split, model.calibration.items) == ("test", 48)
    given = people(5)
    whole = model.embed(**given).flat
    alone = [model.embed(**{name: own[row] for name, own in given.items()}).flat[0] for row in range(5)]
    np.testing.assert_array_equal(whole, alone)
    assert capsys.readouterr().err == ""


@pytest.mark.long
@pytest.mark.parametrize("form", ["pixels", "uint8"])
def test_int8_of_pictures_that_are_not_normalised(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trackers feed such files."""
    monkeypatch.chdir(tmp_path)
    write_world(Path("world"), train_ids=2, test_ids=8, images=2, workers=1)
    line = ["--modality", "rgb", "--input", form, "--int8", "--data.root", "world"]
    main(["export", "package:tiny", "--out", "model.onnx", *line])
    assert "(" + form + "), one sample at a time" in capsys.readouterr().out
    found = read(Path("model.onnx"))
    assert found.cost is not None
    assert 0 < found.cost["moved"] < 0.2
    assert found.cost["cosine"] > 0.99


@pytest.mark.long
def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parity, "LIMIT", 1e-12)
    Path("model.onnx").write_bytes(b"what was there")
    with pytest.raises(SystemExit) as end:
        main(["export", "package:tiny", "--out", "model.onnx"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "what was exported differs from torch by" in line
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert Path("model.onnx").read_bytes() == b"what was there"


@pytest.mark.long
def test_a_recipe_that_cannot_be_written_leaves_no_file(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dmpt.export import export

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "write_onnx", lambda graph, size, path: shutil.copy(tiny, path))
    Path("model.recipes").write_text("a file of the user's")
    with pytest.raises(SystemExit) as end:
        main(["export", "package:tiny", "--out", "model.onnx"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write model.recipes/preprocess.json" in line
    assert [path.name for path in tmp_path.iterdir()] == ["model.recipes"]
    assert Path("model.recipes").read_text() == "a file of the user's"
    Path("model.recipes").unlink()

    def full(graph: bytes, found: Exported, path: Path) -> None:
        if path.name == "model.onnx":
            raise dmpt.UserError("no space left")
        write(graph, found, path)

    monkeypatch.setattr(export, "write", full)
    with pytest.raises(SystemExit):
        main(["export", "package:tiny", "--out", "model.onnx"])
    assert [*tmp_path.iterdir()] == []


def test_a_package_that_is_lacking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dmpt.export import export

    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(
        dmpt.UserError, match=r"takes onnx and onnxscript and onnxruntime, .*pip install 'dmpt\[onnx\]'"
    ):
        export.export("package:tiny", tmp_path / "x.onnx")
