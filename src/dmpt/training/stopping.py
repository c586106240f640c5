"""How a run is stopped by its user: after the step in progress, saved."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """The user stopped the run, and its state is saved."""


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks for a stop after the step in progress; a second one stops at once.

    Only the main thread may listen to signals: in another one nothing is asked for.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
