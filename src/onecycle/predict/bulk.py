"""Labels of many pictures in a folder: parquet files, of which each is whole or not there.

`listing.parquet` is written first. It names every picture once, in parts, and a part is done when its file is in
`predictions`: so any process knows what is left to do, whenever it asks.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from onecycle.core.errors import InputError
from onecycle.core.files import locked, reading, replacing, shown, writing
from onecycle.core.signals import Interrupted
from onecycle.predict.chunks import cut
from onecycle.predict.engine import LOCAL, Engine, LabelledPart, PartLabeller
from onecycle.predict.parquet import read_about, read_listing, rows_of, write_listing


class Counts(NamedTuple):
    """Of the pictures in a folder of labels."""

    pictures: int
    unreadable: int


def label_into(
    out: Path, sources: Sequence[str], weights: Path, console: Console, *, tta: bool, top: int, engine: Engine = LOCAL
) -> Counts:
    """Name what is in all pictures that `sources` name, and write it into the folder `out`, or go on with that.

    The network is the one in the file `weights`. `out` is not of one engine: another one may go on.

    Raises:
        InputError: when `out` holds something else or cannot be written, or the pictures cannot be had.
        Interrupted: by SIGINT or SIGTERM; the same call goes on.
    """
    with reading(weights):
        labeller = PartLabeller(weights.read_bytes(), tta, top)
    about = {
        "format": 2,
        "sources": [source and os.path.abspath(source) for source in sources],
        "network": hashlib.sha256(labeller.weights).hexdigest(),
        "tta": tta,
        "top": top,
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        try:
            _list(out, about, labeller)
            _label_left(out, labeller, engine, console)
        except Interrupted as stopped:
            raise Interrupted(stopped.number, "the same command goes on") from None
        return _counted(out)


def _list(out: Path, about: dict[str, Any], labeller: PartLabeller) -> None:
    """Write down what is to be done, unless that is what the folder holds."""
    listing = out / "listing.parquet"
    if listing.exists():
        began = read_about(listing)
        if differing := [name for name, value in about.items() if began.get(name) != value]:
            raise InputError(f"{out} holds labels with another {' and '.join(differing)}; give another --out")
        return
    if others := [path.name for path in out.iterdir() if not path.name.startswith(".")]:
        raise InputError(f"{out} holds {shown(others[0])} and no listing.parquet; give a folder that is empty or new")
    parts = cut([source and os.path.abspath(source) for source in about["sources"]], labeller.predictor.at_once)
    write_listing(listing, parts, about)


def _label_left(out: Path, labeller: PartLabeller, engine: Engine, console: Console) -> None:
    parts = list(read_listing(out / "listing.parquet"))
    left = [part for part in parts if not _files(out, part.number)[1].exists()]
    bar = Progress(
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} pictures"),
        BarColumn(bar_width=None),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        expand=True,
    )
    with bar:
        total = sum(part.pictures for part in parts)
        task = bar.add_task("", total=total, completed=total - sum(part.pictures for part in left))
        for done in engine.label(labeller, left):
            _keep(out, done)
            bar.advance(task, done.pictures)


def _keep(out: Path, done: LabelledPart) -> None:
    """Write a part's two files, last the one that says it is done."""
    for file, content in zip(_files(out, done.number), (done.unreadable, done.predictions), strict=True):
        with writing(file):
            file.parent.mkdir(exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_bytes(content)


def _files(out: Path, number: int) -> tuple[Path, Path]:
    name = f"part-{number:06}.parquet"
    return out / "unreadable" / name, out / "predictions" / name


def _counted(out: Path) -> Counts:
    """What the files themselves hold.

    Raises:
        InputError: when that is not what was listed.
    """
    listed = readable = unreadable = 0
    for part in read_listing(out / "listing.parquet"):
        without, with_label = map(rows_of, _files(out, part.number))
        if without + with_label != part.pictures:
            raise InputError(f"{_files(out, part.number)[1]} does not hold what was listed; remove it, and begin again")
        listed, readable, unreadable = listed + part.pictures, readable + with_label, unreadable + without
    return Counts(listed, unreadable)
