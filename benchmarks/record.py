"""Put a complete run on record: into results/, without its weights, and with only the few images that pictures need.

Its report is photographed as a browser shows it, by Chromium, which must be installed.
"""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import sync_playwright

from onecycle.storage.records import Interpretation
from onecycle.storage.run_folder import RunFolder

KEPT = 16  # images of each kind
WIDTH, HEIGHT = 1200, 1330  # of the picture, in pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a complete run with its report")
    parser.add_argument("name", help="of its folder in results/, which must not be there")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    run, record = RunFolder.open(options.run), RunFolder(options.results / options.name)
    interpretation = run.read_interpretation()
    if not (run.complete and interpretation and run.report.exists()):
        raise SystemExit(f"record: {run.path} is not a complete run with its report")
    large = (run.weights, run.training_margins, run.report, run.tensorboard)
    left_behind = shutil.ignore_patterns(*(path.name for path in large), ".*")
    shutil.copytree(run.path, record.path, ignore=left_behind)
    record.write_arrays(record.interpretation, **shortened(interpretation).to_arrays())
    photograph(run.report, record.path / "report.png")
    return 0


def shortened(whole: Interpretation) -> Interpretation:
    """With all positions, and the pixels of the first images alone."""
    return replace(
        whole,
        mistake_images=whole.mistake_images[:KEPT],
        heat=whole.heat[:KEPT],
        suspect_images=whole.suspect_images[:KEPT],
        train_suspect_images=whole.train_suspect_images[:KEPT],
        duplicate_images=whole.duplicate_images[:KEPT],
    )


def photograph(page: Path, picture: Path) -> None:
    """What the top of `page` looks like at a desk, by day."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, BROWSERS)), None), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
