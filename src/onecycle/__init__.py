"""Train a small, strong image classifier with one cycle of the learning rate.

`__all__` lists the names to use in your own programs. Import other names from their modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onecycle.data import load_dataset
    from onecycle.data.batches import Batches
    from onecycle.data.preprocessing import Preprocessing
    from onecycle.predict.predictor import load
    from onecycle.train.loop import evaluate, fit
    from onecycle.train.lr_finder import find_lr

__all__ = ["Batches", "Preprocessing", "evaluate", "find_lr", "fit", "load", "load_dataset"]

_HOMES = {
    "Batches": "data.batches",
    "Preprocessing": "data.preprocessing",
    "evaluate": "train.loop",
    "find_lr": "train.lr_finder",
    "fit": "train.loop",
    "load": "predict.predictor",
    "load_dataset": "data",
}


def __getattr__(name: str) -> Any:
    # Import a name only when it is used: importing torch takes seconds, and `onecycle --help` should not wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
