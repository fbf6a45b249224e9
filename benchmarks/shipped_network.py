"""Turn the network of a complete run into the one that the package ships, and check its accuracy in half precision.

Weights become float16, except those of batch norm. The written file is evaluated on the test images of the run.

If --corruptions is a record of the written file, its figures are in the model card. For a new network, run this script,
then corruptions.py, then this script again.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import EAGER
from onecycle.data.batches import Batches
from onecycle.models.test_time_augmentation import TestTimeAugmentation
from onecycle.predict.predictor import SHIPPED, Predictor, load
from onecycle.report.model_card import write_card
from onecycle.run import environment
from onecycle.run.build import load_data
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import evaluate

LARGEST_LOSS = 0.0005  # largest accepted change of the accuracy, a fraction


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a complete run with its weights")
    parser.add_argument("--data", help="the data set, if it has moved")
    parser.add_argument("--network", type=Path, default=SHIPPED, help="the file to write")
    parser.add_argument("--footnote", default="", help="a note about the data, for the model card")
    parser.add_argument("--corruptions", type=Path, default=Path("results/corruptions.json"))
    parser.add_argument("--out", type=Path, default=Path("results/shipped_network.json"))
    options = parser.parse_args()
    folder = RunFolder.open(options.run)
    result, config = folder.read_result(), folder.read_config()
    dataset = load_data(replace(config, data=options.data or config.data))
    environment.require_same_data(folder, dataset)
    options.network.parent.mkdir(parents=True, exist_ok=True)
    trained = Predictor.load(folder.weights)
    trained.save(options.network, half=True)
    corruptions = measured_on(options.network, options.corruptions)
    write_card(folder, trained, options.network, footnote=options.footnote, corruptions=corruptions)
    prediction_plan = load().plan
    accuracies = {}
    for name, plan in (("as onecycle.load computes", prediction_plan), ("in float32", EAGER)):
        predictor = Predictor.load(options.network, plan)
        batches = Batches(dataset.evaluation, predictor.preprocessing, batch_size=500)
        accuracies[name] = {
            "accuracy": evaluate(predictor.model, batches, plan=plan).accuracy,
            "tta_accuracy": evaluate(TestTimeAugmentation(predictor.model), batches, plan=plan).accuracy,
        }
        print(name, accuracies[name])
    lost = result.eval_accuracy - accuracies["as onecycle.load computes"]["accuracy"]
    if abs(lost) > LARGEST_LOSS:
        raise SystemExit(f"shipped_network: half precision loses {lost:+.4f} of accuracy; do not ship this network")
    record = {
        "recorded": {"accuracy": result.eval_accuracy, "tta_accuracy": result.tta_accuracy},
        "shipped": accuracies,
        "megabytes": rounded(options.network.stat().st_size / 1e6),
        "recipe": result.recipe,
        "seed": result.seed,
        "fingerprint": result.fingerprint,
        "eval_images": result.eval_images,
        "environment": environment.describe(hardware.detect(), prediction_plan),
    }
    write(options.out, record)
    return 0


def measured_on(network: Path, path: Path) -> dict[str, Any] | None:
    """The record of corruptions.py at `path`, if it is about the file `network`."""
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if record.get("weights") != hashlib.sha256(network.read_bytes()).hexdigest():
        print(f"the card has no figures for corrupted images, because {path} does not have those of {network}")
        return None
    return record


if __name__ == "__main__":
    sys.exit(main())
