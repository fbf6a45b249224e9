"""The pictures of a run, drawn from its folder alone."""

from onecycle.report import visualizations
from onecycle.report.visualizations import save_png
from onecycle.storage.run_folder import RunFolder
from onecycle.train.scheduler import peak_step


def draw(folder: RunFolder) -> None:
    """Draw every picture that the folder has the records for into its `pictures/`."""
    folder.pictures.mkdir(exist_ok=True)
    if folder.augmentations.exists():
        figure = visualizations.augmentations(**folder.read_arrays(folder.augmentations))
        save_png(figure, folder.pictures / "augmentations.png")
    if curve := folder.read_lr_curve():
        save_png(visualizations.lr_finder_curve(curve), folder.pictures / "lr_finder.png")
    if folder.result.exists():
        _draw_result(folder)


def _draw_result(folder: RunFolder) -> None:
    result, history, mistakes = folder.read_result(), folder.read_history(), folder.read_mistakes()
    predictions = folder.read_arrays(folder.predictions)
    config = folder.read_config()
    steps_per_epoch = -(-result.train_images // config.batch_size)
    total_steps = steps_per_epoch * config.epochs
    figures = {
        "accuracy": visualizations.accuracy_curves(history, evaluated_on=result.evaluated_on),
        "loss": visualizations.loss_curves(history, evaluated_on=result.evaluated_on),
        "learning_rate": visualizations.learning_rate_curve(
            lr_min=result.lr_min,
            lr_max=result.lr_max,
            total_steps=total_steps,
            peak_step=peak_step(total_steps, config.peak_fraction),
            steps_per_epoch=steps_per_epoch,
        ),
        "confusion_matrix": visualizations.confusion_matrix(
            predictions["labels"], predictions["logits"].argmax(axis=1), mistakes.classes
        ),
        "incorrect_predictions": visualizations.incorrect_predictions(mistakes),
    }
    for name, figure in figures.items():
        save_png(figure, folder.pictures / f"{name}.png")
