"""Make the network that comes with the package from a complete run, and see that it is as good in half precision.

Weights become float16 but for batch norm; the accuracy is computed again from the file, on the run's test images.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from studies import rounded, write

from onecycle.compute import hardware
from onecycle.compute.plan import PLAIN
from onecycle.data.batches import Batches
from onecycle.models.test_time_augmentation import Averaged
from onecycle.predict.predictor import SHIPPED, Predictor, load
from onecycle.run import environment
from onecycle.run.build import load_data
from onecycle.run.export import write_card
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import evaluate

MOST_LOST = 0.0005  # of the accuracy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a complete run with its weights")
    parser.add_argument("--data", help="where its data are, if not where they were")
    parser.add_argument("--network", type=Path, default=SHIPPED, help="the file to write")
    parser.add_argument("--footnote", default="", help="what else there is to know of the data, for the card")
    parser.add_argument("--out", type=Path, default=Path("results/shipped_network.json"))
    options = parser.parse_args()
    folder = RunFolder.open(options.run)
    result, config = folder.read_result(), folder.read_config()
    dataset = load_data(replace(config, data=options.data or config.data))
    environment.require_same_data(folder, dataset)
    options.network.parent.mkdir(parents=True, exist_ok=True)
    whole = Predictor.load(folder.weights)
    whole.save(options.network, half=True)
    write_card(folder, whole, options.network, footnote=options.footnote)
    quick = load().acceleration
    accuracies = {}
    for name, how in (("as onecycle.load computes", quick), ("in float32", PLAIN)):
        predictor = Predictor.load(options.network, how)
        batches = Batches(dataset.evaluation, predictor.preprocessing, batch_size=500)
        accuracies[name] = {
            "accuracy": evaluate(predictor.model, batches, acceleration=how).accuracy,
            "tta_accuracy": evaluate(Averaged(predictor.model), batches, acceleration=how).accuracy,
        }
        print(name, accuracies[name])
    lost = result.test_accuracy - accuracies["as onecycle.load computes"]["accuracy"]
    if abs(lost) > MOST_LOST:
        raise SystemExit(f"shipped_network: in half precision {lost:+.4f} of the accuracy is lost; do not ship it")
    record = {
        "recorded": {"accuracy": result.test_accuracy, "tta_accuracy": result.tta_accuracy},
        "shipped": accuracies,
        "megabytes": rounded(options.network.stat().st_size / 1e6),
        "recipe": result.recipe,
        "seed": result.seed,
        "fingerprint": result.fingerprint,
        "test_images": result.test_images,
        "environment": environment.describe(hardware.detect(), quick),
    }
    write(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
