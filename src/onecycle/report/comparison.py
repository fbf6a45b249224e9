"""What a page about several runs says, gathered from their folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.core.statistics import DifferenceByImage, difference_by_image
from onecycle.report import visualizations
from onecycle.report.galleries import Gallery, Tile
from onecycle.report.page import Page, percent, sure
from onecycle.report.sprites import image_sheet
from onecycle.report.svg import inline
from onecycle.storage.run_folder import RunFolder

FEWEST, MOST = 2, 6  # runs
DISAGREEMENTS = 200  # images shown
_BYTES = 400_000


class Comparison:
    """Several complete runs side by side, each compared with the first.

    Raises:
        InputError: when there are too few or too many, or one is not complete.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not FEWEST <= len(paths) <= MOST:
            raise InputError(f"{len(paths)} runs are given; name {FEWEST} to {MOST} run folders to compare")
        self.pages = [Page(RunFolder.open(path)) for path in paths]
        for page in self.pages:
            if not page.result:
                raise InputError(f"{page.folder.path} is not complete, and cannot be compared")
        self.names = [chr(ord("A") + number) for number in range(len(paths))]

    @property
    def same_images(self) -> bool:
        """Whether it is recorded that all were evaluated on the same images: then they can be compared one by one."""
        about = [page.environment["dataset"] for page in self.pages]
        # Older runs have only the fingerprint of all their data.
        name = "evaluation_fingerprint" if all("evaluation_fingerprint" in data for data in about) else "fingerprint"
        return len({(data[name], len(page.labels)) for data, page in zip(about, self.pages, strict=True)}) == 1

    def curves(self) -> str:
        histories = {name: page.history for name, page in zip(self.names, self.pages, strict=True)}
        splits = " and ".join(sorted({page.evaluated_on for page in self.pages}))
        figure = visualizations.compared_accuracies(histories, evaluated_on=splits)
        last = ", ".join(f"{name} {percent(history[-1].test_accuracy)}" for name, history in histories.items())
        return inline(figure, "compared", f"Accuracy by epoch; at the last: {last}")

    def differences(self) -> list[tuple[str, DifferenceByImage]]:
        """Each run but the first, less the first, image by image."""
        first = self._right(self.pages[0])
        return [
            (name, difference_by_image(self._right(page), first))
            for name, page in zip(self.names[1:], self.pages[1:], strict=True)
        ]

    def settings(self) -> list[tuple[str, list[Any]]]:
        """The configured values that are not the same in all runs."""
        configs = [page.config.defining_values() for page in self.pages]
        return [
            (name, [config[name] for config in configs])
            for name in configs[0]
            if len({str(config[name]) for config in configs}) > 1
        ]

    def disagreements(self) -> tuple[int, Gallery | None]:
        """On how many images not all are right or all wrong, and those of them whose pixels a run has kept.

        The first are those on which the runs disagree most evenly.
        """
        right = np.stack([self._right(page) for page in self.pages])  # [runs,N]
        votes = right.sum(axis=0)
        differing = np.flatnonzero((votes > 0) & (votes < len(right)))
        evenly = np.abs(votes[differing] - len(right) / 2)
        pixels = self._kept()
        shown = [int(image) for image in differing[np.argsort(evenly, kind="stable")] if int(image) in pixels]
        shown = shown[:DISAGREEMENTS]
        if not shown:
            return len(differing), None
        sheet = image_sheet(np.stack([pixels[image] for image in shown]), most_bytes=_BYTES)
        tiles = [self._tile(sheet.place(number), image) for number, image in enumerate(shown)]
        return len(differing), Gallery(sheet=sheet, tiles=tiles)

    def _tile(self, place: tuple[int, int], image: int) -> Tile:
        first = self.pages[0]
        said = (
            f"{name}: {page.classes[page.predictions[image]]} {sure(page.probabilities[image].max())}"
            for name, page in zip(self.names, self.pages, strict=True)
        )
        return Tile(
            place=place,
            name=f"{first.evaluated_on} image {image}",
            label=int(first.labels[image]),
            other=int(first.predictions[image]),
            lines=tuple(said),
        )

    def _kept(self) -> dict[int, NDArray[np.uint8]]:
        """The pixels that the runs have kept of what they got wrong, by position."""
        return {
            int(image): pixels
            for page in self.pages
            if page.interpretation
            for image, pixels in zip(page.interpretation.mistakes, page.interpretation.mistake_images, strict=False)
        }

    @staticmethod
    def _right(page: Page) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = page.predictions == page.labels
        return right
