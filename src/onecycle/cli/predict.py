"""The commands that put a trained network to use: `onecycle predict | export | serve`."""

import csv
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from onecycle.cli.app import app
from onecycle.cli.engine_options import HERE, Where
from onecycle.core.errors import InputError
from onecycle.core.extras import require
from onecycle.core.files import shown

Form = Literal["text", "csv", "json"]


@app.command
def predict(
    *pictures: str,
    run: Path | None = None,
    top: int = 3,
    tta: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    as_csv: Annotated[bool, Parameter(name="--csv")] = False,
    out: Path | None = None,
    where: Annotated[Where, Parameter(name="*")] = HERE,
) -> int:
    """Name what is in pictures: a line each with file, likeliest classes and their probabilities.

    Exit code 2 if there are files that cannot be read; the others are named all the same. With --out, the same command
    goes on where it was stopped.

    Parameters
    ----------
    pictures
        Files, folders and patterns such as 'photos/*.jpg'; whatever Pillow reads, of any size.
    run
        The run whose network to use; when left out, the one for CIFAR-10 that comes with onecycle.
    top
        How many classes to name.
    tta
        Look at several views of each picture that the network is not sure of (test-time augmentation).
    as_json
        Print a JSON object a line.
    as_csv
        Print a table of comma-separated values, with a head.
    out
        Write parquet files into this folder instead; pictures may also be in .tar, .tar.gz and .zip archives.
    """
    if not pictures:
        raise InputError("no picture is given; name files, folders or patterns")
    if top < 1:
        raise InputError(f"--top is {top}; it must be 1 or more")
    if as_json and as_csv:
        raise InputError("--json and --csv exclude each other; give one")
    if out:
        if as_json or as_csv:
            raise InputError(f"--out writes parquet; leave out {'--json' if as_json else '--csv'}")
        return _label_into(out, pictures, run, top=top, tta=tta, where=where)
    if where.engine == "ray":
        raise InputError("--engine ray writes files; give --out, too")
    return _label(pictures, run, top=top, tta=tta, form="json" if as_json else "csv" if as_csv else "text")


def _label(pictures: tuple[str, ...], run: Path | None, *, top: int, tta: bool, form: Form) -> int:
    from onecycle.models.test_time_augmentation import Averaged
    from onecycle.predict.predictor import load
    from onecycle.predict.stream import label

    predictor = load(run)
    if run is None:
        print(f"onecycle: by the network that comes with it ({', '.join(predictor.classes)})", file=sys.stderr)
    if tta:
        predictor = replace(predictor, model=Averaged(predictor.model))
    write = _writer(form, min(top, len(predictor.classes)))
    files = failed = 0
    for path, prediction in label(predictor, pictures):
        files += 1
        if isinstance(prediction, InputError):
            print(f"onecycle: {prediction}", file=sys.stderr)
            failed += 1
        else:
            write(path, prediction.top(top))
    if failed:
        print(f"onecycle: {failed:,} of {files:,} could not be read", file=sys.stderr)
    return 2 if failed else 0


def _label_into(out: Path, pictures: tuple[str, ...], run: Path | None, *, top: int, tta: bool, where: Where) -> int:
    require("cluster", "pyarrow", *(["ray"] if where.engine == "ray" else []))
    from onecycle.predict.bulk import label_into
    from onecycle.predict.engine import LOCAL
    from onecycle.predict.predictor import weights_of
    from onecycle.predict.ray import PicturesOnRay

    engine = PicturesOnRay(where.address) if where.engine == "ray" else LOCAL
    counts = label_into(out, pictures, weights_of(run), Console(), tta=tta, top=top, engine=engine)
    print(f"{counts.pictures:,} pictures, in {out}")
    if counts.unreadable:
        unreadable = f"{counts.unreadable:,} of {counts.pictures:,} could not be read: {out / 'unreadable'}"
        print(f"onecycle: {unreadable}", file=sys.stderr)
    return 2 if counts.unreadable else 0


def _writer(form: Form, top: int) -> Callable[[Path, list[tuple[str, float]]], None]:
    """What prints a line about a file, of its likeliest classes with their probabilities."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    if form == "csv":
        numbers = range(1, top + 1)
        table.writerow(["file", *(name for n in numbers for name in (f"class_{n}", f"probability_{n}"))])

    def text(path: Path, ranked: list[tuple[str, float]]) -> None:
        print(shown(path), *(f"{label}\t{probability:.2%}" for label, probability in ranked), sep="\t")

    def row(path: Path, ranked: list[tuple[str, float]]) -> None:
        table.writerow([path, *(value for label, probability in ranked for value in (label, f"{probability:.6f}"))])

    def line(path: Path, ranked: list[tuple[str, float]]) -> None:
        predictions = [{"label": label, "probability": round(probability, 6)} for label, probability in ranked]
        print(json.dumps({"file": str(path), "predictions": predictions}))

    return {"text": text, "csv": row, "json": line}[form]


@app.command
def export(run: Path, /, *, to: Literal["onnx"], out: Path | None = None) -> int:
    """Write a run's network for other programs, verified against it, with a model card.

    Parameters
    ----------
    run
        The run's folder.
    to
        The form: onnx takes images uint8 [N,H,W,3] and gives probabilities, with normalization and class names inside.
    out
        The folder to write into; onnx/ in the run's folder when left out.
    """
    from onecycle.run.export import export_onnx

    file, difference = export_onnx(run, out)
    print(f"{file}\nlargest difference from the network over 1,000 made-up images: {difference:.1e}")
    print(file.parent / "README.md")
    return 0


@app.command
def serve(*, run: Path | None = None, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Show a page to try a network on, and answer programs (POST /predict), until stopped with Ctrl-C.

    Parameters
    ----------
    run
        The run whose network to use; when left out, the one for CIFAR-10 that comes with onecycle.
    host
        The address to listen at; only this machine reaches 127.0.0.1.
    port
        The port to listen at; 0 takes a free one.
    """
    from onecycle import serve as service
    from onecycle.core.signals import Interrupted
    from onecycle.predict.predictor import load

    name = "CIFAR-10" if run is None else run.resolve().name
    with suppress(Interrupted):
        service.serve(load(run), name, host=host, port=port)
    print("Stopped")
    return 0
