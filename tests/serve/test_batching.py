"""Requests of many clients are computed together, and what becomes of one does not touch the others."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from onecycle.serve.batching import MOST_AT_ONCE, Batcher, BusyError

Squares = Batcher[int, int]


def working(test: Callable[[Squares], Awaitable[None]], batcher: Squares) -> None:
    """Run `test` while `batcher` works."""

    async def both() -> None:
        work = asyncio.create_task(batcher.run())
        try:
            await test(batcher)
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    with ThreadPoolExecutor(1) as pool:  # the browser of other tests has its loop in this thread
        pool.submit(asyncio.run, both()).result()


def test_what_comes_within_milliseconds_is_computed_together_and_in_order() -> None:
    batches: list[list[int]] = []

    def squares(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return [item**2 for item in items]

    async def test(batcher: Squares) -> None:
        count = MOST_AT_ONCE + 10
        assert await asyncio.gather(*map(batcher.submit, range(count))) == [item**2 for item in range(count)]
        assert [len(batch) for batch in batches] == [MOST_AT_ONCE, 10]
        began = time.perf_counter()
        assert await batcher.submit(5) == 25
        assert time.perf_counter() - began < 1

    working(test, Batcher(squares, room=1000))


def test_one_too_many_is_refused_and_the_others_are_answered() -> None:
    free = threading.Event()

    def squares(items: Sequence[int]) -> list[int]:
        free.wait()
        return [item**2 for item in items]

    async def test(batcher: Squares) -> None:
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.1)  # it is being computed
        waiting = [asyncio.create_task(batcher.submit(item)) for item in (2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher.submit(4)
        free.set()
        assert await asyncio.gather(first, *waiting) == [1, 4, 9]

    working(test, Batcher(squares, room=2))


def test_an_error_is_that_of_its_batch_alone() -> None:
    def squares(items: Sequence[int]) -> list[int]:
        if 0 in items:
            raise ZeroDivisionError
        return [item**2 for item in items]

    async def test(batcher: Squares) -> None:
        answers = await asyncio.gather(batcher.submit(0), batcher.submit(1), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ZeroDivisionError] * 2
        assert await batcher.submit(2) == 4

    working(test, Batcher(squares, room=10))


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    free, computed = threading.Event(), []

    def squares(items: Sequence[int]) -> list[int]:
        free.wait()
        computed.extend(items)
        return [item**2 for item in items]

    async def test(batcher: Squares) -> None:
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.1)
        gone, last = (asyncio.create_task(batcher.submit(item)) for item in (2, 3))
        await asyncio.sleep(0)
        gone.cancel()
        free.set()
        assert await asyncio.gather(first, last) == [1, 9]
        assert computed == [1, 3]

    working(test, Batcher(squares, room=10))
