"""Augmentation: image by image with albumentations, or batch by batch on the device."""
