"""The run folder: the names of its files, and how to read and write them."""

import json
import math
import os
import shlex
import shutil
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from onecycle.core.config import Config
from onecycle.core.errors import InputError, StorageError
from onecycle.core.files import locked, reading, replacing, writing
from onecycle.core.older_records import existing, with_current_names
from onecycle.core.option_groups import NetworkConfig
from onecycle.core.own_network import option_of
from onecycle.core.regular_files import make_folder, open_regular, read_regular
from onecycle.core.validated import validated
from onecycle.storage.records import (
    AugmentedImages,
    EpochRecord,
    EvaluatedLogits,
    History,
    Interpretation,
    LRCurve,
    Misclassified,
    NamesOfImages,
    NetworkSummary,
    RunResult,
    TrainingMargins,
    require_environment,
)

MOST_JSON_BYTES = 2**22  # parsed JSON may need a hundred times as much memory
_MOST_HISTORY_BYTES, _MOST_LINE_BYTES = 2**24, 2**16  # a run writes lines of less than 2**9 bytes
# The arrays in a file may have a total of `_ARRAY_BYTES`, plus `_MOST_SHRINKING` times the file's size.
_ARRAY_BYTES, _MOST_SHRINKING = 2**28, 10
# The arrays may never have more than this, because a sparse file can be large and still use little disk space.
_MOST_ARRAY_BYTES = 2**31


def require_parent(parent: Path) -> None:
    """Check that `new_folder` can probably create a folder in `parent`. This check creates nothing.

    Raises:
        InputError: when `parent` is a file or below a file.
        StorageError: when `parent`, or the nearest existing folder above it, is not writable.
    """
    existing = next(above for above in (parent, *parent.parents) if os.path.exists(above))
    if not existing.is_dir():
        raise InputError(f"cannot create a folder in --out {parent}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"cannot create a folder in --out {parent}: {existing} is not writable; give another folder")


def new_folder(parent: Path, name: str) -> Path:
    """Create the empty folder `parent/name-<time>`.

    Raises:
        InputError: when `parent` is a file or below a file, or too many folders have this name.
        StorageError: when the folder cannot be created.
    """
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 100):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
        except OSError as error:
            if isinstance(error, FileExistsError) and parent.is_dir():
                continue  # another run has this name; try the next number
            require_parent(parent)
            raise StorageError(
                f"cannot create a folder in --out {parent}: {error.strerror}; give another folder"
            ) from error
        else:
            return path
    raise InputError(f"--out {parent} holds too many folders named {stem}; give another folder")


class RunFolder:
    """The files of one run. All plots and reports can be drawn again from these files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.environment = path / "environment.json"
        self.drawn_test_images = path / "drawn_test_images.json"
        self.lr_finder = path / "lr_finder.json"
        self.history = path / "history.jsonl"
        self.checkpoint = path / "checkpoint.safetensors"
        self.checkpoint_before = path / "checkpoint-before.safetensors"
        self.weights = path / "weights.safetensors"
        self.predictions = path / "predictions.npz"
        self.predictions_table = path / "predictions.csv"
        self.image_names = path / "image_names.npz"
        self.training_margins = path / "training_margins.npz"
        self.misclassified = path / "misclassified.npz"
        self.augmentations = path / "augmentations.npz"
        self.network = path / "network.json"
        self.interpretation = path / "interpretation.npz"
        self.stopped = path / "stopped.json"
        self.result = path / "result.json"
        self.plots = path / "plots"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"
        self.calibration = path / "calibration"

    @property
    def is_complete(self) -> bool:
        """Whether the run is complete: it has a result, and its checkpoints are removed."""
        return self.result.exists() and not self.has_checkpoint

    @property
    def has_checkpoint(self) -> bool:
        # `Path.exists` raises an error if the folder may not be entered.
        return os.path.exists(self.checkpoint) or os.path.exists(self.checkpoint_before)

    def resume_command(self, config: NetworkConfig) -> str:
        """The shell command that resumes the run. `config` is the configuration of the run."""
        return f"onecycle train --resume {shlex.quote(str(self.path))}{option_of(config.network)}"

    def is_idle(self) -> bool:
        """Whether the folder can be locked, which means that no process is working on the run."""
        try:
            with locked(self.path):
                return True
        except StorageError:
            return False

    @classmethod
    def create(cls, path: Path) -> Self:
        """Create the folder of a new run at `path`. An empty folder may already exist there.

        Raises:
            StorageError: when the folder cannot be created.
        """
        folder = cls(path)
        try:
            folder.plots.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"cannot create the run folder {path}: {error.strerror}; give another --out") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder of an existing run.

        Raises:
            InputError: when `path` is missing or not a run folder.
        """
        folder = cls(path)
        if not path.exists():
            raise InputError(f"there is no run folder {path}; check the name")
        if not folder.config.is_file():
            raise InputError(f"{path} is not a run folder: it has no {folder.config.name}; give the folder of a run")
        return folder

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n")

    def read_json(self, path: Path) -> dict[str, Any]:
        """The JSON object in the file `path`, with older field names replaced by the current ones.

        Raises:
            InputError: when the file is missing or damaged.
        """
        with reading(path):
            values = json.loads(read_regular(path, MOST_JSON_BYTES))
            if not isinstance(values, dict):
                raise ValueError("it must hold one JSON object")
            return dict(with_current_names(values))

    def read_environment(self) -> dict[str, Any]:
        """The environment of the run, with everything that a report needs.

        Raises:
            InputError: when the file is missing or damaged, or lacks a value.
        """
        with reading(self.environment):
            values = self.read_json(self.environment)
            require_environment(values)
            return values

    def read_config(self) -> Config:
        return Config.load(self.config)

    def read_result(self) -> RunResult:
        with reading(self.result):
            return RunResult.from_json(self.read_json(self.result))

    def read_lr_curve(self) -> LRCurve | None:
        """The LR finder's curve, or None if both learning rates were given."""
        if not self.lr_finder.exists():
            return None
        with reading(self.lr_finder):
            return LRCurve.from_json(self.read_json(self.lr_finder))

    def write_history(self, history: History) -> None:
        with replacing(self.history) as temporary:
            temporary.write_text("".join(json.dumps(asdict(record)) + "\n" for record in history))

    def read_history(self) -> History:
        with reading(self.history):
            lines = read_regular(self.history, _MOST_HISTORY_BYTES).splitlines()
            if (longest := max(map(len, lines), default=0)) > _MOST_LINE_BYTES:
                raise ValueError(f"a line has {longest:,} bytes; the limit is {_MOST_LINE_BYTES:,}")
            return [EpochRecord.from_json(with_current_names(json.loads(line))) for line in lines]

    def write_arrays(self, path: Path, **arrays: NDArray[Any]) -> None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def read_arrays(self, path: Path) -> dict[str, NDArray[Any]]:
        """The arrays in the npz file `path`, with older field names replaced by the current ones.

        Raises:
            InputError: when the file is missing or damaged.
        """
        path = existing(path)
        with reading(path), os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
            _require_unpacked(file)
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            return dict(with_current_names(dict(arrays)))

    def make_plots_folder(self) -> None:
        """Create the folder of the plots, unless it exists.

        Raises:
            StorageError: when the folder cannot be created, or when there is a link in place of the folder.
        """
        with writing(self.plots):
            make_folder(self.plots)

    def write_misclassified(self, misclassified: Misclassified) -> None:
        self.write_arrays(self.misclassified, **misclassified.to_arrays())

    def read_misclassified(self) -> Misclassified:
        with reading(self.misclassified):
            return Misclassified.from_arrays(self.read_arrays(self.misclassified))

    def read_predictions(self) -> EvaluatedLogits:
        with reading(self.predictions):
            return EvaluatedLogits.from_arrays(self.read_arrays(self.predictions))

    def read_image_names(self) -> NamesOfImages | None:
        """The file names of the images. Returns None if the images have no names or an older version wrote the run."""
        if not self.image_names.exists():
            return None
        with reading(self.image_names):
            return validated(NamesOfImages, self.read_arrays(self.image_names))

    def read_training_margins(self) -> NDArray[np.float32]:
        """The mean margin of each training image, float32 `[N]`."""
        with reading(self.training_margins):
            return validated(TrainingMargins, self.read_arrays(self.training_margins)).margins

    def read_augmentations(self) -> AugmentedImages:
        with reading(self.augmentations):
            return AugmentedImages.from_arrays(self.read_arrays(self.augmentations))

    def read_interpretation(self) -> Interpretation | None:
        """The interpretation, or None if there is none yet."""
        if not self.interpretation.exists():
            return None
        with reading(self.interpretation):
            return Interpretation.from_arrays(self.read_arrays(self.interpretation))

    def read_network(self) -> NetworkSummary | None:
        """The layers of the network. Returns None for a run of an older version, which did not record the layers."""
        if not self.network.exists():
            return None
        with reading(self.network):
            return NetworkSummary.from_json(self.read_json(self.network))

    def remove_temporary_files(self) -> None:
        """Remove temporary files that a killed process left behind."""
        with writing(self.path):
            for temporary in self.path.rglob(".*.tmp"):
                temporary.unlink(missing_ok=True)

    def discard_stopped_state(self) -> None:
        """Remove the report of a stopped run and the reason why it stopped. Both are outdated when the run resumes."""
        with writing(self.path):
            for path in (self.stopped, self.report):
                path.unlink(missing_ok=True)

    def remove_checkpoints(self) -> None:
        """Remove both checkpoints, the newest last."""
        with writing(self.path):
            self.checkpoint_before.unlink(missing_ok=True)
            self.checkpoint.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the folder with its content, as far as possible."""
        shutil.rmtree(self.path, ignore_errors=True)


def _require_unpacked(file: BinaryIO) -> None:
    """Check that the arrays in the npz `file` are not much larger than the file.

    Compression hardly shrinks logits and images, so a run never writes a small file with large arrays.

    Raises:
        ValueError: when the arrays are too large, when an array is compressed by another method than deflate, or when
            the header of an array claims more bytes than are stored for it.
        BadZipFile: when `file` is not an npz file.
    """
    with zipfile.ZipFile(file) as archive:
        most = min(_MOST_ARRAY_BYTES, _ARRAY_BYTES + _MOST_SHRINKING * os.fstat(file.fileno()).st_size)
        if (size := sum(member.file_size for member in archive.infolist())) > most:
            raise ValueError(f"its arrays unpack to {size:,} bytes; a file of this size may unpack to at most {most:,}")
        for member in archive.infolist():
            # Other compression methods may need unbounded memory.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename} is not compressed by deflate")
            with archive.open(member) as array:
                version = np.lib.format.read_magic(array)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(array)
                if math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(f"{member.filename} claims the shape {shape}, but has {member.file_size:,} bytes")


def interrupted(parent: Path) -> list[RunFolder]:
    """The interrupted runs in `parent`, newest first. They have a checkpoint, and no process is working on them."""
    saved = [RunFolder(path) for path in parent.glob("*") if RunFolder(path).has_checkpoint]
    return [folder for folder in sorted(saved, key=lambda folder: folder.path.name, reverse=True) if folder.is_idle()]
