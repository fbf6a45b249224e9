"""Train a small, strong image classifier with one cycle of the learning rate.

The names here are those of the README's example; everything else is in the modules.
"""

from onecycle.batches import Batches
from onecycle.dataset import load_dataset
from onecycle.lr_finder import find_lr
from onecycle.preprocessing import Preprocessing
from onecycle.training import evaluate, fit

__all__ = ["Batches", "Preprocessing", "evaluate", "find_lr", "fit", "load_dataset"]
