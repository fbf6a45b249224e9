"""Write the predictions of a run as a table for people and other programs: `predictions.csv`."""

import numpy as np
from numpy.typing import NDArray

from onecycle.core.csv_rows import CsvRows
from onecycle.core.files import replacing
from onecycle.core.metrics import probabilities_of
from onecycle.data import Dataset
from onecycle.storage.run_folder import RunFolder

MOST_PROBABILITIES = 5_000_000  # about 45 MB; a larger table has only the probability of the predicted class
_AT_ONCE = 1000  # probabilities are computed for this many rows at once


def write(folder: RunFolder, logits: NDArray[np.float32], dataset: Dataset, temperature: float = 1.0) -> None:
    """Write a row for each evaluated image, from logits `[N,C]` in the order of the images.

    The columns are the file, the label, the predicted class, its probability, and the probability of each class. Names
    are written as they are, so that programs find the same names again. An image without a name is listed by its
    number, such as "test image 12".

    Raises:
        StorageError: when the file cannot be written.
    """
    images = dataset.evaluation
    has_all = logits.size <= MOST_PROBABILITIES
    with (
        replacing(folder.predictions_table) as temporary,
        # As in the output of `onecycle predict --csv`, bytes that are not UTF-8 are written as escapes.
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        table = CsvRows(file)
        every = [f"probability_{name}" for name in images.classes] if has_all else []
        table.write_row(["file", "label", "predicted", "probability", *every])
        for start in range(0, len(images), _AT_ONCE):
            probabilities = probabilities_of(logits[start : start + _AT_ONCE], temperature)
            for row, shares in enumerate(probabilities.tolist(), start):
                predicted = int(logits[row].argmax())
                table.write_row(
                    [
                        f"{dataset.evaluated_on} image {row}" if images.names is None else images.names[row],
                        images.classes[images.labels[row]],
                        images.classes[predicted],
                        f"{shares[predicted]:.6f}",
                        *(f"{share:.6f}" for share in shares if has_all),
                    ]
                )
