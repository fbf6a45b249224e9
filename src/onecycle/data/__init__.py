"""Data sets: CIFAR-10 in its official formats, one's own folders of images, and an embedded set for no network."""

from onecycle.data.readers.image_set import ImageSet
from onecycle.data.readers.loading import Dataset, load_dataset

__all__ = ["Dataset", "ImageSet", "load_dataset"]
