"""The images on the page about a run: sheets of them, and what stands below each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onecycle.report.page import Page, sure
from onecycle.report.sprites import Sheet, heat_sheet, image_sheet

SUSPECTS = 48  # shown of each list
_MISTAKES_BYTES, _OTHERS_BYTES = 900_000, 150_000  # of sheets; base64 makes a third more of them


@dataclass(frozen=True, kw_only=True)
class Tile:
    """An image of a sheet with what stands below it."""

    place: tuple[int, int]  # on the sheet
    name: str  # "test image 123"
    label: int  # the number of the class
    other: int  # that of the predicted class, or of what the network would rather have said
    lines: tuple[str, ...]  # more about it


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Tiles with the sheets that they are on, and all the positions that a list ranks, of which they are the first."""

    sheet: Sheet
    tiles: list[Tile]
    heat: Sheet | None = None
    listed: tuple[str, ...] = ()


def mistakes(page: Page) -> Gallery | None:
    """The incorrect predictions, most confident first, with what the network looked at."""
    if not (found := page.interpretation) or not len(found.mistake_images):
        return None
    sheet = image_sheet(found.mistake_images, most_bytes=_MISTAKES_BYTES)
    tiles = _evaluated(page, sheet, found.mistakes[: len(found.mistake_images)])
    return Gallery(sheet=sheet, heat=heat_sheet(found.heat, sheet.tile), tiles=tiles)


def suspects(page: Page) -> Gallery | None:
    """Evaluated images whose label may be wrong."""
    if not (found := page.interpretation) or not len(found.suspect_images):
        return None
    images = found.suspect_images[:SUSPECTS]
    sheet = image_sheet(images, most_bytes=_OTHERS_BYTES)
    tiles = _evaluated(page, sheet, found.suspects[: len(images)])
    return Gallery(sheet=sheet, tiles=tiles, listed=_numbers(found.suspects))


def train_suspects(page: Page) -> Gallery | None:
    """Training images whose label may be wrong."""
    if not (found := page.interpretation):
        return None
    images = found.train_suspect_images[:SUSPECTS]
    sheet = image_sheet(images, most_bytes=_OTHERS_BYTES)
    tiles = [
        Tile(
            place=sheet.place(number),
            name=f"training image {found.train_suspects[number]}",
            label=int(found.train_suspect_labels[number]),
            other=int(found.train_suspect_guesses[number]),
            lines=(f"margin {found.train_suspect_margins[number]:.2f}",),
        )
        for number in range(len(images))
    ]
    return Gallery(sheet=sheet, tiles=tiles, listed=_numbers(found.train_suspects))


def duplicates(page: Page) -> Gallery | None:
    """Evaluated images, each with the training image that is most like it: two tiles a pair."""
    if not (found := page.interpretation):
        return None
    pairs = found.duplicate_images[:SUSPECTS]  # [d,2,S,S,3]
    sheet = image_sheet(pairs.reshape(-1, *pairs.shape[2:]), most_bytes=2 * _OTHERS_BYTES)
    tiles = [
        Tile(
            place=sheet.place(2 * number + side),
            name=f"{split} image {found.duplicates[number, side]}",
            label=int(found.duplicate_labels[number, side]),
            other=int(found.duplicate_labels[number, 1 - side]),
            lines=(f"{100 * found.duplicate_similarities[number]:.1f} % alike",),
        )
        for number in range(len(pairs))
        for side, split in enumerate((page.evaluated_on, "training"))
    ]
    listed = tuple(f"{ours} ~ {theirs}" for ours, theirs in found.duplicates.tolist())
    return Gallery(sheet=sheet, tiles=tiles, listed=listed)


def augmentations(page: Page) -> Gallery | None:
    """Training images and what augmentation made of them: the first half of the tiles, and the second."""
    if not page.folder.augmentations.exists():
        return None
    arrays = page.folder.read_arrays(page.folder.augmentations)
    images = np.concatenate([arrays["originals"], arrays["augmented"]])
    sheet = image_sheet(images, most_bytes=_OTHERS_BYTES)
    names = ["as it is", "augmented"]
    tiles = [
        Tile(
            place=sheet.place(number),
            name=f"training image, {names[2 * number // len(images)]}",
            label=0,
            other=0,
            lines=(),
        )
        for number in range(len(images))
    ]
    return Gallery(sheet=sheet, tiles=tiles)


def _evaluated(page: Page, sheet: Sheet, images: Sequence[int] | NDArray[np.int64]) -> list[Tile]:
    """Tiles of evaluated images, by position, each with its three likeliest classes."""
    tiles = []
    for number, image in enumerate(images):
        probabilities = page.probabilities[image]
        likeliest = np.argsort(-probabilities, kind="stable")[:3]
        tiles.append(
            Tile(
                place=sheet.place(number),
                name=f"{page.evaluated_on} image {image}",
                label=int(page.labels[image]),
                other=int(page.predictions[image]),
                lines=tuple(f"{page.classes[c]} {sure(probabilities[c])}" for c in likeliest),
            )
        )
    return tiles


def _numbers(positions: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(map(str, positions.tolist()))
