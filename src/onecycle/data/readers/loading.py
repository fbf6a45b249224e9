"""Load a data set by name or path: `load_dataset`."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from onecycle.core.errors import InputError
from onecycle.data import splits
from onecycle.data.readers.formats import Format, ReadOptions
from onecycle.data.readers.image_set import ImageSet
from onecycle.data.readers.named import NamedSet, UnavailableError
from onecycle.data.readers.registry import DEFAULT, EMBEDDED, NAMED
from onecycle.data.readers.search import find_named, locate
from onecycle.data.readers.sets import Sets
from onecycle.data.splits import DRAWN_SHARE
from onecycle.data.store.mapped import resized
from onecycle.storage.records import Split

_ALL_GRAY = "All training images are gray, so the network converts every image to gray"


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A training set and one or two sets for evaluation, with notes that are shown with the results.

    The result is measured on `evaluation`. If `validation` is None, `evaluation` is evaluated after every epoch.
    Otherwise, `validation` is evaluated after every epoch, and `evaluation`, a test set, only once, at the end.
    """

    name: str  # "cifar10", "digits" or the name of the image folder; safe as a file name
    train: ImageSet
    evaluation: ImageSet
    evaluated_on: Split
    validation: ImageSet | None = None
    source: str  # where the data comes from, in words
    notes: tuple[str, ...] = ()
    drawn: tuple[str, ...] | None = None  # names of the test images, if they were drawn from the training set

    @property
    def epoch_evaluation(self) -> ImageSet:
        """The set that is evaluated after every epoch."""
        return self.evaluation if self.validation is None else self.validation

    @property
    def epoch_evaluated_on(self) -> Split:
        """The split of `epoch_evaluation`."""
        return self.evaluated_on if self.validation is None else "validation"

    @property
    def by_split(self) -> dict[str, ImageSet]:
        """The sets by split: "train", then "validation", "test" or both."""
        validation = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **validation, self.evaluated_on: self.evaluation}

    @cached_property
    def fingerprint(self) -> str:
        """The sha256, in hex, of `train` and `evaluation`, after splits and limits. These sets determine the result."""
        both = f"{self.train.fingerprint} {self.evaluated_on} {self.evaluation.fingerprint}"
        return hashlib.sha256(both.encode()).hexdigest()


def load_dataset(
    data: str | os.PathLike[str] | None = None,
    *,
    labels: str | None = None,
    validation: int = 0,
    limit: int | None = None,
    seed: int = 0,
    input_size: int = 32,
    coarse: bool = False,
) -> Dataset:
    """Load the data set with the name or path `data`. Images are uint8 `[N,input_size,input_size,3]`.

    "cifar10", "cifar100", "mnist" and "fashion-mnist" are found in `$ONECYCLE_DATA`, `./data` or the user's cache, or
    else downloaded. If `data` is None, CIFAR-10 is loaded. "digits" is the embedded set. "auto" is CIFAR-10 if it is
    available, otherwise digits. Anything else is a path to data in one of the formats of `registry`. `coarse` selects
    CIFAR-100's 20 coarse classes.

    `labels` is the path of a CSV file, relative to the working folder or to the images. The CSV file has the
    file, the label and perhaps the split of each image. Without `labels`, a labels.csv beside the images is used. If
    there are both a labels.csv and class folders, `labels` must be given. With "none", the class folders are read.

    If `validation` is not 0, this number of images is split off the training set and replaces the test set. Then at
    most `limit` images of each set are kept. Both selections are stratified and depend on `seed`.

    Raises:
        InputError: when the data is missing, damaged, in an unknown format, or too small for `validation`. Also when
            `limit` is less than the number of classes, or when `validation` is given, but the data has a validation
            set.
        StorageError: when the cache cannot be written.
    """
    if input_size < 1:
        raise InputError(f"input_size is {input_size}; it must be 1 or more")
    sets = _sets(data, ReadOptions(size=input_size, labels=labels, coarse=coarse))
    dataset = _changed(_dataset(sets, _safe_name(Path(data or ""))), lambda images: resized(images, input_size))
    if validation:
        if dataset.epoch_evaluated_on == "validation":
            raise InputError(
                f"--validation is {validation}, but {dataset.source} has a validation set of its own; leave out "
                "--validation"
            )
        train, held_out = splits.split_validation(dataset.train, validation, seed=seed)
        dataset = replace(dataset, train=train, evaluation=held_out, evaluated_on="validation")
    if limit is not None:
        dataset = _changed(dataset, lambda images: splits.limit_images(images, limit, seed=seed))
    if dataset.train.is_gray:
        dataset = replace(dataset, notes=(*dataset.notes, _ALL_GRAY))
    return dataset


def _sets(data: str | os.PathLike[str] | None, options: ReadOptions) -> Sets:
    if data is not None and is_path(data):
        found = locate(Path(data), options.labels)
        _require_coarse(options, found.format)
        return found.format.read(found.path, options)
    if options.labels is not None:
        raise InputError(
            f"--labels is {options.labels!r}, but {data or DEFAULT.name} has labels; give your own images with --data"
        )
    if isinstance(data, str) and data in EMBEDDED:
        _require_coarse(options, None)
        return EMBEDDED[data]()
    named = NAMED.get(str(data), DEFAULT)
    _require_coarse(options, named)
    try:
        path = find_named(named) or named.download()
    except UnavailableError as error:
        if data == "auto":
            return _instead_of_default(error.reason)
        raise
    return named.read(path, options)


def _require_coarse(options: ReadOptions, source: Format | NamedSet | None) -> None:
    if options.coarse and not (source and source.has_coarse):
        raise InputError("--coarse is for CIFAR-100, which has coarse classes; leave it out")


def _instead_of_default(reason: str) -> Sets:
    note = (
        "THIS IS NOT CIFAR-10 but scikit-learn's handwritten digits, so the accuracy says nothing about CIFAR-10. "
        f"CIFAR-10 was not found, and {reason}"
    )
    return replace(EMBEDDED["digits"](), notes=(note,))


def is_path(data: str | os.PathLike[str]) -> bool:
    """Whether `data` is a path and not the name of a data set."""
    return data not in ("auto", *NAMED, *EMBEDDED)


def _dataset(sets: Sets, name: str) -> Dataset:
    """Make a `Dataset` of `sets`. It is called `sets.name`, or `name` if `sets.name` is None."""
    train, validation, drawn = sets.train, sets.validation, sets.drawn
    evaluated_on: Split = "test"
    if sets.test is not None:
        evaluation = sets.test
    elif validation is not None:
        evaluation, validation, evaluated_on = validation, None, "validation"
    else:
        train, evaluation, drawn = splits.split_test(train)
    return Dataset(
        name=sets.name or name,
        train=train,
        evaluation=evaluation,
        evaluated_on=evaluated_on,
        validation=validation,
        source=sets.source,
        notes=(*sets.notes, *_notes(drawn, sets.left_out)),
        drawn=drawn,
    )


def _notes(drawn: tuple[str, ...] | None, left_out: tuple[str, ...]) -> Iterator[str]:
    if drawn is not None:
        yield (
            f"There is no test set, so {DRAWN_SHARE:.0%} of each class, {len(drawn):,} images, were drawn for testing. "
            "Every run on these files draws the same images; drawn_test_images.json lists them"
        )
    if left_out:
        yield f"Left out: {'; '.join(left_out)}"


def _safe_name(path: Path) -> str:
    name = path.resolve().name
    if not path.is_dir():
        name = re.sub(r"(\.tar\.gz|\.tgz|\.tar|\.zip|\.npz|\.parquet)$", "", name, flags=re.IGNORECASE)
    name = re.sub(r"[^\w.-]+", "-", name)[:80].strip("-.") or "images"
    return f"{name}-images" if not is_path(name) else name  # the suffix avoids the name of a known data set


def _changed(dataset: Dataset, change: Callable[[ImageSet], ImageSet]) -> Dataset:
    """`dataset` with each of its sets changed."""
    validation = None if dataset.validation is None else change(dataset.validation)
    return replace(dataset, train=change(dataset.train), evaluation=change(dataset.evaluation), validation=validation)
