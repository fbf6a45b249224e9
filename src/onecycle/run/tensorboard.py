"""Write TensorBoard files: scalars during training, plots and hyperparameters at the end."""

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np

from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.extras import require
from onecycle.core.files import printable, writing
from onecycle.core.regular_files import make_folder, read_regular
from onecycle.data.image_files import LARGEST_FILE, open_image
from onecycle.storage.records import EpochRecord, History, RunResult

PLOTS = ("augmentations", "lr_finder", "confusion_matrix", "incorrect_predictions")


class TensorBoard:
    """Writes event files into `folder`. A resumed run writes new files, beginning with the epochs in `history`.

    Raises:
        InputError: when TensorBoard is not installed, or does not support the path `folder`.
        StorageError: when writing to the folder fails.
    """

    def __init__(self, folder: Path, history: History, evaluated_on: str) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._evaluated_on = evaluated_on
        with writing(folder):
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)  # this raises an error if the folder is a symbolic link
            make_folder(folder)
            try:
                self._writer = SummaryWriter(str(folder))
            except UnicodeEncodeError:
                raise InputError(
                    f"TensorBoard cannot write to {printable(folder)}: this path is not UTF-8; give another --out"
                ) from None
        for record in history:
            self.epoch(record)

    def epoch(self, record: EpochRecord) -> None:
        """Write the scalars of an epoch. TensorBoard's step is the epoch."""
        scalars = {
            "loss/train": record.train_loss,
            f"loss/{self._evaluated_on}": record.eval_loss,
            "accuracy/train": record.train_accuracy,
            f"accuracy/{self._evaluated_on}": record.eval_accuracy,
            "learning rate": record.lr,
            "seconds": record.seconds,
        }
        with writing(self._folder):
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, record.epoch)
            self._writer.flush()

    def complete(self, config: Config, result: RunResult, plots: Path) -> None:
        """Write the plots, the configuration and the result of the complete run."""
        with writing(self._folder):
            for name in PLOTS:
                if (path := plots / f"{name}.png").exists():
                    image = open_image(read_regular(path, LARGEST_FILE), str(path), only=("PNG",))
                    pixels = np.asarray(image.convert("RGB"))
                    self._writer.add_image(name, pixels, result.epochs, dataformats="HWC")
            values = {**config.to_json(), "lr_min": result.lr_min, "lr_max": result.lr_max}
            plain = {
                name: value if isinstance(value, bool | int | float) else printable(str(value))
                for name, value in values.items()
            }
            metrics = {"result/accuracy": result.eval_accuracy, "result/loss": result.eval_loss}
            self._writer.add_hparams(plain, metrics, run_name=".")
            self._writer.close()


def require_tensorboard() -> None:
    """Check that TensorBoard is installed.

    Raises:
        InputError: when it is missing.
    """
    require("tensorboard", "tensorboard")
