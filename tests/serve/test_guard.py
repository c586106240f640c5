"""Who may ask: tokens, names, pages of other sites; and how much."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dmpt.base.errors import UserError
from dmpt.gallery.rows import KEY_LENGTH, LABEL_LENGTH
from dmpt.gallery.store import Gallery
from dmpt.serve.asked import KEY, LABEL
from dmpt.serve.limits import Limits
from dmpt.serve.models import names_of
from dmpt.serve.serving import hosts_of, listening, token_of
from served import ok

Files = Callable[..., list[Any]]
TOKEN = "0123456789abcdef"
ASKED = [
    ("GET", "/service"), ("GET", "/metrics"), ("POST", "/embed"), ("POST", "/search"), ("POST", "/compare"),
    ("POST", "/attention"), ("GET", "/gallery/examples"), ("GET", "/gallery/picture?key=a&modality=rgb"),
    ("POST", "/gallery/add?key=a"), ("POST", "/gallery/label"), ("POST", "/gallery/remove"), ("POST", "/gallery/undo"),
]  # fmt: skip


def test_without_its_token_nothing_is_told(start: Any, home: Path) -> None:
    with start(home / "g.lance", token=TOKEN) as client:
        for path, method in client.app._app.openapi()["paths"].items():
            asked = [one.partition("?")[0] for _, one in ASKED]
            assert path in [*asked, "/health", "/ready"], f"{path} {method} is not tried"
        for method, path in ASKED:
            for given in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}):
                answer = client.request(method, path, headers=given)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
                assert answer.json() == {"error": "this needs the service's token: Authorization: Bearer TOKEN"}
        assert ok(client.get("/service", headers={"Authorization": f"Bearer {TOKEN}"}))["models"]
        for path in ("/health", "/ready", "/openapi.json"):
            assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),  # DNS rebinding
        ({"Host": "127.0.0.1.evil.example:8000"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9000"}, 403),  # another program on this machine
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 403),
    ],
    ids=str,
)
def test_pages_of_others_are_kept_out(shared: TestClient, headers: dict[str, str], status: int) -> None:
    answer = shared.get("/service", headers=headers)
    assert answer.status_code == status
    assert ("error" in answer.json()) == (status == 403)


def test_methods_that_clients_invent_are_counted_as_one(shared: TestClient) -> None:
    for method in ("BREW", "WHEN"):
        shared.request(method, "/service")
    counted = shared.get("/metrics").text
    assert 'method="other"' in counted
    assert "BREW" not in counted


def test_a_link_from_elsewhere_opens_the_page_alone(shared: TestClient) -> None:
    follow = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert shared.get("/", headers=follow).status_code == 200
    assert shared.get("/openapi.json", headers=follow).status_code == 403


def test_every_answer_says_what_browsers_may_do(shared: TestClient) -> None:
    for answer in (shared.get("/service"), shared.get("/nowhere"), shared.get("/health", headers={"Host": "x"})):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


SMALL = Limits(body_bytes=100_000, held_bytes=150_000, pixels=10_000, held_pixels=12_000)


def test_bodies_have_an_end(start: Any, files: Files) -> None:
    with start(limits=SMALL) as client:
        said = client.post("/embed", content=b"x" * 200_000, headers={"Content-Type": "application/json"})
        assert (said.status_code, said.json()["error"]) == (413, "the body has 200000 bytes; at most 100000 are read")

        def chunks() -> Iterator[bytes]:
            yield from [b"x" * 30_000] * 9

        unsaid = client.post("/embed", content=chunks(), headers={"Content-Type": "application/json"})
        assert (unsaid.status_code, unsaid.json()["error"][:35]) == (413, "the body has more than 100000 bytes")
        many = client.post("/embed", files=[*files("rgb")] * 17)
        assert (many.status_code, many.json()["error"]) == (413, "17 shots; at most 16 are compared")
        parts = client.post("/embed", files=[("rgb", ("", b""))] * 70)
        assert (parts.status_code, parts.json()["error"][:31]) == (413, "the body has more than 64 parts")
        assert ok(client.post("/embed", files=files("rgb")))
    with start(limits=Limits(json_bytes=1000)) as client:  # which takes more memory than it has bytes
        json = client.post("/embed", content=b"x" * 2000, headers={"Content-Type": "application/json; charset=utf-8"})
        assert (json.status_code, json.json()["error"]) == (413, "the body has 2000 bytes; at most 1000 are read")
        assert ok(client.post("/embed", files=files()))


def test_there_is_so_much_at_a_time_and_then_room_again(
    start: Any, model: Any, monkeypatch: pytest.MonkeyPatch, files: Files
) -> None:
    begun, go = threading.Event(), threading.Event()
    embed = type(model).embed

    def slow(*given: Any, **named: Any) -> Any:
        begun.set()
        assert go.wait(20)
        return embed(*given, **named)

    with start(limits=Limits(requests=1)) as client:
        monkeypatch.setattr(type(model), "embed", slow)
        first: list[Any] = []
        thread = threading.Thread(target=lambda: first.append(client.post("/embed", files=files("rgb"))))
        thread.start()
        assert begun.wait(20)
        busy = client.post("/embed", files=files("rgb"))
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        assert client.get("/health").status_code == 200
        go.set()
        thread.join()
        assert first[0].status_code == 200
        assert client.post("/embed", files=files("rgb")).status_code == 200


def test_an_answer_has_an_end(start: Any, model: Any, monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    with start(limits=Limits(answer_seconds=0.3)) as client:
        embed = type(model).embed
        monkeypatch.setattr(type(model), "embed", lambda *given, **named: (time.sleep(0.8), embed(*given, **named))[1])
        late = client.post("/embed", files=files("rgb"))
        assert (late.status_code, late.json()["error"][:23]) == (504, "no answer within 0.3 s;")
        monkeypatch.undo()
        time.sleep(0.6)
        assert client.post("/embed", files=files("rgb")).status_code == 200


def test_writes_and_pictures_that_wait_keep_no_search_back(
    start: Any, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmpt.serve.photos import Photos

    key, go, jpeg = "RGB/000002_cam1_0_00.jpg", threading.Event(), Photos.jpeg
    monkeypatch.setattr(Photos, "jpeg", lambda *given: (go.wait(30), jpeg(*given))[1])
    asked: list[Any] = []
    with start(gallery) as client:

        def write() -> None:
            asked.append(client.post("/gallery/label", json={"labels": {key: "x"}}))

        def look() -> None:
            asked.append(client.get("/gallery/picture", params={"key": key, "modality": "rgb"}))

        threads = [threading.Thread(target=one) for one in (write, look) for _ in range(6)]
        with Gallery(gallery).writing("purging", alone=True):
            for thread in threads:
                thread.start()
            time.sleep(0.5)
            for _ in range(5):
                assert client.get("/ready").status_code == 200
                assert ok(client.post("/search", json={"key": key}))["hits"]
            assert asked == []  # the subject is there
            go.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in asked] == [200] * 12


def test_a_write_that_takes_too_long_is_still_done_and_told_so(
    start: Any, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmpt.serve.catalogue import Catalogue

    label = Catalogue.label
    slow = lambda *given: (time.sleep(1), label(*given))[1]  # noqa: E731
    monkeypatch.setattr(Catalogue, "label", slow)
    with start(gallery, limits=Limits(answer_seconds=0.3)) as client:
        before = ok(client.get("/service"))["gallery"]["version"]
        late = client.post("/gallery/label", json={"labels": {"RGB/000002_cam1_0_00.jpg": "x"}})
        assert (late.status_code, late.json()["error"]) == (
            504,
            "no answer within 0.3 s; a write may still be done, so look before you repeat it",
        )
        end = time.monotonic() + 20
        while (seen := ok(client.get("/service"))["gallery"])["version"] == before:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert seen["undo"]["what"] == "labelled 1"


def test_what_nobody_foresaw_is_one_sentence(
    start: Any, model: Any, monkeypatch: pytest.MonkeyPatch, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    with start() as client:
        monkeypatch.setattr(type(model), "embed", lambda *_, **__: 1 / 0)
        broken = client.post("/embed", files=files("rgb"))
        assert (broken.status_code, broken.json()) == (
            500,
            {"error": "something went wrong here; the server's log says more"},
        )
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        assert client.post("/embed", files=files("rgb")).status_code == 200


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").write_text(f"{TOKEN}\n")
    assert token_of(None, None) is None
    assert token_of(None, tmp_path / "t") == token_of(TOKEN, None) == TOKEN
    monkeypatch.setenv("DMPT_TOKEN", TOKEN + "2")
    assert token_of(None, None) == TOKEN + "2"
    assert token_of(TOKEN, None) == TOKEN
    for given, file, said in (
        ("short", None, "at least 16 characters"),
        ("0123456789 abcdef", None, "no spaces"),
        (TOKEN, tmp_path / "t", "either --token or --token-file"),
        (None, tmp_path / "none", "cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            token_of(given, file)


def test_hosts() -> None:
    assert hosts_of("127.0.0.1", (), None) == {"localhost", "127.0.0.1", "[::1]"}
    assert hosts_of("::1", ["Cam.Example"], TOKEN) == {"localhost", "127.0.0.1", "[::1]", "cam.example"}
    assert hosts_of("0.0.0.0", (), TOKEN) is None
    assert hosts_of("0.0.0.0", ["cam.example"], TOKEN) == {"0.0.0.0", "cam.example"}
    assert hosts_of("192.168.1.2", (), TOKEN) == {"192.168.1.2"}
    for host in ("0.0.0.0", "192.168.1.2", "cam.example", "::"):
        with pytest.raises(UserError, match="takes a token"):
            hosts_of(host, (), None)
    with pytest.raises(UserError, match=r"--name cam.example lets requests of others in.* takes a token"):
        hosts_of("127.0.0.1", ["cam.example"], None)


def test_a_port_that_is_taken_is_told() -> None:
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1, port {port}: .*; give another --host or --port"):
            listening("127.0.0.1", port)
    with pytest.raises(UserError, match="give another --host"):
        listening("no.such.host.invalid", 1)


def test_models_go_by_names_that_tell_them_apart() -> None:
    assert names_of(["runs/a", "package:tiny"]) == ["a", "package:tiny"]
    assert names_of(["runs/a/best", "runs/b/best"]) == ["a/best", "b/best"]
    with pytest.raises(UserError, match="twice"):
        names_of(["runs/a", "runs/a"])


def test_lengths_are_those_of_the_gallery() -> None:
    assert (KEY, LABEL) == (KEY_LENGTH, LABEL_LENGTH)
