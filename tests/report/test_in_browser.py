"""The report pages in a browser: in wide and narrow windows, with light and dark theme, and by keyboard."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from reported_runs import change_classes

from onecycle import report
from onecycle.storage.run_folder import RunFolder

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 700}
VIEWPORTS = [
    pytest.param(size, scheme, id=f"{name}-{scheme}")
    for name, size in (("desktop", DESKTOP), ("phone", PHONE))
    for scheme in ("light", "dark")
]
# The names of the tables and plots that are wider than their place, so that one has to move them.
CUT_OFF = """[...document.querySelectorAll(".wide")]
    .filter((part) => part.scrollWidth > part.clientWidth).map((part) => part.ariaLabel)"""
Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """A function that opens a page. The page must not request other files or log errors."""
    requested: list[str] = []
    errors: list[str] = []

    def opening(path: Path, **options: Any) -> Page:
        page = browser.new_context(**options).new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield opening
    assert [url for url in requested if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in requested if url.startswith("file:")]) == 1, "the page itself"
    assert errors == []


@pytest.fixture(scope="module")
def comparison(runs: tuple[RunFolder, RunFolder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.compare([run.path for run in runs], tmp_path_factory.mktemp("compared") / "compare.html")


@pytest.mark.parametrize(("size", "scheme"), VIEWPORTS)
@pytest.mark.parametrize("which", ["a run", "a comparison"])
def test_axe_finds_nothing_wrong_and_nothing_is_cut_off(
    runs: tuple[RunFolder, RunFolder], comparison: Path, opened: Open, which: str, size: dict[str, int], scheme: str
) -> None:
    page = opened(runs[0].report if which == "a run" else comparison, viewport=size, color_scheme=scheme)
    for details in page.locator("summary").all():
        details.click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog"],
        ["benign nevus of the upper back, dermoscopic", "malignant melanoma of the upper back, dermoscopic"],
        [f"{number} Fahrzeugidentifikationsnummer" for number in range(10)],
        [f"species {number}" for number in range(100)],
    ],
    ids=["two", "two long names", "ten long names", "a hundred"],
)
def test_tables_and_plots_of_any_number_of_classes_fit_the_screen(
    copy_of: RunFolder, opened: Open, names: list[str]
) -> None:
    change_classes(copy_of, names)
    page = opened(report.write(copy_of))
    for details in page.locator("summary").all():
        details.click()
    for width in (1280, 390, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT_OFF) == [], f"{width} pixels"


def visible_pairs(page: Page) -> list[tuple[str, str]]:
    """The true and the predicted class of each visible incorrect prediction."""
    items = page.locator("#incorrect li:visible").all()
    return [(item.get_attribute("data-true") or "", item.get_attribute("data-predicted") or "") for item in items]


def test_the_filters_work_by_keyboard(runs: tuple[RunFolder, RunFolder], opened: Open) -> None:
    page = opened(runs[0].report, viewport=DESKTOP)
    assert len(visible_pairs(page)) == 40
    status = page.locator("#count")
    total = int(status.inner_text().split()[2])
    assert status.inner_text() == f"40 of {total} shown" and total > 80

    page.focus("#by-true")
    page.keyboard.press("5")  # selects the option that starts with this character
    assert {actual for actual, _ in visible_pairs(page)} == {"5"}
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "by-predicted"
    predicted = visible_pairs(page)[0][1]
    page.keyboard.press(predicted)
    assert set(visible_pairs(page)) == {("5", predicted)}

    page.focus("#by-true")
    page.keyboard.press("Home")
    page.focus("#by-predicted")
    page.keyboard.press("Home")
    assert len(visible_pairs(page)) == 40
    page.focus("#more")
    page.keyboard.press("Enter")
    assert len(visible_pairs(page)) == 80


def test_a_number_of_the_confusion_matrix_links_to_its_images(runs: tuple[RunFolder, RunFolder], opened: Open) -> None:
    page = opened(runs[0].report, viewport=DESKTOP)
    link = page.locator(".matrix a").first
    count = int(link.inner_text())
    wanted = link.get_attribute("data-true"), link.get_attribute("data-predicted")
    link.focus()
    page.keyboard.press("Enter")
    assert visible_pairs(page) == [wanted] * count
    assert page.locator("#count").inner_text() == f"{count} of {count} shown"


def test_without_scripts_everything_is_visible(runs: tuple[RunFolder, RunFolder], opened: Open) -> None:
    page = opened(runs[0].report, viewport=DESKTOP, java_script_enabled=False)
    assert len(visible_pairs(page)) == page.locator("#incorrect li").count() > 80
    assert page.locator("#filters").is_hidden()


def test_it_can_be_printed(runs: tuple[RunFolder, RunFolder], opened: Open) -> None:
    page = opened(runs[0].report, viewport=DESKTOP, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden() and page.locator("#filters").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", (
        "a printed page has the light theme"
    )
    assert page.pdf().startswith(b"%PDF")


def test_every_image_of_a_sheet_is_in_its_place(runs: tuple[RunFolder, RunFolder], opened: Open) -> None:
    """The tile of each incorrect prediction shows the right image of the sprite sheet."""
    from io import BytesIO

    import numpy as np
    from PIL import Image

    page = opened(runs[0].report, viewport=DESKTOP)
    kept = runs[0].read_interpretation()
    assert kept is not None
    for number in (0, 7, 39):
        tile = page.locator("#incorrect li").nth(number).locator(".tile").first
        pixels = np.asarray(Image.open(BytesIO(tile.screenshot())).convert("RGB").resize((32, 32)))
        distances = np.abs(kept.misclassified_images.astype(int) - pixels).mean(axis=(1, 2, 3))
        assert distances.argmin() == number or np.array_equal(
            kept.misclassified_images[distances.argmin()], kept.misclassified_images[number]
        )
        assert distances[number] < 12
