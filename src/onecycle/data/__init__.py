"""Data sets (CIFAR-10, image folders, embedded digits), their splits, checks, augmentation and batches."""

from onecycle.data.readers.image_set import ImageSet
from onecycle.data.readers.loading import Dataset, load_dataset

__all__ = ["Dataset", "ImageSet", "load_dataset"]
