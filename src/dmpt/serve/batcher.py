"""Requests of many clients in one pass: what arrives while the model works, or within a few milliseconds."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

MOST = 16
"""Items in a pass."""
WAIT = 0.005
"""Seconds for others, at most, and only where others are coming."""


class Batcher(Generic[_Item, _Answer]):
    """Items one by one in, answers one by one out; between them they share passes.

    Args:
        work: answers some items, in their order; called in ``thread``, one pass at a time.
        thread: that computes.
        most: items in a pass.
        wait: seconds for others.
    """

    def __init__(
        self,
        work: Callable[[Sequence[_Item]], Sequence[_Answer]],
        thread: Executor,
        most: int = MOST,
        wait: float = WAIT,
    ):
        self._work, self._thread, self._most, self._wait = work, thread, most, wait
        self._waiting: deque[tuple[_Item, asyncio.Future[_Answer]]] = deque()
        self._coming = 0
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Items that wait for a pass."""
        return len(self._waiting)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Inside, a request is on its way: a pass may wait for it, and does not where there is none."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._changed.set()

    async def __call__(self, item: _Item) -> _Answer:
        """The answer to one item; what ``work`` raises, it raises for all items of the pass."""
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        self._changed.set()
        if self._worker is None:
            self._worker = asyncio.create_task(self._passes())
        return await answer

    async def _passes(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                await self._gathered(loop.time() + self._wait)
                batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                batch = [(item, answer) for item, answer in batch if not answer.done()]  # who asked may have gone
                if batch:
                    await self._pass(batch)
        finally:
            self._worker = None

    async def _gathered(self, end: float) -> None:
        """Wait until a pass is full, or nobody else is coming, or it is time."""
        loop = asyncio.get_running_loop()
        while len(self._waiting) < self._most and self._coming and (left := end - loop.time()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except asyncio.TimeoutError:
                return

    async def _pass(self, batch: Sequence[tuple[_Item, "asyncio.Future[_Answer]"]]) -> None:
        items = [item for item, _ in batch]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), found in zip(batch, answers, strict=True):
            if not answer.done():
                answer.set_result(found)
