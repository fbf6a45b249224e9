"""The card of a trained network: what it is, what it was trained on, how good it is, and what it is not for."""

import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from onecycle.core.files import replacing
from onecycle.core.metrics import calibration
from onecycle.predict.predictor import Predictor
from onecycle.report.page import Page, dataset_name, percent
from onecycle.storage.run_folder import RunFolder

CARD = "README.md"
_KNOWN = ("cifar10", "digits")  # data; of one's own pictures the owner knows the licence


def write_card(folder: RunFolder, predictor: Predictor, file: Path, *, footnote: str = "") -> Path:
    """Write README.md beside `file`, which holds the network of `predictor`, of the complete run in `folder`.

    `footnote` is what else there is to know of the data. Its head is metadata in the format of the Hugging Face hub.

    Raises:
        InputError: when a record of the run is missing or damaged, or the card cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("onecycle.report", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Text in JSON's quotes is text in YAML, too, whatever is in it.
    environment.filters |= {"percent": percent, "quoted": lambda text: json.dumps(text, ensure_ascii=False)}
    page = Page(folder)
    name = page.environment["dataset"]["name"]
    card = environment.get_template("card.md").render(
        page=page,
        result=folder.read_result(),
        file=file,
        notes=[*page.environment["dataset"]["notes"], *filter(None, [footnote])],
        data=dataset_name(name),
        is_known=name in _KNOWN,
        classes=predictor.classes,
        size=predictor.preprocessing.input_size,
        calibration=calibration(page.probabilities, page.labels),
    )
    path = file.parent / CARD
    with replacing(path) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return path
