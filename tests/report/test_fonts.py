"""Plots show letters that matplotlib's own font lacks, by the fonts that are installed."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from onecycle.report.svg import inline
from onecycle.report.visualizations import compared_accuracies, confusion_matrix, fonts, save_png
from onecycle.report.visualizations.fonts import FONT, fallbacks
from onecycle.storage.records import EpochRecord

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """A function that installs a font with the given name and letters. All its letters are squares.

    Before, `FONT` is the only installed font.
    """
    own = [font for font in fontManager.ttflist if font.name == FONT]
    monkeypatch.setattr(fontManager, "ttflist", own)
    monkeypatch.setattr(fonts, "_announced", set())
    fallbacks.cache_clear()

    def install(name: str, letters: str, *, outlines: bool = True) -> None:
        pen = TTGlyphPen(None)
        if outlines:
            pen.moveTo((100, 0))
            for corner in ((100, 800), (900, 800), (900, 0)):
                pen.lineTo(corner)
            pen.closePath()
        glyphs = [".notdef", *(f"u{ord(letter):X}" for letter in set(letters))]
        font = FontBuilder(1000)
        font.setupGlyphOrder(glyphs)
        font.setupCharacterMap({ord(letter): f"u{ord(letter):X}" for letter in letters})
        font.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
        font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 100)))
        font.setupHorizontalHeader(ascent=800, descent=-200)
        font.setupNameTable({"familyName": name, "styleName": "Regular"})
        font.setupOS2()
        font.setupPost()
        font.save(tmp_path / f"{name}.ttf")
        fontManager.addfont(tmp_path / f"{name}.ttf")

    yield install
    fallbacks.cache_clear()


def matrix(*classes: str) -> Figure:
    labels = np.arange(len(classes))
    return confusion_matrix(labels, labels[::-1], classes)


def families(figure: Figure) -> dict[str, list[str]]:
    return {text.get_text(): text.get_fontfamily() for text in figure.findobj(Text)}


@pytest.mark.parametrize("name", ["猫", "कुत्ता", "🦆", "猫 cat"])
def test_a_class_name_is_drawn_by_an_installed_font(
    install: Install, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    before = matrix(name, "dog")
    save_png(before, tmp_path / "boxes.png")
    assert capfd.readouterr().err.startswith("plots show boxes for ")
    fallbacks.cache_clear()
    install("Squares", name)
    figure = matrix(name, "dog")
    assert families(figure)[name] == [FONT, "Squares"]
    save_png(figure, tmp_path / "letters.png")
    assert (tmp_path / "letters.png").read_bytes() != (tmp_path / "boxes.png").read_bytes()
    assert capfd.readouterr().err == ""


def test_one_line_names_the_letters_that_no_font_has(
    install: Install, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    install("Squares", "犬")
    for classes in (("猫", "犬", "dog"), ("猫", "dog"), ("猫猫", "dog", "犬")):
        save_png(matrix(*classes), tmp_path / "matrix.png")
    assert capfd.readouterr().err == (
        "plots show boxes for 猫, because no installed font has these letters; install one that has them, for example "
        "a Noto font\n"
    )
    assert caplog.records == []


@pytest.mark.parametrize("name", ["Ωmega", "кошка", "قطة", "Ελλάδα", "naïve", "cafe\u0301", "❤\ufe0f", "→ ½"])
def test_the_own_font_draws_all_that_it_can(install: Install, capfd: pytest.CaptureFixture[str], name: str) -> None:
    install("Squares", name)
    assert families(matrix(name, "dog"))[name] == [FONT]
    assert capfd.readouterr().err == ""


def test_the_fewest_fonts_are_taken_and_those_without_serifs_first(install: Install) -> None:
    for name, letters in [("A", "猫犬"), ("B", "猫"), ("C", "鳥"), ("D Sans", "鳥"), ("E", "犬鳥")]:
        install(name, letters)
    assert fallbacks(frozenset("猫犬鳥")) == ("A", "D Sans")
    assert fallbacks(frozenset("鳥")) == ("D Sans",)


def test_a_font_without_outlines_and_a_font_of_boxes_are_not_taken(install: Install) -> None:
    install("Bitmaps", "猫", outlines=False)
    install("Boxes", "猫\U0010ffff")
    assert fallbacks(frozenset("猫")) == ()


def test_names_in_bold_print_nothing(
    install: Install, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    install("Squares", "猫犬")
    records = [
        EpochRecord(epoch=e, lr=0.1, train_loss=1, train_accuracy=0.5, eval_loss=1, eval_accuracy=0.4, seconds=1)
        for e in (1, 2)
    ]
    save_png(compared_accuracies({"猫": records, "犬": records}), tmp_path / "compared.png")
    assert caplog.records == []
    assert capfd.readouterr().err == ""
    assert logging.getLogger("matplotlib.font_manager").level == logging.NOTSET


def test_the_text_of_a_report_has_the_font_of_the_page(install: Install) -> None:
    install("Squares", "猫")
    svg = inline(matrix("猫", "dog"), "confusion", "Confusion matrix")
    assert "猫" in svg and "font-family" not in svg
