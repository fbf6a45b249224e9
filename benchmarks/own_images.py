"""Train on image folders and archives with `onecycle train`.

The first data set is scikit-learn's digits as PNG files in class folders, without a test set. The trained network then
classifies the drawn test images with `onecycle predict`. With --archive, the second data set is an archive of JPEGs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from studies import write

import onecycle
from onecycle.storage.run_folder import RunFolder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", help="an archive of JPEGs in train/<class>/ and test/<class>/")
    parser.add_argument("--digits-options", default="--batch-size 64 --epochs 10")
    parser.add_argument("--archive-options", default="--recipe quick")
    parser.add_argument("--out", type=Path, default=Path("results/own_images.json"))
    options = parser.parse_args()
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        write_digits(photos)
        record["digits as PNG"] = train(photos, options.digits_options, Path(folder) / "digits")
        run = RunFolder(next((Path(folder) / "digits").iterdir()))
        record["digits as PNG"]["named rightly by predict"] = correct_predictions(run, photos)
        if options.archive:
            record["JPEG archive"] = train(options.archive, options.archive_options, Path(folder) / "archive")
    write(options.out, record)
    return 0


def write_digits(folder: Path) -> None:
    """Write every image of scikit-learn's digits as `folder/<class>/<number>.png`."""
    digits = onecycle.load_dataset("digits")
    for number, (pixels, label) in enumerate(
        pair for part in (digits.train, digits.evaluation) for pair in zip(part.images, part.labels, strict=True)
    ):
        file = folder / digits.train.classes[label] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def train(data: str | Path, options: str, out: Path) -> dict[str, Any]:
    """Run `onecycle train`, and return its result and environment."""
    command = ["train", "--data", str(data), *options.split()]
    subprocess.run([sys.executable, "-m", "onecycle", *command, "--out", str(out)], check=True)
    run = RunFolder(next(out.iterdir()))
    environment = run.read_json(run.environment)
    printed = ["onecycle", "train", "--data", Path(data).name, *options.split()]
    return {
        **run.read_result().to_json(),
        "environment": {**environment, "command": " ".join(printed)},
    }


def correct_predictions(run: RunFolder, photos: Path) -> float:
    """The fraction of the drawn test images for which `onecycle predict` predicts the name of their folder."""
    drawn = run.read_json(run.drawn_test_images)["test"]
    command = [sys.executable, "-m", "onecycle", "predict", "--json", "--run", str(run.path)]
    done = subprocess.run([*command, *(str(photos / name) for name in drawn)], stdout=subprocess.PIPE, check=True)
    predicted = [json.loads(line)["predictions"][0]["class_name"] for line in done.stdout.decode().splitlines()]
    return sum(label == name.partition("/")[0] for label, name in zip(predicted, drawn, strict=True)) / len(drawn)


if __name__ == "__main__":
    sys.exit(main())
