import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image
from sklearn.datasets import load_digits

from onecycle.core.metrics import Calibration, calibration
from onecycle.report.visualizations import (
    accuracy_curves,
    augmentations,
    compared_accuracies,
    confusion_matrix,
    grad_cam_overlays,
    incorrect_predictions,
    label_issues,
    learning_rate_curve,
    loss_curves,
    lr_finder_curve,
    near_duplicates,
    reliability_diagram,
    save_png,
    to_svg,
)
from onecycle.report.visualizations.style import shorten, spread, text_inches
from onecycle.storage.records import EpochRecord, History, LRCurve, Misclassified

DIGITS = load_digits()
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LABELS = DIGITS.target.astype(np.int64)  # [1797]


def digit_images(count: int) -> np.ndarray:
    """The first `count` digits as uint8 `[count,8,8,3]`."""
    gray = (DIGITS.images[:count] * 255 / 16).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=3)


def misclassified_digits(count: int) -> Misclassified:
    """`count` digits, each predicted as the next higher digit, with falling probabilities."""
    predictions = (LABELS[:count] + 1) % 10
    probabilities = np.zeros((count, 10), np.float32)
    probabilities[np.arange(count), predictions] = np.linspace(0.999, 0.3, count)
    return Misclassified(
        indices=np.arange(count),
        images=digit_images(count),
        labels=LABELS[:count],
        predictions=predictions,
        probabilities=probabilities,
        classes=CLASSES,
    )


def history(*test_accuracies: float) -> History:
    return [
        EpochRecord(
            epoch=epoch,
            lr=0.01,
            train_loss=2 / epoch,
            train_accuracy=accuracy - 0.01,
            eval_loss=2.5 / epoch,
            eval_accuracy=accuracy,
            seconds=1.0,
        )
        for epoch, accuracy in enumerate(test_accuracies, start=1)
    ]


def sweep(**changes: object) -> LRCurve:
    """An LR curve with 100 rates from 1e-7 to 1. It is flat, falls around 1e-3, and rises steeply at the end."""
    lrs = np.logspace(-7, 0, 100)
    x = np.log10(lrs)
    smoothed = 2.3 - 0.8 / (1 + np.exp(-3 * (x + 3))) + np.where(x > -1, np.exp(6 * (x + 1)) - 1, 0)
    curve = LRCurve(
        lrs=tuple(lrs),
        losses=tuple(smoothed + np.random.default_rng(0).normal(0, 0.03, 100)),
        smoothed=tuple(smoothed),
        suggestions={"steepest": 1e-3, "valley": 1.2e-3, "minimum/10": 4e-3},
        lr_min=4e-4,
        lr_max=4e-3,
        stopped="diverged",
    )
    return replace(curve, **changes)  # type: ignore[arg-type]


def texts(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def images(figure: Figure) -> list[AxesImage]:
    return figure.findobj(AxesImage)


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts in `figure` whose boxes share more than a pixel."""
    figure.draw_without_rendering()
    visible = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in visible]
    return [
        (first, second)
        for (first, a), (second, b) in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def texts_outside(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    visible = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    edge = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in visible]
    return [name for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > edge.x1 or box.y1 > edge.y1]


def test_accuracy_is_drawn_in_percent_with_the_last_values_at_the_line_ends() -> None:
    figure = accuracy_curves(history(0.5, 0.8, 0.934))
    axes = figure.axes[0]
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "accuracy (%)"
    assert "Accuracy by epoch: 93.4 % at the last (test)" in texts(figure)
    assert {"test 93.4 %", "train 92.4 %"} <= set(texts(figure))
    lines = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(lines, [[49, 79, 92.4], [50, 80, 93.4]])


def test_the_best_epoch_is_marked_as_not_the_result() -> None:
    figure = accuracy_curves(history(0.5, 0.95, 0.934))
    assert "best epoch: 2, 95.0 % (not the result)" in texts(figure)
    assert "Accuracy by epoch: 93.4 % at the last (test)" in texts(figure)


def test_a_best_epoch_that_is_the_last_is_marked_so() -> None:
    assert "best epoch: 3, the last" in texts(accuracy_curves(history(0.5, 0.8, 0.9)))


def test_a_best_epoch_that_equals_the_last_is_not_called_another_result() -> None:
    assert "best epoch: 2, 100.0 %" in texts(accuracy_curves(history(0.5, 1, 1)))


def test_accuracy_names_the_split_it_was_evaluated_on() -> None:
    written = texts(accuracy_curves(history(0.5, 0.8), evaluated_on="validation"))
    assert "validation 80.0 %" in written
    assert not any("test" in text for text in written)


def test_a_reference_is_a_named_level_inside_the_plot() -> None:
    figure = accuracy_curves(history(0.5, 0.6), reference=("best published run", 0.9326))
    assert "best published run: 93.26 %" in texts(figure)
    assert figure.axes[0].get_ylim()[1] > 93.26


def test_loss_is_drawn_for_both_splits() -> None:
    figure = loss_curves(history(0.5, 0.8))
    assert figure.axes[0].get_ylabel() == "loss (mean over samples)"
    assert {"test 1.250", "train 1.000", "Loss by epoch: 1.250 at the last (test)"} <= set(texts(figure))


@pytest.mark.parametrize(
    ("criterion", "named"),
    [
        ({"label_smoothing": 0.2}, "labels smoothed by 0.2"),
        ({"class_weights": True}, "weighted classes"),
        ({"label_smoothing": 0.1, "class_weights": True}, "labels smoothed by 0.1 and weighted classes"),
    ],
)
def test_losses_of_different_criteria_are_said_to_be_incomparable(criterion: dict[str, Any], named: str) -> None:
    figure = loss_curves(history(0.5, 0.8), evaluated_on="validation", **criterion)
    assert f"Not comparable: training has {named}." in texts(figure)
    assert "Loss by epoch: 1.250 at the last (validation)" in texts(figure)
    assert not overlapping_texts(figure) and not texts_outside(figure)
    assert not any("comparable" in text for text in texts(loss_curves(history(0.5, 0.8))))


def test_a_loss_that_is_not_finite_is_named_and_the_others_are_drawn() -> None:
    diverged = history(0.5, 0.8, 0.1)
    diverged[-1] = replace(diverged[-1], train_loss=float("nan"), eval_loss=float("inf"))
    figure = loss_curves(diverged)
    assert {"test inf", "train nan"} <= set(texts(figure))
    assert np.isfinite(figure.axes[0].get_ylim()).all()


@pytest.mark.parametrize("draw", [accuracy_curves, loss_curves])
def test_an_empty_history_is_refused(draw) -> None:
    with pytest.raises(ValueError, match="history is empty"):
        draw([])


@pytest.mark.parametrize("epochs", [1, 2, 24, 100])
def test_no_text_of_the_curves_overlaps_or_is_cut_off(epochs: int) -> None:
    accuracies = history(*np.linspace(0.9, 0.9301, epochs))
    for figure in (accuracy_curves(accuracies, evaluated_on="validation"), loss_curves(accuracies)):
        assert not overlapping_texts(figure)
        assert not texts_outside(figure)


@pytest.mark.parametrize(
    "accuracies",
    [(0.0, 0.0, 0.0), (0.5, 0.02, 0.0), (0.9, 1.0, 1.0), (1.0,), (0.01, 0.013, 0.009), (0.2, 0.9, 0.8)],
    ids=["none", "falling to none", "all", "all at once", "chance of a hundred classes", "best in the middle"],
)
def test_no_text_lies_over_a_curve_and_no_tick_is_impossible(accuracies: tuple[float, ...]) -> None:
    figure = accuracy_curves([replace(record, train_accuracy=record.eval_accuracy) for record in history(*accuracies)])
    assert not overlapping_texts(figure) and not texts_outside(figure)
    axes = figure.axes[0]
    assert all(0 <= tick <= 100 for tick in axes.get_yticks())
    for line in axes.lines:
        if line.get_linestyle() == "-":
            along = np.linspace(0, len(accuracies) - 1, 500)
            data = [np.interp(along, range(len(line.get_xdata())), values) for values in line.get_data()]
            points = axes.transData.transform(np.column_stack(data))
            assert not any(text.get_window_extent().count_contains(points) for text in axes.texts)


def test_the_schedule_peaks_at_the_end_of_its_epoch_and_ends_at_its_minimum() -> None:
    figure = learning_rate_curve(lr_min=0.0004, lr_max=0.01, total_steps=2352, peak_step=489, steps_per_epoch=98)
    curve = next(line for line in figure.axes[0].lines if len(line.get_xdata()) == 2352)
    epochs, lrs = curve.get_xdata(), curve.get_ydata()
    assert (epochs[np.argmax(lrs)], max(lrs)) == (5, 0.01)
    assert (epochs[-1], lrs[-1]) == (24, 0.0004)
    assert {"LR max 0.01 at the end of epoch 5", "LR min 0.0004"} <= set(texts(figure))
    assert figure.axes[0].get_xlabel() == "epochs completed"


def test_a_peak_inside_an_epoch_is_given_as_a_fraction_of_epochs() -> None:
    figure = learning_rate_curve(lr_min=0.001, lr_max=0.01, total_steps=97, peak_step=80, steps_per_epoch=98)
    assert "LR max 0.01 after 0.83 epochs" in texts(figure)
    assert not overlapping_texts(figure)
    assert not texts_outside(figure)


def test_a_learning_rate_that_only_falls_is_not_called_a_cycle() -> None:
    figure = learning_rate_curve(lr_min=0, lr_max=0.215, total_steps=200, peak_step=0, steps_per_epoch=50)
    assert "LR max 0.215 at the first step" in texts(figure)
    assert figure.axes[0].get_title(loc="left") == "Learning rate: straight from 0.215 to 0"
    assert not overlapping_texts(figure)
    assert not texts_outside(figure)


def test_the_finder_has_a_log_axis_two_curves_and_the_chosen_pair() -> None:
    figure = lr_finder_curve(sweep())
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "training loss"
    assert axes.get_xlabel() == "learning rate, log scale (sweep stopped: the loss diverged)"
    assert sum(len(line.get_xdata()) == 100 for line in axes.lines) == 2
    assert {"LR min 0.0004", "LR max 0.004", "each step", "smoothed"} <= set(texts(figure))
    assert {"steepest 0.001", "valley 0.0012", "minimum/10 0.004", "10⁻³"} <= set(texts(figure))


def test_the_finders_diverging_tail_does_not_flatten_the_curve() -> None:
    curve = sweep()
    assert max(curve.losses) > 100
    assert lr_finder_curve(curve).axes[0].get_ylim()[1] < 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"suggestions": {}, "stopped": "completed"},
        {"suggestions": {"steepest": 1e-3, "valley": 1e-3, "minimum/10": 1e-3}},
        {"suggestions": {"steepest": 0.3, "valley": 2e-7, "minimum/10": 0.95}},
        {"lr_min": 1e-7, "lr_max": 1.2e-7},
        {"lr_min": 0.9, "lr_max": 1.0},
        {"lrs": (2e-3, 4e-3), "losses": (2.3, 2.2), "smoothed": (2.3, 2.2), "suggestions": {}},
    ],
    ids=["usual", "no suggestions", "all equal", "far apart", "pair at the left", "pair at the right", "no decade"],
)
def test_no_text_of_the_finder_overlaps_or_is_cut_off(changes: dict[str, object]) -> None:
    figure = lr_finder_curve(sweep(**changes))
    assert not overlapping_texts(figure)
    assert not texts_outside(figure)


def test_a_sweep_that_ends_in_nan_is_drawn() -> None:
    curve = sweep()
    cut = replace(
        curve,
        losses=(*curve.losses[:-1], float("nan")),
        smoothed=(*curve.smoothed[:-1], float("nan")),
        stopped="not finite",
    )
    figure = lr_finder_curve(cut)
    assert figure.axes[0].get_xlabel().endswith("(sweep stopped: not finite)")
    assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_the_confusion_matrix_counts_every_pair_of_classes() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    predictions = np.array([0, 0, 0, 1, 1, 0])
    figure = confusion_matrix(labels, predictions, ("cat", "dog"))
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    cells = {text.get_position(): text.get_text() for text in axes.texts}  # (column, row)
    assert cells == {(0, 0): "3", (1, 0): "1", (0, 1): "1", (1, 1): "1"}
    np.testing.assert_allclose(axes.images[0].get_array(), [[75, 25], [50, 50]])  # percent of each row
    assert "Confusion matrix: 4 of 6 correct (66.7 %)" in texts(figure)
    assert "most frequent error: cat predicted as dog, 1 time" in texts(figure)


def test_a_class_without_images_has_an_empty_row() -> None:
    figure = confusion_matrix(np.array([0, 1]), np.array([0, 1]), ("$5", "ten", "unseen"))
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array()[2], [0, 0, 0])
    assert {"$5", "no errors"} <= set(texts(figure))


def test_more_than_twenty_classes_have_colors_only() -> None:
    labels = np.arange(1000) % 100
    figure = confusion_matrix(labels, labels, tuple(f"class {i}" for i in range(100)))
    assert not figure.axes[0].texts
    assert not texts_outside(figure)


@pytest.mark.parametrize("count", [2, 10, 20])
def test_no_text_of_the_confusion_matrix_overlaps_or_is_cut_off(count: int) -> None:
    labels = np.arange(500 * count) % count
    figure = confusion_matrix(labels, labels, tuple(f"a long name of class number {i}" for i in range(count)))
    assert not overlapping_texts(figure)
    assert not texts_outside(figure)


def test_the_confusion_matrix_refuses_unequal_lengths_and_unknown_classes() -> None:
    with pytest.raises(ValueError, match="2 labels and 1 predictions"):
        confusion_matrix(np.array([0, 1]), np.array([0]), ("cat", "dog"))
    with pytest.raises(ValueError, match="predictions run from 0 to 2; 2 classes allow 0 to 1"):
        confusion_matrix(np.array([0, 1]), np.array([0, 2]), ("cat", "dog"))


def test_each_incorrect_prediction_has_its_pixels_classes_and_probability() -> None:
    misclassified = misclassified_digits(3)
    figure = incorrect_predictions(misclassified)
    assert len(images(figure)) == 3
    for image, pixels in zip(images(figure), misclassified.images, strict=True):
        np.testing.assert_array_equal(image.get_array(), pixels)
        assert image.get_interpolation() == "nearest"
    assert texts(figure)[-9:] == [
        *("zero", "→ one", "99.90 %"),
        *("one", "→ two", "64.95 %"),
        *("two", "→ three", "30.00 %"),
    ]
    colors = {text.get_text(): text.get_color() for text in figure.findobj(Text)}
    assert colors["zero"] == colors["true class"] != colors["→ one"] == colors["→ predicted class"]


def test_the_number_of_incorrect_predictions_can_be_chosen() -> None:
    figure = incorrect_predictions(misclassified_digits(50), count=17)
    assert len(images(figure)) == 17
    assert "Incorrect predictions, most confident first: 17 shown" in texts(figure)
    with pytest.raises(ValueError, match="count is 0"):
        incorrect_predictions(misclassified_digits(1), count=0)


def test_a_figure_without_incorrect_predictions_says_so_and_notebooks_show_it() -> None:
    figure = incorrect_predictions(misclassified_digits(0))
    assert "Incorrect predictions: none" in texts(figure)
    assert figure.axes  # IPython shows nothing for a figure without axes


def test_long_class_names_stay_inside_their_cell() -> None:
    misclassified = replace(
        misclassified_digits(9), classes=tuple(f"a very long folder name of {name}" for name in CLASSES)
    )
    figure = incorrect_predictions(misclassified)
    assert not overlapping_texts(figure)
    assert not texts_outside(figure)


def test_originals_are_above_their_augmentations() -> None:
    originals = digit_images(8)
    augmented = originals[:, :, ::-1]
    figure = augmentations(originals, augmented)
    assert len(images(figure)) == 16
    boxes = [image.get_window_extent() for image in images(figure)]
    for i in range(8):
        np.testing.assert_array_equal(images(figure)[i].get_array(), originals[i])
        np.testing.assert_array_equal(images(figure)[8 + i].get_array(), augmented[i])
        assert boxes[i].x0 == boxes[8 + i].x0
        assert boxes[i].y0 > boxes[8 + i].y1
    assert {"original", "augmented"} <= set(texts(figure))
    assert not texts_outside(figure)


def test_augmentations_refuses_unequal_numbers_of_images() -> None:
    with pytest.raises(ValueError, match="3 original and 2 augmented"):
        augmentations(digit_images(3), digit_images(2))


def predictions(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Well-calibrated probabilities `[images,10]` and labels `[images]`."""
    generator = np.random.default_rng(0)
    confidences = generator.uniform(0.11, 1, images)
    probabilities = np.tile((1 - confidences[:, None]) / 9, 10)
    probabilities[:, 0] = confidences
    return probabilities, np.where(generator.random(images) < confidences, 0, 1)


def test_a_reliability_diagram_has_a_bar_for_every_bin_that_has_images() -> None:
    found = calibration(*predictions(20_000))
    figure = reliability_diagram(found)
    assert len(figure.axes[0].patches) == (found.counts > 0).sum()
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(heights, 100 * found.accuracies[found.counts > 0])
    assert f"Calibration: expected calibration error {100 * found.error:.1f} points" in texts(figure)


@pytest.mark.parametrize("images", [1, 30, 5000, 1_000_000])
def test_no_text_of_a_reliability_diagram_overlaps_or_is_cut_off(images: int) -> None:
    probabilities, labels = predictions(images)
    for before in (None, calibration(probabilities**3, labels)):
        figure = reliability_diagram(calibration(probabilities, labels), before)
        assert not overlapping_texts(figure)
        assert not texts_outside(figure)


def test_a_reliability_diagram_shows_the_calibration_before_temperature_scaling() -> None:
    probabilities, labels = predictions(20_000)
    before, after = calibration(probabilities**3, labels), calibration(probabilities, labels)
    figure = reliability_diagram(after, before)
    assert f"error {100 * before.error:.1f} → {100 * after.error:.1f} points" in " ".join(texts(figure))
    (dots,) = (line for line in figure.axes[0].lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_ydata(), 100 * before.accuracies)
    assert "before temperature scaling" in texts(figure)
    assert "before temperature scaling" not in texts(reliability_diagram(after))


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["all wrong", "half right", "all right"])
def test_nothing_lies_over_the_bars_of_a_reliability_diagram(classes: int, share: float) -> None:
    """Not even if a network is right at the lowest confidence, so that there are bars at the left."""
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(classes, 3), 3000)
    is_right = generator.random(3000) < share
    labels = np.where(is_right, probabilities.argmax(axis=1), probabilities.argmin(axis=1))
    before = calibration(probabilities**2 / (probabilities**2).sum(axis=1, keepdims=True), labels)
    figure = reliability_diagram(calibration(probabilities, labels), before)
    assert not overlapping_texts(figure) and not texts_outside(figure)
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    boxes = [legend.get_window_extent(), *(text.get_window_extent() for text in axes.texts)]
    bars = [patch.get_window_extent() for patch in axes.patches]
    assert bars and not any(bar.y1 - 1 > box.y0 and box.overlaps(bar) for bar in bars for box in boxes)


@pytest.mark.parametrize(
    ("count", "written"),
    [(999, "999"), (1000, "1.0k"), (9949, "9.9k"), (9950, "10k"), (123_456, "123k"), (1_000_000, "1.0M")],
)
def test_the_number_above_a_bar_is_short(count: int, written: str) -> None:
    found = Calibration(
        counts=np.array([0, count]), confidences=np.array([0, 0.7]), accuracies=np.array([0, 0.5]), error=0.2
    )
    assert written in texts(reliability_diagram(found))


def test_each_compared_run_has_its_name_at_its_last_epoch() -> None:
    figure = compared_accuracies({"A": history(0.9, 0.92), "B": history(0.9, 0.91, 0.93)})
    assert {"A", "B", "Accuracy by epoch (test)"} <= set(texts(figure))
    assert [len(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata()) > 1] == [2, 3]
    assert not overlapping_texts(figure)
    with pytest.raises(ValueError, match="there are 0 runs"):
        compared_accuracies({})
    with pytest.raises(ValueError, match="history is empty"):
        compared_accuracies({"A": []})


def test_high_heatmap_values_are_tinted_and_zeros_leave_the_image_unchanged() -> None:
    pixels, heatmaps = digit_images(2), np.zeros((2, 2, 2), np.uint8)
    heatmaps[1] = 255
    drawn = [image.get_array() for image in images(grad_cam_overlays(pixels, heatmaps))]
    np.testing.assert_array_equal(drawn[2], pixels[0])
    assert (np.asarray(drawn[3], int)[..., 0] - drawn[3][..., 2]).min() > 100, "all of it is vermillion"
    with pytest.raises(ValueError, match="2 images and 1 heatmaps"):
        grad_cam_overlays(pixels, heatmaps[:1])


def test_near_duplicates_are_above_each_other_with_their_similarities() -> None:
    pairs = np.stack([digit_images(10), digit_images(10)[::-1]], axis=1)
    figure = near_duplicates(pairs, np.linspace(0.99, 0.9, 20, dtype=np.float32))
    assert len(images(figure)) == 16
    np.testing.assert_array_equal(images(figure)[8].get_array(), pairs[0, 1])
    assert texts(figure)[0] == "Most similar: 99.0 % to 95.7 %" and {"test", "training"} <= set(texts(figure))
    with pytest.raises(ValueError, match="0 pairs"):
        near_duplicates(pairs[:0], np.array([], np.float32))


def test_label_issues_have_the_label_and_the_predicted_class() -> None:
    figure = label_issues(digit_images(3), LABELS[:9], LABELS[1:10], CLASSES)
    assert {"zero", "→ one", "two", "→ three"} <= set(texts(figure))
    assert not overlapping_texts(figure) and not texts_outside(figure)
    with pytest.raises(ValueError, match="no images"):
        label_issues(digit_images(0), LABELS, LABELS, CLASSES)


def test_equal_figures_give_equal_svg_whose_text_is_text() -> None:
    first, second = (to_svg(accuracy_curves(history(0.5, 0.8))) for _ in range(2))
    assert first == second
    assert ">test 80.0 %<" in first and "matplotlib.org" not in first


def test_equal_records_give_equal_files(tmp_path: Path) -> None:
    def draw_twice(draw) -> None:
        for name in ("a.png", "b.png"):
            save_png(draw(), tmp_path / name)
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    draw_twice(lambda: accuracy_curves(history(0.5, 0.8)))
    draw_twice(lambda: lr_finder_curve(sweep()))
    draw_twice(lambda: confusion_matrix(LABELS, LABELS, CLASSES))
    draw_twice(lambda: incorrect_predictions(misclassified_digits(2)))


def test_a_saved_plot_holds_no_version_and_leaves_no_other_file(tmp_path: Path) -> None:
    save_png(loss_curves(history(0.5, 0.8)), tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (900, 600)
        assert "Software" not in image.info
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_matplotlib_settings_do_not_change_and_have_no_effect(tmp_path: Path) -> None:
    def save(name: str) -> bytes:
        save_png(accuracy_curves(history(0.5, 0.8)), tmp_path / name)
        return (tmp_path / name).read_bytes()

    usual = save("usual.png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.bbox": "tight"}):
        before = dict(matplotlib.rcParams)
        assert save("strange.png") == usual
        assert dict(matplotlib.rcParams) == before


def test_plots_need_neither_torch_nor_pyplot() -> None:
    code = (
        "import sys, onecycle.report.visualizations\nsys.exit(bool({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.lists(st.floats(-100, 100), max_size=6), st.floats(0.1, 10))
def test_spread_positions_keep_their_order_and_distance(positions: list[float], gap: float) -> None:
    moved = spread(positions, gap)
    order = np.argsort(positions, kind="stable")
    assert (np.diff(np.array(moved)[order]) >= gap - 1e-9).all()
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6)


def test_a_shortened_name_keeps_its_beginning_and_its_end() -> None:
    short = shorten("a very long name of class 17", 1.0)
    assert short.startswith("a ") and short.endswith("17") and "…" in short
    assert text_inches(short) <= 1.0
    assert shorten("cat", 1.0) == "cat"
