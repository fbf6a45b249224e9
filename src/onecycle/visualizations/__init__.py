"""Every picture, drawn from records only: never from a model or a data set.

Each function returns a `matplotlib.figure.Figure` and leaves the user's matplotlib settings as they were.
"""

from onecycle.visualizations.calibration import reliability_diagram
from onecycle.visualizations.confusion import confusion_matrix
from onecycle.visualizations.galleries import (
    augmentations,
    grad_cam_overlays,
    incorrect_predictions,
    most_alike_pairs,
    suspected_labels,
)
from onecycle.visualizations.history import accuracy_curves, compared_accuracies, loss_curves
from onecycle.visualizations.learning_rates import learning_rate_curve, lr_finder_curve
from onecycle.visualizations.style import save_png, to_svg

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
