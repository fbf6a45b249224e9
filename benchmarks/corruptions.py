"""Measure a network on corrupted images: the 19 kinds of CIFAR-10-C at strengths 1 to 5, and JPEGs as people have them.

The record has accuracy, expected calibration error and log loss on clean images, on every corruption, and on JPEGs of
quality 95, 75 and 50. The mean over corruptions is over the 15 kinds of the published benchmark. cifar10_c.py names the
library that corrupts the images, and the differences from the published ones.

To choose between networks, measure runs that were trained with `onecycle train --validation` on their validation
images, with --validation. 2,000 images take 3 to 6 minutes on one core.
"""

import argparse
import hashlib
import io
import sys
from dataclasses import replace
from pathlib import Path

import cifar10_c
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.core.metrics import calibration
from onecycle.core.recipes import BASELINE
from onecycle.data import Dataset
from onecycle.data.splits import stratified
from onecycle.predict.predictor import Predictor, load_file, weights_of
from onecycle.run import environment
from onecycle.run.build import load_data
from onecycle.storage.run_folder import RunFolder

JPEG_QUALITIES = (95, 75, 50)

Pixels = NDArray[np.uint8]
Figures = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="the folder of a complete run; by default the included network")
    parser.add_argument("--data", help="the data set, if it has moved")
    parser.add_argument("--images", type=int, help="a stratified draw of this many images; all by default")
    parser.add_argument("--validation", action="store_true", help="measure on the run's validation images")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn images and of the corruptions")
    parser.add_argument("--out", type=Path, default=Path("results/corruptions.json"))
    options = parser.parse_args()
    library = cifar10_c.library()
    weights = weights_of(options.run)
    predictor, dataset = load_file(weights), load_images(options.run, options.data, validation=options.validation)
    if predictor.preprocessing.input_size != cifar10_c.SIZE:
        raise SystemExit(f"corruptions: {weights} does not take images of {cifar10_c.SIZE} pixels, as CIFAR-10-C has")
    labels = dataset.evaluation.labels
    rows = stratified(labels, options.images or len(labels), seed=options.seed)
    images, labels = dataset.evaluation.images[rows], labels[rows]

    def measured(corrupted: Pixels) -> Figures:
        return figures(predictor, corrupted, labels)

    clean = measured(images)
    print("clean", clean)
    jpeg = {str(quality): measured(as_jpeg(images, quality)) for quality in JPEG_QUALITIES}
    print("JPEG", jpeg)
    corruptions = {}
    for kind in cifar10_c.STRENGTHS:
        corrupted = (cifar10_c.corrupt(images, kind, strength, seed=options.seed) for strength in range(1, 6))
        corruptions[kind] = [measured(each) for each in corrupted]
        print(kind, *(found["accuracy"] for found in corruptions[kind]))
    published = [found for kind, each in corruptions.items() if kind not in cifar10_c.EXTRA for found in each]
    record = {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "run": options.run and options.run.name,
        "evaluated_on": dataset.evaluated_on,
        "images": len(images),
        "seed": options.seed,
        "fingerprint": dataset.fingerprint,
        "library": library,
        "clean": clean,
        "jpeg": jpeg,
        "corruptions": corruptions,
        "not_in_the_mean": cifar10_c.EXTRA,
        "mean_over_corruptions": mean(published),
        "environment": environment.describe(hardware.detect(), predictor.plan),
    }
    write(options.out, record)
    print("mean over corruptions", record["mean_over_corruptions"])
    return 0


def load_images(run: Path | None, data: str | None, *, validation: bool) -> Dataset:
    """The data set of the `run`, whose evaluation set has the test images, or the validation images."""
    config = BASELINE
    if run is not None:
        folder = RunFolder.open(run)
        config = folder.read_config()
        config = replace(config, data=data or config.data)
        environment.require_same_data(folder, load_data(config))
    elif data:
        config = replace(config, data=data)
    if validation and not config.validation:
        raise SystemExit("corruptions: the network has seen all training images; measure a run with --validation")
    return load_data(config if validation else replace(config, validation=0))


def as_jpeg(images: Pixels, quality: int) -> Pixels:
    """`images`, uint8 `[N,H,W,3]`, after each was written as a JPEG of `quality` and read again."""
    read = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        read.append(np.asarray(Image.open(file)))
    return np.stack(read)


def figures(predictor: Predictor, images: Pixels, labels: NDArray[np.int64]) -> Figures:
    probabilities = np.array([prediction.probabilities for prediction in predictor.predict_images(images)])
    of_labels = probabilities[np.arange(len(labels)), labels]
    smallest = np.finfo(np.float32).tiny  # a probability may be rounded to 0
    return {
        "accuracy": rounded((probabilities.argmax(axis=1) == labels).mean()),
        "expected_calibration_error": rounded(calibration(probabilities, labels).error),
        "log_loss": rounded(-np.log(of_labels.clip(smallest)).mean()),
    }


def mean(found: list[Figures]) -> Figures:
    return {name: rounded(float(np.mean([each[name] for each in found]))) for name in found[0]}


if __name__ == "__main__":
    sys.exit(main())
