"""Convert the labels in a file to consecutive class numbers. The labels may be any integers from 0 up."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onecycle.core.class_names import find_alike, require_class_names
from onecycle.core.errors import InputError
from onecycle.data.readers.left_out import LeftOut


class Classes(NamedTuple):
    """The class names, and for each split the class numbers of its images. `left_out` has the names without images."""

    names: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]
    left_out: LeftOut


def classes_of(
    labels: Mapping[str, NDArray[np.int64]],
    source: str,
    row_name: Callable[[str, int], str],
    names: Sequence[str] | None = None,
) -> Classes:
    """Number the classes from 0. `labels` has the labels of each split, int64 `[N]`. There must be a training set.

    Each label of the training set is a class. The label is the index of the class name in `names`. If `names` is None,
    the label itself is the class name. In messages, `source` names the data, and `row_name` names an image by its split
    and row.

    Raises:
        InputError: when a split has no images; when a label is negative, has no name or is not in the training set;
            when there is only one class; when there is only a training set, and a class has only one image; or when
            class names cannot be told apart.
    """
    for split, of_split in labels.items():
        if not len(of_split):
            raise InputError(f"{source}: {split} has no images; add some, or remove it")
        wrong = (of_split < 0) | (of_split >= len(names)) if names is not None else of_split < 0
        if wrong.any():
            row = int(wrong.argmax())
            number = int(of_split[row])
            reason = (
                "which stands for an unknown class; remove the rows without a label"
                if number < 0
                else f"but there are only {len(names or ())} class names, for 0 and up; correct the label or the names"
            )
            raise InputError(f"{source}: {row_name(split, row)} has the label {number}, {reason}")
    used, counts = np.unique(labels["train"], return_counts=True)
    for split, of_split in labels.items():
        if (unknown := ~np.isin(of_split, used)).any():
            row = int(unknown.argmax())
            raise InputError(
                f"{source}: {row_name(split, row)} has the label {_name(int(of_split[row]), names)}, which no image of "
                "train has; all splits need the same classes"
            )
    found = tuple(_name(label, names) for label in used.tolist())
    if len(found) == 1:
        raise InputError(f"{source}: there is only one class, {found[0]!r}; a classifier needs at least two")
    if len(labels) == 1 and 1 in counts:
        single = found[int(np.argmax(counts == 1))]
        raise InputError(
            f"{source}: class {single!r} has only one image, but training and testing need one each; add more"
        )
    _require_different(found, source)
    left_out = LeftOut()
    for label in np.setdiff1d(np.arange(len(names or ())), used).tolist():
        left_out.add("label without images", _name(label, names))
    return Classes(
        found,
        {split: np.searchsorted(used, of_split).astype(np.int64) for split, of_split in labels.items()},
        left_out,
    )


def _name(label: int, names: Sequence[str] | None) -> str:
    return str(label) if names is None else names[label]


def _require_different(names: Sequence[str], source: str) -> None:
    try:
        require_class_names(names)
    except ValueError as error:
        raise InputError(f"{source}: {error}; correct the names") from error
    if alike := find_alike(names):
        raise InputError(
            f"{source}: the class names {alike.names[0]!r} and {alike.names[1]!r} differ in {alike.difference} only; "
            "correct the names"
        )
