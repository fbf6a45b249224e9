"""Export a network as one ONNX file, with normalization and class names inside."""

import contextlib
import io
import itertools
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from onecycle.core.errors import InputError
from onecycle.core.files import replacing
from onecycle.predict.predictor import Predictor

VERIFIED = 1000  # images on which the file is compared with the network
TOLERANCE = 1e-4  # largest accepted difference between two probabilities; rounding depends on the order of a sum
_OPSET = 18
_ADVICE = "the exporter is at fault: try other versions of torch, onnxscript and onnxruntime"


class Deployed(nn.Module):
    """The network with normalization and softmax. It maps uint8 images `[N,S,S,3]` to float32 probabilities `[N,C]`."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = predictor.model
        self.register_buffer("mean", 255 * torch.tensor(predictor.preprocessing.mean))
        self.register_buffer("scale", 255 * torch.tensor(predictor.preprocessing.std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normalized = (images.float() - self.mean) / self.scale
        logits: torch.Tensor = self.model(normalized.permute(0, 3, 1, 2))  # [N,S,S,3] -> [N,3,S,S]
        return logits.softmax(dim=1)


def write_onnx(predictor: Predictor, path: Path, description: str) -> float:
    """Export the network of `predictor` to the ONNX file `path`, which maps images to probabilities like `Deployed`.

    The network must be on the CPU in float32. The file is compared with the network on 1,000 synthetic images. Returns
    the largest difference between their probabilities.

    Raises:
        InputError: when the export fails, or the difference is larger than `TOLERANCE`. Nothing is written then.
        StorageError: when the file cannot be written.
    """
    size = predictor.preprocessing.input_size
    try:
        content = _exported(Deployed(predictor).eval(), size, predictor.classes, description)
        difference = _largest_difference(predictor, content)
    except Exception as error:  # torch, onnx and onnxruntime raise many kinds of errors
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be exported: {type(error).__name__}: {reason}; {_ADVICE}") from error
    if not difference <= TOLERANCE:  # unlike `difference > TOLERANCE`, also true for NaN
        raise InputError(
            f"{path} was not written: its probabilities differ from the network's by up to {difference:.1e}; the limit "
            f"is {TOLERANCE:.0e}; {_ADVICE}"
        )
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return difference


def _exported(deployed: Deployed, size: int, classes: Sequence[str], description: str) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            deployed,
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("N")}},
            opset_version=_OPSET,
            verbose=False,
        )
    assert program, "exporting with dynamic shapes returns a program"
    model = program.model_proto
    model.doc_string = description
    metadata = {"classes": json.dumps(classes), "input_size": str(size), "description": description}
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _largest_difference(predictor: Predictor, content: bytes) -> float:
    """The largest difference between the probabilities of the ONNX file `content` and those of the network.

    They are compared on one batch of 1 image, one batch of 7 images, and then batches of `predictor.batch_size`.
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rng, left, largest = np.random.default_rng(0), VERIFIED, 0.0
    for most in itertools.chain([1, 7], itertools.repeat(predictor.batch_size)):
        images = _natural_noise(min(most, left), predictor.preprocessing.input_size, rng)
        (theirs,) = session.run(["probabilities"], {"images": images})
        ours = np.array([prediction.probabilities for prediction in predictor.predict_images(images)])
        largest = float(np.maximum(largest, np.abs(theirs - ours).max()))  # unlike max(), propagates NaN
        left -= len(images)
        if not left:
            return largest
    raise AssertionError("unreachable: the batch sizes repeat forever")


def _natural_noise(count: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Synthetic images uint8 `[count,size,size,3]`: noise with the frequency spectrum of photographs.

    Source: Field 1987, "Relations between the statistics of natural images and the response properties of cortical
    cells": the amplitude is inversely proportional to the frequency.
    """
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    frequencies[0, 0] = 1 / size
    white = np.fft.fft2(rng.standard_normal((count, 3, size, size)))
    noise = np.fft.ifft2(white / frequencies).real  # [count,3,size,size]
    noise /= noise.std(axis=(1, 2, 3), keepdims=True)
    brightness, contrast = rng.uniform(60, 200, (count, 1, 1, 1)), rng.uniform(10, 80, (count, 1, 1, 1))
    return (brightness + contrast * noise).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's output, warnings and log messages inside the block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
