"""The service computes requests of many clients in one batch. An error in one batch does not affect other batches."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

import onecycle
from onecycle.serve.app import _Service
from onecycle.serve.batching import MOST_AT_ONCE, Batcher, BusyError
from onecycle.serve.limits import LIMITS

Squares = Batcher[int, int]


def run_test(test: Callable[[Squares], Awaitable[None]], batcher: Squares) -> None:
    """Run `test` while `batcher` runs."""

    async def both() -> None:
        work = asyncio.create_task(batcher.run())
        try:
            await test(batcher)
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    with ThreadPoolExecutor(1) as pool:  # a new thread, because Playwright may have left an event loop in this one
        pool.submit(asyncio.run, both()).result()


def test_items_within_milliseconds_are_computed_together_and_in_order() -> None:
    batches: list[list[int]] = []

    def squares(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return [item**2 for item in items]

    async def test(batcher: Squares) -> None:
        count = MOST_AT_ONCE + 10
        assert await asyncio.gather(*map(batcher.submit, range(count))) == [item**2 for item in range(count)]
        assert [len(batch) for batch in batches] == [MOST_AT_ONCE, 10]
        started = time.perf_counter()
        assert await batcher.submit(5) == 25
        assert time.perf_counter() - started < 60

    run_test(test, Batcher(squares, room=1000))


def test_a_batch_has_at_most_the_given_number_of_items() -> None:
    sizes: list[int] = []

    def squares(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        return [item**2 for item in items]

    async def test(batcher: Squares) -> None:
        assert await asyncio.gather(*map(batcher.submit, range(7))) == [item**2 for item in range(7)]
        assert sizes == [3, 3, 1]

    run_test(test, Batcher(squares, room=1000, most=3))


@pytest.mark.parametrize(("size", "most"), [(32, 64), (128, 15), (512, 1)])
def test_large_images_are_computed_in_smaller_batches(size: int, most: int) -> None:
    predictor = onecycle.load()
    large = replace(predictor, preprocessing=replace(predictor.preprocessing, input_size=size))
    assert _Service(large, LIMITS).batcher.most == most


def test_a_full_queue_refuses_an_item_and_answers_the_others() -> None:
    free = threading.Event()

    def squares(items: Sequence[int]) -> list[int]:
        free.wait()
        return [item**2 for item in items]

    async def test(batcher: Squares) -> None:
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.1)  # item 1 is being computed
        waiting = [asyncio.create_task(batcher.submit(item)) for item in (2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher.submit(4)
        free.set()
        assert await asyncio.gather(first, *waiting) == [1, 4, 9]

    run_test(test, Batcher(squares, room=2))


def test_an_error_affects_only_its_own_batch() -> None:
    def squares(items: Sequence[int]) -> list[int]:
        if 0 in items:
            raise ZeroDivisionError
        return [item**2 for item in items]

    async def test(batcher: Squares) -> None:
        answers = await asyncio.gather(batcher.submit(0), batcher.submit(1), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ZeroDivisionError] * 2
        assert await batcher.submit(2) == 4

    run_test(test, Batcher(squares, room=10))


def test_a_canceled_item_is_not_computed() -> None:
    free, computed = threading.Event(), []

    def squares(items: Sequence[int]) -> list[int]:
        free.wait()
        computed.extend(items)
        return [item**2 for item in items]

    async def test(batcher: Squares) -> None:
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.1)
        canceled, last = (asyncio.create_task(batcher.submit(item)) for item in (2, 3))
        await asyncio.sleep(0)
        canceled.cancel()
        free.set()
        assert await asyncio.gather(first, last) == [1, 9]
        assert computed == [1, 3]

    run_test(test, Batcher(squares, room=10))
