"""Work on all cores, in processes of their own."""

import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

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
    """
    if min(workers, len(parts)) <= 1:
        yield from map(work, parts)
        return
    # Spawned, for this process may have threads; Ctrl-C reaches this process alone, which ends the others.
    deaf = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(min(workers, len(parts)), mp_context=get_context("spawn"), initializer=deaf)
    try:
        yield from pool.map(work, parts)
    finally:
        pool.shutdown(cancel_futures=True)
