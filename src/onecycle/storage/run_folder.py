"""A run's folder: the names of its files, and what is in them."""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.files import locked, reading, replacing, writing
from onecycle.storage.records import EpochRecord, History, Interpretation, LRCurve, Mistakes, NetworkSummary, RunResult


def new_folder(parent: Path, name: str) -> Path:
    """A new, empty folder `parent/name-<time>`.

    Raises:
        InputError: when it cannot be made.
    """
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 100):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if parent.exists() and not parent.is_dir():
                raise InputError(f"--out {parent} is a file; give a folder") from None
        except OSError as error:
            raise InputError(f"cannot make a folder in --out {parent}: {error.strerror}") from error
        else:
            return path
    raise InputError(f"--out {parent} holds too many folders named {stem}")


class RunFolder:
    """The files of one run. Everything that is shown about the run can be drawn again from them."""

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
        self.training_margins = path / "training_margins.npz"
        self.mistakes = path / "mistakes.npz"
        self.augmentations = path / "augmentations.npz"
        self.network = path / "network.json"
        self.interpretation = path / "interpretation.npz"
        self.stopped = path / "stopped.json"
        self.result = path / "result.json"
        self.pictures = path / "pictures"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"

    @property
    def complete(self) -> bool:
        """Whether the run came to its end. Its last deed is to remove its checkpoint."""
        return self.result.exists() and not self.saved

    @property
    def saved(self) -> bool:
        """Whether there is a state to go on from."""
        return self.checkpoint.exists() or self.checkpoint_before.exists()

    def idle(self) -> bool:
        """Whether no process is at work on it."""
        try:
            with locked(self.path):
                return True
        except InputError:
            return False

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new run's folder in the folder `path`, which is made unless it is there.

        Raises:
            InputError: when it cannot be made.
        """
        folder = cls(path)
        try:
            folder.pictures.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"cannot make the run folder {path}: {error.strerror}") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run's folder.

        Raises:
            InputError: when there is none.
        """
        folder = cls(path)
        if not path.exists():
            raise InputError(f"there is no run folder {path}")
        if not folder.config.is_file():
            raise InputError(f"{path} is not a run folder: it has no {folder.config.name}")
        return folder

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n")

    def read_json(self, path: Path) -> dict[str, Any]:
        """What one of the folder's JSON files holds.

        Raises:
            InputError: as `reading` does.
        """
        with reading(path):
            values = json.loads(path.read_text())
            if not isinstance(values, dict):
                raise ValueError("it must hold one JSON object")
            return values

    def read_config(self) -> Config:
        return Config.load(self.config)

    def read_result(self) -> RunResult:
        with reading(self.result):
            return RunResult.from_json(self.read_json(self.result))

    def read_lr_curve(self) -> LRCurve | None:
        """The LR finder's curve, or None when the run was given its pair of rates."""
        if not self.lr_finder.exists():
            return None
        with reading(self.lr_finder):
            return LRCurve.from_json(self.read_json(self.lr_finder))

    def write_history(self, history: History) -> None:
        with replacing(self.history) as temporary:
            temporary.write_text("".join(json.dumps(asdict(record)) + "\n" for record in history))

    def read_history(self) -> History:
        with reading(self.history):
            return [EpochRecord(**json.loads(line)) for line in self.history.read_text().splitlines()]

    def write_arrays(self, path: Path, **arrays: NDArray[Any]) -> None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def read_arrays(self, path: Path) -> dict[str, NDArray[Any]]:
        with reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    def write_mistakes(self, mistakes: Mistakes) -> None:
        self.write_arrays(self.mistakes, **mistakes.to_arrays())

    def read_mistakes(self) -> Mistakes:
        with reading(self.mistakes):
            return Mistakes.from_arrays(self.read_arrays(self.mistakes))

    def read_interpretation(self) -> Interpretation | None:
        """What interpretation found, or None where it has not been made."""
        if not self.interpretation.exists():
            return None
        with reading(self.interpretation):
            return Interpretation.from_arrays(self.read_arrays(self.interpretation))

    def read_network(self) -> NetworkSummary | None:
        """The network's layers, or None in the folder of a version that did not write them."""
        if not self.network.exists():
            return None
        with reading(self.network):
            return NetworkSummary.from_json(self.read_json(self.network))

    def remove_strays(self) -> None:
        """Remove what a process that was killed in the middle of a write left behind."""
        with writing(self.path):
            for stray in self.path.rglob(".*.tmp"):
                stray.unlink(missing_ok=True)

    def begin_again(self) -> None:
        """Remove what was written when the run was stopped, and will not be true any more."""
        with writing(self.path):
            for path in (self.stopped, self.report):
                path.unlink(missing_ok=True)

    def remove_checkpoints(self) -> None:
        """Remove the run's state: the newest last."""
        with writing(self.path):
            self.checkpoint_before.unlink(missing_ok=True)
            self.checkpoint.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the folder with all that is in it, as far as that can be done."""
        shutil.rmtree(self.path, ignore_errors=True)


def interrupted(parent: Path) -> list[RunFolder]:
    """The runs in `parent` that were saved, did not come to their end and are not at work, the newest first."""
    begun = [RunFolder(path) for path in parent.glob("*") if RunFolder(path).saved]
    return [folder for folder in sorted(begun, key=lambda folder: folder.path.name, reverse=True) if folder.idle()]
