"""The recipes, and the rule that fits them to the data. A recipe is a named configuration."""

import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from onecycle.core.config import Config
from onecycle.core.option_groups import SMALLEST_SIZE, OpenConfig
from onecycle.core.own_network import is_own_network

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

ACCURATE = replace(
    FAST,
    recipe="accurate",
    widths=(128, 512, 512),
    residual=True,
    epochs=28,
    batch_size=1000,
    label_smoothing=0.2,
    padding=4,
    cutout=12,
)
"""A larger network than that of `FAST`, trained for longer. Its accuracy is not measured yet."""

TRANSFER = Config(
    recipe="transfer",
    network="pretrained",
    size=128,
    epochs=10,
    batch_size=16,
    label_smoothing=0.1,
    augmentation="batched",
    padding=16,
    cutout=0,
    flip="alternating",
    brightness=0.1,
    contrast=0.2,
    lr_max=4e-4,
    lr_min=0.0,
)
"""A network that is pretrained on ImageNet, with a new last layer, for a few hundred photographs of one's own.

Its learning rate does not come from the LR finder, because new layers and pretrained layers need different rates.
"""

RECIPES: Mapping[str, Config] = {
    "baseline": BASELINE,
    "quick": QUICK,
    "fast": FAST,
    "accurate": ACCURATE,
    "transfer": TRANSFER,
}

MADE_FOR_IMAGES = 50_000  # the training set of CIFAR-10, for which all recipes but `transfer` were made
# The batch size is halved at most this many times. A step with an even smaller batch would take almost as long, and
# would improve the network less.
MOST_HALVINGS = 3
SMALLEST_SHARD = 16  # images per shard; batch norm needs several
SMALLEST_LAST_BATCH = 0.25  # limit as a fraction of the batch size; the LR finder leaves out a smaller last batch
ENOUGH_STEPS = 300  # three times the steps of the LR finder
# The limits for more epochs of `transfer`. Runs with about this many images in all epochs took 80 to 138 seconds on two
# cores of an EPYC (results/transfer.json).
MOST_IMAGES_SEEN = 4000
MOST_EPOCHS = 40


def fitted(config: Config, images: int) -> Config:
    """A copy of `config` that fits a training set of `images` images. Only the options in its `from_data` change.

    A recipe needs enough steps. So smaller training sets get smaller batches, and very small training sets get more
    epochs:

    - For each halving of the number of images below `MADE_FOR_IMAGES`, the batch size is halved, but at most
      `MOST_HALVINGS` times.
    - The epochs are doubled until the run has more than `ENOUGH_STEPS` steps, or more than half of the recipe's own
      steps.
    - If the images are larger than those of the recipe, the batch size is reduced until a batch has no more pixels than
      a batch of the recipe.
    - These two reductions of the batch size, for few images and for large images, leave at least `SMALLEST_SHARD`
      images in each shard.
    - The training sizes (`sizes`) are scaled in proportion to the size of the images.
    - An epoch has two batches or more. If the batch size differs from the recipe's, the last batch has at least the
      fraction `SMALLEST_LAST_BATCH` of the batch size.

    `transfer` was made for few images, so the first two points do not apply to it. Its epochs are doubled up to
    `MOST_EPOCHS`, while epochs × images is at most `MOST_IMAGES_SEEN`. Its batches are not smaller for larger images.

    The LR finder also uses the smaller batches, but its number of steps does not change. The number of classes has no
    influence on the values. results/fitted_recipes.json has the measurements.
    """
    recipe = RECIPES[config.recipe]
    batch_size, epochs, sizes = config.batch_size, config.epochs, config.sizes
    if "batch_size" in config.from_data:
        batch_size = _batch_size(recipe, images, config.size, shards=config.shards)
    if "epochs" in config.from_data and recipe is TRANSFER:
        while epochs < MOST_EPOCHS and 2 * epochs * images <= MOST_IMAGES_SEEN:
            epochs *= 2
    elif "epochs" in config.from_data:
        enough = min(ENOUGH_STEPS, recipe.epochs * MADE_FOR_IMAGES / recipe.batch_size / 2)
        while epochs * images / batch_size <= enough:
            epochs *= 2
    if "sizes" in config.from_data:
        scaled = (round(size * config.size / recipe.size) for size in recipe.sizes)
        sizes = tuple(size for size in scaled if size >= SMALLEST_SIZE)  # the network cannot take smaller images
    return replace(config, batch_size=batch_size, epochs=epochs, sizes=sizes, from_data=())


def _batch_size(recipe: Config, images: int, size: int, *, shards: int) -> int:
    """The batch size of `recipe` for `images` images of `size`×`size` pixels."""
    own = recipe.batch_size
    is_small = images < MADE_FOR_IMAGES and recipe is not TRANSFER
    halvings = min(MOST_HALVINGS, (MADE_FOR_IMAGES // images).bit_length() - 1) if is_small else 0
    by_pixels = own * recipe.size**2 // size**2
    fewer = max(SMALLEST_SHARD * shards, min(own >> halvings, by_pixels))
    batch_size = min(own, fewer, -(-images // 2))
    while batch_size < own and 0 < images % batch_size < SMALLEST_LAST_BATCH * batch_size:
        batch_size -= 1
    return batch_size


def explained(asked: Config, config: Config, images: int) -> str | None:
    """One line that lists the values that `fitted` changed, with the reason. None if all values are the recipe's own.

    `fitted` was called with `asked`, and returned `config`.
    """
    values = ((field, getattr(config, field), getattr(RECIPES[config.recipe], field)) for field in asked.from_data)
    changes = [
        f"--{field.replace('_', '-')} {_in_words(value)} instead of {_in_words(usual)}"
        for field, value, usual in values
        if value != usual
    ]
    if not changes:
        return None
    made_for = "more images" if config.recipe == "transfer" else f"{MADE_FOR_IMAGES:,} images"
    return (
        f"The values of {config.recipe} are for {made_for} of {RECIPES[config.recipe].size} pixels; for {images:,} "
        f"images of {config.size} pixels, this run uses {', '.join(changes)}"
    )


def changed_options(config: Config) -> str:
    """The options in which `config` differs from its recipe, with their values. Returns "" if it does not differ.

    The seed is left out. Options that do not affect the result are also left out.
    """
    recipe = RECIPES[config.recipe].defining_values()
    left_out = {"recipe", "seed", *(field.name for field in fields(OpenConfig))}
    changed = {
        name.replace("_", "-"): value
        for name, value in config.defining_values().items()
        if name not in left_out and value != recipe[name]
    }
    # Show only the names of files, because their paths may be private.
    if config.init:
        changed["init"] = Path(config.init).name
    if is_own_network(config.network):
        changed["network"] = Path(config.network).name
    return " ".join(
        f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name} {_in_words(value)}"
        for name, value in changed.items()
    )


def _in_words(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple | list) else shlex.quote(str(value))
