"""The service as a process of its own: heads and bodies that never end, signals, kills."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from readers import unread

from dmpt.gallery.store import open_gallery
from served import KEY, Running, ok, running

pytestmark = pytest.mark.long
Files = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Running]:
    with running("--gallery", home / "g.lance") as one:
        yield one


def answered(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    connection.settimeout(40)
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def test_it_says_where_it_is(server: Running) -> None:
    assert (
        server.said
        == f"http://127.0.0.1:{server.port}/  package:tiny; g.lance, 24 rows of package:tiny; Ctrl-C stops it\n"
    )
    assert ok(server.client.get("/ready")) == {"status": "ready"}


HEAD = b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
SLOW = {
    "no head": (b"", b""),
    "half a head": (b"POST /embed HTTP/1.1\r\nHo", b""),
    "a head byte by byte": (b"POST /embed HTTP/1.1\r\nA: ", b"a"),
    "no body": (HEAD + b"Content-Length: 100\r\n\r\n", b""),
    "half a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc", b""),
}


def test_slow_clients_are_told_and_let_go(server: Running) -> None:
    with ThreadPoolExecutor(len(SLOW)) as pool:  # each takes its ten seconds
        for seconds, said in pool.map(lambda name: trickled(server.port, *SLOW[name]), SLOW):
            assert 8 < seconds < 25
            assert b" 408 " in said
            assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]
    assert server.client.get("/health").status_code == 200


def trickled(port: int, first: bytes, rest: bytes) -> tuple[float, bytes]:
    """Seconds until the connection is closed, and what was said; ``rest`` is sent each second."""
    stop = threading.Event()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(first)
        start = time.monotonic()

        def trickle() -> None:
            with suppress(OSError):
                while rest and not stop.wait(1):
                    connection.sendall(rest)

        thread = threading.Thread(target=trickle)
        thread.start()
        said = answered(connection)
        stop.set()
        thread.join()
    return time.monotonic() - start, said


WRONG = {
    "no HTTP": (b"hello\r\n\r\n", b" 400 "),
    "a head without end": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"a" * 100_000, b" 400 "),
    "a length that is none": (HEAD + b"Content-Length: x\r\n\r\n", b" 400 "),
    "two lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b" 400 "),
    "too long": (HEAD + b"Content-Length: 99999999999\r\n\r\n", b" 413 "),
    "no host": (b"GET /service HTTP/1.1\r\n\r\n", b" 400 "),
    "another host": (b"GET /service HTTP/1.1\r\nHost: evil.example\r\n\r\n", b" 403 "),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_request_is_told(server: Running, name: str) -> None:
    body, status = WRONG[name]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(body)
        said = answered(connection)
    assert status in said.partition(b"\r\n")[0] + b" ", said[:100]
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]
    assert server.client.get("/health").status_code == 200


def test_an_endless_body_is_cut(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
        try:
            while sent < 400 << 20:
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
        said = answered(connection)
    assert sent < 200 << 20
    assert not said or b" 413 " in said.partition(b"\r\n")[0]


def test_clients_who_leave_in_the_middle(server: Running, files: Files) -> None:
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + bytes(5000))
    request = server.client.build_request("POST", "/embed", files=files())
    head = f"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {request.headers['content-type']}\r\n"
    whole = f"{head}Content-Length: {request.headers['content-length']}\r\n\r\n".encode() + request.read()
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(whole)  # and never read
    assert ok(server.client.post("/embed", files=files()))
    end = time.monotonic() + 30
    while "dmpt_requests_active 1.0" not in server.client.get("/metrics").text:  # it counts itself
        assert time.monotonic() < end
        time.sleep(0.2)


def held(server: Running, count: int) -> None:
    """Waits until it has so many sockets open."""
    end = time.monotonic() + 9  # from then on it lets them go
    while server.sockets < count:
        assert time.monotonic() < end, server.sockets
        time.sleep(0.1)


def test_who_never_reads_is_let_go(server: Running) -> None:
    before = server.sockets
    with unread(server.port, 10):
        held(server, before + 10)
        start = time.monotonic()  # 10 s, and what the machine takes to fill the kernel's buffers
        while server.sockets > before:
            assert time.monotonic() - start < 60, f"{server.sockets - before} are held"
            time.sleep(0.2)
        assert server.client.get("/health").status_code == 200


def test_sigterm_does_not_wait_for_those_who_never_read(home: Path) -> None:
    """At most 30 s, as docs/service.md says; it takes the 10 s that nobody reads for."""
    with running("--gallery", home / "g.lance") as one, unread(one.port, 10):
        held(one, 10)
        start = time.monotonic()
        code, err = one.ended(signal.SIGTERM)
        took = time.monotonic() - start
        print(f"{took:.1f} s")
        assert took < 45  # with what a busy machine takes to end a process
    assert (code, err) == (0, "note: stopped; what was acknowledged is kept\n")


def test_two_hundred_clients_at_once(server: Running, files: Files) -> None:
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda _: server.client.post("/search?k=3", files=files()), range(200)))
    assert {answer.status_code for answer in found} <= {200, 429}
    assert sum(answer.status_code == 200 for answer in found) >= 100
    assert len({json.dumps([hit["key"] for hit in a.json()["hits"]]) for a in found if a.status_code == 200}) == 1


def test_sigterm_under_load_drains_and_loses_nothing(gallery: Path, files: Files) -> None:
    with running("--gallery", gallery) as one:
        (sample,) = ok(one.client.post("/embed", files=files()))["samples"]
        kept: list[str] = []
        refused: list[Any] = []

        def write(name: str) -> None:
            for number in range(1000):
                key = f"{name}-{number}"
                try:
                    answer = one.client.post("/gallery/add", json={"samples": [sample | {"key": key}]})
                except httpx.TransportError:
                    return
                if answer.status_code == 200:
                    kept.append(key)
                else:
                    refused.append(answer.text)

        threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        while len(kept) < 10:
            time.sleep(0.05)
        code, err = one.ended(signal.SIGTERM)
        for thread in threads:
            thread.join()
    assert (code, "Traceback" in err) == (0, False), err
    assert err == "note: stopped; what was acknowledged is kept\n"
    assert set(kept) <= set(open_gallery(gallery).read(["key"]).column("key").to_pylist())
    assert not refused


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="prlimit is Linux's")
def test_a_disk_that_is_full_and_then_is_not(gallery: Path, files: Files) -> None:
    """The kernel refuses what the service writes: a file has an end, as on a disk that is full."""
    label = {"labels": {KEY: "somebody"}}
    with running("--gallery", gallery) as one:
        resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        for _ in range(2):
            full = one.client.post("/gallery/label", json=label)
            assert (full.status_code, full.json()["error"][:28]) == (507, "g.lance: the disk is full; n")
            assert ok(one.client.post("/search", files=files()))["hits"]
        assert ok(one.client.get("/service"))["gallery"]["undo"] is None
        resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert ok(one.client.post("/gallery/label", json=label))["changed"] == 1
        code, err = one.ended(signal.SIGTERM)
    assert (code, "Traceback" in err) == (0, False), err


def on_its_way(client: httpx.Client, sample: dict[str, Any]) -> None:
    with suppress(httpx.TransportError):
        client.post("/gallery/add", json={"samples": [sample]})


def test_kill_loses_nothing_that_was_acknowledged(gallery: Path, files: Files) -> None:
    kept: set[str] = set()
    for kill in range(int(os.environ.get("DMPT_KILLS", "2"))):
        with running("--gallery", gallery) as one:
            (sample,) = ok(one.client.post("/embed", files=files()))["samples"]
            for number in range(3 + kill % 3):
                key = f"{kill}-{number}"
                if one.client.post("/gallery/add", json={"samples": [sample | {"key": key}]}).status_code == 200:
                    kept.add(key)
            last = threading.Thread(target=on_its_way, args=(one.client, sample | {"key": f"{kill}-last"}))
            last.start()
            time.sleep(0.002 * kill)
            one.process.kill()
            last.join()
        found = open_gallery(gallery).read(["key"]).column("key").to_pylist()
        assert kept <= set(found)
        assert len(found) == len(set(found))
    print(f"{len(kept)} acknowledged, 0 lost")


def test_memory_stays(server: Running, files: Files) -> None:
    """10,000 requests by hand: ``DMPT_REQUESTS=10000``."""
    count, fields = int(os.environ.get("DMPT_REQUESTS", "300")), files()

    def ask(number: int) -> int:
        if number % 3 == 0:
            return server.client.post("/search?k=5", files=fields).status_code
        if number % 3 == 1:
            return server.client.post("/embed?use=rgb", files=fields).status_code
        return server.client.post("/embed", files=[("rgb", ("a", b"no picture"))]).status_code

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(count // 4)))
        before = server.memory
        codes = set(pool.map(ask, range(count)))
    after = server.memory
    print(f"{before / 1e6:.1f} MB, after {count} requests {after / 1e6:.1f} MB")
    assert codes == {200, 422}
    assert after < 1.05 * before + (0 if count >= 1000 else 20e6)


def test_a_host_that_is_open_needs_a_token() -> None:
    command = [sys.executable, "-m", "dmpt", "serve", "package:tiny", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dmpt serve: error: --host 0.0.0.0 is open to other machines, which takes a token")
    with running("--host", "0.0.0.0", DMPT_TOKEN="0123456789abcdef") as one:
        asked = httpx.get(f"http://127.0.0.1:{one.port}/service", headers={"Host": "any.example"})
        assert asked.status_code == 401
        told = httpx.get(f"http://127.0.0.1:{one.port}/service", headers={"Authorization": "Bearer 0123456789abcdef"})
        assert told.status_code == 200
        assert one.ended(signal.SIGINT)[0] == 0


def test_a_gallery_of_another_model_is_refused(gallery: Path, tmp_path: Path, model: Any) -> None:
    from dataclasses import replace

    from dmpt.gallery.schema import Model
    from dmpt.gallery.store import create_gallery

    create_gallery(tmp_path / "o.lance", replace(Model.of(model), adapter="b" * 64))
    command = [sys.executable, "-m", "dmpt", "serve", "package:tiny", "--gallery", str(tmp_path / "o.lance")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds vectors of adapter bbbbbbbbbbbb, and that is none of package:tiny" in done.stderr
