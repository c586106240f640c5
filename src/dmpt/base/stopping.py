"""How work ends early: by Ctrl-C, by SIGTERM, which clusters send, or by SIGHUP, when the terminal closes."""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Those that ask a process to end; Windows has no SIGHUP."""

_ECHO = 1.0
"""Seconds in which another signal is the same wish: a terminal and a cluster tell a process and also its parent, a
study or torchrun, which passes it on."""

_heard = -math.inf


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end.

    Args:
        number: which.
    """

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(number)
        self.number = number


class Stopped(Interrupted):
    """A signal asked for the end, and the run's state is saved."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a signal raises ``Interrupted``: what is half done is undone on the way out.

    Libraries may catch it, for instance in an import, and fail of what they then lack: that is the same end.
    """
    asked = 0

    def leave(number: int) -> None:
        nonlocal asked
        asked = number
        raise Interrupted(number)

    with _listening(leave):
        try:
            yield
        except Exception:
            if asked:
                raise Interrupted(asked) from None
            raise


@contextmanager
def interrupts() -> Iterator[Callable[[], int]]:
    """Inside, a signal asks for a stop after the step in progress; a second one raises ``Interrupted`` at once.

    Yields:
        Gives the number of the signal that came; 0 = none did.

    Raises:
        Stopped: at the end, where one came after it was last asked for; what is inside has saved.
    """
    asked = 0

    def ask(number: int) -> None:
        nonlocal asked
        if asked:
            raise Interrupted(number)
        asked = number

    with _listening(ask):
        yield lambda: asked
    if asked:
        raise Stopped(asked)


@contextmanager
def held_back() -> Iterator[None]:
    """Inside, a signal waits; at the end it does what it would have done. A process started here never hears it."""
    global _heard
    waiting = 0

    def keep(number: int) -> None:
        nonlocal waiting
        waiting = number

    with _listening(keep):
        if sys.platform == "win32":
            yield
        else:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if waiting:
        _heard = -math.inf
        signal.raise_signal(waiting)


@contextmanager
def _listening(react: Callable[[int], None]) -> Iterator[None]:
    """Only the main thread may listen. What is ignored, as by ``nohup``, or in a job in the background, stays so."""

    def hear(number: int, frame: FrameType | None) -> None:
        global _heard
        now = time.monotonic()
        if now - _heard >= _ECHO:
            _heard = now
            react(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _heard
    _heard = -math.inf
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # None: set by another language, and cannot be given back.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, hear)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
