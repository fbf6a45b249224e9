"""The image galleries of a report: sprite sheets, and the text below each image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onecycle.report.page import Page, percent
from onecycle.report.sprites import Sheet, heatmap_sheet, image_sheet

LISTED_IMAGES = 48  # the report shows at most this many images of each list
MOST_NAMED = 5000  # the report names at most this many images of each list, enough for 5 % of 100,000 images
_MISCLASSIFIED_BYTES, _OTHERS_BYTES = 900_000, 150_000  # limits on the size of a sheet; base64 then adds a third


@dataclass(frozen=True, kw_only=True)
class Tile:
    """An image on a sprite sheet, and the text below the image."""

    place: tuple[int, int]  # column and row on the sheet
    name: str  # the file name, or for example "test image 123"
    label: int  # index of the class
    other: int  # index of the predicted class; in a pair of near-duplicates, the label of the other image
    lines: tuple[str, ...]  # further lines of text below the image


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images that a report shows as tiles.

    A report can also list the images by name or number. `listed` is the start of this list, and includes images that
    have no tile. `length` is the number of images in the whole list.
    """

    sheet: Sheet
    tiles: list[Tile]
    heatmaps: Sheet | None = None
    listed: tuple[str, ...] = ()
    length: int = 0


def misclassified(page: Page) -> Gallery | None:
    """Misclassified images with their heatmaps, most confident prediction first."""
    if not (found := page.interpretation) or not len(found.misclassified_images):
        return None
    images = found.misclassified[: len(found.misclassified_images)]
    # Sort again, because a temperature that was fitted after the interpretation changes the order.
    order = np.argsort(-page.probabilities[images].max(axis=1), kind="stable")
    sheet = image_sheet(found.misclassified_images[order], most_bytes=_MISCLASSIFIED_BYTES)
    tiles = _evaluated(page, sheet, images[order])
    # If the network does not define `features`, all heatmap values are 0.
    heatmaps = heatmap_sheet(found.heatmaps[order], sheet.tile) if found.heatmaps.any() else None
    return Gallery(sheet=sheet, heatmaps=heatmaps, tiles=tiles)


def label_issues(page: Page) -> Gallery | None:
    """Evaluated images whose label may be wrong."""
    if not (found := page.interpretation) or not len(found.label_issue_images):
        return None
    images = found.label_issue_images[:LISTED_IMAGES]
    sheet = image_sheet(images, most_bytes=_OTHERS_BYTES)
    tiles = _evaluated(page, sheet, found.label_issues[: len(images)])
    listed = _listed(found.label_issues, page.image_name if page.has_names else str)
    return Gallery(sheet=sheet, tiles=tiles, listed=listed, length=len(found.label_issues))


def train_label_issues(page: Page) -> Gallery | None:
    """Training images whose label may be wrong."""
    if not (found := page.interpretation):
        return None
    images = found.train_label_issue_images[:LISTED_IMAGES]
    sheet = image_sheet(images, most_bytes=_OTHERS_BYTES)
    tiles = [
        Tile(
            place=sheet.place(number),
            name=page.train_image_name(int(found.train_label_issues[number])),
            label=int(found.train_label_issue_labels[number]),
            other=int(found.train_label_issue_predictions[number]),
            lines=(f"margin {found.train_label_issue_margins[number]:.2f}",),
        )
        for number in range(len(images))
    ]
    listed = _listed(found.train_label_issues, page.train_image_name if page.has_names else str)
    return Gallery(sheet=sheet, tiles=tiles, listed=listed, length=len(found.train_label_issues))


def duplicates(page: Page) -> Gallery | None:
    """Evaluated images, each with the most similar training image: two tiles per pair."""
    if not (found := page.interpretation):
        return None
    pairs = found.duplicate_images[:LISTED_IMAGES]  # [d,2,S,S,3]
    sheet = image_sheet(pairs.reshape(-1, *pairs.shape[2:]), most_bytes=2 * _OTHERS_BYTES)
    tiles = [
        Tile(
            place=sheet.place(2 * number + side),
            name=name_of(int(found.duplicates[number, side])),
            label=int(found.duplicate_labels[number, side]),
            other=int(found.duplicate_labels[number, 1 - side]),
            lines=(f"{100 * found.duplicate_similarities[number]:.1f} % similar",),
        )
        for number in range(len(pairs))
        for side, name_of in enumerate((page.image_name, page.train_image_name))
    ]
    sides = (page.image_name, page.train_image_name) if page.has_names else (str, str)
    listed = map(" ~ ".join, zip(*map(_listed, found.duplicates.T, sides), strict=True))
    return Gallery(sheet=sheet, tiles=tiles, listed=tuple(listed), length=len(found.duplicates))


def augmentations(page: Page) -> Gallery | None:
    """Training images in the first half of the tiles, and their augmented copies in the second half."""
    if not page.folder.augmentations.exists():
        return None
    found = page.folder.read_augmentations()
    images = np.concatenate([found.originals, found.augmented])
    sheet = image_sheet(images, most_bytes=_OTHERS_BYTES)
    names = ["original", "augmented"]
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
    """Tiles for the evaluated images with the indices `images`, each with its three most likely classes."""
    tiles = []
    for number, image in enumerate(images):
        probabilities = page.probabilities[image]
        most_likely = np.argsort(-probabilities, kind="stable")[:3]
        tiles.append(
            Tile(
                place=sheet.place(number),
                name=page.image_name(int(image)),
                label=int(page.labels[image]),
                other=int(page.predictions[image]),
                lines=tuple(f"{page.classes[c]} {percent(probabilities[c], 1)}" for c in most_likely),
            )
        )
    return tiles


def _listed(images: NDArray[np.int64], name_of: Callable[[int], str]) -> tuple[str, ...]:
    return tuple(map(name_of, images[:MOST_NAMED].tolist()))
