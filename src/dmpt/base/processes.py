"""Work on all cores, in processes of their own."""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from dmpt.base.errors import UserError

Part = TypeVar("Part")
Done = TypeVar("Done")


def spread(work: Callable[[Part], Done], parts: Sequence[Part], workers: int) -> Generator[Done, None, None]:
    """``map(work, parts)`` in so many processes, at least 1; one is this process.

    Args:
        work: can be pickled, as its parts and results can.
        parts: some hundredths of a second of work or more each.
        workers: processes at most.

    Yields:
        What came of each part, in order. After Ctrl-C the parts that have not begun are left.

    Raises:
        UserError: a process was killed.
    """
    if min(workers, len(parts)) <= 1:
        yield from map(work, parts)
        return
    # Spawned, for this process may have threads.
    pool = ProcessPoolExecutor(
        min(workers, len(parts)), mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
    )
    try:
        yield from pool.map(work, parts)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, maybe for want of memory; give fewer workers, or free memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """In a worker: Ctrl-C is for the parent alone, which ends the others; where the parent is killed, end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
