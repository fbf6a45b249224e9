"""A trained network with its preprocessing and class names, ready to name what is in a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image

from onecycle.acceleration import PLAIN, Acceleration
from onecycle.checkpoint import load_tensors, load_weights, save_tensors
from onecycle.errors import InputError
from onecycle.files import reading
from onecycle.models import Architecture, ModelComposite
from onecycle.preprocessing import Preprocessing, open_picture, to_square


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest class of a picture, its probability, and every class's probability in the order of the classes."""

    label: str
    probability: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Everything that prediction needs. It travels as one file: the weights, with the rest in their metadata."""

    model: ModelComposite
    architecture: Architecture
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    acceleration: Acceleration = PLAIN

    def save(self, path: Path) -> None:
        """Write the weights with class names, input size and normalization to `path`."""
        metadata = {
            "classes": self.classes,
            "preprocessing": self.preprocessing.to_json(),
            "architecture": self.architecture.to_json(),
        }
        save_tensors(path, self.model.state_dict(), metadata)

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

    def predict(self, pictures: Sequence[Image.Image]) -> list[Prediction]:
        """Name what is in each picture, of any size and mode."""
        if not pictures:
            return []
        pixels = np.stack([to_square(picture, self.preprocessing.input_size) for picture in pictures])
        images = self.preprocessing.normalize(torch.from_numpy(pixels).to(self.acceleration.device))
        with self.acceleration.autocast():
            probabilities = self.acceleration.prepare(self.model).predict(images)  # [B,C]
        return [
            Prediction(
                label=self.classes[int(row.argmax())], probability=float(row.max()), probabilities=tuple(row.tolist())
            )
            for row in probabilities.cpu()
        ]


def read_picture(path: Path) -> Image.Image:
    """The picture in a file, wholly read.

    Raises:
        InputError: when there is none, or it is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return open_picture(content, str(path))
