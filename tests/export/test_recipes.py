"""What lies beside an exported file for other programs, and what is left of it where the export fails."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dmpt.base.errors import UserError
from dmpt.export.recipes import recipes_beside
from graphs import facts, toy_file


def written(path: Path, **changes: Any) -> dict[str, str]:
    """Recipes of a file by their places."""
    with recipes_beside(path, facts(**changes), 3, 0) as found:
        toy_file(path, **changes)
    texts = {str(one.relative_to(path.with_suffix(".recipes"))): one.read_text("utf-8") for one in found}
    assert texts == lying_in(path.with_suffix(".recipes"))
    return texts


def lying_in(folder: Path) -> dict[str, str]:
    return {str(one.relative_to(folder)): one.read_text("utf-8") for one in folder.rglob("*") if one.is_file()}


@pytest.mark.parametrize("fed", ["normalised", "uint8", "pixels"])
def test_boxmot_gets_vectors_of_every_file_with_one_input_from_wherever_it_is_run(
    fed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'it\'s "x".onnx'
    texts = written(path, inputs=("tir",), input=fed)
    assert ("deepstream_tracker.yml" in texts) is (fed != "uint8")
    monkeypatch.chdir("/")
    recipe = runpy.run_path(str(path.with_suffix(".recipes") / "boxmot_embeddings.py"))
    frame = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    found = recipe["embeddings"](frame[..., ::-1], np.array([[0, 0, 30, 40], [5, 5, 20, 30]]))
    assert found.shape == (2, 3)
    np.testing.assert_array_equal(found, recipe["model"].embed(tir=[frame, frame[5:30, 5:20]]).features[:, 2])
    assert recipe["embeddings"](frame, np.empty((0, 4))).shape == (0, 3)


def test_deepstream_is_told_what_it_cannot_do(tmp_path: Path) -> None:
    texts = written(tmp_path / "x: y.onnx", inputs=("rgb",), input="pixels")
    text = texts["deepstream_tracker.yml"]
    assert text.startswith("# DeepStream resizes in its own way")
    own = yaml.safe_load(text)["ReID"]
    assert (own["onnxFile"], own["inferDims"], own["batchSize"]) == ("x: y.onnx", [3, 32, 16], 64)
    other = written(tmp_path / "x: y.onnx", inputs=("rgb",))["deepstream_tracker.yml"]
    assert other.startswith("# This graph takes normalised images, which DeepStream cannot make")


def test_int8_is_run_one_by_one_everywhere(tmp_path: Path) -> None:
    """Else strangers in the batch would change a vector."""
    exact, coarse = (written(tmp_path / "x.onnx", precision=precision) for precision in ("fp32", "int8"))
    assert "max_batch_size: 64" in exact["triton/x/config.pbtxt"]
    assert "dynamic_batching" in exact["triton/x/config.pbtxt"]
    assert "max_batch_size: 1\n" in coarse["triton/x/config.pbtxt"]
    assert "dynamic_batching" not in coarse["triton/x/config.pbtxt"]
    assert json.loads(exact["preprocess.json"])["batch"] == "any"
    assert json.loads(coarse["preprocess.json"])["batch"].startswith("1: ")
    tracker = written(tmp_path / "x.onnx", precision="int8", inputs=("rgb",))["deepstream_tracker.yml"]
    assert yaml.safe_load(tracker)["ReID"]["batchSize"] == 1


def test_those_of_an_earlier_file_go_and_what_is_the_users_stays(tmp_path: Path) -> None:
    path, folder = tmp_path / "x.onnx", tmp_path / "x.recipes"
    assert "boxmot_embeddings.py" in written(path, inputs=("rgb",))
    (folder / "own.py").write_text("mine")
    with recipes_beside(path, facts(), 9, 0):
        pass
    assert sorted(lying_in(folder)) == ["own.py", "preprocess.json", "triton/x/config.pbtxt"]


class Interrupted(Exception):
    """What may happen while the file is written."""


def failing(path: Path, **changes: Any) -> None:
    """An export whose file cannot be written, when its recipes are."""
    with recipes_beside(path, facts(**changes), 9, 0) as found:
        assert all(one.is_file() for one in found)
        raise Interrupted


def test_after_an_error_all_is_as_it_was(tmp_path: Path) -> None:
    path, folder = tmp_path / "x.onnx", tmp_path / "x.recipes"
    with pytest.raises(Interrupted):
        failing(path)
    assert [*tmp_path.iterdir()] == []

    before = written(path, inputs=("rgb",))
    with pytest.raises(Interrupted):
        failing(path, input="pixels")
    assert lying_in(folder) == before

    (folder / "deepstream_tracker.yml").unlink()
    (folder / "deepstream_tracker.yml").mkdir()
    with pytest.raises(UserError, match=r"deepstream_tracker.yml is in the way .*; remove it"):
        failing(path)
    del before["deepstream_tracker.yml"]
    assert lying_in(folder) == before


def test_a_folder_that_cannot_be_made_is_one_line_and_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.recipes").write_text("a file of the user's")
    with pytest.raises(UserError, match=r"cannot write .*preprocess.json"):
        written(tmp_path / "x.onnx")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"x.recipes": "a file of the user's"}
