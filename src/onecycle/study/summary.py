"""What the runs of a study say together: means with intervals, differences, and the images that they get wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from onecycle.core.errors import InputError
from onecycle.core.statistics import Estimate, accuracy_by_class, agreement, estimate, paired_difference
from onecycle.storage.records import RunResult
from onecycle.storage.run_folder import RunFolder


def summarize(runs: Mapping[str, Sequence[RunFolder]], threshold: float) -> dict[str, Any]:
    """What the complete `runs` of each variant say, and each against the first. Accuracies are fractions.

    Raises:
        InputError: when runs were made on different data, which cannot be compared.
    """
    results = {name: [folder.read_result() for folder in folders] for name, folders in runs.items() if folders}
    found = {result.fingerprint for several in results.values() for result in several}
    if len(found) > 1:
        raise InputError(
            f"the study's runs were made on different data, with the fingerprints {', '.join(sorted(found))}"
        )
    first = next(iter(runs))
    variants: dict[str, Any] = {}
    for name, several in results.items():
        told = _variant(several, runs[name], threshold)
        if name != first and {r.seed for r in several} & {r.seed for r in results.get(first, [])}:
            told["against_the_first"] = _differences(several, results[first])
        variants[name] = told
    return {"threshold": threshold, "variants": variants}


def _variant(results: Sequence[RunResult], folders: Sequence[RunFolder], threshold: float) -> dict[str, Any]:
    averaged = [result.tta_accuracy for result in results if result.tta_accuracy is not None]
    histories = [folder.read_history() for folder in folders]
    training = [sum(record.training_seconds or 0 for record in history) for history in histories]
    arrays = [folder.read_arrays(folder.predictions) for folder in folders]
    labels = arrays[0]["labels"]
    correct = np.stack([each["logits"].argmax(axis=1) == labels for each in arrays])  # [runs,N]
    by_class = accuracy_by_class(correct, labels)
    classes = folders[0].read_mistakes().classes
    return {
        "seeds": [result.seed for result in results],
        "accuracy": estimate([result.test_accuracy for result in results]).to_json(),
        "tta_accuracy": estimate(averaged).to_json() if len(averaged) == len(results) else None,
        "above_threshold": _share(results, threshold),
        "training_seconds": estimate(training).to_json(),
        "seconds": estimate([result.seconds for result in results]).to_json(),
        "images": agreement(correct).to_json(),
        "by_class": {classes[label]: told.to_json() for label, told in by_class.items()},
    }


def _share(results: Sequence[RunResult], threshold: float) -> float:
    """Part of the runs that reach the threshold, with test-time augmentation where they were asked for it."""
    reached = [(r.test_accuracy if r.tta_accuracy is None else r.tta_accuracy) >= threshold for r in results]
    return sum(reached) / len(reached)


def _differences(ours: Sequence[RunResult], theirs: Sequence[RunResult]) -> dict[str, Any]:
    def of(name: str) -> Estimate:
        return paired_difference(*({r.seed: getattr(r, name) for r in results} for results in (ours, theirs)))

    averaged = all(r.tta_accuracy is not None for r in (*ours, *theirs))
    names = ["test_accuracy", "tta_accuracy"] if averaged else ["test_accuracy"]
    return {name.removeprefix("test_"): {**of(name).to_json(), "resolved": of(name).resolved} for name in names}


def table(told: Mapping[str, Any]) -> Table:
    """A summary as a table; accuracies in per cent, times in seconds."""
    averaged = any(variant["tta_accuracy"] for variant in told["variants"].values())
    headings = ["", "runs", "accuracy", *(["with views"] if averaged else []), f"≥ {100 * told['threshold']:g} %"]
    drawn = Table(box=None, header_style="bold")
    for heading in (*headings, "training", "whole run", "against the first"):
        drawn.add_column(heading, justify="right" if heading else "left")
    for name, variant in told["variants"].items():
        views = [_accuracy(variant["tta_accuracy"])] if averaged else []
        difference = variant.get("against_the_first")
        drawn.add_row(
            name,
            str(len(variant["seeds"])),
            _accuracy(variant["accuracy"]),
            *views,
            f"{variant['above_threshold']:.0%}",
            f"{variant['training_seconds']['mean']:.1f} s",
            f"{variant['seconds']['mean']:.1f} s",
            "" if difference is None else _difference(difference["accuracy"]),
        )
    return drawn


def _accuracy(estimated: Mapping[str, Any] | None) -> str:
    if estimated is None:
        return ""
    if estimated["interval_95"] is None:
        return ", ".join(f"{100 * value:.2f}" for value in estimated["values"])
    low, high = estimated["interval_95"]
    return f"{100 * estimated['mean']:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def _difference(estimated: Mapping[str, Any]) -> str:
    if estimated["interval_95"] is None:
        return ", ".join(f"{100 * value:+.2f}" for value in estimated["values"])
    low, high = estimated["interval_95"]
    resolved = "" if estimated["resolved"] else ", not resolved"
    return f"{100 * estimated['mean']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}){resolved}"
