"""Decoding folders and archives into parts: in as many processes as there are cores, and each of them only once."""

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
from onecycle.data.store.decoding import MOST_THREADS, each_decoded, square_of
from onecycle.data.store.listing import Listing

_LOOK_SECONDS = 0.2


class Source(NamedTuple):
    """A folder or an archive, what it is known by, and how to tell that again: it differs when it has changed."""

    path: Path
    identity: str
    identify: Callable[[Path], str]


@dataclass(frozen=True, eq=False)
class Part:
    """A source, decoded: what it holds, its images uint8 `[n,S,S,3]`, and of those that cannot be used, why."""

    listing: Listing
    images: NDArray[np.uint8]
    problems: dict[int, str]  # by the image's number


class EncodedImage(NamedTuple):
    """A file with an image, and the name that messages give it."""

    content: bytes | InputError  # why it could not be read
    where: str


def images_in(listing: Listing) -> Iterator[EncodedImage]:
    """The images in the source of an empty `listing`, in the order they come in; they are listed on the way."""
    for entry in entries_of(listing.source):
        if listing.add(entry):
            content: bytes | InputError
            try:
                content = entry.read()
            except InputError as error:
                content = error
            yield EncodedImage(content, listing.where("/".join(entry.parts)))


def decode(sources: Sequence[Source], size: int, folder: Path) -> list[Part]:
    """The parts of `sources`, with images of `size` by `size` pixels, in files of `folder`, to be had by this process.

    A part appears when it is whole: what was decoded when a process was stopped, however it was, is not decoded again.

    Raises:
        InputError: a source cannot be read to its end, or changed while it was read.
        OSError: `folder` cannot be written.
    """
    tasks = [_Task(source, size, folder) for source in sources]
    missing = [task for task in tasks if not task.is_done]
    processes = _processes(len(missing))
    threads = max(1, MOST_THREADS // processes)
    with _cleared(folder), _helpers(processes - 1, missing, threads) as helpers, _bar(tasks) as look:
        _work(missing, threads, look)
        for helper in helpers:
            while helper.is_alive():
                helper.join(_LOOK_SECONDS)
                look()
        for task in missing:  # of a helper that failed: what is wrong is told here
            if not task.is_done:
                task.run(threads, look)
    return [task.part() for task in tasks]


def _processes(sources: int) -> int:
    """How many to decode so many sources in."""
    # Elsewhere a process would begin with loading torch, and with running the user's script again.
    can_fork = sys.platform == "linux" and not multiprocessing.current_process().daemon
    return max(1, min(usable_cores(), sources)) if can_fork else 1


@dataclass(frozen=True)
class _Task:
    """A source that is to become a part."""

    source: Source
    size: int
    folder: Path

    @property
    def _place(self) -> Path:
        return self.folder / hashlib.sha256(self.source.identity.encode()).hexdigest()[:32]

    @property
    def is_done(self) -> bool:
        return self._place.exists()

    def claim(self) -> bool:
        """Whether this process is the one to do it."""
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
            if self.source.identify(self.source.path) != self.source.identity:
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
            squares = each_decoded(images_in(listing), partial(square_of, size=self.size), threads=threads)
            for number, (_, square) in enumerate(squares):
                if isinstance(square, InputError):
                    problems[number], square = str(square), blank
                file.write(np.ascontiguousarray(square).data)
                after_image()
        listing.save(folder)
        (folder / "problems.json").write_text(json.dumps(problems))

    def part(self) -> Part:
        """What it has become.

        Raises:
            OSError: the files are not whole.
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
        return Part(listing, images, {int(number): problem for number, problem in problems.items()})


@contextmanager
def _cleared(folder: Path) -> Iterator[None]:
    """Removes, before and after, what processes that are no more have left: claims, and parts that are not whole."""

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
    """So many processes that work off `tasks`, too, until the end at most."""
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
    # A terminal tells all processes of a command to stop; this one is told by its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def leave_if_alone() -> None:
        if os.getppid() != parent:
            os._exit(1)

    with suppress(Exception):  # the parent finds the same, and tells it
        _work(tasks, threads, leave_if_alone)


@contextmanager
def _bar(tasks: Sequence[_Task]) -> Iterator[Callable[[], None]]:
    """Shows on a terminal how many of the `tasks` are done, whenever what it gives is called."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Without a thread of its own: helpers are forked.
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,
        disable=len(tasks) == 1 or not console.is_terminal,
    )
    looked = 0.0

    def look() -> None:
        nonlocal looked
        if not bar.disable and time.monotonic() - looked > _LOOK_SECONDS:
            looked = time.monotonic()
            bar.update(shown_task, completed=sum(task.is_done for task in tasks), refresh=True)

    with bar:
        shown_task = bar.add_task("archives read", total=len(tasks))
        yield look
