"""Pages about runs, drawn from their folders alone: one file each, which loads nothing from the internet."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from onecycle.core.files import replacing
from onecycle.report import galleries
from onecycle.report.comparison import Comparison
from onecycle.report.page import Page, dataset_name, duration, percent
from onecycle.storage.run_folder import RunFolder


def write(folder: RunFolder) -> Path:
    """Write `report.html` into a run's folder, as far as the run got.

    Raises:
        InputError: when a record that every run has is missing or damaged, or the page cannot be written.
    """
    return _save(folder.report, "run.html", page=Page(folder), galleries=galleries)


def compare(runs: Sequence[Path], path: Path) -> Path:
    """Write a page about several complete runs to `path`.

    Raises:
        InputError: when there are too few or too many, or one is not a complete run, or the page cannot be written.
    """
    return _save(path, "compare.html", comparison=Comparison(runs))


def _save(path: Path, template: str, **values: object) -> Path:
    """Fill `template` in, and write it to `path`, whole or not at all.

    Raises:
        InputError: when it cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("onecycle.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "dataset_name": dataset_name}
    text = environment.get_template(template).render(**values)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
