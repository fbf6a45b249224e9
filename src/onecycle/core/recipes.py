"""The recipes: named configurations."""

from collections.abc import Mapping
from dataclasses import replace

from onecycle.core.config import Config

BASELINE = Config()
"""The recipe of docs/specification.md: custom ResNet, CIFAR-10, batch size 512, 24 epochs with the peak at epoch 5."""

QUICK = Config(
    recipe="quick",
    network="whitened_convnet",
    widths=(64, 160, 256),
    whitening_epochs=1,
    epochs=4,
    batch_size=1000,
    optimizer="muon",
    bias_lr_scale=64,
    label_smoothing=0.2,
    sizes=(24, 28, 32),
    augmentation="batched",
    padding=2,
    cutout=0,
    flip="alternating",
    lr_max=0.248,
    lr_min=0.0,
    peak_fraction=0.0,
)
"""More than 90 % on CIFAR-10 in 4 epochs. results/studies/quick has the runs."""

FAST = replace(
    QUICK,
    recipe="fast",
    widths=(64, 256, 256),
    activation="hardswish",
    epochs=11,
    batch_size=1500,
    label_smoothing=0.1,
    brightness=0.035,
    contrast=0.13,
    lr_max=0.248,
    test_time_augmentation=True,
)
"""94 % on CIFAR-10 with test-time augmentation in 11 epochs. results/studies/fast has the runs."""

RECIPES: Mapping[str, Config] = {"baseline": BASELINE, "quick": QUICK, "fast": FAST}
