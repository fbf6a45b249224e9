"""A trained network in a form that other programs run, with a card that says what it is."""

from importlib.util import find_spec
from pathlib import Path

from onecycle.core.errors import InputError
from onecycle.predict.predictor import Predictor
from onecycle.report.model_card import CARD, write_card
from onecycle.storage.run_folder import RunFolder

__all__ = ["export_onnx", "write_card"]

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(run: Path, out: Path | None = None) -> tuple[Path, float]:
    """Write the network of the `run` in a folder as ONNX, with a model card beside it, into the folder `out`.

    That is `onnx/` in the run's folder when left out. Returns the file, and the largest difference of a probability
    from the network's own that was seen over 1,000 made-up images.

    Raises:
        InputError: when there is no such run, it is not complete, a library is missing, the files are there already,
            nothing can be written; or what is exported does not compute what the network does, and is then not kept.
    """
    if missing := [name for name in _NEEDED if not find_spec(name)]:
        raise InputError(f"--to onnx needs {', '.join(missing)}, not installed; pip install {' '.join(missing)}")
    from onecycle.predict.onnx import write_onnx  # only now: it loads these

    folder = RunFolder.open(run)
    result, predictor = folder.read_result(), Predictor.load(folder.weights)
    file = (out or folder.path / "onnx") / "model.onnx"
    for path in (file, file.parent / CARD):
        if path.exists():
            raise InputError(f"{path} is there already; remove it, or name another folder with --out")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {file.parent}: {error.strerror}; name another with --out") from error
    difference = write_onnx(predictor, file, f"{result.recipe} on {result.dataset}, seed {result.seed}, by onecycle")
    write_card(folder, predictor, file)
    return file, difference
