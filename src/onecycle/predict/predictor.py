"""A trained network with its preprocessing and class names, ready to predict the classes of images."""

import functools
import os
import warnings
from collections.abc import Iterable
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
from onecycle.compute.autotune import prediction_plan
from onecycle.compute.plan import EAGER, ComputePlan
from onecycle.core.class_names import require_class_names
from onecycle.core.errors import InputError
from onecycle.core.files import printable, reading
from onecycle.core.metrics import probabilities_of
from onecycle.core.out_of_distribution import energy_scores_of, require_energy_threshold
from onecycle.core.own_network import require_consent
from onecycle.core.temperature import require_temperature
from onecycle.data.image_files import LARGEST_FILE, open_image, to_square
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Architecture, ModelComposite, OwnNetwork
from onecycle.storage.checkpoint import load_tensors, load_weights, save_tensors
from onecycle.storage.run_folder import RunFolder

SHIPPED = Path(__file__).parents[1] / "pretrained" / "cifar10.safetensors"
"""The network for CIFAR-10 that comes with the package. Its model card is beside it."""

_BATCH_PIXELS = 250 * 32 * 32  # the number of pixels in a batch; a batch of larger images has fewer images

ImageInput = Image.Image | NDArray[np.uint8] | str | os.PathLike[str]
"""An image of any size: a Pillow image, pixels uint8 `[H,W,3]`, or the path of a file."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one image: the probability of every class, in the order of `classes`.

    `in_distribution` is False if the energy score indicates that the image is unlike anything the network was trained
    on: see `core.out_of_distribution`. It is None if the network has no energy threshold.
    """

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    energy_score: float
    in_distribution: bool | None

    @property
    def class_name(self) -> str:
        """The most likely class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """The probability of the most likely class."""
        return max(self.probabilities)

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` most likely classes (or all, if there are fewer), each with its probability."""
        ranked = sorted(range(len(self.classes)), key=lambda place: -self.probabilities[place])
        return [(self.classes[place], self.probabilities[place]) for place in ranked[:count]]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A network with everything that prediction needs. `save` writes all fields except `plan` to one file."""

    model: ModelComposite
    architecture: Architecture
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    temperature: float = 1.0
    """The logits are divided by the temperature before the softmax. It is 1 if the network is not calibrated."""
    energy_threshold: float | None = None
    """Images with a lower energy score are unlike anything the network was trained on.

    None in older files, and for a network that was evaluated on fewer than 20 images.
    """
    plan: ComputePlan = EAGER

    def save(self, path: Path, *, half: bool = False) -> None:
        """Write the network's weights and metadata to `path`.

        The metadata are the class names, architecture, input size, normalization, temperature and energy threshold.

        With `half`, weights are float16 and the file is half as large. Batch norm stays float32, because its statistics
        need that precision.

        Raises:
            StorageError: when the file cannot be written.
            ValueError: with `half`, when a weight is too large for float16.
        """
        metadata = {
            "classes": self.classes,
            "preprocessing": self.preprocessing.to_json(),
            "architecture": self.architecture.to_json(),
            "temperature": self.temperature,
            "energy_threshold": self.energy_threshold,
        }
        tensors = self.model.state_dict()
        if half:
            norms = {name for name, module in self.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
            tensors = {
                name: tensor if name.rpartition(".")[0] in norms else tensor.half() for name, tensor in tensors.items()
            }
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise ValueError("a weight is too large for float16")
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path, plan: ComputePlan = EAGER, *, network: str | None = None) -> Self:
        """Load the predictor that `save` wrote to `path`.

        The file never decides which code is run. If the user's own code builds the network, `network` must name this
        code. It must be the code that the network was trained with.

        Raises:
            InputError: when the file is missing or damaged. Also when `network` is needed but not given, given but
                not needed, or names other code than the network was trained with.
        """
        tensors, metadata = load_tensors(path)
        with reading(path):
            preprocessing = Preprocessing.from_json(metadata["preprocessing"])
            classes = require_class_names(metadata["classes"])
            architecture = Architecture.from_json(metadata["architecture"])
            temperature = require_temperature(metadata.get("temperature", 1.0))  # older files have no temperature
            energy_threshold = require_energy_threshold(metadata.get("energy_threshold"))
        if network is None:
            require_consent(architecture.network, None, str(path))
            with torch.device("meta"), warnings.catch_warnings():
                # This checks the names and shapes of the tensors. The meta device needs no memory for them, but PyTorch
                # warns that no values are copied.
                warnings.simplefilter("ignore")
                load_weights(architecture.build(len(classes), preprocessing.input_size), tensors, path)
        elif not architecture.is_own:
            raise InputError(f"{path} holds an included network ({architecture}); leave out --network {network}")
        own = OwnNetwork.load(network) if network else None
        model = architecture.build(len(classes), preprocessing.input_size, own)
        load_weights(model, tensors, path)
        return cls(
            # The program that loads the network may have set another default dtype.
            model=model.to(plan.device, torch.float32),
            preprocessing=preprocessing,
            classes=classes,
            architecture=architecture,
            temperature=temperature,
            energy_threshold=energy_threshold,
            plan=plan,
        )

    def predict(self, images: Iterable[ImageInput]) -> list[Prediction]:
        """Predict the class of each image in `images`.

        The images may have any size. Pillow images may have any mode except F.

        Raises:
            InputError: when a file cannot be read.
            TypeError: when `images` is a single image, or an image has a type that `ImageInput` does not include.
            ValueError: when an array is not uint8 `[H,W,3]`, a Pillow image has the mode F, or an image has no pixels.
        """
        if isinstance(images, str | bytes | os.PathLike | Image.Image) or getattr(images, "ndim", 4) not in (1, 4):
            raise TypeError("predict takes a list of images; put a single image into a list")
        images = list(images)
        predictions: list[Prediction] = []
        for start in range(0, len(images), self.batch_size):
            inputs = np.stack([self.to_input(image) for image in images[start : start + self.batch_size]])
            predictions += self.predict_images(inputs)
        return predictions

    @property
    def batch_size(self) -> int:
        """The number of images that go through the network at a time."""
        return max(1, _BATCH_PIXELS // self.preprocessing.input_size**2)

    def to_input(self, image: ImageInput) -> NDArray[np.uint8]:
        """Convert an image to the network's input size and format: uint8 pixels `[S,S,3]`.

        Raises:
            InputError: when a file cannot be read.
            TypeError: when the image has a type that `ImageInput` does not include.
            ValueError: when an array is not uint8 `[H,W,3]`, a Pillow image has the mode F, or the image has no pixels.
        """
        if isinstance(image, str | os.PathLike):
            image = read_image(Path(image))
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"pixels are {image.dtype} {list(image.shape)}; they must be uint8 [H,W,3]")
            image = Image.fromarray(image)
        elif not isinstance(image, Image.Image):
            raise TypeError(
                f"an image is a {type(image).__name__}; it must be the path of a file, a Pillow image or a NumPy array "
                "of pixels uint8 [H,W,3]"
            )
        if image.mode == "F":
            raise ValueError("a Pillow image has float pixels, whose range is unknown; convert them to integers")
        if 0 in image.size:
            raise ValueError("an image has no pixels; check how it was cropped")
        return to_square(image, self.preprocessing.input_size)

    def predict_images(self, images: NDArray[np.uint8]) -> list[Prediction]:
        """Predict the classes of `images`, uint8 `[N,S,S,3]`, which already have the network's input size.

        Raises:
            InputError: when the network gives probabilities that are not finite.
        """
        return [
            prediction
            for batch in torch.split(torch.from_numpy(images), self.batch_size)
            for prediction in self.to_predictions(self._logits(batch))
        ]

    def to_predictions(self, logits: torch.Tensor) -> list[Prediction]:
        """Convert the network's `logits` `[N,C]` to predictions, one for each image.

        Raises:
            InputError: when the probabilities are not finite.
        """
        probabilities = self.to_probabilities(logits).tolist()
        scores = energy_scores_of(logits.float().cpu().numpy()).tolist()
        return [
            Prediction(
                classes=self.classes,
                probabilities=tuple(row),
                energy_score=score,
                in_distribution=None if self.energy_threshold is None else score >= self.energy_threshold,
            )
            for row, score in zip(probabilities, scores, strict=True)
        ]

    def to_probabilities(self, logits: torch.Tensor) -> NDArray[np.float64]:
        """The probabilities of all classes, `[N,C]`, from the network's `logits` `[N,C]`.

        Raises:
            InputError: when the probabilities are not finite.
        """
        with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which is checked below
            found = probabilities_of(logits.float().cpu().numpy(), self.temperature)
        if not np.isfinite(found).all():
            raise InputError("the network gives no finite probabilities, so it is damaged; use another network")
        return found

    @torch.no_grad()
    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        plan = self.plan
        with plan.autocast():
            logits: torch.Tensor = self._prepared(self.preprocessing.normalize(images.to(plan.device)))  # [B,C]
        return logits

    @cached_property
    def _prepared(self) -> ModelComposite:
        _use_one_thread_after_fork()
        # The network stays in evaluation mode, because switching modes in every call would not be thread-safe.
        return self.plan.prepare(self.model).eval()


@functools.cache
def _use_one_thread_after_fork() -> None:
    """Set one thread for predictions in every process forked from this one, such as a worker of a web server.

    A forked process does not have the OpenMP threads of this process. If it predicted with several threads, it would
    wait forever for these threads.
    """
    if hasattr(os, "register_at_fork"):  # Windows cannot fork
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


def load(run: str | os.PathLike[str] | None = None, *, network: str | None = None) -> Predictor:
    """Load the trained network in the run folder `run`, or by default the network that comes with the package.

    The predictor runs on the CPU, in bfloat16 if that is fast on this CPU. `network` names the code of the user's own
    network, as `train --network` does. This code is imported.

    Raises:
        InputError: when there is no such run, when it has no weights, or when `network` is missing, not needed, or not
            the network of the run.
    """
    return load_file(weights_of(run), network=network)


def weights_of(run: str | os.PathLike[str] | None) -> Path:
    """The weights file in the run folder `run`. If `run` is None, the weights file that comes with the package.

    Raises:
        InputError: when there is no such run.
    """
    return SHIPPED if run is None else RunFolder.open(Path(run)).weights


def load_file(path: Path, *, network: str | None = None) -> Predictor:
    """Load the network that `Predictor.save` wrote to `path`. The compute plan is the same as in `load`.

    Raises:
        InputError: in the same cases as `Predictor.load`.
    """
    return Predictor.load(path, prediction_plan(hardware.detect()), network=network)


def read_image(path: Path) -> Image.Image:
    """The image in a file, fully loaded.

    Raises:
        InputError: when the file is missing, damaged or not an image.
    """
    return open_image(read_file(path), printable(path))


def read_file(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        InputError: when the file cannot be read, or is too large for an image.
    """
    try:
        if not path.is_file() and path.exists():  # reading a pipe would block
            raise InputError(f"{printable(path)} is not a file; give an image file")
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise InputError(f"{printable(path)} has {size:,} bytes; the limit is {LARGEST_FILE:,}; make it smaller")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {printable(path)}; check the name") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{printable(path)} cannot be read: {getattr(error, 'strerror', error)}; check its permissions"
        ) from error
