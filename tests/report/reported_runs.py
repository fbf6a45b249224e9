"""Changes to a small run, for tests of its report."""

from collections.abc import Sequence

import numpy as np

from onecycle.storage.run_folder import RunFolder

NAMES_OF_FILES = ("=1+1.png", "<b>&amp;.png")  # of images of a run on files


def change_classes(run: RunFolder, names: Sequence[str]) -> None:
    """Make `run`, which has ten classes, one of 2 or at least 10 classes called `names`."""
    arrays, count = run.read_predictions(), len(names)
    logits = np.pad(arrays.logits, ((0, 0), (0, max(0, count - 10))), constant_values=-20)[:, :count]
    run.write_arrays(run.predictions, logits=logits, labels=arrays.labels % count)
    kept = run.read_arrays(run.misclassified)
    shares = np.pad(kept["probabilities"], ((0, 0), (0, max(0, count - 10))))[:, :count]
    indices = {name: kept[name] % count for name in ("labels", "predictions")}
    run.write_arrays(run.misclassified, **{**kept, **indices, "probabilities": shares, "classes": np.array(names)})
    found = run.read_arrays(run.interpretation)
    labels = {name: values % count for name, values in found.items() if name.endswith(("labels", "predictions"))}
    run.write_arrays(run.interpretation, **{**found, **labels})
