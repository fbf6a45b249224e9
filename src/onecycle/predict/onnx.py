"""Export a network as one ONNX file, with normalization and class names inside."""

import contextlib
import copy
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
from onecycle.core.out_of_distribution import energy_scores_of
from onecycle.data.preprocessing import to_gray
from onecycle.predict.predictor import Predictor

VERIFIED = 1000  # the file is compared with the network on this many images
# `write_onnx` fails if the difference that it would return is larger than this. A small difference is normal: the file
# and the network may add numbers in different orders, and then round differently.
TOLERANCE = 1e-4
_OPSET = 18
_ADVICE = "the exporter is at fault: try other versions of torch, onnxscript and onnxruntime"


class Deployed(nn.Module):
    """The network with normalization, temperature and softmax.

    It maps uint8 images `[N,S,S,3]` to float32 probabilities `[N,C]` and energy scores `[N]`.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = predictor.model
        self.temperature = predictor.temperature
        self.gray = predictor.preprocessing.gray
        self.register_buffer("mean", 255 * torch.tensor(predictor.preprocessing.mean))
        self.register_buffer("scale", 255 * torch.tensor(predictor.preprocessing.std))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = to_gray(images.float()) if self.gray else images.float()
        normalized = (pixels - self.mean) / self.scale
        logits: torch.Tensor = self.model(normalized.permute(0, 3, 1, 2))  # [N,S,S,3] -> [N,3,S,S]
        return (logits / self.temperature).softmax(dim=1), logits.logsumexp(dim=1)


def write_onnx(predictor: Predictor, path: Path, description: str) -> float:
    """Write the network of `predictor` to `path`, as an ONNX file with the inputs and outputs of `Deployed`.

    The network must be on the CPU in float32. The outputs of the file and of the network are compared on
    1,000 synthetic images. The logits are also compared, because the probabilities of a confident network round to 0
    and 1, which hides errors.

    Returns the largest difference between the file and the network in any logit, probability or energy score.
    Differences of logits and energy scores are relative to the standard deviation of all logits.

    Raises:
        InputError: when the export fails, or the difference is larger than `TOLERANCE`. Nothing is written then.
        StorageError: when the file cannot be written.
    """
    images = list(_verified_images(predictor))
    try:
        content = _exported(predictor, description)
        probabilities, logits, scores = _run(content, images)
    except Exception as error:  # torch, onnx and onnxruntime raise many kinds of errors
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be exported: {type(error).__name__}: {reason}; {_ADVICE}") from error
    expected = _logits(predictor, images, torch.float32)
    of_probabilities = float((probabilities - expected.softmax(dim=1)).abs().max())
    expected_scores = torch.from_numpy(energy_scores_of((expected * predictor.temperature).numpy()))
    of_scores = float((scores - expected_scores).abs().max() / predictor.temperature / (expected.std() or 1))
    # Unlike max(), np.max propagates NaN.
    difference = float(np.max([_difference(logits, expected), of_probabilities, of_scores]))
    if not difference <= TOLERANCE:  # unlike `difference > TOLERANCE`, also true for NaN
        rounding = _difference(_logits(predictor, images, torch.float64), expected)
        advice = _ADVICE
        if not rounding <= TOLERANCE / 2:
            advice = (
                f"rounding alone changes the network's logits by {rounding:.1e}: train it for longer, or on more "
                "varied images"
            )
        raise InputError(
            f"{path} was not written: its outputs differ from the network's by up to {difference:.1e}; the limit is "
            f"{TOLERANCE:.0e}; {advice}"
        )
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return difference


def _exported(predictor: Predictor, description: str) -> bytes:
    size = predictor.preprocessing.input_size
    with _quiet():
        program = torch.onnx.export(
            Deployed(predictor).eval(),
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            input_names=["images"],
            output_names=["probabilities", "energy_scores"],
            dynamic_shapes={"images": {0: torch.export.Dim("N")}},
            opset_version=_OPSET,
            verbose=False,
        )
    assert program, "exporting with dynamic shapes returns a program"
    model = program.model_proto
    model.doc_string = description
    metadata = {"classes": json.dumps(predictor.classes), "input_size": str(size), "description": description}
    if predictor.energy_threshold is not None:
        metadata["energy_threshold"] = str(predictor.energy_threshold)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _verified_images(predictor: Predictor) -> Iterator[NDArray[np.uint8]]:
    """Batches of synthetic images: 1 image, 7 images, and then batches of `predictor.batch_size`."""
    rng, left = np.random.default_rng(0), VERIFIED
    for most in itertools.chain([1, 7], itertools.repeat(predictor.batch_size)):
        if not left:
            return
        yield _natural_noise(min(most, left), predictor.preprocessing.input_size, rng)
        left -= min(most, left)


def _run(content: bytes, batches: Sequence[NDArray[np.uint8]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The outputs of the ONNX file `content` for all images.

    They are the probabilities and scaled logits, both float32 `[N,C]`, and the energy scores `[N]`.
    """
    model = onnx.load_from_string(content)
    (softmax,) = (node for node in model.graph.node if "probabilities" in node.output)
    logits_name = softmax.input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(logits_name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = ["probabilities", logits_name, "energy_scores"]
    outputs = [session.run(names, {"images": images}) for images in batches]
    probabilities, logits, scores = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*outputs, strict=True))
    return probabilities, logits, scores


@torch.no_grad()
def _logits(predictor: Predictor, batches: Sequence[NDArray[np.uint8]], dtype: torch.dtype) -> torch.Tensor:
    """The network's logits `[N,C]` for all images, computed in `dtype` and divided by the temperature."""
    model = copy.deepcopy(predictor.model).eval().to(dtype)
    inputs = (predictor.preprocessing.normalize(torch.from_numpy(images)).to(dtype) for images in batches)
    return torch.cat([model(images) for images in inputs]) / predictor.temperature


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference between `logits` and `expected`, divided by the standard deviation of `expected`."""
    return float((logits - expected).abs().max() / (expected.std() or 1))


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
