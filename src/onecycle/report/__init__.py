"""Pages about runs, drawn from their folders alone: one file each, which needs no network."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from onecycle.files import replacing
from onecycle.report.page import Page, dataset_name, duration, percent
from onecycle.run_folder import RunFolder


def write(folder: RunFolder) -> Path:
    """Write `report.html` into a run's folder, as far as the run got.

    Raises:
        InputError: when a record that every run has is missing or damaged, or the page cannot be written.
    """
    return save(folder.report, "run.html", page=Page(folder))


def save(path: Path, template: str, **values: object) -> Path:
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
