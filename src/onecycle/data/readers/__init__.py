"""Read data sets: CIFAR-10, image folders and archives, and the embedded digits."""
