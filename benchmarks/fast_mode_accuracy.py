"""Compare the accuracy of the fastest compute plan of this machine with that of eager float32.

For each seed the recipe is trained twice, from the same weights, on the same images in the same order: once with the
plan that was chosen for this machine ("fast"), and once in eager float32 ("float32"). Both are evaluated on the same
validation images; the test set is never read. The record has the accuracies, their paired differences, and the 95 %
interval of the mean difference. Every run is recorded when it ends, so the same command continues an interrupted study.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp
from studies import FROM_SCRATCH, load_or_start, train, write

from onecycle.compute.plan import EAGER
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.recipes import BASELINE, RECIPES
from onecycle.run.build import assemble

PLANS = ("float32", "fast")
SHORT_BASELINE = replace(BASELINE, epochs=1, batch_size=128, lr_max=2e-3, lr_min=1e-5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=FROM_SCRATCH, default="baseline")
    parser.add_argument("--precision", choices=("auto", "float32"), default="auto", help="of the fastest plan")
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--validation", type=int, default=20_000, help="validation images; the rest are for training")
    parser.add_argument("--limit", type=int, help="use only this many images of each split")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's; 1 for the baseline")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's; 128 for the baseline")
    parser.add_argument("--lr-max", type=float, help="instead of the recipe's; 2e-3 for the baseline")
    parser.add_argument("--lr-min", type=float, help="instead of the recipe's; 1e-5 for the baseline")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("results/fast_mode_accuracy.json"))
    options = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    out, seeds = options.pop("out"), options.pop("seeds")
    try:
        recipes = {**RECIPES, "baseline": SHORT_BASELINE}
        config = replace(recipes[options.pop("recipe")], **options)
        study = load_or_start(out, config, lambda experiment: {})
        done = {(cell["seed"], cell["way"]) for cell in study["cells"]}
        for seed, name in product(seeds, PLANS):
            if (seed, name) not in done:
                study["cells"].append(trained(replace(config, seed=seed), name))
                write(out, study)
                print(json.dumps(study["cells"][-1]), flush=True)
    except InputError as error:
        print(f"fast_mode_accuracy: {error}", file=sys.stderr)
        return 2
    study["verdict"] = verdict(study["cells"])
    write(out, study)
    print(json.dumps(study["verdict"], indent=2))
    return 0


def trained(config: Config, name: str) -> dict[str, Any]:
    """Train one run with the plan `name`. Returns its accuracy (a fraction) and loss on the validation images."""
    experiment = assemble(config)
    plan = experiment.plan
    if name == "float32":
        plan = replace(EAGER, device=plan.device, threads=plan.threads)
    last = train(experiment, plan=plan)[-1]
    return {
        "seed": config.seed,
        "way": name,
        "computed": str(plan),
        "accuracy": last.eval_accuracy,
        "loss": last.eval_loss,
        "seconds": round(last.seconds, 1),
    }


def verdict(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The paired accuracy differences (fast minus float32, percentage points), and the 95 % interval of their mean."""
    accuracy = {(cell["seed"], cell["way"]): cell["accuracy"] for cell in cells}
    seeds = sorted({cell["seed"] for cell in cells})
    differences = [100 * (accuracy[seed, "fast"] - accuracy[seed, "float32"]) for seed in seeds]
    interval = ttest_1samp(differences, 0).confidence_interval(0.95)
    return {
        "seeds": seeds,
        "differences_points": [round(difference, 2) for difference in differences],
        "mean_points": round(statistics.fmean(differences), 2),
        "interval_95_points": [round(float(end), 2) for end in interval],
    }


if __name__ == "__main__":
    sys.exit(main())
