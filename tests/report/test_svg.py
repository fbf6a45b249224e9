import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from onecycle.report import visualizations
from onecycle.report.sprites import COLUMNS, heatmap_sheet, image_sheet
from onecycle.report.svg import inline
from onecycle.storage.records import EpochRecord

HISTORY = [
    EpochRecord(epoch=e, lr=0.1, train_loss=1 / e, train_accuracy=0.5, eval_loss=1 / e, eval_accuracy=0.4, seconds=1)
    for e in (1, 2, 3)
]


@pytest.fixture
def svg() -> str:
    return inline(visualizations.accuracy_curves(HISTORY), "accuracy", 'Accuracy "by" epoch')


def test_a_figure_has_a_text_alternative_and_text(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'Accuracy "by" epoch' and root.get("role") == "img"
    assert "test 40.0 %" in "".join(root.itertext())


def test_a_figure_has_the_colors_of_the_page(svg: str) -> None:
    assert "var(--blue)" in svg and "var(--ink)" in svg
    assert not re.findall(r"#(?:0072b2|d55e00|222222|666666|ffffff)", svg)


def test_every_referenced_id_occurs_once_and_is_unique_to_the_figure(svg: str) -> None:
    ids = re.findall(r' id="([^"]*)"', svg)
    referenced = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg))
    assert len(ids) == len(set(ids)) > 0
    assert {"".join(pair) for pair in referenced} == set(ids)
    assert all(name.startswith("accuracy-") for name in ids)


def decoded(url: str) -> Image.Image:
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_images_are_at_their_places_on_the_sheet() -> None:
    images = np.zeros((COLUMNS + 2, 32, 32, 3), np.uint8)
    images[np.arange(len(images)), :, :, 0] = np.arange(len(images))[:, None, None] * 5
    sheet = image_sheet(images, most_bytes=10**6)
    pixels = np.asarray(decoded(sheet.url).convert("RGB"))
    assert pixels.shape == (64, COLUMNS * 32, 3)
    for number in (0, COLUMNS - 1, COLUMNS, COLUMNS + 1):
        column, row = sheet.place(number)
        tile = pixels[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        assert tile[4:-4, 4:-4, 0].mean() == pytest.approx(number * 5, abs=8)


def test_large_images_are_scaled_down_and_a_sheet_stays_within_its_size() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 96, 96, 3), dtype=np.uint8)
    small, large = (image_sheet(noise, most_bytes=size) for size in (1, 10**7))
    assert small.tile == large.tile == 64
    assert len(small.url) < len(large.url)


def test_a_heatmap_is_more_opaque_for_higher_values() -> None:
    heatmaps = np.array([[[0, 255], [0, 255]]], np.uint8)
    alpha = np.asarray(decoded(heatmap_sheet(heatmaps, 32).url).getchannel("A"))
    assert alpha[:, 0].max() < 20 and alpha[:, -1].min() > 150
