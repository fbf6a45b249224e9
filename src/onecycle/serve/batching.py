"""Batch the requests of many clients: a network takes little longer for many images than for one image."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST_AT_ONCE = 64
WAIT_SECONDS = 0.003  # time that a batch waits for more items after its first item


class BusyError(Exception):
    """The service is too busy for an image, for example because the queue is full."""


class Batcher(Generic[T, R]):
    """Calls `compute` in a separate thread, with batches of at most `most` items.

    At most `room` items wait in the queue.
    """

    def __init__(self, compute: Callable[[Sequence[T]], Sequence[R]], *, room: int, most: int = MOST_AT_ONCE) -> None:
        self._compute = compute
        self.most = most
        self._waiting: asyncio.Queue[tuple[T, asyncio.Future[R]]] = asyncio.Queue(room)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")

    async def submit(self, item: T) -> R:
        """The result of `compute` for `item`.

        Raises:
            BusyError: when the queue is full.
        """
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((item, answer))
        except asyncio.QueueFull:
            raise BusyError from None
        return await answer

    async def run(self) -> None:
        """Process batches until canceled."""
        try:
            while True:
                taken = await self._take()
                # Skip items whose request was refused or timed out, because nobody waits for their results.
                wanted = [(item, answer) for item, answer in taken if not answer.done()]
                if wanted:
                    await self._answer(wanted)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _take(self) -> list[tuple[T, "asyncio.Future[R]"]]:
        """The next batch: waiting items, and items that arrive within a few milliseconds of the first item."""
        taken = [await self._waiting.get()]
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while len(taken) < self.most:
                    taken.append(await self._waiting.get())
        except TimeoutError:
            pass
        return taken

    async def _answer(self, wanted: list[tuple[T, "asyncio.Future[R]"]]) -> None:
        items = [item for item, _ in wanted]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, items)
        except Exception as error:
            for _, answer in wanted:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), result in zip(wanted, results, strict=True):
            if not answer.done():
                answer.set_result(result)
