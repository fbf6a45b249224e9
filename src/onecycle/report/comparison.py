"""The content of the report that compares several runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.core.statistics import DifferenceByImage, difference_by_image
from onecycle.report import visualizations
from onecycle.report.page import Page, percent
from onecycle.report.page_galleries import Gallery, Tile
from onecycle.report.sprites import image_sheet
from onecycle.report.svg import inline
from onecycle.storage.run_folder import RunFolder

FEWEST, MOST = 2, 6  # limits on the number of runs
DISAGREEMENTS = 200  # the report shows at most this many images on which runs disagree
_BYTES = 400_000


class Comparison:
    """Several complete runs, each compared with the first.

    Raises:
        InputError: when there are too few or too many runs, or a run is incomplete.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not FEWEST <= len(paths) <= MOST:
            raise InputError(f"{len(paths)} runs are given; give {FEWEST} to {MOST} run folders to compare")
        self.pages = [Page(RunFolder.open(path)) for path in paths]
        for page in self.pages:
            if not page.result:
                raise InputError(f"{page.folder.path} is not complete; resume it, or compare other runs")
        self.names = [chr(ord("A") + number) for number in range(len(paths))]

    @property
    def same_images(self) -> bool:
        """Whether all runs were evaluated on the same images, so that they can be compared image by image."""
        datasets = [page.environment["dataset"] for page in self.pages]
        # Older runs recorded one fingerprint of all their data, but no separate fingerprint of the evaluated images.
        name = "evaluation_fingerprint" if all("evaluation_fingerprint" in data for data in datasets) else "fingerprint"
        return len({(data[name], len(page.labels)) for data, page in zip(datasets, self.pages, strict=True)}) == 1

    def curves(self) -> str:
        histories = {name: page.history for name, page in zip(self.names, self.pages, strict=True)}
        splits = " and ".join(sorted({page.epoch_evaluated_on for page in self.pages}))
        figure = visualizations.compared_accuracies(histories, evaluated_on=splits)
        last = ", ".join(f"{name} {percent(history[-1].eval_accuracy)}" for name, history in histories.items())
        return inline(figure, "compared", f"Accuracy by epoch; last epoch: {last}")

    def differences(self) -> list[tuple[str, DifferenceByImage]]:
        """For each run except the first: its name, and its accuracy minus the accuracy of the first run."""
        first = self._is_correct(self.pages[0])
        return [
            (name, difference_by_image(self._is_correct(page), first))
            for name, page in zip(self.names[1:], self.pages[1:], strict=True)
        ]

    def settings(self) -> list[tuple[str, list[Any]]]:
        """The name of each setting that differs between the runs, and its value in each run."""
        configs = [page.config.defining_values() for page in self.pages]
        return [
            (name, [config[name] for config in configs])
            for name in configs[0]
            if len({str(config[name]) for config in configs}) > 1
        ]

    def disagreements(self) -> tuple[int, Gallery | None]:
        """The number of images that some runs get right and others wrong, and a gallery of these images.

        The gallery shows the images whose pixels are stored. It is None if no pixels are stored. Images that about half
        of the runs get right come first.
        """
        right = np.stack([self._is_correct(page) for page in self.pages])  # [runs,N]
        votes = right.sum(axis=0)
        differing = np.flatnonzero((votes > 0) & (votes < len(right)))
        imbalance = np.abs(votes[differing] - len(right) / 2)
        pixels = self._kept()
        kept = [int(image) for image in differing[np.argsort(imbalance, kind="stable")] if int(image) in pixels]
        kept = kept[:DISAGREEMENTS]
        if not kept:
            return len(differing), None
        sheet = image_sheet(np.stack([pixels[image] for image in kept]), most_bytes=_BYTES)
        tiles = [self._tile(sheet.place(number), image) for number, image in enumerate(kept)]
        return len(differing), Gallery(sheet=sheet, tiles=tiles)

    def _tile(self, place: tuple[int, int], image: int) -> Tile:
        first = self.pages[0]
        named = next((page for page in self.pages if page.has_names), first)  # older runs recorded no file names
        lines = (
            f"{name}: {page.classes[page.predictions[image]]} {percent(page.probabilities[image].max(), 1)}"
            for name, page in zip(self.names, self.pages, strict=True)
        )
        return Tile(
            place=place,
            name=named.image_name(image),
            label=int(first.labels[image]),
            other=int(first.predictions[image]),
            lines=tuple(lines),
        )

    def _kept(self) -> dict[int, NDArray[np.uint8]]:
        """The stored pixels of the images that at least one run misclassified. The keys are the image indices.

        If the runs stored images of different sizes, only the images of the first run's size are kept.
        """
        found = [page.interpretation for page in self.pages if page.interpretation]
        size = found[0].misclassified_images.shape[1:] if found else None
        return {
            int(image): pixels
            for each in found
            if each.misclassified_images.shape[1:] == size
            for image, pixels in zip(each.misclassified, each.misclassified_images, strict=False)
        }

    @staticmethod
    def _is_correct(page: Page) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = page.predictions == page.labels
        return right
