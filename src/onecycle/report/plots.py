"""Draw the plots of a run from its run folder alone."""

from onecycle.report import visualizations
from onecycle.report.visualizations import save_png
from onecycle.storage.run_folder import RunFolder
from onecycle.train.scheduler import peak_step


def draw(folder: RunFolder) -> None:
    """Draw all plots into `plots/`. A plot is left out if the run folder does not have its records."""
    folder.make_plots_folder()
    if folder.augmentations.exists():
        figure = visualizations.augmentations(**vars(folder.read_augmentations()))
        save_png(figure, folder.plots / "augmentations.png")
    if curve := folder.read_lr_curve():
        save_png(visualizations.lr_finder_curve(curve), folder.plots / "lr_finder.png")
    if folder.result.exists():
        _draw_result(folder)


def _draw_result(folder: RunFolder) -> None:
    result, history, misclassified = folder.read_result(), folder.read_history(), folder.read_misclassified()
    predictions = folder.read_predictions()
    config = folder.read_config()
    steps_per_epoch = -(-result.train_images // config.batch_size)
    total_steps = steps_per_epoch * config.epochs
    figures = {
        "accuracy": visualizations.accuracy_curves(history, evaluated_on=result.epoch_evaluated_on),
        "loss": visualizations.loss_curves(
            history,
            evaluated_on=result.epoch_evaluated_on,
            label_smoothing=config.label_smoothing,
            class_weights=config.class_weights,
        ),
        "learning_rate": visualizations.learning_rate_curve(
            lr_min=result.lr_min,
            lr_max=result.lr_max,
            total_steps=total_steps,
            peak_step=peak_step(total_steps, config.peak_fraction),
            steps_per_epoch=steps_per_epoch,
        ),
        "confusion_matrix": visualizations.confusion_matrix(
            predictions.labels, predictions.logits.argmax(axis=1), misclassified.classes
        ),
        "incorrect_predictions": visualizations.incorrect_predictions(misclassified),
    }
    for name, figure in figures.items():
        save_png(figure, folder.plots / f"{name}.png")
