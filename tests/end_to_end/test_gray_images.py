"""A network that was trained on gray images also classifies images with a tint, colored noise or JPEG artifacts."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from onecycle.core.recipes import QUICK
from onecycle.data import load_dataset
from onecycle.predict.predictor import Predictor
from onecycle.run import experiment

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def predictor(cache_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """The whitened network, trained on the embedded digits."""
    config = replace(
        QUICK,
        data="digits",
        size=16,
        sizes=(16,),
        widths=(32, 32, 32),
        epochs=5,
        batch_size=32,
        workers=0,
        report=False,
        precision="float32",
    )
    folder = experiment.run(config, Console(quiet=True), tmp_path_factory.mktemp("gray") / "run")
    return Predictor.load(folder.weights)


def tint(red: int, green: int, blue: int) -> Change:
    return lambda images: (images + np.array([red, green, blue])).clip(0, 255).astype(np.uint8)


def noise(levels: int) -> Change:
    draws = np.random.default_rng(0)
    return lambda images: (images + draws.integers(-levels, levels + 1, images.shape)).clip(0, 255).astype(np.uint8)


def jpeg(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each image with a slight tint, after saving it as a JPEG file."""

    def saved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=75)
        return np.asarray(Image.open(file))

    return np.stack([saved(pixels) for pixels in tint(3, 0, 2)(images)])


@pytest.mark.parametrize(
    "change",
    [tint(1, 0, 0), tint(8, 0, 0), tint(0, 8, 0), tint(0, 0, 8), tint(8, 4, -8), noise(4), jpeg],
    ids=["faint red", "red", "green", "blue", "sunset", "noise", "jpeg"],
)
def test_colors_cost_at_most_2_points_of_accuracy(predictor: Predictor, change: Change) -> None:
    test = load_dataset("digits", input_size=16).evaluation

    def accuracy(images: NDArray[np.uint8]) -> float:
        predicted = [prediction.class_name for prediction in predictor.predict_images(images)]
        return float(np.mean(np.array(predicted) == np.array(test.classes)[test.labels]))

    plain = accuracy(test.images)
    assert plain > 0.9
    assert accuracy(change(test.images)) >= plain - 0.02


def test_the_notes_of_the_data_set_say_that_images_become_gray(predictor: Predictor) -> None:
    assert predictor.preprocessing.gray
    assert load_dataset("digits").notes == (
        "All training images are gray, so the network converts every image to gray",
    )
