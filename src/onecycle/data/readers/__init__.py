"""Readers of data sets: CIFAR-10, image folders and archives, the embedded digits."""
