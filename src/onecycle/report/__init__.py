"""HTML reports of runs, written from the run folders alone. Each report is one file that loads nothing from the web."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Importing matplotlib fails if $MPLBACKEND names a backend that is not installed. A notebook sets this variable for the
# programs that it starts. The plots here are files and need no backend, so import matplotlib without the variable.
if "matplotlib" not in sys.modules and (backend := os.environ.pop("MPLBACKEND", None)):
    import matplotlib

    os.environ["MPLBACKEND"] = backend
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = backend

from onecycle.core.files import replacing
from onecycle.report import page_galleries
from onecycle.report.comparison import Comparison
from onecycle.report.page import Page
from onecycle.report.templating import render
from onecycle.storage.run_folder import RunFolder


def write(folder: RunFolder) -> Path:
    """Write `report.html` into a run folder, with all that the run has recorded so far.

    Raises:
        InputError: when a required file of the run folder is missing or damaged.
        StorageError: when the report cannot be written.
    """
    return _save(folder.report, "run.html", page=Page(folder), galleries=page_galleries)


def compare(runs: Sequence[Path], path: Path) -> Path:
    """Compare several complete runs, and write the report to `path`.

    Raises:
        InputError: when there are too few or too many runs, or a run is incomplete.
        StorageError: when the report cannot be written.
    """
    return _save(path, "compare.html", comparison=Comparison(runs))


def _save(path: Path, template: str, **values: object) -> Path:
    """Render `template` and write it to `path`.

    Raises:
        StorageError: when the file cannot be written.
    """
    text = render(template, **values)
    with replacing(path) as temporary:
        # The command and the paths of a run may have bytes that are not UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
