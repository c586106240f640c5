"""What is sent to break it: each gets one clear sentence, and the next request is answered."""

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from starlette.testclient import TestClient

from dmpt.gallery.changes import label
from dmpt.gallery.store import Gallery
from dmpt.serve.asked import parts
from dmpt.serve.refused import Refused
from served import ok

Files = Callable[..., list[Any]]
HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
HTML = b"<!DOCTYPE html><html><body>not found</body></html>"
ENTITIES = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><svg>&b;</svg>'


def picture(mode: str = "RGB", size: tuple[int, int] = (20, 40), kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A small file that claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


REFUSED = {
    "empty but named": b" ",
    "svg": SVG,
    "svg with entities": ENTITIES,
    "html": HTML,
    "text": b"this is no picture\n" * 50,
    "gif": picture("P", kind="GIF"),
    "heic": HEIC,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ls) system\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "20k x 20k": png(20_000, 20_000),
    "2 x 2^31": png(2, 2**31 - 1),
    "1 x 2^24": png(1, 2**24),
    "0 x 0": png(0, 0),
    "cut short": picture(size=(64, 64), kind="JPEG")[:-200],
    "only a head": picture()[:40],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_whatever_it_is_called(shared: TestClient, name: str) -> None:
    answer = shared.post("/embed", files=[("rgb", ("a.jpg", REFUSED[name], "image/jpeg"))])
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"].startswith("rgb[0] ")


@pytest.mark.parametrize("name", ["20k x 20k", "2 x 2^31", "1 x 2^24"])
def test_what_is_too_large_is_not_decoded(shared: TestClient, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (decoded.append(image), load(image))[1])
    shared.post("/embed", files=[("rgb", ("a.jpg", picture(), "image/jpeg"))])
    assert decoded  # the subject is there
    decoded.clear()
    assert shared.post("/embed", files=[("rgb", ("a.jpg", REFUSED[name], "image/jpeg"))]).status_code == 422
    assert not decoded


TAKEN = {
    "1x1": picture(size=(1, 1)),
    "grey": picture("L"),
    "one bit": picture("1"),
    "palette": picture("P"),
    "transparent": picture("RGBA"),
    "grey, transparent": picture("LA"),
    "CMYK": picture("CMYK", kind="JPEG"),
    "16 bits": picture("I;16"),
    "float": picture("F", kind="TIFF"),
    "TIFF": picture(kind="TIFF"),
    "BMP": picture(kind="BMP"),
    "WebP": picture(kind="WEBP"),
    "wide": picture(size=(3000, 2)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_odd_pictures_are_read(shared: TestClient, name: str) -> None:
    (sample,) = ok(shared.post("/embed", files=[("rgb", ("a.svg", TAKEN[name], "text/html"))]))["samples"]
    assert np.linalg.norm(sample["vector"]) == pytest.approx(1, abs=1e-4)


BODIES: list[tuple[str, str, bytes, int]] = [
    ("/embed", "", b"", 415),
    ("/embed", "text/plain", b"hello", 415),
    ("/embed", "application/x-www-form-urlencoded", b"rgb=1", 415),
    ("/embed", "multipart/form-data", b"--x--", 400),
    ("/embed", "multipart/form-data; boundary=x", b"", 400),
    ("/embed", "multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=rgb\r\n\r\nabc", 400),
    ("/embed", "multipart/form-data; boundary=x", b"--x\r\n\r\nabc\r\n--x--", 400),
    ("/embed", "multipart/form-data; boundary=x", b"--x--\r\n", 422),
    ("/embed", "application/json", b"", 400),
    ("/embed", "application/json", b"{", 400),
    ("/embed", "application/json", b"[" * 100_000, 400),
    ("/embed", "application/json", b"\xff\xfe{}", 400),
    ("/embed", "application/json", b"[]", 422),
    ("/embed", "application/json", b"{}", 422),
    ("/embed", "application/json", b'{"samples": [{"vector": [NaN]}]}', 422),
    ("/embed", "application/json", b'{"samples": [{"vector": ["1"]}]}', 422),
    ("/embed", "application/json", b'{"samples": 1}', 422),
    ("/embed", "application/json", b'{"sample": []}', 422),
    ("/embed", "application/json", b'{"key": ["a"]}', 422),
    ("/embed", "application/json", b'{"key": ""}', 422),
    ("/embed", "application/json", b'{"key": "\\ud800"}', 422),
    ("/embed", "application/json", b'{"key": "' + b"a" * 5000 + b'"}', 422),
    ("/embed", "application/json", b'{"key": "none"}', 404),
    ("/embed", "application/octet-stream", b"", 422),
    ("/embed", "application/octet-stream", b"abc", 422),
    ("/compare", "application/json", b'{"key": "RGB/000002_cam1_0_00.jpg"}', 422),
    ("/gallery/label", "application/json", b'{"labels": {}}', 422),
    ("/gallery/label", "application/json", b'{"labels": {"a": 1}}', 422),
    ("/gallery/label", "application/json", b'{"labels": {"none": "1"}}', 404),
    ("/gallery/label", "application/json", b"{" * 100_000, 400),
    ("/gallery/label", "text/plain", b'{"labels": {"a": "b"}}', 415),
    ("/gallery/remove", "application/json", b'{"keys": ["none"]}', 404),
    ("/gallery/remove", "application/json", b'{"where": "1=1"}', 422),
    ("/gallery/undo", "application/json", b'{"version": 1}', 409),
    ("/gallery/undo", "application/json", b'{"version": 1e99}', 422),
    ("/gallery/add", "application/json", b'{"samples": []}', 422),
    ("/gallery/add?key=a", "application/json", b'{"samples": []}', 422),
    ("/gallery/add", "application/octet-stream", b"", 422),
    ("/search?k=0", "application/json", b"{}", 422),
    ("/search?k=1001", "application/json", b"{}", 422),
    ("/search?colour=red", "application/json", b"{}", 422),
    ("/search?use=uv", "application/json", b"{}", 422),
    ("/search?fpir=2", "application/json", b"{}", 422),
    ("/search?group=camera", "application/json", b"{}", 422),
    ("/search?camera=", "application/json", b"{}", 422),
    ("/search?after=0001-01-01T00:00:00%2b14:00", "application/json", b'{"key": "RGB/000002_cam1_0_00.jpg"}', 422),
    ("/embed?model=none", "application/json", b"{}", 404),
]


@pytest.mark.parametrize(("path", "kind", "body", "status"), BODIES, ids=lambda value: str(value)[:40])
def test_what_cannot_be_read_is_told(shared: TestClient, path: str, kind: str, body: bytes, status: int) -> None:
    answer = shared.post(path, content=body, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status, answer.text
    said = answer.json()["error"]
    assert 10 < len(said) <= 500
    assert "Traceback" not in said
    assert "site-packages" not in said


def test_vectors_of_another_length_are_told(shared: TestClient, files: Files) -> None:
    (sample,) = ok(shared.post("/embed", files=files("rgb")))["samples"]
    for change in (
        {"vector": [2 * x for x in sample["vector"]]},
        {"modalities": ["nir"]},
        {"vector": [0.0] * len(sample["vector"])},
    ):
        answer = shared.post("/search", json={"samples": [sample | change]})
        assert answer.status_code == 422
        assert answer.json()["error"].startswith("samples[0]")


def test_fields_that_do_not_fit_are_told(shared: TestClient, files: Files) -> None:
    for fields, said in (
        ([*files("rgb"), ("file", ("a", b"b"))], "there is no field 'file'"),
        ([*files("rgb"), *files("rgb"), *files("nir")], "pictures given: rgb 2, nir 1"),
        ([*files("rgb"), ("key", (None, "a"))], "says it in two ways"),
        ([("rgb", ("", b"")), ("rgb", ("", b"")), *files("nir"), ("nir", ("", b""))], "shot 1 has no picture"),
    ):
        answer = shared.post("/embed", files=fields)
        assert (answer.status_code, said in answer.json()["error"]) == (422, True), answer.text
    alone = shared.post("/search?use=tir", files=files("rgb"))
    assert (alone.status_code, "no picture of tir" in alone.json()["error"]) == (422, True)


def test_a_hostile_multipart_body_takes_one_pass() -> None:
    for body in (
        b"\r\n" * 8_000_000,
        b"\r\n--" * 4_000_000,
        b"\r\n--x" * 3_000_000,
        b"--x\r\n" + b"a: b\r\n" * 2_000_000,
    ):
        with pytest.raises(Refused):
            parts(body, "multipart/form-data; boundary=x", 64)
    named = parts(
        b'--x\r\ncontent-disposition: form-data; name="rgb"; filename="; name=nir"\r\nA: b\r\n\r\n\r\n--y\r\n--x--',
        "a/b; boundary=x",
        4,
    )
    assert named == [("rgb", b"\r\n--y")]


def test_pictures_of_rows_lie_under_the_source_alone(start: Any, gallery: Path, home: Path, tmp_path: Path) -> None:
    source = home / "data" / "test"
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture(size=(9, 9), kind="JPEG"))
    link, folder = source / "RGB" / "link.jpg", source / "RGB" / "linked"
    link.symlink_to(secret)
    folder.symlink_to(tmp_path)
    pipe = source / "RGB" / "pipe.jpg"
    os.mkfifo(pipe)
    keys = [
        "RGB/link.jpg", "RGB/linked/secret.jpg", "RGB/pipe.jpg", f"{secret}", "RGB", "",
        f"../../{tmp_path.name}/secret.jpg", "RGB/../../../secret.jpg", "RGB/\x00.jpg", "/etc/passwd",
        "RGB/" + "a" * 4000,
    ]  # fmt: skip
    try:
        with start(gallery) as client:
            vector = ok(client.post("/embed", json={"key": "RGB/000002_cam1_0_00.jpg"}))["samples"][0]
            rows = [vector | {"key": key} for key in keys if key]
            ok(client.post("/gallery/add", json={"samples": rows}))
            for key in keys:
                answer = client.get("/gallery/picture", params={"key": key, "modality": "rgb"})
                assert answer.status_code == (404 if key else 422), key
                assert answer.headers["content-type"] == "application/json"
            found = ok(client.post("/search?k=30&group=none", json={"samples": [vector]}))["hits"]
            assert len(found) == 30
            assert {hit["key"]: hit["pictures"] for hit in found if hit["key"] in keys and hit["pictures"]} == {}
            for name in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "app.py", ".hidden.css", "a/b.css"):
                assert client.get(f"/static/{name}").status_code == 404
    finally:
        for path in (link, folder, pipe):
            path.unlink()


def test_the_gallery_vanishes_and_comes_back(
    start: Any, gallery: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmpt.serve.table._LOOK", 0.0)
    with start(gallery) as client:
        aside = gallery.rename(gallery.with_name("aside"))
        for answer in (
            client.get("/ready"), client.post("/search", files=files("rgb")), client.get("/service"),
            client.post("/gallery/label", json={"labels": {"RGB/000002_cam1_0_00.jpg": "x"}}),
            client.post("/gallery/undo", json={"version": 2}), client.post("/gallery/add?key=a", files=files("rgb")),
        ):  # fmt: skip
            assert answer.status_code == 503
            assert answer.json()["error"].startswith("g.lance does not exist")
        assert client.get("/health").status_code == client.post("/embed", files=files("rgb")).status_code == 200
        aside.rename(gallery)
        assert client.get("/ready").status_code == 200
        assert ok(client.post("/search", files=files("rgb")))["hits"]


def test_a_gallery_that_was_made_anew_is_another_one(
    start: Any, gallery: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its versions have the same numbers."""
    monkeypatch.setattr("dmpt.serve.table._LOOK", 0.0)
    key = "RGB/000002_cam1_0_00.jpg"
    before = shutil.copytree(gallery, gallery.with_name("before"))
    with start(gallery) as client:
        mine = ok(client.post("/gallery/label", json={"labels": {key: "mine"}}))["version"]
        told = ok(client.get("/service"))["gallery"]
        shutil.rmtree(gallery)
        before.rename(gallery)
        assert label(Gallery(gallery), {key: None}).version == mine
        (first, *_) = ok(client.post("/search?exclude_self=false", json={"key": key}))["hits"]
        assert (first["key"], first["pid"]) == (key, None)
        theirs = ok(client.get("/service"))["gallery"]
        assert (theirs["undo"], theirs["unlabelled"]) == (None, told["unlabelled"] + 1)
        assert client.post("/gallery/undo", json={"version": mine}).status_code == 409
        assert Gallery(gallery).version == mine


def test_a_gallery_that_becomes_another_model_s_is_not_searched(
    start: Any, gallery: Path, files: Files, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from dataclasses import replace

    from dmpt.gallery.schema import Model
    from dmpt.gallery.store import create_gallery

    monkeypatch.setattr("dmpt.serve.table._LOOK", 0.0)
    with start(gallery) as client:
        shutil.rmtree(gallery)
        create_gallery(gallery, replace(Model.of(model), adapter="b" * 64))
        answer = client.post("/search", files=files("rgb"))
        assert (answer.status_code, answer.json()["error"][:40]) == (503, "g.lance holds vectors of adapter bbbbbbb")


def test_a_disk_that_is_full(start: Any, gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dmpt.gallery import changes

    def full(*_: Any, **__: Any) -> Any:
        raise OSError("LanceError(IO): No space left on device (os error 28)")

    with start(gallery) as client:
        monkeypatch.setattr(changes.lance.LanceDataset, "merge_insert", full)
        answer = client.post("/gallery/label", json={"labels": {"RGB/000002_cam1_0_00.jpg": "x"}})
        assert answer.status_code == 507
        assert (
            answer.json()["error"]
            == "g.lance: the disk is full; nothing of this labelling was kept; free space and do it again"
        )
        monkeypatch.undo()
        assert client.post("/gallery/label", json={"labels": {"RGB/000002_cam1_0_00.jpg": "x"}}).status_code == 200


def test_errors_show_no_path_of_this_machine(start: Any, gallery: Path) -> None:
    data = next((gallery / "data").iterdir())
    with start(gallery) as client:
        data.write_bytes(b"garbage")
        answer = client.post("/search", json={"key": "RGB/000002_cam1_0_00.jpg"})
        assert answer.status_code == 503
        assert str(gallery.parent).lstrip("/") not in json.dumps(answer.json())


@pytest.mark.parametrize("damage", ["garbage", "gone"])
def test_a_store_that_is_damaged_after_a_search_is_not_the_client_s_fault(
    start: Any, gallery: Path, files: Files, damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "a folder, ü"
    folder.mkdir()
    monkeypatch.chdir(folder)
    gallery = gallery.rename(folder / "g.lance")
    data = [path for path in (gallery / "data").iterdir() if path.is_file()]
    whole = [path.read_bytes() for path in data]
    with start(Path("g.lance")) as client:  # the store says the whole path
        assert ok(client.post("/search", files=files("rgb")))["hits"]
        for path in data:
            path.write_bytes(b"garbage") if damage == "garbage" else path.unlink()
        for asked in (
            client.post("/search", files=files("rgb")),
            client.post("/search?camera=1&after=2026-03-05", files=files("rgb")),
            client.post("/search?fpir=0.5", files=files("rgb")),
            client.post("/search", json={"key": "RGB/000002_cam1_0_00.jpg"}),
        ):
            assert asked.status_code == 503, asked.text
            for said in (tmp_path.name, folder.name, "folder", "%20"):
                assert said not in asked.json()["error"]
        for path, content in zip(data, whole, strict=True):
            path.write_bytes(content)
        assert ok(client.post("/search?camera=1&after=2026-03-05", files=files("rgb")))["hits"]


def test_what_the_calibration_does_not_carry_is_the_client_s_fault(shared: TestClient, files: Files) -> None:
    answer = shared.post("/search?fpir=1e-9", files=files())
    assert (answer.status_code, "cannot carry FPIR 1e-07 %" in answer.json()["error"]) == (422, True), answer.text


def test_a_gallery_that_a_write_finds_missing_is_looked_for_by_the_next_search(start: Any, gallery: Path) -> None:
    key = "RGB/000002_cam1_0_00.jpg"
    with start(gallery) as client:  # within the second for which nobody looks
        assert client.get("/ready").status_code == 200
        aside = gallery.rename(gallery.with_name("aside"))
        assert client.post("/gallery/label", json={"labels": {key: "x"}}).status_code == 503
        assert client.post("/search", json={"key": key}).status_code == 503
        aside.rename(gallery)
        assert ok(client.post("/search", json={"key": key}))["hits"]


def test_a_body_in_pieces_is_one(shared: TestClient, files: Files) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="rgb"; filename="a"\r\n\r\n'
        + files("rgb")[0][1][1]
        + b"\r\n--x--\r\n"
    )

    def pieces() -> Iterator[bytes]:
        yield from (body[start : start + 100] for start in range(0, len(body), 100))

    kind = {"Content-Type": 'multipart/form-data; boundary="x"'}
    assert ok(shared.post("/embed", content=pieces(), headers=kind))["samples"]
