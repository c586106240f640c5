"""Passes that clients share, and room that they wait for."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from dmpt.serve.batcher import Batcher
from dmpt.serve.limits import Room


def test_what_arrives_while_the_model_works_shares_a_pass() -> None:
    passes: list[list[int]] = []
    go = threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        passes.append(list(items))
        assert go.wait(10)
        return [2 * item for item in items]

    async def ask() -> list[int]:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(work, thread, most=4)
            first = asyncio.create_task(batcher(0))
            while not passes:
                await asyncio.sleep(0.001)
            others = [asyncio.create_task(batcher(item)) for item in range(1, 10)]
            gone = asyncio.create_task(batcher(99))
            await asyncio.sleep(0)
            assert len(batcher) == 10
            gone.cancel()
            go.set()
            return [await task for task in (first, *others)]

    assert asyncio.run(ask()) == [2 * item for item in range(10)]
    assert passes == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_a_pass_waits_for_others_only_where_some_are_coming() -> None:
    passes: list[int] = []

    def work(items: Sequence[int]) -> Sequence[int]:
        passes.append(len(items))
        return items

    async def alone(batcher: Batcher[int, int]) -> float:
        start = time.monotonic()
        await batcher(1)
        return time.monotonic() - start

    async def together(batcher: Batcher[int, int]) -> None:
        with batcher.coming():
            first = asyncio.create_task(batcher(1))
            await asyncio.sleep(0.05)
        await asyncio.gather(first, batcher(2))

    async def ask() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(work, thread, wait=5.0)
            assert await alone(batcher) < 2
            await together(batcher)
            batcher = Batcher(work, thread, wait=0.01)
            with batcher.coming():  # and does not arrive
                assert await alone(batcher) < 2

    asyncio.run(ask())
    assert passes == [1, 2, 1]


def test_what_fails_fails_for_its_pass_alone() -> None:
    def work(items: Sequence[int]) -> list[float]:
        return [1 / item for item in items]

    async def ask() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(work, thread)
            with pytest.raises(ZeroDivisionError):
                await batcher(0)
            assert await batcher(2) == 0.5

    asyncio.run(ask())


def test_room_is_given_in_turn_and_back() -> None:
    async def ask() -> None:
        room, order = Room(10), list[str]()

        async def take(name: str, part: int) -> None:
            async with room.part(part):
                order.append(name)
                await asyncio.sleep(0.01)

        async with room.part(6):
            large = asyncio.create_task(take("large", 10))
            await asyncio.sleep(0)
            small = asyncio.create_task(take("small", 1))  # there would be room, but it is not its turn
            gone = asyncio.create_task(take("gone", 10))
            await asyncio.sleep(0.01)
            assert order == []
            gone.cancel()
        await asyncio.gather(large, small)
        assert order == ["large", "small"]
        async with room.part(10):
            pass

    asyncio.run(asyncio.wait_for(ask(), 10))
