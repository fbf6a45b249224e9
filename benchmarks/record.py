"""Copy a complete run into results/, without its weights, and with only the images that its plots need.

Chromium takes a screenshot of the run's report, so it must be installed.
"""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import sync_playwright

from onecycle.storage.records import Interpretation
from onecycle.storage.run_folder import RunFolder

KEPT = 16  # at most this many images of each array are kept
WIDTH, HEIGHT = 1200, 1330  # of the screenshot, in pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a complete run with its report")
    parser.add_argument("name", help="name of its folder in results/, which must not exist")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    run, record = RunFolder.open(options.run), RunFolder(options.results / options.name)
    interpretation = run.read_interpretation()
    if not (run.is_complete and interpretation and run.report.exists()):
        raise SystemExit(f"record: {run.path} is not a complete run with its report")
    large = (run.weights, run.training_margins, run.report, run.tensorboard)
    excluded = shutil.ignore_patterns(*(path.name for path in large), ".*")
    shutil.copytree(run.path, record.path, ignore=excluded)
    record.write_arrays(record.interpretation, **shortened(interpretation).to_arrays())
    screenshot(run.report, record.path / "report.png")
    return 0


def shortened(whole: Interpretation) -> Interpretation:
    """`whole` with all indices, but only the pixels of the first images."""
    return replace(
        whole,
        misclassified_images=whole.misclassified_images[:KEPT],
        heatmaps=whole.heatmaps[:KEPT],
        label_issue_images=whole.label_issue_images[:KEPT],
        train_label_issue_images=whole.train_label_issue_images[:KEPT],
        duplicate_images=whole.duplicate_images[:KEPT],
    )


def screenshot(page: Path, image: Path) -> None:
    """Write a PNG of the top of `page` in the light theme."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, BROWSERS)), None), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.screenshot(path=image)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
