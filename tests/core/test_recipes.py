from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecycle.core.config import Config
from onecycle.core.option_groups import SMALLEST_SIZE, FromData
from onecycle.core.recipes import (
    BASELINE,
    ENOUGH_STEPS,
    FAST,
    MADE_FOR_IMAGES,
    RECIPES,
    SMALLEST_LAST_BATCH,
    SMALLEST_SHARD,
    changed_options,
    explained,
    fitted,
)
from onecycle.train.lr_finder import SMALLEST_SHARE

ALL = get_args(FromData)
recipes = st.sampled_from(sorted(RECIPES))


def asked(recipe: str, from_data: tuple[FromData, ...] = ALL, **changes: object) -> Config:
    return replace(RECIPES[recipe], from_data=from_data, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("images", [50_000, 45_000, 40_000, 1_000_000])
def test_on_cifar10_every_recipe_stays_as_it_is(recipe: str, images: int) -> None:
    config = fitted(asked(recipe), images)
    assert config == RECIPES[recipe]
    assert explained(asked(recipe), config, images) is None


@given(recipe=recipes, images=st.integers(2, 60_000), size=st.integers(SMALLEST_SIZE, 512))
def test_any_training_set_has_batches_it_fills_enough_steps_and_bounded_work(
    recipe: str, images: int, size: int
) -> None:
    own, config = RECIPES[recipe], fitted(asked(recipe, size=size), images)
    assert 1 <= config.batch_size <= min((images + 1) // 2, own.batch_size)
    last = images % config.batch_size
    assert last == 0 or last >= SMALLEST_LAST_BATCH * config.batch_size or config.batch_size == own.batch_size
    steps, half = config.epochs * images / config.batch_size, own.epochs * MADE_FOR_IMAGES / own.batch_size / 2
    assert steps > min(ENOUGH_STEPS, half) or recipe == "transfer"
    assert config.epochs == own.epochs or steps <= 2 * min(ENOUGH_STEPS, half)
    assert all(SMALLEST_SIZE <= each <= size for each in config.sizes)
    assert config.sizes[-1:] == ((size,) if own.sizes else ())
    assert config.from_data == ()


@given(recipe=recipes, images=st.integers(2, 100_000), named=st.sets(st.sampled_from(ALL)))
def test_a_named_value_always_wins(recipe: str, images: int, named: set[FromData]) -> None:
    own = RECIPES[recipe]
    values: dict[FromData, object] = {"batch_size": 77, "epochs": 5, "sizes": own.sizes and (20, 32)}
    unnamed = tuple(name for name in ALL if name not in named)
    config = fitted(asked(recipe, unnamed, **{name: values[name] for name in named}), images)
    assert all(getattr(config, name) == values[name] for name in named)


@given(recipe=recipes, images=st.integers(2, 100_000))
def test_fitting_a_fitted_configuration_changes_nothing(recipe: str, images: int) -> None:
    config = fitted(asked(recipe), images)
    assert fitted(config, 10) == fitted(config, images) == config


def test_images_of_another_size_have_scaled_sizes_and_batches_with_no_more_pixels() -> None:
    config = fitted(asked("quick", size=64), 50_000)
    assert config.sizes == (48, 56, 64)
    assert config.batch_size == 250
    assert fitted(asked("quick", size=10), 50_000).sizes == (9, 10), "8 pixels are too few for the network"
    assert fitted(asked("baseline", size=64), 50_000).sizes == ()


@pytest.mark.parametrize(
    ("recipe", "images", "values"),
    [
        ("quick", 10_000, (250, 4)),
        ("quick", 2_000, (125, 8)),
        ("quick", 1_651, (124, 8)),
        ("quick", 1_442, (125, 16)),
        ("quick", 243, (122, 64)),
        ("fast", 1_442, (187, 44)),
        ("baseline", 10_000, (127, 24)),
        ("baseline", 1_442, (64, 24)),
        ("baseline", 243, (64, 96)),
        ("baseline", 2, (1, 192)),
        ("transfer", 501, (16, 10)),
        ("transfer", 200, (16, 20)),
        ("transfer", 101, (16, 20)),
        ("transfer", 100, (16, 40)),
        ("transfer", 20, (10, 40)),
    ],
)
def test_smaller_sets_have_smaller_batches_and_then_more_epochs(
    recipe: str, images: int, values: tuple[int, int]
) -> None:
    config = fitted(asked(recipe), images)
    assert (config.batch_size, config.epochs) == values


def test_larger_images_leave_the_batches_of_transfer_as_they_are() -> None:
    assert fitted(asked("transfer", size=224), 300).batch_size == RECIPES["transfer"].batch_size


def test_a_named_number_of_epochs_leaves_the_batch_size_as_it_is() -> None:
    assert fitted(asked("baseline", ("batch_size",), epochs=1), 50_000).batch_size == 512


def test_each_shard_has_some_images() -> None:
    assert fitted(asked("baseline", shards=8), 2_000).batch_size / 8 == SMALLEST_SHARD


def test_the_last_batch_is_one_that_the_lr_finder_uses() -> None:
    assert SMALLEST_LAST_BATCH == SMALLEST_SHARE


def test_one_line_says_what_was_chosen_and_why() -> None:
    config = asked("quick", ("batch_size", "sizes"), size=64, epochs=3)
    assert explained(config, fitted(config, 1_650), 1_650) == (
        "The values of quick are for 50,000 images of 32 pixels; for 1,650 images of 64 pixels, this run uses "
        "--batch-size 124 instead of 1000, --sizes 48 56 64 instead of 24 28 32"
    )


def test_a_run_may_record_another_configuration_only_in_what_is_open() -> None:
    config = asked("quick", ("batch_size", "epochs"))
    recorded = fitted(config, 500)
    assert config.leads_to(recorded)
    assert config.leads_to(replace(recorded, out=Path("elsewhere")))
    assert not config.leads_to(replace(recorded, seed=1))
    assert not config.leads_to(config)
    assert not replace(config, from_data=("epochs",)).leads_to(recorded)
    assert recorded.leads_to(recorded)


def test_a_job_that_starts_again_takes_the_recorded_values_and_its_own_place_of_the_data() -> None:
    config = asked("quick", workers=3, data="elsewhere")
    recorded = replace(fitted(asked("quick", data="here"), 500), from_data=())
    assert config.resolved_as(recorded) == replace(recorded, workers=3, data="elsewhere")
    other = replace(recorded, seed=1)
    assert config.resolved_as(other) == config


def test_changed_options_are_those_that_differ_from_the_recipe() -> None:
    included = replace(FAST, widths=(64, 256, 288), residual=True, epochs=32, degraded=0.5, seed=3, data="x", workers=9)
    assert changed_options(included) == "--epochs 32 --widths 64 256 288 --residual --degraded 0.5"
    assert changed_options(replace(FAST, dirac=False, test_time_augmentation=False)) == (
        "--no-test-time-augmentation --no-dirac"
    )
    own = replace(BASELINE, network="my nets.py:small", network_sha256="0" * 64)
    assert changed_options(own) == "--network 'my nets.py:small'"
    started = replace(BASELINE, init="runs/mine/weights.safetensors", init_sha256="0" * 64)
    assert changed_options(started) == "--init weights.safetensors"
    assert changed_options(replace(FAST, sizes=())) == "--sizes none"
    assert all(changed_options(recipe) == "" for recipe in RECIPES.values())
