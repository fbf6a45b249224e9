"""Read records that earlier versions wrote. No other module of the package knows the older names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CURRENT_NAMES: Mapping[str, str] = {
    "acceleration": "compute_plan",
    "best_test_accuracy": "best_eval_accuracy",
    "deviation": "std",
    "heat": "heatmaps",
    "hole": "cutout",
    "matrix_unit": "amx",
    "mistake_images": "misclassified_images",
    "mistakes": "misclassified",
    "pictures": "images",
    "resolved": "significant",
    "small_map_products": "im2col_gemm",
    "suspect_images": "label_issue_images",
    "suspects": "label_issues",
    "test_accuracy": "eval_accuracy",
    "test_images": "eval_images",
    "test_loss": "eval_loss",
    "train_suspect_guesses": "train_label_issue_predictions",
    "train_suspect_images": "train_label_issue_images",
    "train_suspect_labels": "train_label_issue_labels",
    "train_suspect_margins": "train_label_issue_margins",
    "train_suspects": "train_label_issues",
}
_BY_CLASS = ("by_class",)  # these fields map class names to values; class names are never replaced
_OLDER_FILES: Mapping[str, str] = {"misclassified.npz": "mistakes.npz"}


def with_current_names(values: Any) -> Any:
    """A copy of `values` (JSON, or a dictionary of arrays) with older field names replaced, at any depth."""
    if isinstance(values, dict):
        return {_CURRENT_NAMES.get(name, name): _with_current_names_in(name, value) for name, value in values.items()}
    if isinstance(values, list):
        return [with_current_names(value) for value in values]
    return values


def _with_current_names_in(field: str, value: Any) -> Any:
    if field in _BY_CLASS:
        return {name: with_current_names(part) for name, part in value.items()}
    return with_current_names(value)


def existing(path: Path) -> Path:
    """Return `path`, or the path with the older name if the file exists only under its older name."""
    older = path.with_name(_OLDER_FILES.get(path.name, path.name))
    return older if not path.exists() and older.exists() else path
