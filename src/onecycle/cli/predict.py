"""The commands that use a trained network: `onecycle predict | export | serve`."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from onecycle.cli.app import app
from onecycle.cli.options import DEFAULT_ENGINE, EngineOptions, EngineSettings, OwnNetwork, Run
from onecycle.core.console import OutputConsole
from onecycle.core.csv_rows import CsvRows
from onecycle.core.errors import InputError
from onecycle.core.extras import require
from onecycle.core.files import printable
from onecycle.core.formatting import percent, without_controls

if TYPE_CHECKING:
    from onecycle.predict.predictor import Prediction

Form = Literal["text", "csv", "json"]


@app.command
def predict(
    *images: str,
    run: Run = None,
    network: OwnNetwork = None,
    top: int = 3,
    tta: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    as_csv: Annotated[bool, Parameter(name="--csv")] = False,
    out: Path | None = None,
    engine: EngineSettings = DEFAULT_ENGINE,
) -> int:
    """Predict the classes of images: one line per file with the most likely classes and their probabilities.

    A line ends with "unlike anything it was trained on" if the image does not resemble the training images.
    The exit code is 2 if a file cannot be read; all other files are predicted.
    With --out, repeat the command to resume after an interruption.

    Parameters
    ----------
    images
        Files, folders and patterns such as 'photos/*.jpg', in any size and any common format.
    top
        The number of classes to print.
    tta
        Use test-time augmentation for images that the network is not confident of.
    as_json
        Print one JSON object per line.
    as_csv
        Print comma-separated values with a header.
    out
        Write parquet files into this folder. Images may then also be in .tar, .tar.gz and .zip archives.
    """
    if not images:
        raise InputError("no image is given; give files, folders or patterns")
    if top < 1:
        raise InputError(f"--top is {top}; it must be 1 or more")
    if as_json and as_csv:
        raise InputError("--json and --csv exclude each other; use one of them")
    if out:
        if as_json or as_csv:
            raise InputError(f"--out writes parquet; remove {'--json' if as_json else '--csv'}")
        return _predict_into(out, images, run, network, top=top, tta=tta, engine=engine)
    if engine.engine == "ray":
        raise InputError("--engine ray writes files; add --out")
    return _predict(images, run, network, top=top, tta=tta, form="json" if as_json else "csv" if as_csv else "text")


def _predict(images: tuple[str, ...], run: Path | None, network: str | None, *, top: int, tta: bool, form: Form) -> int:
    from onecycle.data.readers.entries import ARCHIVE_SUFFIXES
    from onecycle.data.readers.left_out import LeftOut
    from onecycle.data.store.decode import Unreadable
    from onecycle.models.test_time_augmentation import TestTimeAugmentation
    from onecycle.predict.predictor import load
    from onecycle.predict.stream import predict_files

    for image in images:
        if image.lower().endswith(ARCHIVE_SUFFIXES) and os.path.isfile(image):
            raise InputError(f"{printable(image)} is an archive; add --out FOLDER, or unpack it")
    predictor = load(run, network=network)
    if run is None:
        print(f"onecycle: using the included network ({', '.join(predictor.classes)})", file=sys.stderr)
    if tta:
        predictor = replace(predictor, model=TestTimeAugmentation(predictor.model))
    write = _writer(form, min(top, len(predictor.classes)))
    files = failed = 0
    left_out = LeftOut()
    for path, prediction in predict_files(predictor, images, left_out):
        files += 1
        if isinstance(prediction, Unreadable):
            print(f"onecycle: {prediction.reason}", file=sys.stderr)
            failed += 1
        else:
            write(path, prediction)
    _print_left_out(left_out.lines())
    if failed:
        print(f"onecycle: {failed:,} of {files:,} files could not be read", file=sys.stderr)
    return 2 if failed else 0


def _predict_into(
    out: Path,
    images: tuple[str, ...],
    run: Path | None,
    network: str | None,
    *,
    top: int,
    tta: bool,
    engine: EngineOptions,
) -> int:
    require("cluster", "pyarrow", *(["ray"] if engine.engine == "ray" else []))
    from onecycle.predict.bulk import LOCAL_PREDICTION_ENGINE, predict_into
    from onecycle.predict.predictor import weights_of
    from onecycle.predict.ray import RayPredictionEngine

    chosen = RayPredictionEngine(engine.address) if engine.engine == "ray" else LOCAL_PREDICTION_ENGINE
    counts = predict_into(
        out, images, weights_of(run), OutputConsole(), tta=tta, top=top, network=network, engine=chosen
    )
    print(f"the results of {counts.images:,} images are in {out}")
    _print_left_out(counts.left_out)
    if counts.unreadable:
        unreadable = f"{counts.unreadable:,} of {counts.images:,} images could not be read; see {out / 'unreadable'}"
        print(f"onecycle: {unreadable}", file=sys.stderr)
    return 2 if counts.unreadable else 0


def _print_left_out(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"onecycle: left out {line}", file=sys.stderr)


def _writer(form: Form, top: int) -> Callable[[Path, "Prediction"], None]:
    """A function that prints one line per file: the `top` most likely classes and their probabilities.

    The line also says whether the image is like those that the network was trained on.
    """
    table = CsvRows(sys.stdout)
    if form == "csv":
        numbers = range(1, top + 1)
        ranks = (name for n in numbers for name in (f"class_{n}", f"probability_{n}"))
        table.write_row(["file", *ranks, "in_distribution", "energy_score"])

    def text(path: Path, prediction: "Prediction") -> None:
        ranked = (f"{name}\t{percent(probability)}" for name, probability in prediction.top(top))
        unlike = ["unlike anything it was trained on"] if prediction.in_distribution is False else []
        print(printable(path), *ranked, *unlike, sep="\t")

    def row(path: Path, prediction: "Prediction") -> None:
        # Escape control characters only on a terminal: a program that reads the table needs the exact name.
        name_of_file = without_controls(str(path)) if sys.stdout.isatty() else path
        ranked = (value for name, probability in prediction.top(top) for value in (name, f"{probability:.6f}"))
        known = "" if prediction.in_distribution is None else json.dumps(prediction.in_distribution)
        table.write_row([name_of_file, *ranked, known, f"{prediction.energy_score:.6f}"])

    def line(path: Path, prediction: "Prediction") -> None:
        ranked = [{"class_name": name, "probability": round(share, 6)} for name, share in prediction.top(top)]
        scores = {"in_distribution": prediction.in_distribution, "energy_score": round(prediction.energy_score, 6)}
        print(json.dumps({"file": str(path), "predictions": ranked, **scores}))

    return {"text": text, "csv": row, "json": line}[form]


@app.command
def export(
    *, run: Run = None, network: OwnNetwork = None, to: Literal["onnx"] = "onnx", out: Path | None = None
) -> int:
    """Export a network for other programs, verify it against the original, and write a model card.

    Parameters
    ----------
    to
        The format. An ONNX file takes uint8 images [N,H,W,3] and returns probabilities. It includes the normalization
        and the class names.
    out
        The folder to write into; by default onnx/ in the run folder, or ./onnx for the included network.
    """
    from onecycle.run.export import export_onnx

    file, difference = export_onnx(run, out, network=network)
    print(f"{file}\nlargest relative difference from the network on 1,000 synthetic images: {difference:.1e}")
    print(file.parent / "README.md")
    return 0


@app.command
def serve(
    *,
    run: Run = None,
    network: OwnNetwork = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_host: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
) -> int:
    """Serve a web page and an HTTP API (POST /predict) for a network. Ctrl-C stops it.

    Parameters
    ----------
    host
        The address to listen on; only this machine can reach 127.0.0.1.
    port
        The port to listen on; 0 uses a free one.
    allowed_host
        A further name of the service, such as its public name behind a proxy; repeat the option for several names.
    """
    from onecycle import serve as service
    from onecycle.core.signals import Interrupted
    from onecycle.predict.predictor import load

    name = "CIFAR-10" if run is None else printable(run.resolve().name)
    with suppress(Interrupted):
        service.serve(load(run, network=network), name, host=host, port=port, allowed_hosts=allowed_host)
    print("Stopped")
    return 0
