import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecycle.core.config import GROUPS, Config
from onecycle.core.errors import InputError
from onecycle.core.option_groups import OpenConfig
from onecycle.core.recipes import BASELINE, RECIPES

rates = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)


in_paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    low, high = sorted([draw(rates), draw(rates)])
    return Config(
        data=draw(in_paths),
        epochs=draw(st.integers(1, 10**6)),
        batch_size=draw(st.integers(1, 10**6)),
        from_data=draw(st.sampled_from([(), ("epochs",), ("batch_size", "sizes")])),
        lr_max=draw(st.sampled_from([high, None])),
        lr_min=draw(st.sampled_from([low, None])),
        peak_fraction=draw(st.floats(0, 1, exclude_min=True, exclude_max=True)),
        seed=draw(st.integers(0, 2**63 - 1)),
        validation=draw(st.integers(0, 50_000)),
        limit=draw(st.none() | st.integers(1, 50_000)),
        device=draw(st.sampled_from(["auto", "cpu", "cuda", "mps"])),
        precision=draw(st.sampled_from(["auto", "float32", "bfloat16"])),
        workers=draw(st.integers(0, 64)),
        out=Path(draw(in_paths)),
    )


def test_the_baseline_holds_the_specifications_values() -> None:
    assert RECIPES["baseline"] is BASELINE
    assert (BASELINE.recipe, BASELINE.data) == ("baseline", "cifar10")
    assert (BASELINE.epochs, BASELINE.batch_size, BASELINE.peak_fraction) == (24, 512, 5 / 24)
    assert BASELINE.lr_min is None, "found by the LR finder"
    assert BASELINE.lr_max is None, "found by the LR finder"
    assert (BASELINE.validation, BASELINE.limit) == (0, None), "all of CIFAR-10, evaluated on the test set"
    assert (BASELINE.device, BASELINE.precision, BASELINE.seed) == ("auto", "auto", 0)


def test_quick_and_fast_end_at_learning_rate_zero_and_augment_whole_batches() -> None:
    for name in ("quick", "fast"):
        recipe = RECIPES[name]
        assert (recipe.recipe, recipe.data) == (name, "cifar10")
        assert (recipe.lr_min, recipe.peak_fraction) == (0, 0)
        assert recipe.lr_max is not None
        assert recipe.augmentation == "batched"
    assert RECIPES["fast"].test_time_augmentation
    assert not RECIPES["quick"].test_time_augmentation


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("sizes", (24, 8), "sizes of at least 9 pixels"),
        ("widths", (64, 128), "three numbers of channels"),
        ("widths", (64, 0, 128), "three numbers of channels"),
        ("padding", -1, "at least 0"),
        ("cutout", -1, "at least 0"),
        ("bias_lr_scale", 0.0, "a positive number"),
        ("network_sha256", "a" * 64, "unset without a network of your own"),
    ],
)
def test_wrong_values_of_options_of_the_other_recipes_are_refused(field: str, value: object, allowed: str) -> None:
    message = f"--{field.replace('_', '-')} is {value!r}; it must be {allowed}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        dataclasses.replace(RECIPES["quick"], **{field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--freeze-backbone is True; it must be False with a network that is not pretrained"),
        ({"network": "pretrained"}, "--augmentation is 'albumentations'; it must be batched with a frozen backbone"),
    ],
)
def test_a_frozen_backbone_needs_a_pretrained_network_and_batched_augmentation(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Config(freeze_backbone=True, **options)  # type: ignore[arg-type]
    assert dataclasses.replace(RECIPES["transfer"], freeze_backbone=True).freeze_backbone


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("widths", (8, 8, 8), "(64, 256, 256) with a pretrained network"),
        ("optimizer", "muon", "adam with a pretrained network"),
        ("bias_lr_scale", 2.0, "1 with adam"),
    ],
)
def test_options_of_other_networks_are_refused_with_a_pretrained_one(field: str, value: object, allowed: str) -> None:
    message = f"--{field.replace('_', '-')} is {value!r}; it must be {allowed}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        dataclasses.replace(RECIPES["transfer"], **{field: value})
    assert (
        dataclasses.replace(RECIPES["transfer"], backbone="timm:resnet18.a1_in1k").backbone == "timm:resnet18.a1_in1k"
    )


def test_a_configuration_is_frozen_and_replace_makes_a_variant() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASELINE.epochs = 3  # type: ignore[misc]
    assert dataclasses.replace(BASELINE, epochs=3) == Config(epochs=3)
    with pytest.raises(InputError, match="--epochs is 0"):
        dataclasses.replace(BASELINE, epochs=0)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("recipe", "fastest", "one of baseline, quick, fast, accurate, transfer"),
        ("device", "tpu", "one of auto, cpu, cuda, mps"),
        ("precision", "float16", "one of auto, float32, bfloat16"),
        ("epochs", 0, "at least 1"),
        ("epochs", 10**12, "at most 1,000,000"),
        ("size", 60_000, "at most 1,024"),
        ("workers", 10**6, "at most 1,024"),
        ("epochs", -3, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("seed", -1, "from 0 to below 2**63"),
        ("validation", -1, "at least 0"),
        ("workers", -1, "at least 0"),
        ("shards", 0, "at least 1"),
        ("shards", 513, "at most --batch-size, which is 512"),
        ("limit", 0, "at least 1"),
        ("limit", -10, "at least 1"),
        *(("lr_max", value, "a positive number") for value in (0.0, -0.1, math.nan, math.inf, -math.inf)),
        *(("lr_min", value, "a number of at least 0") for value in (-0.1, math.nan, math.inf, -math.inf)),
        *(("peak_fraction", value, "from 0 to below 1") for value in (1.0, -0.2, 1.5, math.nan, math.inf)),
        ("network", "resnet50", "custom_resnet, whitened_convnet, pretrained, or your own as module:function"),
        ("network", ":function", "custom_resnet, whitened_convnet, pretrained, or your own as module:function"),
        ("backbone", "timm:resnet18", "efficientnet_lite0 with a network that is not pretrained"),
        *(
            ("backbone", name, "efficientnet_lite0, or timm:NAME for a network of timm")
            for name in ("", "timm:", "timm:a/b")
        ),
        ("sizes", (24, 28), "() with the custom ResNet"),
        ("sizes", (24.5,), "whole numbers"),
        ("from_data", ("seed",), "a list, and each part one of batch_size, epochs, sizes"),
        ("label_smoothing", 1.0, "from 0 to below 1"),
        ("label_smoothing", -0.1, "from 0 to below 1"),
        ("padding", 2, "4 with albumentations"),
        ("cutout", 0, "8 with albumentations"),
        ("brightness", 0.1, "0 with albumentations"),
        ("contrast", 0.1, "0 with albumentations"),
        ("brightness", -0.1, "from 0 to 1"),
        ("contrast", 1.5, "from 0 to 1"),
        *(("degraded", value, "from 0 to 1") for value in (-0.1, 1.5, math.nan)),
        ("flip", "alternating", "random with albumentations"),
        ("widths", (64, 128, 128), "(64, 256, 256) with the custom ResNet"),
        ("whitening", False, "True with the custom ResNet"),
        ("activation", "hardswish", "relu with the custom ResNet"),
        ("activation", "gelu", "one of relu, hardswish"),
        ("whitening_epochs", 1, "None with the custom ResNet"),
        ("optimizer", "muon", "adam with the custom ResNet"),
        ("bias_lr_scale", 64, "1 with adam"),
        ("whitening_epochs", -1, "at least 0"),
    ],
)
def test_a_wrong_value_is_refused_naming_option_value_and_allowed_values(
    field: str, value: object, allowed: str
) -> None:
    message = f"--{field.replace('_', '-')} is {value!r}; it must be {allowed}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Config(**{field: value})


def test_lr_min_above_lr_max_is_refused_and_equal_rates_are_not() -> None:
    with pytest.raises(InputError, match=r"^--lr-min is 0\.2; it must be at most --lr-max, which is 0\.1$"):
        Config(lr_min=0.2, lr_max=0.1)
    assert Config(lr_min=0.1, lr_max=0.1).lr_min == 0.1


@pytest.mark.parametrize("seed", [2**63, 2**64, 10**30])
def test_a_seed_of_more_than_63_bits_is_refused(seed: int) -> None:
    assert Config(seed=2**63 - 1)
    with pytest.raises(InputError, match=f"--seed is {seed}; it must be"):
        Config(seed=seed)


def test_every_field_belongs_to_exactly_one_group_with_the_same_default() -> None:
    of_groups = [(field.name, field.default) for group in (*GROUPS, OpenConfig) for field in dataclasses.fields(group)]
    assert sorted(of_groups, key=str) == sorted(((f.name, f.default) for f in dataclasses.fields(Config)), key=str)


@given(configs())
def test_a_configuration_written_as_json_comes_back_equal(config: Config) -> None:
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_saved_configuration_loads_equal_and_missing_fields_get_their_defaults(tmp_path: Path) -> None:
    config = Config(epochs=3, lr_max=0.01, lr_min=0.001, limit=100, out=Path("some where/else"))
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert Config.load(tmp_path / "config.json") == config
    (tmp_path / "config.json").write_text('{"epochs": 3, "lr_max": 1}')
    assert Config.load(tmp_path / "config.json") == Config(epochs=3, lr_max=1)


def test_an_unknown_field_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"field 'epoch' is unknown; the fields are activation, .*, workers"):
        Config.from_json({"epoch": 3})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", "24"),
        ("epochs", 24.0),
        ("epochs", True),
        ("epochs", None),
        ("batch_size", [512]),
        ("lr_max", "0.1"),
        ("lr_max", 10**400),
        ("seed", 2**63),
        ("lr_min", False),
        ("peak_fraction", None),
        ("seed", 0.5),
        ("limit", "all"),
        ("data", 10),
        ("data", None),
        ("device", "tpu"),
        ("precision", 16),
        ("recipe", None),
        ("whitening", 1),
        ("sizes", 24),
        ("sizes", "24"),
        ("out", 1),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_naming_field_and_value(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"{field.replace('_', '-')} is {re.escape(repr(value))}; it must be"):
        Config.from_json({field: value})


@pytest.mark.parametrize("field", ["out", "data", "labels", "init", "network"])
@pytest.mark.parametrize("value", ["a\0b", "a\ud800b.py:c"])
def test_text_that_a_path_cannot_have_is_refused(field: str, value: str) -> None:
    with pytest.raises(InputError, match=f"--{field} is .*; it must be without characters that a path cannot have"):
        Config.from_json({field: value})


def test_a_value_of_the_right_type_must_be_allowed_too() -> None:
    with pytest.raises(InputError, match="--epochs is 0; it must be at least 1"):
        Config.from_json({"epochs": 0})
    with pytest.raises(InputError, match="--lr-max is nan; it must be a positive number"):
        Config.from_json(json.loads('{"lr_max": NaN}'))


@pytest.mark.parametrize("content", [b"", b"epochs: 3", b'{"epochs": 3', b"\xff\xfe\x00", b"PK\x03\x04"])
def test_a_file_that_is_not_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is not a configuration: "):
        Config.load(tmp_path / "config.json")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"epochs"'])
def test_json_that_is_not_an_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json is not a configuration: it must hold one JSON object"):
        Config.load(tmp_path / "config.json")


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the configuration .*missing\.json: No such file"):
        Config.load(tmp_path / "missing.json")
    with pytest.raises(InputError, match="cannot read the configuration .*: it is not a regular file"):
        Config.load(tmp_path)
