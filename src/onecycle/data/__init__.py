"""Data sets (CIFAR-10, image folders, embedded digits), their splits, checks, augmentation and batches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onecycle.data.readers.image_set import ImageSet
    from onecycle.data.readers.loading import Dataset, load_dataset

__all__ = ["Dataset", "ImageSet", "load_dataset"]

_HOMES = {"Dataset": "loading", "ImageSet": "image_set", "load_dataset": "loading"}


def __getattr__(name: str) -> Any:
    # Import a name only when it is used. Some processes of the service only decode images, and do not need the readers.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.readers.{_HOMES[name]}"), name)
