"""The page as a person meets it: in a browser, with a mouse, a keyboard and a clipboard."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from photographs import SHOWN
from playwright.sync_api import Browser, Page, expect

from .conftest import Service

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 700}

HAND_OVER = """
([kind, files]) => {
  const transfer = new DataTransfer();
  for (const [name, content, type] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type }));
  }
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
    : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}
"""


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    """The page, which must ask only this service, and complain of nothing."""
    asked: list[str] = []
    complaints: list[str] = []
    page = browser.new_context(viewport=DESKTOP).new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(service.url)
    yield page
    assert [url for url in asked if not url.startswith((service.url, "data:", "blob:"))] == []
    assert complaints == []


def hand_over(page: Page, kind: str, *files: tuple[str, bytes, str]) -> None:
    page.evaluate(
        HAND_OVER, [kind, [(name, base64.b64encode(content).decode(), type) for name, content, type in files]]
    )


def test_a_picture_that_is_chosen_is_named_with_five_bars_and_where_it_looked(page: Page, pictures: list[Path]) -> None:
    page.set_input_files("#files", pictures[4])
    card = page.locator("#cards > li")
    expect(card).to_have_count(1)
    expect(card.locator("h3")).to_have_text("cat: photo 4.png")
    bars = card.locator(".bars li")
    expect(bars).to_have_count(5)
    shares = [float(text.rstrip(" %")) for text in bars.locator(".share").all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and 80 < shares[0] <= 100
    widths = [bar.bounding_box() for bar in bars.locator(".fill").all()]
    assert widths[0] and widths[1] and widths[0]["width"] > 5 * widths[1]["width"]
    assert card.locator(".seen").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [32, 32]
    page.wait_for_function("document.querySelector('.heat').width === 32")
    shades = card.locator(".heat").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, 32, 32).data].filter((_, i) => i % 4 < 3)"
    )
    assert max(shades) - min(shades) > 50
    expect(page.locator("#status")).to_have_text("photo 4.png: cat")


def test_the_field_is_reached_by_keyboard_and_opened_by_its_button(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    assert page.locator(".choose").evaluate("label => getComputedStyle(label).outlineStyle") == "solid"
    with page.expect_file_chooser():
        page.locator(".choose").click()


def test_a_picture_that_is_pasted_is_named(page: Page, pictures: list[Path]) -> None:
    hand_over(page, "paste", ("image.png", pictures[5].read_bytes(), "image/png"))
    expect(page.locator("#cards h3")).to_have_text("ship: image.png")


def test_text_that_is_pasted_is_told(page: Page) -> None:
    hand_over(page, "paste")
    expect(page.locator("#status")).to_have_text("There is no picture in the clipboard.")


def test_five_that_are_dropped_stand_side_by_side_and_later_ones_before_them(page: Page, pictures: list[Path]) -> None:
    hand_over(page, "drop", *((path.name, path.read_bytes(), "image/png") for path in pictures[:5]))
    titles = page.locator("#cards h3")
    expect(titles).to_have_text([f"{SHOWN[number]}: photo {number}.png" for number in range(5)])
    expect(page.locator("#status")).to_have_text("5 pictures named.")
    places = [card.bounding_box() for card in page.locator("#cards > li").all()]
    assert places[0] and places[1] and places[0]["y"] == places[1]["y"] and places[0]["x"] < places[1]["x"]
    hand_over(page, "drop", *((path.name, path.read_bytes(), "image/png") for path in pictures))
    expect(titles).to_have_count(12)
    expect(titles.first).to_have_text("horse: photo 0.png")
    page.get_by_role("button", name="Clear").click()
    expect(titles).to_have_count(0)


def test_a_file_that_is_no_picture_is_told_and_keeps_nothing_from_the_others(page: Page, pictures: list[Path]) -> None:
    picture = (pictures[2].name, pictures[2].read_bytes(), "image/png")
    hand_over(page, "drop", ("notes.txt", b"hello", "text/plain"), picture)
    expect(page.locator("#cards h3")).to_have_text(["notes.txt", "truck: photo 2.png"])
    expect(page.locator("#cards .error").first).to_have_text("this file: not a picture (5 bytes); replace or remove it")
    expect(page.locator("#status")).to_have_text("1 picture named, 1 could not be read.")


def test_a_file_or_a_number_over_the_limit_is_told_without_being_sent(page: Page, pictures: list[Path]) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    large = pictures[0].parent / "large.png"
    large.write_bytes(bytes(17 * 2**20))
    page.set_input_files("#files", large)
    expect(page.locator("#status")).to_have_text("large.png has 17 MB; 16 MB is the most.")
    page.set_input_files("#files", [large] * 33)
    expect(page.locator("#status")).to_have_text("33 pictures are too many at once; 32 is the most.")
    assert not [url for url in sent if "predict" in url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_wrong_and_nothing_is_cut_off(
    browser: Browser, service: Service, pictures: list[Path], size: dict[str, int], scheme: str
) -> None:
    page = browser.new_context(viewport=size, color_scheme=scheme).new_page()  # type: ignore[arg-type]
    page.goto(service.url)
    page.set_input_files("#files", [pictures[0], Path(__file__)])
    expect(page.locator("#cards h3")).to_have_count(2)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_the_description_is_shown_without_the_web(page: Page) -> None:
    page.get_by_role("link", name="the interface").click()
    expect(page.locator(".opblock")).to_have_count(2)
    expect(page.locator(".opblock-summary-path").last).to_contain_text("/predict")
