"""Export a trained network for other programs, with a model card."""

from pathlib import Path

from onecycle.core.errors import InputError, StorageError
from onecycle.core.extras import require
from onecycle.core.regular_files import make_folder
from onecycle.predict.predictor import SHIPPED, Predictor
from onecycle.report.model_card import CARD, write_card, write_card_of_included
from onecycle.storage.run_folder import RunFolder


def export_onnx(run: Path | None, out: Path | None = None, *, network: str | None = None) -> tuple[Path, float]:
    """Export a trained network as ONNX, with a model card, into the folder `out`.

    If `run` is a run folder, its network is exported, and `out` is by default `onnx/` in this folder. If `run` is None,
    the network that comes with the package is exported, and `out` is by default `onnx/` in the current folder.
    If the network is the user's own, `network` names its code.

    Returns the path of the file, and the largest difference between its outputs and those of the network on 1,000
    synthetic images (see `write_onnx`).

    Raises:
        InputError: when the run is missing or incomplete, a package is missing, the files exist already, or the
            exported network computes something else than the original. In the last case, no file is written.
        StorageError: when the files cannot be written.
    """
    require("export", "onnx", "onnxscript", "onnxruntime")
    from onecycle.predict.onnx import write_onnx  # imported only here, because it needs the packages checked above

    folder = RunFolder.open(run) if run else None
    if folder:
        result = folder.read_result()
        description = f"{result.recipe} on {result.dataset}, seed {result.seed}, by onecycle"
    else:
        description = "the network for CIFAR-10 that comes with onecycle"
    predictor = Predictor.load(folder.weights if folder else SHIPPED, network=network)
    file = (out or (folder.path if folder else Path()) / "onnx") / "model.onnx"
    for path in (file, file.parent / CARD):
        if path.exists():
            raise InputError(f"{path} exists already; remove it, or give another folder with --out")
    try:
        if folder and not out:
            make_folder(file.parent)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {file.parent}: {error.strerror}; give another one with --out"
        ) from error
    difference = write_onnx(predictor, file, description)
    if folder:
        write_card(folder, predictor, file)
    else:
        write_card_of_included(predictor, SHIPPED, file)
    return file, difference
