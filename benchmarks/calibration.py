"""Measure the calibration of runs on the test set, before and after temperature scaling.

For each seed, a run is trained and calibrated, as `onecycle train` and `onecycle calibrate` do. Interrupted runs in
--runs are resumed, and a seed in the record is not measured again. With --recorded, a temperature is also applied to
recorded logits, such as those of results/fast-cifar10. It is the mean of the recipe's temperatures in the record. With
--fitted-by RUN it is the temperature of this run, for example of one that was trained with --validation.

The record has, for each network, the expected calibration error in points (15 bins) and the log loss (the mean of the
cross entropy), with and without test-time augmentation. The temperature was fitted without it.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from studies import rounded, write

from onecycle.compute import hardware
from onecycle.core.config import Config
from onecycle.core.metrics import calibration, log_loss, probabilities_of
from onecycle.core.recipes import RECIPES
from onecycle.core.statistics import estimate
from onecycle.data.batches import Batches
from onecycle.models.test_time_augmentation import TestTimeAugmentation
from onecycle.predict.predictor import Predictor
from onecycle.run import environment, experiment
from onecycle.run.build import load_data
from onecycle.run.calibrate import calibrate_run
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import evaluate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="quick")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, help="epochs of each run; by default those of the recipe")
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--limit", type=int, help="as in `onecycle train`")
    parser.add_argument("--runs", type=Path, default=Path("runs/calibration"), help="the folder of the runs")
    parser.add_argument(
        "--recorded", type=Path, nargs="*", default=[], help="run folders with logits, also without weights"
    )
    parser.add_argument("--fitted-by", type=Path, help="the run whose temperature is applied to the recorded logits")
    parser.add_argument("--out", type=Path, default=Path("results/calibration.json"))
    options = parser.parse_args()
    record: dict[str, Any] = {"cells": [], "recorded": []}
    if options.out.exists():
        record = json.loads(options.out.read_text())
    console = Console()
    config = replace(RECIPES[options.recipe], data=options.data, limit=options.limit, report=False, out=options.runs)
    config = replace(config, from_data=("batch_size", "sizes", "epochs"))
    if options.epochs:
        config = replace(config, from_data=("batch_size", "sizes"), epochs=options.epochs)
    for seed in options.seeds:
        if any((cell["recipe"], cell["seed"]) == (options.recipe, seed) for cell in record["cells"]):
            continue
        run = trained(replace(config, seed=seed), console)
        calibrate_run(run.path, console)
        record["cells"].append({"recipe": options.recipe, "seed": seed, **measured(run)})
        save(options.out, record, run)
        print(json.dumps(record["cells"][-1]), flush=True)
    for path in options.recorded:
        found = applied(path, record["cells"], options.fitted_by)
        record["recorded"] = [other for other in record["recorded"] if other["run"] != found["run"]] + [found]
        save(options.out, record, RunFolder.open(path))
        print(json.dumps(found), flush=True)
    print(json.dumps(record.get("summary", {}), indent=2))
    return 0


def trained(config: Config, console: Console) -> RunFolder:
    """The complete run with this configuration. It is trained, or its training is resumed, if necessary."""
    run = RunFolder(config.out / f"{config.recipe}-{config.seed}")
    if run.config.exists():
        if not config.leads_to(run.read_config()):
            raise SystemExit(f"calibration: {run.path} has another configuration; give another --runs")
        return run if run.is_complete else experiment.resume(run.path, console)
    run.discard()  # a kill may have left its first files
    return experiment.run(config, console, run.path)


def measured(run: RunFolder) -> dict[str, Any]:
    """The calibration of a calibrated run with its weights, also with test-time augmentation."""
    config, result = run.read_config(), run.read_result()
    assert result.calibration
    predictions = run.read_predictions()
    plan = environment.recorded_plan(run).for_evaluation()
    predictor = Predictor.load(run.weights, plan)
    images = load_data(config).evaluation
    batches = Batches(images, predictor.preprocessing, batch_size=config.batch_size, device=plan.device)
    augmented = evaluate(TestTimeAugmentation(predictor.model), batches, plan=plan)
    return {
        "temperature": rounded(result.temperature),
        "held_out_images": result.calibration.images,
        "source": result.calibration.source,
        "minutes": rounded(result.seconds / 60),
        **before_and_after(predictions.logits, predictions.labels, result.temperature),
        "with_tta": before_and_after(augmented.logits.numpy(), augmented.labels.numpy(), result.temperature),
    }


def applied(path: Path, cells: list[dict[str, Any]], fitted_by: Path | None) -> dict[str, Any]:
    """The calibration of the recorded logits in `path`, with a temperature from other runs of its recipe."""
    record = RunFolder.open(path)
    recipe = record.read_result().recipe
    if fitted_by:
        fitted = RunFolder.open(fitted_by).read_result()
        if fitted.calibration is None or fitted.recipe != recipe:
            raise SystemExit(f"calibration: {fitted_by} is not a calibrated run of {recipe}; give another --fitted-by")
        temperature, images, source = fitted.temperature, fitted.calibration.images, f"seed {fitted.seed}"
    else:
        siblings = [cell for cell in cells if cell["recipe"] == recipe]
        if not siblings:
            raise SystemExit(f"calibration: the record has no temperature of {recipe}; measure some --seeds first")
        temperature = statistics.fmean(cell["temperature"] for cell in siblings)
        images, source = siblings[0]["held_out_images"], f"mean of {len(siblings)} seeds"
    predictions = record.read_predictions()
    return {
        "run": path.name,
        "recipe": recipe,
        "seed": record.read_result().seed,
        "temperature": rounded(temperature),
        "held_out_images": images,
        "source": source,
        **before_and_after(predictions.logits, predictions.labels, temperature),
    }


def before_and_after(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> dict[str, Any]:
    """The accuracy, and the calibration without and with `temperature`."""

    def described(at: float) -> dict[str, float]:
        probabilities = probabilities_of(logits, at)
        error = 100 * calibration(probabilities, labels).error
        return {"calibration_error_points": rounded(error), "log_loss": rounded(log_loss(probabilities, labels))}

    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return {"images": len(labels), "accuracy": accuracy, "before": described(1.0), "after": described(temperature)}


def save(out: Path, record: dict[str, Any], run: RunFolder) -> None:
    """Write the record with a summary of each recipe. `run` is the latest run."""
    summary: dict[str, Any] = {}
    for recipe in dict.fromkeys(cell["recipe"] for cell in record["cells"]):
        cells = [cell for cell in record["cells"] if cell["recipe"] == recipe]
        values = {
            "temperature": [cell["temperature"] for cell in cells],
            **{
                f"{name}_{when}": [cell[when][name] for cell in cells]
                for when in ("before", "after")
                for name in ("calibration_error_points", "log_loss")
            },
            **{
                f"calibration_error_points_{when}_with_tta": [
                    cell["with_tta"][when]["calibration_error_points"] for cell in cells
                ]
                for when in ("before", "after")
            },
        }
        summary[recipe] = {name: estimate(found).to_json() for name, found in values.items()}
    described = environment.describe(hardware.detect(), environment.recorded_plan(run))
    fingerprint = environment.recorded_fingerprint(run)
    write(out, {**record, "summary": summary, "fingerprint": fingerprint, "environment": described})


if __name__ == "__main__":
    sys.exit(main())
