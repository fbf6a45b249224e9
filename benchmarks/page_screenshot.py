"""Take a screenshot of the page of `onecycle serve` with six images. Needs Chromium."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright
from record import BROWSERS
from studies import served

from onecycle.storage.run_folder import RunFolder

RECORD = RunFolder(Path(__file__).parents[1] / "results" / "fast-cifar10")
IMAGES = 6  # number of images, taken from the run's record of augmentations
WIDTH, HEIGHT = 1200, 1150  # of the screenshot, in pixels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/serve_page.png"))
    options = parser.parse_args()
    with served() as (address, _):
        photograph(address, options.out)
    return 0


def photograph(url: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        files = []
        for number, pixels in enumerate(RECORD.read_arrays(RECORD.augmentations)["originals"][:IMAGES]):
            files.append(Path(folder) / f"photo {number + 1}.png")
            Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(files[-1])
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, BROWSERS)), None), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(url)
        page.set_input_files("#files", files)
        expect(page.locator("#cards > li")).to_have_count(IMAGES)
        page.wait_for_function("[...document.querySelectorAll('.heatmap')].every((canvas) => canvas.width === 32)")
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
