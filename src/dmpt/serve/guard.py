"""What stands before the application: who may ask, how much, and for how long; and what every answer says."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dmpt.serve.asked import JSON, media_type
from dmpt.serve.figures import Figures
from dmpt.serve.limits import Limits
from dmpt.serve.refused import Refused, unforeseen

log = logging.getLogger("dmpt.serve")

OPEN = ("/health", "/ready")
"""Answered however busy the service is."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_MAYBE = "a write may still be done, so look before you repeat it"
_NO_TOKEN = ("/", "/openapi.json", *OPEN)
_CONTENT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAID = {
    "Content-Security-Policy": _CONTENT,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_DRAINED = 64 << 20
_DRAIN_SECONDS = 2.0
"""What is still read of a body that is refused: a client that writes all of it would else not see why."""


class _Gone(Exception):
    """The client has left."""


class Guard:
    """An application behind its limits.

    Args:
        app: to guard; its requests have their whole bodies.
        limits: of what may be asked.
        hosts: names that it may be called by, without ports; None = any, where a token is needed for all that matters.
        token: that must be given; None = none.
        figures: of the service.

    Attributes:
        limits: as given; those of its connections too.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, hosts: Collection[str] | None, token: str | None, figures: Figures
    ):
        self._app, self.limits, self._hosts, self._figures = app, limits, hosts, figures
        self._token = None if token is None else token.encode()
        self._active = self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's request, as ASGI has it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close"})
            return
        answer, start = _Answer(send), time.perf_counter()
        try:
            await self._answered(scope, receive, answer)
        except _Gone:
            return
        except asyncio.CancelledError:  # the server stops, and has waited for as long as it may
            if not answer.status:
                stopped = Refused(503, f"the service was stopped; {_MAYBE}")
                await stopped.response(scope, receive, answer)
        except Exception:  # the application has said so, where it still could
            log.exception("%r %r", scope["method"], scope["path"])  # of the client, who may have put lines into them
            if not answer.status:
                await unforeseen().response(scope, receive, answer)
        path = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"  # a client may invent any number
        self._figures.requests.labels(path, method, str(answer.status)).inc()
        self._figures.seconds.labels(path).observe(time.perf_counter() - start)

    async def _answered(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        headers, body = Headers(scope=scope), _Body(self.limits)
        try:
            self._admit(scope, headers)
            with self._place(scope):
                try:
                    await body.read(headers, receive, self._hold)
                    await self._within(self._app(scope, body.replay, answer), receive, answer)
                finally:
                    self._hold(-body.held)
        except Refused as refused:
            if answer.status:  # it comes too late: the connection ends there
                return
            if not body.whole:
                refused.headers["Connection"] = "close"
                await body.drain(headers, receive)
            await refused.response(scope, receive, answer)

    async def _within(self, answering: Awaitable[None], receive: Receive, answer: "_Answer") -> None:
        """Answer in time, and nobody who has left."""
        seconds = self.limits.answer_seconds
        work, gone = asyncio.ensure_future(answering), asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((work, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not answer.whole:
                raise _Gone
            if not work.done() and not answer.whole:
                raise Refused(504, f"no answer within {seconds:g} s; {_MAYBE}")
            await work
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Who asks, and from where."""
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._hosts is not None and name not in self._hosts:
            raise Refused(403, f"this service is not called {name[:100] or 'nothing'}; use the address it printed")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None and _netloc(origin) != host:
            raise Refused(403, "pages of other sites may not ask this service")
        if site not in ("same-origin", "none") and not (
            scope["method"] == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        ):
            raise Refused(403, "pages of other sites may not ask this service")
        path = scope["path"]
        if self._token is not None and path not in _NO_TOKEN and not path.startswith("/static/"):
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
                raise Refused(
                    401, "this needs the service's token: Authorization: Bearer TOKEN", **{"WWW-Authenticate": "Bearer"}
                )

    @contextmanager
    def _place(self, scope: Scope) -> Iterator[None]:
        """Inside, one of the requests that there may be at a time."""
        if self._active >= self.limits.requests and scope["path"] not in OPEN:
            raise _busy()
        self._active += 1
        self._figures.active.inc()
        try:
            yield
        finally:
            self._active -= 1
            self._figures.active.dec()

    def _hold(self, count: int) -> None:
        """Bytes of a body that are kept until it is answered."""
        if count > 0 and self._held + count > self.limits.held_bytes:
            raise _busy()
        self._held += count


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _netloc(origin: str) -> str | None:
    """Host and port; None where it is no URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _busy() -> Refused:
    return Refused(429, "too much is asked for at once; ask again in a second", **{"Retry-After": "1"})


class _Body:
    """What a client sends, in memory.

    Attributes:
        held: bytes that are accounted for.
        whole: nothing more is to come.
    """

    def __init__(self, limits: Limits):
        self._limits, self._pieces, self._replayed = limits, list[bytes](), False
        self.held, self.whole = 0, False

    async def read(self, headers: Headers, receive: Receive, hold: Callable[[int], None]) -> None:
        """All of it.

        Raises:
            Refused: it is too large, or comes too slowly.
        """
        limits, end = self._limits, time.monotonic() + self._limits.body_seconds
        is_json = media_type(headers.get("content-type", "")) == JSON
        most = min(limits.body_bytes, limits.json_bytes) if is_json else limits.body_bytes
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > most:
            raise Refused(413, f"the body has {declared[:20]} bytes; at most {most} are read")
        if not declared and "transfer-encoding" not in headers:
            self.whole = True  # there is none
            return
        while not self.whole:
            try:
                message = await asyncio.wait_for(
                    receive(), min(self._limits.idle_seconds, max(0.0, end - time.monotonic()))
                )
            except asyncio.TimeoutError:
                raise Refused(408, "the body came too slowly; send it again, over a quicker line") from None
            piece = self._taken(message)
            if self.held + len(piece) > most:
                raise Refused(413, f"the body has more than {most} bytes; send less at a time")
            hold(len(piece))
            self.held += len(piece)
            self._pieces.append(piece)

    def _taken(self, message: Message) -> bytes:
        if message["type"] == "http.disconnect":
            raise _Gone
        self.whole = not message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece

    async def replay(self) -> Message:
        """All of it at once, as the application asks for it; it is stopped when the client leaves."""
        if self._replayed:
            await asyncio.Event().wait()
        self._replayed = True
        whole = b"".join(self._pieces)
        self._pieces.clear()
        return {"type": "http.request", "body": whole}

    async def drain(self, headers: Headers, receive: Receive) -> None:
        """Read on for a while, and keep nothing."""
        if headers.get("expect", "").lower() == "100-continue":  # it waits for our word, and gets another one
            return
        end, count = time.monotonic() + _DRAIN_SECONDS, 0
        declared = "content-length" in headers or "transfer-encoding" in headers
        while declared and not self.whole and count < _DRAINED and (left := end - time.monotonic()) > 0:
            try:
                count += len(self._taken(await asyncio.wait_for(receive(), left)))
            except asyncio.TimeoutError:
                return


class _Answer:
    """What is sent to a client, with the headers that every answer has.

    Attributes:
        status: 0 until it is sent, for which those before it must have been read.
        whole: all of it was sent.
    """

    def __init__(self, send: Send):
        self._send, self.status, self.whole = send, 0, False

    async def __call__(self, message: Message) -> None:
        starts = message["type"] == "http.response.start"
        if starts:
            headers = MutableHeaders(scope=message)
            for name, value in _SAID.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        self.whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)
        if starts:
            self.status = message["status"]
