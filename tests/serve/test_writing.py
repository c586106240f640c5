"""What clients write to the gallery: added, labelled, removed, taken back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmpt.embed.embedder import Embedder
from dmpt.gallery.changes import label
from dmpt.gallery.history import history
from dmpt.gallery.schema import Model
from dmpt.gallery.sources import Sample
from dmpt.gallery.store import Gallery, create_gallery, open_gallery
from dmpt.serve import table
from dmpt.serve.table import Table
from served import CLOSE, KEY, ok, paths

Files = Callable[..., list[Any]]


def pid_of(gallery: Path, key: str) -> Any:
    return open_gallery(gallery).read(["pid"], f"key = '{key}'").column("pid").to_pylist()[0]


def test_a_write_during_a_look_is_seen_by_the_next(
    gallery: Path, model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a large table takes a while."""
    own = Table(gallery, Model.of(model))
    label(open_gallery(gallery), {KEY: "by somebody else"})
    search, written = table.Search, []

    def slow(found: Gallery) -> Any:
        if not written:
            written.append(own._write("labelled", lambda it: label(it, {KEY: "by us"}), [KEY]).version)
        return search(found)

    monkeypatch.setattr(table, "Search", slow)
    first, _ = own.current(anew=True)
    second, _ = own.current()
    assert (first.version + 1, second.version) == (written[0], written[0])
    assert own.undoable == {"version": written[0], "what": "labelled 1"}


def test_a_label_is_written_found_and_taken_back(start: Any, gallery: Path) -> None:
    with start(gallery) as client:
        before = open_gallery(gallery).version
        said = ok(client.post("/gallery/label", json={"labels": {KEY: "somebody", "RGB/000003_cam1_0_00.jpg": None}}))
        assert said == {
            "version": before + 1, "added": 0, "changed": 2, "removed": 0,
            "undo": {"version": before + 1, "what": "labelled 2"},
        }  # fmt: skip
        assert ok(client.get("/service"))["gallery"]["undo"] == said["undo"]
        itself = ok(client.post("/search?exclude_self=false&k=1", json={"key": KEY}))
        assert (itself["version"], itself["hits"][0]["pid"]) == (before + 1, "somebody")
        back = ok(client.post("/gallery/undo", json={"version": before + 1}))
        assert (back["version"], back["undo"]) == (before + 2, None)
        assert (pid_of(gallery, KEY), pid_of(gallery, "RGB/000003_cam1_0_00.jpg")) == ("2", "3")
        assert ok(client.post("/search?exclude_self=false&k=1", json={"key": KEY}))["hits"][0]["pid"] == "2"


def test_writes_are_taken_back_one_after_the_other(start: Any, gallery: Path) -> None:
    with start(gallery) as client:
        first = ok(client.post("/gallery/label", json={"labels": {KEY: "one"}}))
        ok(client.post("/gallery/label", json={"labels": {KEY: "two"}}))
        third = ok(client.post("/gallery/remove", json={"keys": [KEY]}))
        assert third["removed"] == 1
        expected = ["two", "one", "2"]
        undo = third["undo"]
        for pid in expected:
            undo = ok(client.post("/gallery/undo", json={"version": undo["version"]}))["undo"]
            assert pid_of(gallery, KEY) == pid
        assert undo is None
        stale = client.post("/gallery/undo", json={"version": first["version"]})
        assert stale.status_code == 409


def test_nothing_of_others_is_taken_back(start: Any, gallery: Path) -> None:
    with start(gallery) as client:
        mine = ok(client.post("/gallery/label", json={"labels": {KEY: "mine"}}))
        label(open_gallery(gallery), {KEY: "theirs"})
        refused = client.post("/gallery/undo", json={"version": mine["version"]})
        assert refused.status_code == 409
        assert refused.json()["error"] == f"somebody else wrote after version {mine['version']}; nothing was taken back"
        assert pid_of(gallery, KEY) == "theirs"
        after = ok(client.post("/gallery/label", json={"labels": {KEY: "mine again"}}))
        back = ok(client.post("/gallery/undo", json={"version": after["version"]}))
        assert (pid_of(gallery, KEY), back["undo"]) == ("theirs", None)  # and no further


def test_pictures_are_added_as_the_library_would(
    start: Any, gallery: Path, model: Embedder, home: Path, files: Files
) -> None:
    own = paths(home, "rgb", "tir")
    with start(gallery) as client:
        said = ok(client.post("/gallery/add?key=new&pid=9&camera=3&time=2026-04-01T00:00", files=files("rgb", "tir")))
        assert (said["added"], said["changed"]) == (1, 0)
        hit = ok(client.post("/search?k=1&camera=3", files=files("rgb", "tir")))["hits"][0]
        assert (hit["key"], hit["pid"], hit["time"], hit["pictures"]) == ("new", "9", "2026-04-01T00:00:00+00:00", {})
        again = ok(client.post("/gallery/add?key=new", files=files("rgb", "tir")))
        assert (again["added"], again["changed"]) == (0, 1)
    found = open_gallery(gallery)
    np.testing.assert_allclose(found.embeddings("key = 'new'").flat, model.embed(**own).flat, **CLOSE)
    row = found.read(["pid", "camera", "content"], "key = 'new'").to_pylist()[0]
    assert (row["pid"], row["camera"]) == ("9", "3")
    sample = Sample("x", own)
    assert row["content"] == sample.digest(sample.contents(home))
    assert [one.what for one in history(found)][-2:] == ["added 1", "changed 1"]


def test_vectors_are_added_many_at_once(start: Any, gallery: Path, files: Files) -> None:
    with start(gallery) as client:
        samples = ok(client.post("/embed", files=files()))["samples"]
        rows = [samples[0] | {"key": f"row {number}", "pid": "new"} for number in range(3)]
        assert ok(client.post("/gallery/add", json={"samples": rows}))["added"] == 3
        assert open_gallery(gallery).count("pid = 'new'") == 3
        wrong: list[dict[str, Any]] = [{"key": None}, {"pid": 7}, {"time": "soon"}, {"key": "x" * 5000}]
        for change in [*wrong, {"key": "\ud800"}, {"vector": [1.0]}, {"key": "row 0"}]:
            body = json.dumps({"samples": [rows[0], rows[1] | change]})
            answer = client.post("/gallery/add", content=body, headers={"Content-Type": "application/json"})
            assert (answer.status_code, "\n" in answer.json()["error"]) == (422, False), change
        assert open_gallery(gallery).count("pid = 'new'") == 3


def test_an_empty_gallery_is_filled(start: Any, model: Embedder, tmp_path: Path, files: Files) -> None:
    create_gallery(tmp_path / "e.lance", Model.of(model))
    with start(tmp_path / "e.lance") as client:
        empty = ok(client.post("/search", files=files()))
        assert (empty["items"], empty["hits"]) == (0, [])
        assert ok(client.get("/gallery/examples")) == {"items": []}
        assert ok(client.get("/service"))["gallery"]["rows"] == 0
        ok(client.post("/gallery/add?key=a", files=files()))
        assert [hit["key"] for hit in ok(client.post("/search", files=files()))["hits"]] == ["a"]
        assert client.post("/gallery/add?key=b&time=2026-01-01", files=files()).status_code == 422  # no such column


def test_others_who_write_are_seen(start: Any, gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmpt.serve.table._LOOK", 0.0)
    with start(gallery) as client:
        label(open_gallery(gallery), {KEY: "theirs"})
        found = ok(client.post("/search?exclude_self=false&k=1", json={"key": KEY}))
        assert found["hits"][0]["pid"] == "theirs"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "<script>alert(1)</script>", "a\nb\x00c", "'; DROP TABLE x --", "ü🙂"]
)
def test_names_are_text_and_no_more(start: Any, gallery: Path, files: Files, name: str) -> None:
    with start(gallery) as client:
        samples = ok(client.post("/embed", files=files()))["samples"]
        ok(client.post("/gallery/add", json={"samples": [samples[0] | {"key": name, "pid": name, "camera": name}]}))
        hit = ok(client.post("/search", params={"k": 1, "camera": name}, json={"samples": samples}))["hits"][0]
        assert (hit["key"], hit["pid"], hit["camera"], hit["pictures"]) == (name, name, name, {})
        picture = client.get("/gallery/picture", params={"key": name, "modality": "rgb"})
        assert picture.status_code == 404
        assert ok(client.post("/gallery/label", json={"labels": {name: name + "2"}}))["changed"] == 1
        assert ok(client.post("/gallery/remove", json={"keys": [name]}))["removed"] == 1
