"""Measure how many planted data issues a report finds: label issues and near-duplicates in a copy of CIFAR-10.

In the copy, --planted test images and --planted training images get another label, and --planted test images are
replaced by copies of training images: unchanged, mirrored, brightened, scaled or compressed again. A run is trained on
the copy. For each kind of issue, the report of the run lists the 5 % most suspicious images. A wrong label counts as
found if the image is in the list. A duplicate counts as found only if it is listed together with its original.

With --known, the benchmark also looks for published near-duplicates between the training and the test set of the
original data (Barz & Denzler 2020). The CSV file must have the columns TestID, TrainID and Judgment, as offered by
https://cvjena.github.io/cifair.
"""

import argparse
import csv
import io
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from rich.console import Console
from studies import FROM_SCRATCH, rounded, write

from onecycle.compute import hardware
from onecycle.core.recipes import RECIPES
from onecycle.data import Dataset, load_dataset
from onecycle.data.duplicates import most_similar
from onecycle.predict.explain import LISTED_FRACTION
from onecycle.run import environment, experiment

NAMES = [f"data_batch_{number}.bin" for number in range(1, 6)]
JUDGMENTS = {"0": "exact duplicates", "1": "near-duplicates", "2": "very similar"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10, as in `onecycle train`")
    parser.add_argument("--recipe", choices=FROM_SCRATCH, default="quick")
    parser.add_argument("--planted", type=int, default=100, help="issues of each kind")
    parser.add_argument("--seeds", type=int, default=3, help="copies; each has its own planted issues and its own run")
    parser.add_argument("--epochs", type=int, help="epochs of each run; by default those of the recipe")
    parser.add_argument("--known", type=Path, help="CSV file of known near-duplicates")
    parser.add_argument("--out", type=Path, default=Path("results/label_issues.json"))
    options = parser.parse_args()
    data = load_dataset(options.data)
    config = RECIPES[options.recipe]
    config = replace(config, epochs=options.epochs or config.epochs)
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            planted = plant(data, Path(folder), options.planted, seed)
            run = experiment.run(
                replace(config, data=folder, seed=seed, out=Path(folder) / "runs"), Console(quiet=True)
            )
            shares = planted.found_by(run.read_arrays(run.interpretation))
            plan = environment.recorded_plan(run)
        for name, share in shares.items():
            found.setdefault(name, []).append(rounded(share))
        print(f"seed {seed}:", shares)
    record = {
        "recipe": options.recipe,
        "epochs": config.epochs,
        "planted_of_each_kind": options.planted,
        "part_listed": LISTED_FRACTION,
        "found": found,
        "mean_found": {name: rounded(statistics.fmean(shares)) for name, shares in found.items()},
        "known_duplicates": known(data, options.known) if options.known else None,
        "fingerprint": data.fingerprint,
        "environment": environment.describe(hardware.detect(), plan),
    }
    write(options.out, record)
    print(record["mean_found"], record["known_duplicates"])
    return 0


class Planted:
    """The planted issues: the indices of the changed images, and for each duplicate the index of its original."""

    def __init__(self, images: int, train_images: int, count: int, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        test = self.generator.choice(images, 2 * count, replace=False)
        train = self.generator.choice(train_images, 2 * count, replace=False)
        self.test_labels, self.duplicates = test[:count], test[count:]
        self.train_labels, self.originals = train[:count], train[count:]

    def found_by(self, lists: dict[str, NDArray[np.int64]]) -> dict[str, float]:
        """The fraction of the issues of each kind that the `lists` of a report contain."""
        pairs = {tuple(pair) for pair in lists["duplicates"].tolist()}
        planted = zip(self.duplicates.tolist(), self.originals.tolist(), strict=True)
        return {
            "labels of test images": float(np.isin(self.test_labels, lists["label_issues"]).mean()),
            "labels of training images": float(np.isin(self.train_labels, lists["train_label_issues"]).mean()),
            "duplicates": statistics.fmean(pair in pairs for pair in planted),
        }


def plant(data: Dataset, folder: Path, count: int, seed: int) -> Planted:
    """Write a copy of `data` with planted issues to `folder`, in the official binary layout."""
    planted = Planted(len(data.evaluation), len(data.train), count, seed)
    generator = planted.generator
    sets = {}
    for name, images, wrong in (
        ("train", data.train, planted.train_labels),
        ("test", data.evaluation, planted.test_labels),
    ):
        pixels, labels = images.images.copy(), images.labels.copy()
        labels[wrong] = (labels[wrong] + generator.integers(1, len(images.classes), count)) % len(images.classes)
        sets[name] = pixels, labels
    for number, (copy, original) in enumerate(zip(planted.duplicates, planted.originals, strict=True)):
        alter = ALTERATIONS[number % len(ALTERATIONS)]
        sets["test"][0][copy] = alter(data.train.images[original])
        sets["test"][1][copy] = data.train.labels[original]
    for names, (pixels, labels) in ((NAMES, sets["train"]), (["test_batch.bin"], sets["test"])):
        rows = np.concatenate(
            [labels[:, None].astype(np.uint8), pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)], 1
        )
        for name, part in zip(names, np.array_split(rows, len(names)), strict=True):
            (folder / name).write_bytes(part.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(data.train.classes) + "\n")
    return planted


def compressed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def scaled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).crop((1, 1, 31, 31)).resize((32, 32)))


def brighter(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(1.25))


Alteration = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
ALTERATIONS: tuple[Alteration, ...] = (lambda image: image, lambda image: image[:, ::-1], brighter, scaled, compressed)


def known(data: Dataset, path: Path) -> dict[str, dict[str, float]]:
    """For each kind of known duplicate: the number of pairs, and the fraction of them that a report would list."""
    partners, similarities = most_similar(data.evaluation.images, data.train.images)
    listed = set(np.argsort(-similarities, kind="stable")[: round(LISTED_FRACTION * len(partners))].tolist())
    kinds: dict[str, list[bool]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            test, train = int(row["TestID"]), int(row["TrainID"])
            kinds.setdefault(JUDGMENTS[row["Judgment"]], []).append(test in listed and partners[test] == train)
    return {kind: {"pairs": len(hits), "found": rounded(statistics.fmean(hits))} for kind, hits in kinds.items()}


if __name__ == "__main__":
    sys.exit(main())
