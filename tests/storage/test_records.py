import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onecycle.core.errors import InputError
from onecycle.core.validated import AtLeastOne, Count, Fraction
from onecycle.data import ImageSet
from onecycle.storage.records import (
    EpochNumber,
    EpochRecord,
    LayerSummary,
    LRCurve,
    Misclassified,
    NetworkSummary,
    RateOfRun,
    RunResult,
    Seconds,
)
from onecycle.storage.run_folder import RunFolder

numbers = st.floats(allow_nan=False, allow_infinity=False)
rates = st.floats(1e-30, 1e30)
counts = st.integers(0, 2**53)


def through_json(values: object) -> object:
    return json.loads(json.dumps(values))


def lists_of_numbers(length: int) -> st.SearchStrategy[tuple[float, ...]]:
    return st.lists(numbers, min_size=length, max_size=length).map(tuple)


@st.composite
def curves(draw: st.DrawFn) -> LRCurve:
    length = draw(st.integers(1, 8))
    return LRCurve(
        lrs=draw(st.lists(rates, min_size=length, max_size=length).map(tuple)),
        losses=draw(lists_of_numbers(length)),
        smoothed=draw(lists_of_numbers(length)),
        suggestions=draw(st.dictionaries(st.text(), rates, max_size=3)),
        lr_min=draw(rates),
        lr_max=draw(rates),
        stopped=draw(st.sampled_from(["completed", "diverged", "not finite"])),
    )


def number_fields(record: type) -> dict[str, st.SearchStrategy[float]]:
    """A Hypothesis strategy for each numeric field of `record`, by field name."""
    types = {field.name: field.type for field in dataclasses.fields(record)}
    strategies = {
        int: counts,
        Count: counts,
        AtLeastOne: st.integers(1, 2**53),
        float: numbers,
        Fraction: st.floats(0, 1),
        Seconds: st.floats(0, 1e9),
        RateOfRun: st.floats(0, 1e30),
        EpochNumber: st.integers(1, 1_000_000),
    }
    return {name: strategies[type] for name, type in types.items() if type in strategies}


results = st.builds(
    RunResult,
    recipe=st.text(),
    dataset=st.text(),
    fingerprint=st.text(),
    evaluated_on=st.sampled_from(["test", "validation"]),
    notes=st.lists(st.text(), max_size=3).map(tuple),
    **number_fields(RunResult),
)


@given(curves())
def test_an_lr_curve_written_as_json_comes_back_equal(curve: LRCurve) -> None:
    assert LRCurve.from_json(through_json(curve.to_json())) == curve


@given(results)
def test_a_result_written_as_json_comes_back_equal(result: RunResult) -> None:
    assert RunResult.from_json(through_json(result.to_json())) == result


@given(results, st.floats(0, 1), st.floats(0, 1), st.integers(1, 1000))
def test_a_result_warns_if_the_network_knows_its_training_images_worse_than_in_training(
    result: RunResult, train: float, sample: float, images: int
) -> None:
    result = dataclasses.replace(result, train_accuracy=train, train_sample_accuracy=sample, train_sample_images=images)
    variance = max(share * (1 - share) for share in (train, sample))
    unexplained = train - sample - 0.02 - 3 * (variance / images) ** 0.5
    if abs(unexplained) > 1e-9:
        assert (result.warning is not None) == (unexplained > 0)
    assert dataclasses.replace(result, train_sample_accuracy=None).warning is None


@pytest.mark.parametrize(
    ("train", "sample", "images", "warns"),
    [(0.936, 0.14, 1000, True), (0.92, 0.86, 1000, True), (0.92, 0.90, 1000, False), (1.0, 0.96, 50, False)],
)
@given(result=results)
def test_the_warning_allows_for_chance(
    result: RunResult, train: float, sample: float, images: int, warns: bool
) -> None:
    measured = {"train_accuracy": train, "train_sample_accuracy": sample, "train_sample_images": images}
    assert (dataclasses.replace(result, **measured).warning is not None) == warns


@given(st.builds(EpochRecord, **number_fields(EpochRecord)))
def test_an_epoch_written_as_json_comes_back_equal(record: EpochRecord) -> None:
    assert EpochRecord(**through_json(dataclasses.asdict(record))) == record


def test_records_are_frozen() -> None:
    layer = LayerSummary(layer="Linear-1", output_shape=(10,), parameters=5120)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.parameters = 0  # type: ignore[misc]


def test_the_size_of_a_network_counts_each_output_twice_and_four_bytes_per_number() -> None:
    layers = tuple(
        LayerSummary(layer=name, output_shape=shape, parameters=0)
        for name, shape in [("Conv2d-1", (64, 32, 32)), ("Flatten-2", (65536,)), ("Linear-3", (10,))]
    )
    network = NetworkSummary(input_shape=(3, 32, 32), layers=layers, parameters=655_360, trainable_parameters=655_360)
    assert network.input_mb == 3 * 32 * 32 * 4 / 2**20
    assert network.forward_backward_mb == 2 * (65_536 + 65_536 + 10) * 4 / 2**20
    assert network.parameters_mb == 2.5
    assert network.total_mb == network.input_mb + network.forward_backward_mb + network.parameters_mb
    written = through_json(network.to_json())
    assert isinstance(written, dict)
    assert {name: written[name] for name in ("input_mb", "forward_backward_mb", "parameters_mb", "total_mb")} == {
        "input_mb": 0.01,
        "forward_backward_mb": 1.0,
        "parameters_mb": 2.5,
        "total_mb": 3.51,
    }
    assert written["layers"][0] == {"layer": "Conv2d-1", "output_shape": [64, 32, 32], "parameters": 0}


def _equal(one: Misclassified, other: Misclassified) -> bool:
    for name, value in vars(one).items():
        again = getattr(other, name)
        if isinstance(value, np.ndarray):
            if (value.dtype, value.shape, value.tobytes()) != (again.dtype, again.shape, again.tobytes()):
                return False
        elif value != again:
            return False
    return True


@st.composite
def misclassified(draw: st.DrawFn) -> Misclassified:
    count = draw(st.integers(0, 3))
    letters = st.characters(codec="utf-8", exclude_categories=["C", "Z"])
    names = st.text(letters, min_size=1, max_size=5)
    classes = tuple(draw(st.lists(names, min_size=2, max_size=4, unique=True)))
    labels = arrays.arrays(np.int64, count, elements=st.integers(0, len(classes) - 1))
    return Misclassified(
        indices=draw(arrays.arrays(np.int64, count)),
        images=draw(arrays.arrays(np.uint8, (count, 4, 4, 3))),
        labels=draw(labels),
        predictions=draw(labels),
        probabilities=draw(arrays.arrays(np.float32, (count, len(classes)), elements=st.floats(0, 1, width=32))),
        classes=classes,
    )


@given(misclassified())
def test_misclassified_images_come_back_from_their_file_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, misclassified: Misclassified
) -> None:
    folder = RunFolder(tmp_path_factory.getbasetemp())
    folder.write_misclassified(misclassified)
    loaded = folder.read_misclassified()
    assert _equal(misclassified, loaded)
    assert isinstance(loaded.classes, tuple)


def test_a_file_with_objects_is_refused_and_nothing_is_unpickled(
    tiny: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    harm = tmp_path / "harm"

    class Harm:
        def __reduce__(self) -> object:
            return harm.mkdir, ()

    test = tiny[1]
    values = {
        "indices": np.arange(20),
        "images": test.images,
        "labels": test.labels,
        "predictions": test.labels,
        "probabilities": np.zeros((20, 10), np.float32),
    }
    path = tmp_path / "misclassified.npz"
    np.savez(path, **values, classes=np.array([Harm()], dtype=object))
    with pytest.raises(InputError, match="allow_pickle=False"):
        RunFolder(tmp_path).read_misclassified()
    assert not harm.exists()
    with np.load(path, allow_pickle=True) as arrays_of_objects:
        arrays_of_objects["classes"]
    assert harm.exists()  # unpickling the same file creates the folder
