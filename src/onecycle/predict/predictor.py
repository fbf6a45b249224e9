"""A trained network with its preprocessing and class names, ready to name what is in a picture."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from onecycle.compute import hardware
from onecycle.compute.plan import PLAIN, Acceleration
from onecycle.core.errors import InputError
from onecycle.core.files import reading, shown
from onecycle.data.preprocessing import LARGEST_FILE, Preprocessing, open_picture, to_square
from onecycle.models import Architecture, ModelComposite
from onecycle.storage.checkpoint import load_tensors, load_weights, save_tensors
from onecycle.storage.run_folder import RunFolder

SHIPPED = Path(__file__).parents[1] / "pretrained" / "cifar10.safetensors"
"""A network for CIFAR-10 that comes with the package; beside it is what there is to know of it."""

_PIXELS_AT_ONCE = 250 * 32 * 32  # that go through a network: of larger images fewer

Picture = Image.Image | NDArray[np.uint8] | str | os.PathLike[str]
"""A picture of any size: one of Pillow's, pixels uint8 `[H,W,3]`, or a file's path."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network says of a picture: the probability of every class, in the order of the classes."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """That of the likeliest class."""
        return max(self.probabilities)

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes, or all where there are no more, each with its probability."""
        ranked = sorted(range(len(self.classes)), key=lambda place: -self.probabilities[place])
        return [(self.classes[place], self.probabilities[place]) for place in ranked[:count]]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Everything that prediction needs. It travels as one file: the weights, with the rest in their metadata."""

    model: ModelComposite
    architecture: Architecture
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    acceleration: Acceleration = PLAIN

    def save(self, path: Path, *, half: bool = False) -> None:
        """Write the weights with class names, input size and normalization to `path`.

        With `half` in float16, which takes half of the room, but for batch norm, whose statistics need float32.

        Raises:
            InputError: when it cannot be written.
            ValueError: with `half`, when there are weights too large for float16.
        """
        metadata = {
            "classes": self.classes,
            "preprocessing": self.preprocessing.to_json(),
            "architecture": self.architecture.to_json(),
        }
        tensors = self.model.state_dict()
        if half:
            norms = {name for name, module in self.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
            tensors = {
                name: tensor if name.rpartition(".")[0] in norms else tensor.half() for name, tensor in tensors.items()
            }
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise ValueError("there are weights too large for float16")
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path, acceleration: Acceleration = PLAIN) -> Self:
        """The predictor that `save` wrote to `path`.

        Raises:
            InputError: when the file is missing or damaged.
        """
        tensors, metadata = load_tensors(path)
        with reading(path):
            preprocessing = Preprocessing.from_json(metadata["preprocessing"])
            classes = tuple(metadata["classes"])
            architecture = Architecture.from_json(metadata["architecture"])
        model = architecture.build(len(classes), preprocessing.input_size)
        load_weights(model, tensors, path)
        return cls(
            model=model.to(acceleration.device),
            preprocessing=preprocessing,
            classes=classes,
            architecture=architecture,
            acceleration=acceleration,
        )

    def predict(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """Name what is in each of `pictures`, of any size and mode.

        Raises:
            InputError: when a file cannot be read.
            TypeError: when it is a picture alone.
            ValueError: for pixels of another type or shape.
        """
        if isinstance(pictures, str | os.PathLike | Image.Image) or getattr(pictures, "ndim", 4) != 4:
            raise TypeError("predict takes several pictures; put the one into a list")
        predictions: list[Prediction] = []
        for start in range(0, len(pictures), self.at_once):
            images = np.stack([self.to_input(picture) for picture in pictures[start : start + self.at_once]])
            predictions += self.predict_images(images)
        return predictions

    @property
    def at_once(self) -> int:
        """How many images go through the network at once."""
        return max(1, _PIXELS_AT_ONCE // self.preprocessing.input_size**2)

    def to_input(self, picture: Picture) -> NDArray[np.uint8]:
        """A picture as the network sees it: pixels uint8 `[S,S,3]`.

        Raises:
            InputError: when it is a file that cannot be read.
            ValueError: for pixels of another type or shape.
        """
        if isinstance(picture, str | os.PathLike):
            picture = read_picture(Path(picture))
        elif isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(f"pixels are {picture.dtype} {list(picture.shape)}; they must be uint8 [H,W,3]")
            picture = Image.fromarray(picture)
        return to_square(picture, self.preprocessing.input_size)

    def predict_images(self, images: NDArray[np.uint8]) -> list[Prediction]:
        """Name what is in `images` uint8 `[N,S,S,3]`, which have the network's own size."""
        return [
            Prediction(classes=self.classes, probabilities=tuple(row.tolist()))
            for batch in torch.split(torch.from_numpy(images), self.at_once)
            for row in self._probabilities(batch)
        ]

    def _probabilities(self, images: torch.Tensor) -> torch.Tensor:
        how = self.acceleration
        with how.autocast():
            return self._running.predict(self.preprocessing.normalize(images.to(how.device))).cpu()  # [B,C]

    @cached_property
    def _running(self) -> ModelComposite:
        # In evaluation mode for good: to switch it there and back for every call would be no good among threads.
        return self.acceleration.prepare(self.model).eval()


def load(run: str | os.PathLike[str] | None = None) -> Predictor:
    """The trained network of the `run` in a folder, or the one for CIFAR-10 that comes with the package.

    It computes on the CPU, in bfloat16 where that is fast.

    Raises:
        InputError: when there is no such run, or it has no weights.
    """
    return load_file(weights_of(run))


def weights_of(run: str | os.PathLike[str] | None) -> Path:
    """The file with the network of the `run` in a folder, or with the one that comes with the package.

    Raises:
        InputError: when there is no such run.
    """
    return SHIPPED if run is None else RunFolder.open(Path(run)).weights


def load_file(path: Path) -> Predictor:
    """The network that `Predictor.save` wrote to `path`, computing as `load` has it.

    Raises:
        InputError: when the file is missing or damaged.
    """
    precision = "bfloat16" if hardware.detect().fast_bfloat16 else "float32"
    return Predictor.load(path, Acceleration(precision=precision, channels_last=True))


def read_picture(path: Path) -> Image.Image:
    """The picture in a file, wholly read.

    Raises:
        InputError: when there is none, or it is damaged.
    """
    return open_picture(read_file(path), shown(path))


def read_file(path: Path) -> bytes:
    """The content of a file that may hold a picture.

    Raises:
        InputError: when it cannot be read, or is too large for one.
    """
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for
            raise InputError(f"{shown(path)} cannot be read: it is no file; name a picture file")
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise InputError(f"{shown(path)} has {size:,} bytes, and {LARGEST_FILE:,} is the most; make it smaller")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {shown(path)}; check the name") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown(path)} cannot be read: {getattr(error, 'strerror', error)}") from error
