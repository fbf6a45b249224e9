"""All plots. They are drawn from records only, never from a model or a data set.

Each function returns a `matplotlib.figure.Figure` and leaves the user's matplotlib settings unchanged.
"""

from onecycle.report.visualizations.calibration import reliability_diagram
from onecycle.report.visualizations.confusion import confusion_matrix
from onecycle.report.visualizations.history import accuracy_curves, compared_accuracies, loss_curves
from onecycle.report.visualizations.image_grids import (
    augmentations,
    grad_cam_overlays,
    incorrect_predictions,
    label_issues,
    near_duplicates,
)
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
    "near_duplicates",
    "reliability_diagram",
    "save_png",
    "label_issues",
    "to_svg",
]
