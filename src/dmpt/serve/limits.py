"""How much a client may ask for, and how much all of them may together."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

SHOTS = 16
"""Of one person or vehicle."""
HITS = 1000
"""Of one search."""
ROWS = 1000
"""That one request writes. These three are part of the interface: the OpenAPI says them."""


@dataclass(frozen=True)
class Limits:
    """What a service spends; what is beyond is refused.

    Attributes:
        body_bytes: of one request.
        json_bytes: of one request in JSON, which takes 25 times as much memory.
        held_bytes: of the bodies of all requests that are being answered.
        pixels: of one picture.
        side: of one picture, in pixels: a long thin one takes a resize very long.
        held_pixels: of all pictures that are decoded at a time, at 3 bytes each, of 16 bits at 13; also of one
            request's.
        requests: at a time.
        connections: at a time, also idle ones.
        idle_seconds: for the head of a request, between two pieces of a body, and until a client reads some of what
            waits for it.
        body_seconds: for a whole body.
        answer_seconds: for all the rest, and until a client has read what waits for it.
        drain_seconds: that a server which was told to stop waits for requests in progress.
    """

    body_bytes: int = 32 << 20
    json_bytes: int = 8 << 20
    held_bytes: int = 256 << 20
    pixels: int = 1 << 24
    side: int = 1 << 14
    held_pixels: int = 1 << 26
    requests: int = 256
    connections: int = 512
    idle_seconds: float = 10.0
    body_seconds: float = 60.0
    answer_seconds: float = 60.0
    drain_seconds: float = 30.0


class Room:
    """So much of something for all; who comes first is served first.

    Args:
        size: of it.
    """

    def __init__(self, size: int):
        self.size = self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def part(self, wanted: int) -> AsyncIterator[None]:
        """A part of it, at most ``size``, inside; waits until there is one."""
        if self._waiting or wanted > self._free:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((wanted, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was given just before
                    self._give(wanted)
                raise
        else:
            self._free -= wanted
        try:
            yield
        finally:
            self._give(wanted)

    def _give(self, back: int) -> None:
        self._free += back
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._free):
            wanted, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free -= wanted
                turn.set_result(None)
