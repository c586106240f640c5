"""An exported file behind the service, in ONNX Runtime and in OpenVINO, started as a user starts it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inside import gallery_of

import dmpt
from dmpt.embed.embedder import Embedder
from dmpt.gallery.search import Search
from dmpt.gallery.store import open_gallery
from served import CLOSE, KEY, Running, ok, paths, running

pytestmark = pytest.mark.long
Files = Callable[..., list[Any]]
MATE, OTHER = "000002_cam2_0_01.jpg", "000003_cam1_0_00.jpg"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``package:tiny`` as ``dmpt export`` writes it."""
    path: Path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    command = [sys.executable, "-m", "dmpt", "export", "package:tiny", "--out", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def served(
    file: Path, home: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Running, Embedder, Path]]:
    """The service of a runtime, the same model in this process, and their gallery."""
    own = dmpt.load(file, runtime=request.param)
    assert own.runtime == request.param
    folder: Path = tmp_path_factory.mktemp(request.param)
    gallery = gallery_of(own, home / "data" / "test", folder / "g.lance", lambda _, name: str(int(name[:6])))
    given = () if request.param == "onnx" else ("--runtime", request.param)  # a file is ONNX Runtime's by itself
    with running("--gallery", gallery, *given, model=file) as one:
        yield one, own, gallery


def test_it_says_what_computes(served: tuple[Running, Embedder, Path]) -> None:
    one, own, _ = served
    (model,) = ok(one.client.get("/service"))["models"]
    assert (model["name"], model["runtime"], model["precision"]) == ("tiny.onnx", own.runtime, own.precision)
    assert (model["adapter"], model["attention"]) == (own.adapter, False)


def test_it_embeds_searches_and_compares_as_the_library_does(
    served: tuple[Running, Embedder, Path], home: Path, files: Files
) -> None:
    one, own, gallery = served
    found = ok(one.client.post("/embed", files=files("rgb", "tir")))
    expected = own.embed(**paths(home, "rgb", "tir"))
    np.testing.assert_allclose(found["samples"][0]["vector"], expected.flat[0], **CLOSE)

    hits = ok(one.client.post("/search?k=4&group=none", files=files("rgb", "nir")))["hits"]
    query = own.embed(**paths(home, "rgb", "nir"))
    (right,) = Search(open_gallery(gallery))([query], 4, group=None, calibration=own.calibration)
    assert [hit["key"] for hit in hits] == [hit.key for hit in right]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in right], abs=1e-3)
    assert hits[0]["key"] == KEY
    assert [hit["fmr"] for hit in hits] == pytest.approx([hit.fmr for hit in right], rel=0.2)

    for name in (MATE, OTHER):
        said = ok(one.client.post("/compare", files=[*files(), *files(name=name, prefix="other_")]))
        verdict = own.compare(own.embed(**paths(home)), own.embed(**paths(home, name=name)))
        assert said["score"] == pytest.approx(verdict.score, abs=1e-3)
        assert (said["same"], said["modalities"]) == (verdict.same, list(verdict.modalities))


def test_it_writes_and_does_not_say_where_it_looks(served: tuple[Running, Embedder, Path], files: Files) -> None:
    one, _, gallery = served
    written = ok(one.client.post("/gallery/add?key=new&pid=9", files=files(name=MATE)))
    assert open_gallery(gallery).count("key = 'new'") == 1
    ok(one.client.post("/gallery/undo", json={"version": written["version"]}))
    assert open_gallery(gallery).count("key = 'new'") == 0
    looked = one.client.post("/attention", files=files())
    assert (looked.status_code, looked.json()["error"][:31]) == (422, "tiny.onnx is an exported graph,")
