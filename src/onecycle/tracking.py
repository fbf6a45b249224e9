"""What TensorBoard shows of a run: scalars while it trains, pictures and hyper-parameters when it is complete."""

from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from onecycle.config import Config
from onecycle.errors import InputError
from onecycle.files import writing
from onecycle.records import EpochRecord, RunResult

PICTURES = ("augmentations", "lr_finder", "confusion_matrix", "incorrect_predictions")


class TensorBoard:
    """Writes event files into `folder`. Of a run that is resumed after `epochs`, what was written later is dropped.

    Raises:
        InputError: when TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, epochs: int = 0) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=epochs + 1)

    def epoch(self, record: EpochRecord, evaluated_on: str) -> None:
        """An epoch is trained and evaluated; steps are counted in epochs."""
        scalars = {
            "loss/train": record.train_loss,
            f"loss/{evaluated_on}": record.test_loss,
            "accuracy/train": record.train_accuracy,
            f"accuracy/{evaluated_on}": record.test_accuracy,
            "learning rate": record.lr,
            "seconds": record.seconds,
        }
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def complete(self, config: Config, result: RunResult, pictures: Path) -> None:
        """The run is complete: its pictures, its configuration and what it came to."""
        for name in PICTURES:
            if (path := pictures / f"{name}.png").exists():
                pixels = np.asarray(Image.open(path).convert("RGB"))
                self._writer.add_image(name, pixels, result.epochs, dataformats="HWC")
        values = {**config.to_json(), "lr_min": result.lr_min, "lr_max": result.lr_max}
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in values.items()
        }
        came_to = {"result/accuracy": result.test_accuracy, "result/loss": result.test_loss}
        self._writer.add_hparams(plain, came_to, run_name=".")
        self.close()

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()


def require_tensorboard() -> None:
    """Refuse to go on without TensorBoard.

    Raises:
        InputError: when it is not installed.
    """
    try:
        import_module("tensorboard")
    except ImportError:
        raise InputError(
            "--tensorboard needs TensorBoard, which is not installed: pip install onecycle[tensorboard]"
        ) from None
