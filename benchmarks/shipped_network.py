"""Turn the network of a complete run into the one that the package ships, and check its accuracy in half precision.

Weights become float16, except those of batch norm. The written file is evaluated on the test images of the run. Its
energy threshold keeps 95 % of them. If the run has no weights, as a record in results/, those in --network are kept.

The run has a temperature if it is calibrated. Otherwise --fitted-by OTHER takes the temperature of another run of the
same recipe, which was trained with --validation, and records it in the run.

The model card has the figures of --corruptions and --out-of-distribution, if they were measured for the written file.
So for a new network or temperature run this, then corruptions.py and out_of_distribution.py, then this again.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from out_of_distribution import auroc_in
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import EAGER
from onecycle.core.out_of_distribution import energy_threshold_of
from onecycle.data.batches import Batches
from onecycle.models.test_time_augmentation import TestTimeAugmentation
from onecycle.predict.predictor import SHIPPED, Predictor, load
from onecycle.report.model_card import write_card
from onecycle.run import environment
from onecycle.run.build import load_data
from onecycle.storage.records import RunResult
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import evaluate

LARGEST_LOSS = 0.0005  # largest accepted change of the accuracy, a fraction


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a complete run")
    parser.add_argument("--data", help="the data set, if it has moved")
    parser.add_argument("--network", type=Path, default=SHIPPED, help="the file to write")
    parser.add_argument("--footnote", default="", help="a note about the data, for the model card")
    parser.add_argument("--fitted-by", type=Path, help="the run with validation images whose temperature is taken")
    parser.add_argument("--corruptions", type=Path, default=Path("results/corruptions.json"))
    parser.add_argument("--out-of-distribution", type=Path, default=Path("results/out_of_distribution.json"))
    parser.add_argument("--out", type=Path, default=Path("results/shipped_network.json"))
    options = parser.parse_args()
    folder = RunFolder.open(options.run)
    result, config = folder.read_result(), folder.read_config()
    dataset = load_data(replace(config, data=options.data or config.data))
    environment.require_same_data(folder, dataset)
    options.network.parent.mkdir(parents=True, exist_ok=True)
    if options.fitted_by:
        result = with_temperature_of(options.fitted_by, folder)
    trained = Predictor.load(folder.weights if folder.weights.exists() else options.network)
    threshold = energy_threshold_of(folder.read_predictions().logits)  # older runs did not record it
    replace(trained, temperature=result.temperature, energy_threshold=threshold).save(options.network, half=True)
    shipped = Predictor.load(options.network)
    write_card(
        folder,
        shipped,
        options.network,
        footnote=options.footnote,
        corruptions=measured_on(options.network, options.corruptions),
        auroc=auroc_in(options.out_of_distribution, shipped),
    )
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


def with_temperature_of(other: Path, folder: RunFolder) -> RunResult:
    """Record the temperature of the run `other` in the result of the run in `folder`. Returns this result."""
    fitted = RunFolder.open(other).read_result().calibration
    if fitted is None:
        raise SystemExit(f"shipped_network: {other} has no temperature; train it with --validation")
    result = replace(folder.read_result(), calibration=replace(fitted, source="second network"))
    recorded = json.loads(folder.result.read_text())  # an older record keeps the names of its fields
    folder.write_json(folder.result, {**recorded, "calibration": result.to_json()["calibration"]})
    return result


def measured_on(network: Path, path: Path) -> dict[str, Any] | None:
    """The record of corruptions.py at `path`, if it is about the file `network`."""
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if record.get("weights") != hashlib.sha256(network.read_bytes()).hexdigest():
        print(f"the card has no figures for corrupted images, because {path} does not have those of {network}")
        return None
    return record


if __name__ == "__main__":
    sys.exit(main())
