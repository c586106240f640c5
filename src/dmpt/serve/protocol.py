"""HTTP/1.1 of uvicorn, with an end to heads that never come, answers that nobody reads, and too many connections."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dmpt.serve.limits import Limits


class Protocol(H11Protocol):
    """One connection; what its clients are told stands in JSON, as elsewhere.

    Attributes:
        limits: of the service (``protocol_of``).
    """

    limits: Limits
    _head: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _left, _since = 0, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there: it has so many seconds for its first request's head."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so ``pause_writing`` tells of whatever the client has not read
        if len(self.connections) > self.limits.connections:
            self._refuse(429, "too many connections; close some, or ask again later")
        else:
            self._wait_for_a_head()

    def data_received(self, data: bytes) -> None:
        """Some of a head or a body; the guard counts bodies."""
        super().data_received(data)
        if self._idle:
            self._wait_for_a_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP."""
        self._refuse(400, "this is no HTTP/1.1 request")

    def pause_writing(self) -> None:
        """Something waits for the client to read it; a connection that is closed waits too."""
        super().pause_writing()
        self._since = self.loop.time()
        self._watch()

    def resume_writing(self) -> None:
        """The client has read everything."""
        self._stop_watching()
        super().resume_writing()

    @property
    def _idle(self) -> bool:
        """Between two requests."""
        cycle: Any = self.cycle
        return cycle is None or bool(cycle.response_complete)

    def _wait_for_a_head(self) -> None:
        if self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self.limits.idle_seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_slow(self) -> None:
        self._head = None
        if self._idle:
            self._refuse(408, "the head of the request came too slowly")

    def _watch(self) -> None:
        self._left = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(self.limits.idle_seconds, self._look)

    def _stop_watching(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _look(self) -> None:
        """Let those go who read nothing, or take for ever."""
        late = self.loop.time() - self._since > self.limits.answer_seconds
        if late or self.transport.get_write_buffer_size() >= self._left:
            self.transport.abort()
        else:
            self._watch()

    def _refuse(self, status: int, sentence: str) -> None:
        """The connection's last words."""
        if self.transport.is_closing():
            return
        body = json.dumps({"error": sentence}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(self.conn.send(h11.Response(status_code=status, headers=headers, reason=b"")) or b"")
            self.transport.write(self.conn.send(h11.Data(data=body)) or b"")
        self.transport.close()


def protocol_of(given: Limits) -> type[Protocol]:
    """That of a service with these limits."""

    class Limited(Protocol):
        limits = given

    return Limited
