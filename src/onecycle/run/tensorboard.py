"""What TensorBoard shows of a run: scalars while it trains, pictures and hyper-parameters when it is complete."""

import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.files import writing
from onecycle.storage.records import EpochRecord, History, RunResult

PICTURES = ("augmentations", "lr_finder", "confusion_matrix", "incorrect_predictions")


class TensorBoard:
    """Writes event files into `folder`, those of a run that is resumed anew, beginning with its `history`.

    Raises:
        InputError: when TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, history: History, evaluated_on: str) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._evaluated_on = evaluated_on
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            self._writer = SummaryWriter(str(folder))
        for record in history:
            self.epoch(record)

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is trained and evaluated; steps are counted in epochs."""
        scalars = {
            "loss/train": record.train_loss,
            f"loss/{self._evaluated_on}": record.test_loss,
            "accuracy/train": record.train_accuracy,
            f"accuracy/{self._evaluated_on}": record.test_accuracy,
            "learning rate": record.lr,
            "seconds": record.seconds,
        }
        with writing(self._folder):
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, record.epoch)
            self._writer.flush()

    def complete(self, config: Config, result: RunResult, pictures: Path) -> None:
        """The run is complete: its pictures, its configuration and what it came to."""
        with writing(self._folder):
            for name in PICTURES:
                if (path := pictures / f"{name}.png").exists():
                    pixels = np.asarray(Image.open(path).convert("RGB"))
                    self._writer.add_image(name, pixels, result.epochs, dataformats="HWC")
            values = {**config.to_json(), "lr_min": result.lr_min, "lr_max": result.lr_max}
            plain = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
                for name, value in values.items()
            }
            came_to = {"result/accuracy": result.test_accuracy, "result/loss": result.test_loss}
            self._writer.add_hparams(plain, came_to, run_name=".")
            self._writer.close()


def require_tensorboard() -> None:
    """Refuse to go on without TensorBoard.

    Raises:
        InputError: when it is not installed.
    """
    try:
        import_module("tensorboard")
    except ImportError:
        raise InputError("--tensorboard needs TensorBoard: pip install tensorboard") from None
