"""Decode several folders or archives in parallel processes. Each folder or archive is decoded once."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onecycle.compute.hardware import usable_cores
from onecycle.core.errors import InputError
from onecycle.core.files import flush
from onecycle.data.readers.entries import entries_of
from onecycle.data.store.decode import MOST_THREADS, Unreadable, decode_square, each_decoded
from onecycle.data.store.listing import Listing

_POLL_SECONDS = 0.2


class DecodeSource(NamedTuple):
    """A folder or archive with its fingerprint, and a function that computes the fingerprint again."""

    path: Path
    fingerprint: str
    compute_fingerprint: Callable[[Path], str]


@dataclass(frozen=True, eq=False)
class DecodedSource:
    """A decoded folder or archive: its listing, and its images as uint8 `[n,S,S,3]`.

    `problems` maps the index of each unusable image to the reason.
    """

    listing: Listing
    images: NDArray[np.uint8]
    problems: dict[int, str]


class EncodedImage(NamedTuple):
    """The content of an image file, and the name that messages use for it."""

    content: bytes | Unreadable
    where: str


def images_in(listing: Listing) -> Iterator[EncodedImage]:
    """Yield the images in the source of `listing`, in reading order, and add them to `listing`.

    `listing` must be empty at the start.
    """
    for entry in entries_of(listing.source):
        if listing.add(entry):
            content: bytes | Unreadable
            try:
                content = entry.read()
            except InputError as error:
                content = Unreadable(str(error))
            yield EncodedImage(content, listing.where("/".join(entry.parts)))


def decode(sources: Sequence[DecodeSource], size: int, folder: Path) -> list[DecodedSource]:
    """Decode `sources` to images of `size`×`size` pixels, and save these in `folder`. The caller must lock `folder`.

    Each source gets a temporary folder, which is renamed when the source is decoded. After an interruption, decoded
    sources are not decoded again.

    Raises:
        InputError: when a source cannot be read to its end, or changed while it was read.
        OSError: when `folder` cannot be written.
    """
    tasks = [_Task(source, size, folder) for source in sources]
    missing = [task for task in tasks if not task.is_done]
    processes = _processes(len(missing))
    threads = max(1, MOST_THREADS // processes)
    with _cleared(folder), _helpers(processes - 1, missing, threads) as helpers, _bar(tasks) as update:
        _work(missing, threads, update)
        for helper in helpers:
            while helper.is_alive():
                helper.join(_POLL_SECONDS)
                update()
        for task in missing:  # a helper failed: run the task here to report the error
            if not task.is_done:
                task.run(threads, update)
    return [task.decoded() for task in tasks]


def _processes(sources: int) -> int:
    """The number of processes to use when there are `sources` sources to decode."""
    # Without fork, each process would import torch and run the user's script again.
    can_fork = sys.platform == "linux" and not multiprocessing.current_process().daemon
    return max(1, min(usable_cores(), sources)) if can_fork else 1


@dataclass(frozen=True)
class _Task:
    """A source to decode."""

    source: DecodeSource
    size: int
    folder: Path

    @property
    def _place(self) -> Path:
        return self.folder / hashlib.sha256(self.source.fingerprint.encode()).hexdigest()[:32]

    @property
    def is_done(self) -> bool:
        return self._place.exists()

    def claim(self) -> bool:
        """Claim the task for this process and return whether that succeeded."""
        try:
            os.close(os.open(self._place.with_suffix(".claim"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def run(self, threads: int, after_image: Callable[[], None]) -> None:
        unfinished = self._place.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir()
            self._write(unfinished, threads, after_image)
            if self.source.compute_fingerprint(self.source.path) != self.source.fingerprint:
                raise InputError(f"{self.source.path}: changed while it was read; try again")
            for file in (*unfinished.iterdir(), unfinished):
                flush(file)
            unfinished.rename(self._place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _write(self, folder: Path, threads: int, after_image: Callable[[], None]) -> None:
        listing, problems = Listing(self.source.path), {}
        blank = np.zeros((self.size, self.size, 3), np.uint8)
        with (folder / "images").open("wb") as file:
            squares = each_decoded(images_in(listing), partial(decode_square, size=self.size), threads=threads)
            for number, (_, square) in enumerate(squares):
                if isinstance(square, Unreadable):
                    problems[number], square = square.reason, blank
                file.write(np.ascontiguousarray(square).data)
                after_image()
        listing.save(folder)
        (folder / "problems.json").write_text(json.dumps(problems))

    def decoded(self) -> DecodedSource:
        """The decoded source.

        Raises:
            OSError: when the files are damaged.
        """
        try:
            listing = Listing.load(self._place, self.source.path)
            problems = json.loads((self._place / "problems.json").read_text())
            shape = (len(listing), self.size, self.size, 3)
            images = (
                np.memmap(self._place / "images", np.uint8, "r", shape=shape) if shape[0] else np.empty(shape, np.uint8)
            )
        except ValueError as error:
            raise OSError(f"{self._place} is damaged; remove it") from error
        return DecodedSource(listing, images, {int(number): problem for number, problem in problems.items()})


@contextmanager
def _cleared(folder: Path) -> Iterator[None]:
    """Before and after the block, remove from `folder` the claims and unfinished files of processes that have ended."""

    def clear() -> None:
        for claim in folder.glob("*.claim"):
            claim.unlink()
        for unfinished in folder.glob("*.unfinished"):
            shutil.rmtree(unfinished)

    clear()
    try:
        yield
    finally:
        clear()


def _work(tasks: Sequence[_Task], threads: int, after_image: Callable[[], None]) -> None:
    for task in tasks:
        if task.claim():
            task.run(threads, after_image)


@contextmanager
def _helpers(count: int, tasks: Sequence[_Task], threads: int) -> Iterator[list[ForkProcess]]:
    """Start `count` processes that also work on `tasks`. They are terminated at the end of the block."""
    helpers: list[ForkProcess] = []
    try:
        for _ in range(count):
            helper = multiprocessing.get_context("fork").Process(target=_help, args=(tasks, threads, os.getpid()))
            helper.start()
            helpers.append(helper)
        yield helpers
    finally:
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            helper.join()


def _help(tasks: Sequence[_Task], threads: int, parent: int) -> None:
    # A terminal sends SIGINT to all processes of a command. A helper ignores SIGINT, because its parent stops it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def exit_if_orphaned() -> None:
        if os.getppid() != parent:
            os._exit(1)

    with suppress(Exception):  # the parent runs the task again and reports the error
        _work(tasks, threads, exit_if_orphaned)


@contextmanager
def _bar(tasks: Sequence[_Task]) -> Iterator[Callable[[], None]]:
    """A progress bar over `tasks`. The yielded function updates it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # The bar must not start a thread, because this process forks.
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,
        disable=len(tasks) == 1 or not console.is_terminal,
    )
    updated = 0.0

    def update() -> None:
        nonlocal updated
        if not bar.disable and time.monotonic() - updated > _POLL_SECONDS:
            updated = time.monotonic()
            bar.update(task_id, completed=sum(task.is_done for task in tasks), refresh=True)

    with bar:
        task_id = bar.add_task("archives read", total=len(tasks))
        yield update
