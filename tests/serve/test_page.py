"""The service's page in a browser, used with mouse, keyboard and clipboard."""

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from photographs import SHOWN
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from .conftest import Service

expect.set_options(timeout=60_000)  # the first prediction of a service takes seconds on a busy machine

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 700}

TRANSFER = """
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
    """The page in a browser. The page must send requests only to the service and log no errors."""
    requested: list[str] = []
    errors: list[str] = []
    page = browser.new_context(viewport=DESKTOP).new_page()
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(service.url)
    yield page
    assert [url for url in requested if not url.startswith((service.url, "data:", "blob:"))] == []
    assert errors == []


def transfer(page: Page, kind: str, *files: tuple[str, bytes, str]) -> None:
    page.evaluate(TRANSFER, [kind, [(name, base64.b64encode(content).decode(), type) for name, content, type in files]])


def test_a_chosen_image_gets_five_bars_and_a_heatmap(page: Page, image_files: list[Path]) -> None:
    page.set_input_files("#files", image_files[4])
    card = page.locator("#cards > li")
    expect(card).to_have_count(1)
    expect(card.locator("h3")).to_have_text("cat: photo 4.png")
    bars = card.locator(".bars li")
    expect(bars).to_have_count(5)
    shares = [float(text.rstrip(" %")) for text in bars.locator(".share").all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and 80 < shares[0] <= 100
    widths = [bar.bounding_box() for bar in bars.locator(".fill").all()]
    assert widths[0] and widths[1] and widths[0]["width"] > 5 * widths[1]["width"]
    for side in ("naturalWidth", "naturalHeight"):
        expect(card.locator(".pixels")).to_have_js_property(side, 32)
    page.wait_for_function("document.querySelector('.heatmap').width === 32")
    shades = card.locator(".heatmap").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, 32, 32).data].filter((_, i) => i % 4 < 3)"
    )
    assert max(shades) - min(shades) > 50
    expect(page.locator("#status")).to_have_text("photo 4.png: cat")


def test_an_image_unlike_those_of_the_training_set_gets_a_warning(
    page: Page, image_files: list[Path], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    page.set_input_files("#files", tmp_path / "noise.png")
    warning = page.locator("#cards .unlike")
    expect(warning).to_be_visible()
    expect(warning).to_contain_text("Unlike anything the network was trained on")
    expect(page.locator("#status")).to_contain_text(", but unlike anything the network was trained on")
    page.set_input_files("#files", [tmp_path / "noise.png", image_files[4]])
    expect(page.locator("#status")).to_have_text("2 images predicted, 1 unlike anything the network was trained on.")
    expect(warning).to_have_count(3)
    assert [each.is_visible() for each in warning.all()] == [True, False, True]


def test_the_file_field_has_keyboard_focus_and_a_button(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    assert page.locator(".choose").evaluate("label => getComputedStyle(label).outlineStyle") == "solid"
    with page.expect_file_chooser():
        page.locator(".choose").click()


def test_a_pasted_image_is_predicted(page: Page, image_files: list[Path]) -> None:
    transfer(page, "paste", ("image.png", image_files[5].read_bytes(), "image/png"))
    expect(page.locator("#cards h3")).to_have_text("ship: image.png")


def test_pasted_text_gets_a_message(page: Page) -> None:
    transfer(page, "paste")
    expect(page.locator("#status")).to_have_text("There is no image in the clipboard.")


def test_five_dropped_images_are_side_by_side_and_later_ones_come_first(page: Page, image_files: list[Path]) -> None:
    transfer(page, "drop", *((path.name, path.read_bytes(), "image/png") for path in image_files[:5]))
    titles = page.locator("#cards h3")
    expect(titles).to_have_text([f"{SHOWN[number]}: photo {number}.png" for number in range(5)])
    expect(page.locator("#status")).to_have_text("5 images predicted, 1 unlike anything the network was trained on.")
    places = [card.bounding_box() for card in page.locator("#cards > li").all()]
    assert places[0] and places[1] and places[0]["y"] == places[1]["y"] and places[0]["x"] < places[1]["x"]
    transfer(page, "drop", *((path.name, path.read_bytes(), "image/png") for path in image_files))
    expect(titles).to_have_count(12)
    expect(titles.first).to_have_text("horse: photo 0.png")
    page.get_by_role("button", name="Clear").click()
    expect(titles).to_have_count(0)


def test_an_unreadable_file_gets_a_message_and_does_not_affect_the_others(page: Page, image_files: list[Path]) -> None:
    image = (image_files[2].name, image_files[2].read_bytes(), "image/png")
    transfer(page, "drop", ("notes.txt", b"hello", "text/plain"), image)
    expect(page.locator("#cards h3")).to_have_text(["notes.txt", "truck: photo 2.png"])
    expect(page.locator("#cards .error").first).to_have_text("this file: not an image (5 bytes); replace or remove it")
    expect(page.locator("#status")).to_have_text("1 image predicted, 1 could not be read.")


def test_files_over_a_limit_get_a_message_and_are_not_sent(page: Page, image_files: list[Path]) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    large = image_files[0].parent / "large.png"
    large.write_bytes(bytes(17 * 2**20))
    page.set_input_files("#files", large)
    expect(page.locator("#status")).to_have_text("large.png has 17 MB; the limit is 16 MB.")
    page.set_input_files("#files", [large] * 33)
    expect(page.locator("#status")).to_have_text("33 images are too many; the limit is 32 at a time.")
    assert not [url for url in sent if "predict" in url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_wrong_and_nothing_is_cut_off(
    browser: Browser, service: Service, image_files: list[Path], size: dict[str, int], scheme: str
) -> None:
    page = browser.new_context(viewport=size, color_scheme=scheme).new_page()  # type: ignore[arg-type]
    page.goto(service.url)
    page.set_input_files("#files", [image_files[0], Path(__file__)])
    expect(page.locator("#cards h3")).to_have_count(2)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_the_api_documentation_loads_nothing_from_the_web(page: Page) -> None:
    page.get_by_role("link", name="the API").click()
    expect(page.locator(".opblock")).to_have_count(2)
    expect(page.locator(".opblock-summary-path").last).to_contain_text("/predict")
