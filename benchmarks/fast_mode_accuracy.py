"""Does training the fast way reach what training in float32 reaches?

For each seed the baseline's network is trained twice, from the same weights on the same images in the same order: the
way that was chosen for this machine, and in float32. Both are scored on the same images held out of the training set;
the test set is never read. Written down are the accuracies, their paired differences, and the 95 % interval of the mean
difference. Runs are written down as they are done: started again with the same settings, an interrupted study goes on
where it stopped.
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
from studies import load_or_start, write

from onecycle.compute.plan import PLAIN
from onecycle.core.config import BASELINE, Config
from onecycle.core.errors import InputError
from onecycle.run.build import assemble
from onecycle.train.loop import fit

WAYS = ("float32", "fast")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--validation", type=int, default=20_000, help="images that score a run; the rest train it")
    parser.add_argument("--limit", type=int, help="use only so many images of each of the two")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr-max", type=float, default=2e-3)
    parser.add_argument("--lr-min", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("results/fast_mode_accuracy.json"))
    options = vars(parser.parse_args())
    out, seeds = options.pop("out"), options.pop("seeds")
    try:
        config = replace(BASELINE, **options)
        study = load_or_start(out, config, lambda parts: {})
        done = {(cell["seed"], cell["way"]) for cell in study["cells"]}
        for seed, way in product(seeds, WAYS):
            if (seed, way) not in done:
                study["cells"].append(train(replace(config, seed=seed), way))
                write(out, study)
                print(json.dumps(study["cells"][-1]), flush=True)
    except InputError as error:
        print(f"fast_mode_accuracy: {error}", file=sys.stderr)
        return 2
    study["verdict"] = verdict(study["cells"])
    write(out, study)
    print(json.dumps(study["verdict"], indent=2))
    return 0


def train(config: Config, way: str) -> dict[str, Any]:
    """One run: its seed, its way and what that computes, its validation accuracy (a fraction), loss and seconds."""
    parts = assemble(config)
    how = parts.acceleration
    if way == "float32":
        how = replace(PLAIN, device=how.device, threads=how.threads)
    assert config.lr_min is not None
    assert config.lr_max is not None
    (*_, last) = fit(
        parts.model,
        parts.optimizer,
        parts.train,
        parts.evaluation,
        epochs=config.epochs,
        lr_min=config.lr_min,
        lr_max=config.lr_max,
        peak_fraction=config.peak_fraction,
        acceleration=how,
    )
    return {
        "seed": config.seed,
        "way": way,
        "computed": str(how),
        "accuracy": last.test_accuracy,
        "loss": last.test_loss,
        "seconds": round(last.seconds, 1),
    }


def verdict(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The paired differences, fast minus float32, in points of accuracy, with the 95 % interval of their mean."""
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
