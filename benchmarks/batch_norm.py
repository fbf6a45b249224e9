"""Compare running averages of batch norm with statistics computed from training images, on the same trained networks.

Every seed is trained once with each recipe. The final network is then evaluated twice: with the running averages of its
training steps, and with the statistics that `fit` computes from training images. The record has both accuracies and
their paired differences, and the share of the training time that computing the statistics takes.

With --validation, the network is also evaluated with statistics from other numbers of images. The number in the package
was chosen from such a record. Every run is recorded when it ends, so the same command continues an interrupted study.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from studies import FROM_SCRATCH, load_or_start, train, write

from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.recipes import RECIPES
from onecycle.core.statistics import paired_difference
from onecycle.run.build import assemble
from onecycle.train.loop import StepReport, evaluate
from onecycle.train.precise_batch_norm import set_batch_norm_statistics

COUNTS = (500, 1000, 2000, 4000, 8000, 45_000)  # images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=FROM_SCRATCH, default="quick")
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--validation", type=int, default=0, help="evaluate on this many training images, held out")
    parser.add_argument("--limit", type=int, help="use only this many images of each split")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's")
    parser.add_argument("--lr-min", type=float, help="instead of the recipe's; the baseline needs one")
    parser.add_argument("--lr-max", type=float, help="instead of the recipe's; the baseline needs one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, required=True, help="the record, a JSON file")
    options = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    out, seeds, recipe = (options.pop(name) for name in ("out", "seeds", "recipe"))
    try:
        config = replace(RECIPES[recipe], **options)
        study = load_or_start(out, config, lambda experiment: {})
        for seed in seeds:
            if all(cell["seed"] != seed for cell in study["cells"]):
                study["cells"].append(trained(replace(config, seed=seed)))
                write(out, study)
                print(json.dumps(study["cells"][-1]), flush=True)
    except InputError as error:
        print(f"batch_norm: {error}", file=sys.stderr)
        return 2
    images, averages = (
        {cell["seed"]: 100 * cell["accuracy"][name] for cell in study["cells"]} for name in ("images", "averages")
    )
    study["difference_points"] = paired_difference(images, averages).to_json()
    write(out, study)
    print(json.dumps(study["difference_points"], indent=2))
    return 0


def trained(config: Config) -> dict[str, Any]:
    """Train one run. Returns its accuracies (fractions) with each kind of statistics, and durations in seconds."""
    experiment = assemble(config)
    model, plan = experiment.model, experiment.plan
    averages = {}

    def after_step(report: StepReport) -> None:
        if (report.step + 1) % len(experiment.train) == 0:
            averages.update({name: buffer.clone() for name, buffer in model.named_buffers()})

    @torch.no_grad()
    def restore_averages(*_: object) -> None:
        """Let the averages continue from the last step, as if `fit` had not replaced them for its evaluation."""
        for name, buffer in model.named_buffers():
            buffer.copy_(averages[name])

    history = train(experiment, after_step=after_step, after_epoch=restore_averages)
    accuracy = {"images": history[-1].eval_accuracy}
    accuracy["averages"] = evaluate(model, experiment.evaluation, plan=plan).accuracy
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        set_batch_norm_statistics(model, experiment.train, plan=plan)
        seconds.append(time.perf_counter() - started)
    if config.validation:
        for count in COUNTS:
            set_batch_norm_statistics(model, experiment.train, plan=plan, images=count)
            accuracy[f"{count} images"] = evaluate(model, experiment.evaluation, plan=plan).accuracy
    training = sum(record.training_seconds for record in history)
    return {
        "seed": config.seed,
        "computed": str(plan),
        "accuracy": accuracy,
        "share_of_training": round(config.epochs * sorted(seconds)[1] / training, 4),
        "training_seconds": round(training, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
