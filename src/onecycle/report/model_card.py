"""The model card of a trained network: use, accuracy, data and limits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onecycle.core.files import replacing
from onecycle.predict.predictor import Predictor
from onecycle.report.page import Page, dataset_name
from onecycle.report.templating import render
from onecycle.storage.run_folder import RunFolder

CARD = "README.md"
_KNOWN = ("cifar10", "digits")  # data sets whose license is known


Auroc = Mapping[str, tuple[float, float]]
"""For each kind of out-of-distribution images: the AUROC, and the fraction below the energy threshold."""


def write_card(
    folder: RunFolder,
    predictor: Predictor,
    file: Path,
    *,
    footnote: str = "",
    corruptions: Mapping[str, Any] | None = None,
    auroc: Auroc | None = None,
) -> Path:
    """Write the model card of a complete run as README.md beside `file`, which holds the run's network.

    `footnote` is an additional note about the data. `corruptions`, a record of benchmarks/corruptions.py, adds tables
    about images of lower quality. `auroc` adds a table about out-of-distribution images. The front matter follows the
    format of the Hugging Face Hub.

    Raises:
        InputError: when a record of the run is missing or damaged.
        StorageError: when the card cannot be written.
    """
    page = Page(folder)
    name = page.environment["dataset"]["name"]
    card = render(
        "card.md",
        page=page,
        result=folder.read_result(),
        file=file,
        notes=[*page.environment["dataset"]["notes"], *filter(None, [folder.read_result().warning, footnote])],
        data=dataset_name(name),
        is_known=name in _KNOWN,
        classes=predictor.classes,
        size=predictor.preprocessing.input_size,
        corruptions=corruptions,
        threshold=predictor.energy_threshold,
        auroc=auroc,
        reliability=page.calibration(),
    )
    path = file.parent / CARD
    with replacing(path) as temporary:
        temporary.write_text(card, encoding="utf-8", errors="backslashreplace")  # a file name may not be valid text
    return path


def write_card_of_included(predictor: Predictor, weights: Path, file: Path) -> Path:
    """Write README.md beside the exported `file`: the model card of the network that comes with onecycle.

    The text is that of the model card beside `weights`, with a new section "Use" for `file`.

    Raises:
        StorageError: when the card cannot be written.
    """
    size, threshold = predictor.preprocessing.input_size, predictor.energy_threshold
    use = render("card_use.md", file=file, classes=predictor.classes, size=size, threshold=threshold)
    head, _, rest = (weights.parent / CARD).read_text(encoding="utf-8").partition("## Use\n")
    card = f"{head}## Use\n\n{use}\n## {rest.partition('## ')[2]}"
    path = file.parent / CARD
    with replacing(path) as temporary:
        temporary.write_text(card.replace("library_name: onecycle", "library_name: onnx"), encoding="utf-8")
    return path
