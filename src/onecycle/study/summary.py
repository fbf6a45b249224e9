"""Summarize the runs of a study: means with intervals, paired differences, and agreement on images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from onecycle.core.errors import InputError
from onecycle.core.statistics import Estimate, accuracy_by_class, agreement, estimate, paired_difference
from onecycle.storage.records import RunResult
from onecycle.storage.run_folder import RunFolder


def summarize(runs: Mapping[str, Sequence[RunFolder]], threshold: float) -> dict[str, Any]:
    """Summarize the complete `runs` of each variant, and compare each variant with the first. Accuracies are fractions.

    Raises:
        InputError: when the runs have different data.
    """
    results = {name: [folder.read_result() for folder in folders] for name, folders in runs.items() if folders}
    _require_same_data([folder for folders in runs.values() for folder in folders])
    first = next(iter(runs))
    variants: dict[str, Any] = {}
    for name, several in results.items():
        variant = _variant(several, runs[name], threshold)
        if name != first and {r.seed for r in several} & {r.seed for r in results.get(first, [])}:
            variant["against_the_first"] = _differences(several, results[first])
        variants[name] = variant
    return {"threshold": threshold, "variants": variants}


def _require_same_data(folders: Sequence[RunFolder]) -> None:
    """Check that all runs have the same images. Images of different sizes must have the same labels.

    Raises:
        InputError: when they do not.
    """
    fingerprints: dict[int, set[str]] = {}  # by the size of the images, because a fingerprint depends on the size
    labels = set()
    for folder in folders:
        result = folder.read_result()
        fingerprints.setdefault(folder.read_config().size, set()).add(result.fingerprint)
        labels.add((result.train_images, folder.read_predictions().labels.tobytes()))
    if len(labels) > 1 or any(len(found) > 1 for found in fingerprints.values()):
        found = sorted(set().union(*fingerprints.values()))
        raise InputError(
            f"the runs of this study have different data (fingerprints {', '.join(found)}); repeat them on the same "
            "data"
        )


def _variant(results: Sequence[RunResult], folders: Sequence[RunFolder], threshold: float) -> dict[str, Any]:
    averaged = [result.tta_accuracy for result in results if result.tta_accuracy is not None]
    histories = [folder.read_history() for folder in folders]
    training = [sum(record.training_seconds or 0 for record in history) for history in histories]
    predictions = [folder.read_predictions() for folder in folders]
    labels = predictions[0].labels
    correct = np.stack([each.logits.argmax(axis=1) == labels for each in predictions])  # [runs,N]
    by_class = accuracy_by_class(correct, labels)
    classes = folders[0].read_misclassified().classes
    return {
        "seeds": [result.seed for result in results],
        "accuracy": estimate([result.eval_accuracy for result in results]).to_json(),
        "tta_accuracy": estimate(averaged).to_json() if len(averaged) == len(results) else None,
        "above_threshold": _share(results, threshold),
        "training_seconds": estimate(training).to_json(),
        "seconds": estimate([result.seconds for result in results]).to_json(),
        "images": agreement(correct).to_json(),
        "by_class": {classes[label]: accuracy.to_json() for label, accuracy in by_class.items()},
    }


def _share(results: Sequence[RunResult], threshold: float) -> float:
    """The fraction of runs whose accuracy (with test-time augmentation, if recorded) reaches the threshold."""
    reached = [(r.eval_accuracy if r.tta_accuracy is None else r.tta_accuracy) >= threshold for r in results]
    return sum(reached) / len(reached)


def _differences(ours: Sequence[RunResult], theirs: Sequence[RunResult]) -> dict[str, Any]:
    def of(name: str) -> Estimate:
        return paired_difference(*({r.seed: getattr(r, name) for r in results} for results in (ours, theirs)))

    averaged = all(r.tta_accuracy is not None for r in (*ours, *theirs))
    names = ["eval_accuracy", "tta_accuracy"] if averaged else ["eval_accuracy"]
    return {name.removeprefix("eval_"): {**of(name).to_json(), "significant": of(name).significant} for name in names}


def table(summary: Mapping[str, Any]) -> Table:
    """A summary as a table, with accuracies in percent and times in seconds."""
    averaged = any(variant["tta_accuracy"] for variant in summary["variants"].values())
    headings = ["", "runs", "accuracy", *(["with TTA"] if averaged else []), f"≥ {100 * summary['threshold']:g} %"]
    drawn = Table(box=None, header_style="bold")
    for heading in (*headings, "training", "whole run", "against the first"):
        drawn.add_column(heading, justify="right" if heading else "left")
    for name, variant in summary["variants"].items():
        tta = [_accuracy(variant["tta_accuracy"])] if averaged else []
        difference = variant.get("against_the_first")
        drawn.add_row(
            name,
            str(len(variant["seeds"])),
            _accuracy(variant["accuracy"]),
            *tta,
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
    significant = "" if estimated["significant"] else ", not significant"
    return f"{100 * estimated['mean']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}){significant}"
