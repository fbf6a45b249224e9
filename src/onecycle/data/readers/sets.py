"""`Sets`: the result of every reader, for all formats."""

from dataclasses import dataclass

from onecycle.data.readers.image_set import ImageSet


@dataclass(frozen=True, eq=False, kw_only=True)
class Sets:
    """The image sets of a data set, and what to tell the user about them. All sets have the same classes.

    A reader that decodes images returns them at the size in `ReadOptions`. Other readers return the images at their own
    size. If there is neither a test set nor a validation set, the caller draws a test set from `train`.
    """

    source: str  # a description with the layout or format, and the path, such as "NumPy archive data.npz"
    train: ImageSet
    test: ImageSet | None = None
    validation: ImageSet | None = None
    name: str | None = None  # name of a known data set, such as "cifar10"; if None, the file or folder gives the name
    notes: tuple[str, ...] = ()  # warnings that are shown with the results
    left_out: tuple[str, ...] = ()  # a line for each reason why files or rows are not used
    drawn: tuple[str, ...] | None = None  # names of the test images, if the reader drew them from the training images

    @property
    def by_split(self) -> dict[str, ImageSet]:
        """The sets that exist: "train", "validation" and "test", in this order."""
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: images for split, images in sets.items() if images is not None}
