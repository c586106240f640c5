"""What the service answers: vectors, verdicts and hits are those of the library."""

import copy
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dmpt.embed.embedder import Embedder
from dmpt.gallery.search import Search
from dmpt.gallery.store import open_gallery
from served import CLOSE, NAME, ok, paths

Files = Callable[..., list[Any]]


def test_embed_gives_the_library_s_vectors(shared: TestClient, model: Embedder, home: Path, files: Files) -> None:
    found = ok(shared.post("/embed", files=files("rgb", "tir")))
    expected = model.embed(**paths(home, "rgb", "tir"))
    (sample,) = found["samples"]
    assert sample["modalities"] == ["rgb", "tir"]
    np.testing.assert_allclose(sample["vector"], expected.flat[0], **CLOSE)
    assert np.linalg.norm(sample["vector"]) == pytest.approx(1, abs=1e-5)
    assert (found["model"], found["adapter"], found["precision"]) == ("tiny", model.adapter, model.precision)
    assert len(sample["vector"]) == 3 * found["width"]

    raw = shared.post("/embed", files=files("rgb", "tir"), headers={"Accept": "application/octet-stream"})
    assert raw.headers["content-type"] == "application/octet-stream"
    np.testing.assert_allclose(np.frombuffer(raw.content, "<f4"), sample["vector"], **CLOSE)


def test_shots_are_samples_and_an_empty_part_holds_a_place(shared: TestClient, files: Files) -> None:
    other = files("rgb", name="000003_cam1_0_00.jpg")
    empty = ("nir", ("", b""))
    found = ok(shared.post("/embed", files=[*files("rgb"), *other, *files("nir"), empty]))
    assert [sample["modalities"] for sample in found["samples"]] == [["rgb", "nir"], ["rgb"]]
    all_empty = ok(shared.post("/embed", files=[*files("rgb"), empty, ("tir", ("", b""))]))
    assert [sample["modalities"] for sample in all_empty["samples"]] == [["rgb"]]


def test_vectors_in_all_forms_search_alike(shared: TestClient, files: Files) -> None:
    found = ok(shared.post("/embed", files=files()))
    raw = np.array(found["samples"][0]["vector"], "<f4").tobytes()
    ways = [
        shared.post("/search?k=5", json={"samples": found["samples"]}),
        shared.post("/search?k=5", content=raw, headers={"Content-Type": "application/octet-stream"}),
    ]
    one, two = (ok(way) for way in ways)
    assert one == two
    assert one["hits"][0]["key"] == f"RGB/{NAME}"


OF_ANOTHER = {"adapter": ("b" * 64, "adapter is bbbbbbbbbbbb, and"), "precision": ("int8", "precision is int8, and")}


def test_what_embed_answers_is_a_body(shared: TestClient, files: Files) -> None:
    found = ok(shared.post("/embed", files=files()))
    assert ok(shared.post("/embed", json=found)) == found
    assert ok(shared.post("/search", json=found)) == ok(shared.post("/search", json={"samples": found["samples"]}))
    two = found | {f"other_{name}": own for name, own in found.items()}
    assert ok(shared.post("/compare", json=two))["score"] == 1.0


@pytest.mark.parametrize("what", OF_ANOTHER)
def test_vectors_of_another_model_are_refused(start: Any, gallery: Path, files: Files, what: str) -> None:
    given, said = OF_ANOTHER[what]
    with start(gallery) as client:
        found = ok(client.post("/embed", files=files()))
        raw = np.array(found["samples"][0]["vector"], "<f4").tobytes()
        kind, before = {"Content-Type": "application/octet-stream"}, ok(client.get("/service"))["gallery"]
        row = found["samples"][0] | {"key": "new"}
        for answer in (
            client.post("/search", json=found | {what: given}),
            client.post("/embed", json=found | {what: given}),
            client.post("/gallery/add", json=found | {what: given, "samples": [row]}),
            client.post("/gallery/add", params={what: given}, json={"samples": [row]}),
            client.post("/gallery/add", params={"key": "new", what: given}, content=raw, headers=kind),
            client.post("/search", params={what: given}, content=raw, headers=kind),
            client.post("/compare", params={what: given}, content=2 * raw, headers=kind),
        ):
            assert (answer.status_code, answer.json()["error"][: len(said)]) == (422, said), answer.text
        both = {"samples": found["samples"], "other_samples": found["samples"], f"other_{what}": given}
        other = client.post("/compare", json=both)
        assert (other.status_code, other.json()["error"][: len(said) + 6]) == (422, f"other_{said}")
        own = {name: found[name] for name in OF_ANOTHER}
        assert ok(client.get("/service"))["gallery"] == before
        assert ok(client.post("/gallery/add", params={"key": "a", **own}, content=raw, headers=kind))["added"] == 1
        assert ok(client.post("/gallery/add", json=found | {"samples": [row]}))["added"] == 1


def test_vectors_of_a_modality_that_the_model_does_not_read_are_refused(
    start: Any, model: Embedder, files: Files
) -> None:
    grey = copy.copy(model)
    grey.__dict__.pop("blank", None)
    grey.modalities = ("nir", "tir")
    with start(others={"grey": grey}) as client:
        found = ok(client.post("/embed", files=files("rgb", "tir")))["samples"]
        raw = np.array(found[0]["vector"], "<f4").tobytes()
        said = "has numbers of rgb, but the model reads nir, tir; leave zeros there"
        for answer, where in (
            (client.post("/embed?model=grey", json={"samples": found}), "samples[0]"),
            (client.post("/compare?model=grey", json={"samples": found, "other_samples": found}), "samples[0]"),
            (
                client.post("/embed?model=grey", content=raw, headers={"Content-Type": "application/octet-stream"}),
                "row[0]",
            ),
        ):
            assert (answer.status_code, answer.json()["error"]) == (422, f"{where} {said}")
        fits = ok(client.post("/embed", files=files("nir", "tir")))["samples"]
        assert ok(client.post("/embed?model=grey", json={"samples": fits}))["samples"] == fits


def test_files_of_the_page_are_fetched_once(shared: TestClient) -> None:
    for path in ("/", "/static/page.js", "/static/inter.woff2"):
        first = shared.get(path)
        assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
        again = shared.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        changed = shared.get(path, headers={"If-None-Match": '"another"'})
        assert (changed.status_code, changed.content) == (200, first.content)
    tags = {shared.get(f"/static/{name}").headers["etag"] for name in ("page.js", "page.css", "words.js")}
    assert len(tags) == 3


def test_search_is_the_library_s(shared: TestClient, model: Embedder, home: Path, files: Files) -> None:
    found = ok(shared.post("/search?k=4&not_camera=2&group=none", files=files("rgb", "nir")))
    search = Search(open_gallery(home / "g.lance"))
    query = model.embed(**paths(home, "rgb", "nir"))
    where = ["camera IS NULL OR camera NOT IN ('2')"]
    (hits,) = search([query], 4, conditions=where, group=None, calibration=model.calibration, spectra=True)
    assert (found["items"], found["modalities"], found["shots"], found["calibrated"]) == (12, ["rgb", "nir"], 1, True)
    assert [hit["key"] for hit in found["hits"]] == [hit.key for hit in hits]
    for rank, (told, hit) in enumerate(zip(found["hits"], hits, strict=True), start=1):
        assert told["rank"] == rank
        assert told["score"] == pytest.approx(hit.score, abs=1e-3)
        assert (told["pid"], told["camera"], told["has"]) == (hit.pid, hit.camera, list(hit.has))
        assert told["modalities"] == list(hit.modalities) == ["rgb", "nir"]
        assert told["spectra"].keys() == {"rgb", "nir"}
        assert told["expected_false_matches"] == pytest.approx(12 * told["fmr"])
        assert told["time"].startswith("2026-03-")
        assert told["pictures"].keys() == {"rgb", "nir", "tir"}


def test_what_a_modality_says_alone_is_what_a_search_with_it_alone_says(shared: TestClient, files: Files) -> None:
    (sample,) = ok(shared.post("/embed", files=files()))["samples"]
    whole = ok(shared.post("/search?k=24&group=none", json={"samples": [sample]}))
    for name in ("rgb", "nir", "tir"):
        alone = ok(shared.post(f"/search?k=24&group=none&use={name}", json={"samples": [sample]}))
        assert alone["modalities"] == [name]
        scores = {hit["key"]: (hit["score"], hit["fmr"]) for hit in alone["hits"]}
        said = {hit["key"]: (hit["spectra"][name]["score"], hit["spectra"][name]["fmr"]) for hit in whole["hits"]}
        assert len(said) == 24
        assert {key: pytest.approx(one, abs=2e-6) for key, one in scores.items()} == said


def test_a_row_is_asked_for_by_its_key(shared: TestClient) -> None:
    key = f"RGB/{NAME}"
    found = ok(shared.post("/search?k=24&group=none", json={"key": key}))
    assert len(found["hits"]) == found["items"] == 23
    itself = ok(shared.post("/search?k=1&exclude_self=false", json={"keys": [key]}))
    assert (itself["hits"][0]["key"], itself["hits"][0]["score"]) == (key, 1.0)
    form = ok(shared.post("/search?k=1&exclude_self=false", files=[("key", (None, key))]))
    assert form["hits"] == itself["hits"]
    missing = shared.post("/search", json={"key": "RGB/none.jpg"})
    assert (missing.status_code, missing.json()["error"]) == (404, "g.lance has no row RGB/none.jpg")


def test_filters_by_time(shared: TestClient) -> None:
    found = ok(
        shared.post("/search?after=2026-03-05&before=2026-03-08T12:00:00Z&group=none", json={"key": f"RGB/{NAME}"})
    )
    assert found["items"] == 3
    nobody = ok(shared.post("/search?camera=9", json={"key": f"RGB/{NAME}"}))
    assert (nobody["items"], nobody["hits"]) == (0, [])
    wrong = shared.post("/search?after=soon", json={"key": f"RGB/{NAME}"})
    assert wrong.status_code == 422
    assert wrong.json()["error"].startswith("after: 'soon' is no time")


def test_compare_is_the_library_s(shared: TestClient, model: Embedder, home: Path, files: Files) -> None:
    mate = "000002_cam2_0_01.jpg"
    found = ok(
        shared.post("/compare?fmr=0.05", files=[*files("rgb", "nir"), *files("rgb", name=mate, prefix="other_")])
    )
    expected = model.compare(
        model.embed(**paths(home, "rgb", "nir")), model.embed(**paths(home, "rgb", name=mate)), 0.05
    )
    assert found["score"] == pytest.approx(expected.score, abs=1e-3)
    assert (found["modalities"], found["asked_fmr"], found["calibrated"]) == (["rgb"], 0.05, True)
    assert found["spectra"]["rgb"]["score"] == pytest.approx(found["score"], abs=1e-6)

    row = ok(shared.post("/compare", files=[*files(), ("other_key", (None, f"RGB/{mate}"))]))
    keys = ok(shared.post("/compare", json={"key": f"RGB/{NAME}", "other_key": f"RGB/{mate}"}))
    assert row["score"] == pytest.approx(keys["score"], abs=1e-3)
    assert keys["spectra"].keys() == {"rgb", "nir", "tir"}
    same = ok(shared.post("/compare", json={"key": f"RGB/{NAME}", "other_key": f"RGB/{NAME}"}))
    assert (same["score"], same["same"]) == (1.0, True)


def test_where_the_model_looks(shared: TestClient, files: Files) -> None:
    found = ok(shared.post("/attention", files=files("rgb", "tir")))
    rows, columns = found["grid"]
    assert (rows * 16, columns * 16) == tuple(found["size"]) or rows * columns > 1
    assert found["maps"].keys() == {"rgb", "tir"}
    assert found["lookers"][-1] == "class token"
    for maps in found["maps"].values():
        for kind in found["lookers"]:
            values = np.array(maps[kind])
            assert values.shape == (rows, columns)
            assert values.mean() == pytest.approx(1, abs=1e-3)
    row = ok(shared.post("/attention?use=rgb", json={"key": f"RGB/{NAME}"}))
    assert row["maps"].keys() == {"rgb"}
    two = shared.post("/attention", files=[*files("rgb"), *files("rgb")])
    assert two.status_code == 422


def test_what_there_is(shared: TestClient, model: Embedder, home: Path) -> None:
    found = ok(shared.get("/service"))
    (one,) = found["models"]
    assert (one["name"], one["adapter"], one["modalities"]) == ("tiny", model.adapter, ["rgb", "nir", "tir"])
    assert model.calibration is not None
    assert [table["common"] for table in one["calibration"]["sets"]] == [
        list(t.common) for t in model.calibration.tables
    ]
    for table in one["calibration"]["sets"]:
        for low, high in zip(table["curve"], table["curve"][1:], strict=False):
            assert low["score"] < high["score"]
            assert low["fmr"] >= high["fmr"] >= table["least"]
            assert low["fnmr"] <= high["fnmr"]
    gallery = found["gallery"]
    assert {name: gallery[name] for name in ("name", "model", "rows", "identities", "unlabelled", "cameras")} == {
        "name": "g.lance", "model": "tiny", "rows": 24, "identities": 4, "unlabelled": 12,
        "cameras": {"1": 12, "2": 12},
    }  # fmt: skip
    assert gallery["modalities"] == {"rgb+nir+tir": 24}
    assert gallery["time"] == {"first": "2026-03-01T12:00:00+00:00", "last": "2026-03-24T12:00:00+00:00"}
    assert (gallery["pictures"], gallery["undo"]) == (True, None)
    assert str(home) not in str(found)


def test_examples_have_pictures_of_all_identities(shared: TestClient) -> None:
    items = ok(shared.get("/gallery/examples?n=4"))["items"]
    assert [item["pid"] for item in items] == ["2", "3", "4", "5"]
    assert items == ok(shared.get("/gallery/examples?n=4"))["items"]
    for item in items:
        for url in item["pictures"].values():
            answer = shared.get(url + "&size=40")
            assert answer.headers["content-type"] == "image/jpeg"
            picture = Image.open(io.BytesIO(answer.content))
            assert (picture.format, picture.size) == ("JPEG", (20, 40))


def test_many_clients_share_passes(shared: TestClient, files: Files) -> None:
    names = [f"00000{pid}_cam{1 + n % 2}_0_0{n}.jpg" for pid in (2, 3, 4, 5) for n in range(6)]
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda name: ok(shared.post("/embed", files=files(name=name))), names))
    for name, one in zip(names, found, strict=True):
        alone = ok(shared.post("/embed", files=files(name=name)))
        np.testing.assert_allclose(one["samples"][0]["vector"], alone["samples"][0]["vector"], **CLOSE)
    text = shared.get("/metrics").text
    lines = [line.split('le="')[1] for line in text.splitlines() if "dmpt_batch_samples_bucket" in line]
    sizes = {line.split('"')[0]: float(line.split()[-1]) for line in lines}
    assert sizes["+Inf"] > sizes["1.0"]  # some passes had several


def test_the_service_counts_itself(shared: TestClient) -> None:
    shared.get("/health")
    text = shared.get("/metrics").text
    assert 'dmpt_requests_total{method="GET",path="/health",status="200"}' in text
    assert shared.get("/ready").json() == {"status": "ready"}
    assert shared.get("/nothing").status_code == 404
    assert 'path="other",status="404"' in shared.get("/metrics").text
