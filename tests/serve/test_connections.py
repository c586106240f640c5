"""Who asks and does not read is let go, and what that leaves in the log is no traceback."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from inside import port_of, reached
from readers import FONT, asking, read, unread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from dmpt.serve.figures import Figures
from dmpt.serve.guard import Guard
from dmpt.serve.limits import Limits

WHOLE = 12 << 20
"""Bytes of an answer: more than the kernel takes by itself."""
ASKED = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
QUICK = Limits(idle_seconds=0.5, answer_seconds=3.0, drain_seconds=8.0)


def guarded(limits: Limits, answer: Callable[[Request], Any]) -> Guard:
    """One answer to everything, behind the guard."""
    app = Starlette(routes=[Route("/", answer), Route("/static/{name}", answer)])
    return Guard(app, limits, None, None, Figures())


async def large(_: Request) -> Response:
    return Response(bytes(WHOLE))


def freed(server: uvicorn.Server, within: float) -> float:
    """Seconds until no connection is left."""
    start = time.monotonic()
    while server.server_state.connections:
        assert time.monotonic() - start < within, f"{len(server.server_state.connections)} are left"
        time.sleep(0.02)
    return time.monotonic() - start


@pytest.mark.parametrize("request_of_it", [ASKED, 100 * FONT], ids=["one answer", "one after the other"])
def test_who_never_reads_is_let_go(request_of_it: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with reached(guarded(QUICK, large)) as server, unread(port_of(server), 5, request_of_it):
        while len(server.server_state.connections) < 5:
            time.sleep(0.01)
        freed(server, 3)
        assert not server.server_state.tasks
    assert "ERROR" not in caplog.text
    assert "Traceback" not in caplog.text


def test_who_reads_slowly_has_time_and_not_for_ever() -> None:
    with reached(guarded(QUICK, large)) as server, asking(port_of(server), ASKED, 1 << 16) as client:
        start = time.monotonic()
        assert len(read(client, 0.005)) > WHOLE
        assert time.monotonic() - start > QUICK.idle_seconds
    short = replace(QUICK, answer_seconds=1.0)
    with reached(guarded(short, large)) as server, asking(port_of(server), ASKED, 1 << 16) as client:
        assert 0 < len(read(client, 0.02)) < WHOLE


def test_an_end_does_not_wait_for_those_who_never_read() -> None:
    with reached(guarded(QUICK, large)) as server, unread(port_of(server), 5):
        time.sleep(0.2)
        assert server.server_state.connections
        server.should_exit = True
        freed(server, 3)  # and so not after the drain's 8


def test_who_is_still_computed_for_at_the_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    begun, said = threading.Event(), []

    async def endless(_: Request) -> Response:
        begun.set()
        await asyncio.sleep(60)
        return Response()

    def ask(port: int) -> None:
        with asking(port, ASKED) as client:
            said.append(read(client))

    with reached(guarded(Limits(drain_seconds=1), endless)) as server:
        client = threading.Thread(target=ask, args=(port_of(server),))
        client.start()
        assert begun.wait(10)
    client.join()
    assert b" 503 " in said[0]
    assert json.loads(said[0].partition(b"\r\n\r\n")[2]) == {
        "error": "the service was stopped; a write may still be done, so look before you repeat it"
    }
    assert "Traceback" not in caplog.text


def test_a_refusal_that_comes_too_late_is_the_end_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"begun"
        await asyncio.sleep(60)

    async def begun(_: Request) -> Response:
        return StreamingResponse(pieces())

    with reached(guarded(Limits(answer_seconds=0.3), begun)) as server, asking(port_of(server), ASKED) as client:
        said = read(client)
        assert (b" 200 " in said, b"begun" in said, b"error" in said) == (True, True, False)
        freed(server, 3)
    assert "Traceback" not in caplog.text


def test_connections_and_seconds_are_those_that_the_application_is_given() -> None:
    with reached(guarded(Limits(connections=2, idle_seconds=1), large)) as server:
        port = port_of(server)
        with asking(port, b"") as first, asking(port, b"") as second:
            while len(server.server_state.connections) < 2:
                time.sleep(0.01)
            with asking(port, b"") as third:
                assert b" 429 " in read(third)
            assert b" 408 " in read(first)
            assert b" 408 " in read(second)
