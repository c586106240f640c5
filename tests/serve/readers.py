"""Clients who ask, and do not read."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

FONT = b"GET /static/inter.woff2 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
"""The largest thing that needs no token."""


def asking(port: int, request: bytes = FONT, room: int = 4096) -> socket.socket:
    """A connection with so many bytes of room for what comes back."""
    found = socket.socket()
    found.settimeout(60)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    found.connect(("127.0.0.1", port))
    found.sendall(request)
    return found


def read(client: socket.socket, pause: float = 0.0) -> bytes:
    """All that comes; ``pause`` seconds between two pieces."""
    found = b""
    with suppress(ConnectionResetError):
        while piece := client.recv(1 << 16):
            found += piece
            time.sleep(pause)
    return found


@contextmanager
def unread(port: int, count: int, request: bytes = 100 * FONT) -> Iterator[None]:
    """So many of them, who stay as long as they are let."""
    with ExitStack() as kept:
        for _ in range(count):
            kept.enter_context(asking(port, request))
        yield
