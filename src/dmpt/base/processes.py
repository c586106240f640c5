"""Work in processes of their own, which may die: it is done all the same, and the result is the same.

A worker has a pipe to this process, and nothing else is shared: no queue, lock or thread through which one that dies
could keep others waiting. Whatever ends it closes the pipe, which is seen at once.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from operator import attrgetter
from typing import Any, Generic, TypeVar

from dmpt.base.stopping import SIGNALS, held_back
from dmpt.base.terminal import warn

_Part = TypeVar("_Part")
_Done = TypeVar("_Done")

IN_HAND = 2
"""Parts that a worker has at a time, so that it need not wait for this process when it has done one."""


def spread(work: Callable[[_Part], _Done], parts: Sequence[_Part], workers: int) -> Generator[_Done, None, None]:
    """``map(work, parts)`` in so many processes, at least 1; one is this process.

    Args:
        work: can be pickled, as its parts and results can; may be done twice for a part.
        parts: some hundredths of a second of work or more each.
        workers: processes at most.

    Yields:
        What came of each part, in order. What a worker raises is raised here. Where workers are killed or cannot be
        started, fewer go on, at last this process alone, and a note says so.
    """
    workers = min(workers, len(parts))
    # Spawned, for this process may have threads.
    return ahead(work, parts, workers if workers > 1 else 0, method="spawn", window=8 * workers)


def ahead(
    work: Callable[[_Part], _Done],
    parts: Sequence[_Part],
    workers: int,
    *,
    method: str,
    window: int,
    begin: Callable[[], object] | None = None,
) -> Generator[_Done, None, None]:
    """``map(work, parts)``, done by workers while the caller is busy with what came before; otherwise as ``spread``.

    Args:
        work: as for ``spread``.
        parts: as for ``spread``.
        workers: processes; 0 = this one.
        method: how they are started, as ``multiprocessing`` names it.
        window: while the caller waits for part n, parts before n + window may have begun, and no other.
        begin: what a worker does first.
    """
    if not workers:
        yield from map(work, parts)
        return
    done = 0
    try:
        with closing(_by_workers(_Office(work, begin), parts, workers, method, window)) as results:
            for result in results:
                yield result
                done += 1
    except _LostError as lost:
        fewer = workers // 2
        warn(
            f"{lost}; going on with {fewer or 'none'} of {workers}, slower, and the result is the same; to mend it: "
            "fewer workers (data.workers, --workers), more memory, or more open files (ulimit -n)"
        )
        yield from ahead(work, parts[done:], fewer, method=method, window=window, begin=begin)


class _LostError(Exception):
    """Workers could not be started, or one has ended; says which and why."""


class _Office(Generic[_Part, _Done]):
    """What a worker does, in the worker: it is told all parts, then one's number, and answers with what came of it."""

    def __init__(self, work: Callable[[_Part], _Done], begin: Callable[[], object] | None):
        self.work, self.begin, self.parent = work, begin, os.getpid()

    def __call__(self, pipe: Connection) -> None:
        """Work until there is nobody to work for."""
        try:
            for number in SIGNALS:  # for the parent alone, which saves first and ends the others
                signal.signal(number, signal.SIG_IGN)
            threading.Thread(target=self._watch, daemon=True).start()
            if self.begin is not None:
                self.begin()
            parts = pipe.recv()
            while True:
                number = pipe.recv()
                self._answer(pipe, number, parts[number])
        finally:
            os._exit(1)  # without a word: it is the parent that speaks

    def _answer(self, pipe: Connection, number: int, part: _Part) -> None:
        try:
            pipe.send((number, self.work(part), None))
        except Exception as error:
            pipe.send((number, None, f"{type(error).__name__}: {error}"))

    def _watch(self) -> None:
        """Where the parent is killed, end with it."""
        while os.getppid() == self.parent:
            time.sleep(0.5)
        os._exit(1)


class _Worker:
    """A worker, seen from this process."""

    def __init__(self, office: _Office[Any, Any], method: str):
        context = get_context(method)
        self.pipe, theirs = context.Pipe()
        with theirs:  # the worker's alone, so that it closes with the worker
            self.process = context.Process(target=office, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
            self.process.start()
        self.in_hand = 0

    def send(self, what: object) -> None:
        try:
            self.pipe.send(what)
        except OSError:
            raise self._lost() from None

    def give(self, number: int) -> None:
        self.send(number)
        self.in_hand += 1

    def take(self) -> tuple[int, Any, str | None]:
        try:
            answer: tuple[int, Any, str | None] = self.pipe.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        self.in_hand -= 1
        return answer

    def _lost(self) -> _LostError:
        self.process.join(1)
        code = self.process.exitcode or 0
        how = f"was killed (signal {-code}), mostly for want of memory" if code < 0 else f"ended (exit code {code})"
        return _LostError(f"a worker process {how}")

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Crew:
    """Workers, and what of their work has not been asked for yet."""

    def __init__(self, office: _Office[_Part, Any], parts: Sequence[_Part], method: str):
        self.office, self.parts, self.method, self.workers = office, parts, method, list[_Worker]()
        self.ready: dict[int, tuple[Any, str | None]] = {}
        self.given = 0

    def hire(self, count: int) -> None:
        try:
            if sys.platform != "win32" and self.method == "spawn":
                resource_tracker.ensure_running()  # as the first worker starts it would let signals through
            for _ in range(count):
                with held_back():  # one that is half started would complain, and be nobody's to end
                    self.workers.append(_Worker(self.office, self.method))
        except OSError as error:
            raise _LostError(f"a worker process could not be started ({error.strerror})") from None
        for worker in self.workers:  # when all have begun to import what they need
            worker.send(self.parts)

    def give(self, limit: int) -> None:
        """Parts before ``limit``, each to who has least in hand."""
        while self.given < limit and (free := min(self.workers, key=attrgetter("in_hand"))).in_hand < IN_HAND:
            free.give(self.given)
            self.given += 1

    def listen(self, timeout: float | None) -> None:
        talking = wait([worker.pipe for worker in self.workers], timeout)
        for worker in self.workers:
            if worker.pipe in talking:
                number, result, failure = worker.take()
                self.ready[number] = result, failure

    def end(self) -> None:
        for worker in self.workers:
            worker.end()


def _by_workers(
    office: _Office[_Part, _Done], parts: Sequence[_Part], workers: int, method: str, window: int
) -> Generator[_Done, None, None]:
    crew = _Crew(office, parts, method)
    atexit.register(crew.end)  # where nobody closes this; multiprocessing's own would wait for them
    try:
        crew.hire(workers)
        for number, part in enumerate(parts):
            crew.listen(0)  # what came meanwhile makes room
            crew.give(min(number + window, len(parts)))
            while number not in crew.ready:
                crew.listen(None)
                crew.give(min(number + window, len(parts)))
            result, failure = crew.ready.pop(number)
            if failure is not None:
                result = office.work(part)  # where the part is to blame, this says so in its own words
                warn(f"a worker process failed ({failure}); this one did its part")
            yield result
    finally:
        crew.end()
        atexit.unregister(crew.end)
