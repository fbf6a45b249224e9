"""Every picture, drawn from records only: never from a model or a data set.

Each function returns a `matplotlib.figure.Figure` and leaves the user's matplotlib settings as they were.
"""

from onecycle.report.visualizations.calibration import reliability_diagram
from onecycle.report.visualizations.confusion import confusion_matrix
from onecycle.report.visualizations.galleries import (
    augmentations,
    grad_cam_overlays,
    incorrect_predictions,
    most_alike_pairs,
    suspected_labels,
)
from onecycle.report.visualizations.history import accuracy_curves, compared_accuracies, loss_curves
from onecycle.report.visualizations.learning_rates import learning_rate_curve, lr_finder_curve
from onecycle.report.visualizations.style import save_png, to_svg

__all__ = [
    "accuracy_curves",
    "augmentations",
    "compared_accuracies",
    "confusion_matrix",
    "grad_cam_overlays",
    "incorrect_predictions",
    "learning_rate_curve",
    "loss_curves",
    "lr_finder_curve",
    "most_alike_pairs",
    "reliability_diagram",
    "save_png",
    "suspected_labels",
    "to_svg",
]
