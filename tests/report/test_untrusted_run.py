"""Commands that read a run folder made by someone else: links in it lead nowhere, and its records are validated."""

import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from onecycle.cli import main
from onecycle.core.errors import StorageError
from onecycle.report import plots
from onecycle.storage.checkpoint import load_tensors, save_tensors
from onecycle.storage.run_folder import RunFolder

Refused = Callable[..., str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command, which must be refused in one line. Returns the line."""

    def refuse(*arguments: str | Path) -> str:
        assert main([*map(str, arguments)]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        return line

    return refuse


# Links


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


def test_a_linked_lock_is_refused_and_its_target_untouched(copy_of: RunFolder, victim: Path, refused: Refused) -> None:
    copy_of.interpretation.unlink()  # so that the report locks the folder to compute one
    (copy_of.path / ".lock").symlink_to(victim)
    assert ".lock cannot be written (it is a symbolic link); remove it" in refused("report", "--run", copy_of.path)
    assert victim.read_text() == "precious"
    assert not copy_of.is_idle(), "nor does a look at the neighbors of a run touch it"
    assert victim.read_text() == "precious"


def test_a_linked_report_is_replaced_and_its_target_untouched(copy_of: RunFolder, victim: Path) -> None:
    copy_of.report.unlink()
    copy_of.report.symlink_to(victim)
    (copy_of.path / f".report.html.{os.getpid()}.tmp").symlink_to(victim)  # the name in earlier versions
    assert main(["report", "--run", str(copy_of.path)]) == 0
    assert victim.read_text() == "precious"
    assert copy_of.report.is_file() and not copy_of.report.is_symlink()


@pytest.mark.parametrize("name", ["config", "environment", "result", "history", "misclassified", "interpretation"])
def test_a_linked_record_is_refused(copy_of: RunFolder, refused: Refused, name: str) -> None:
    path: Path = getattr(copy_of, name)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    line = refused("report", "--run", copy_of.path)
    assert str(path) in line and "it is a symbolic link" in line


@pytest.mark.parametrize("name", ["environment", "result", "history", "network", "predictions"])
@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_a_record_that_never_ends_is_refused(copy_of: RunFolder, refused: Refused, name: str, target: str) -> None:
    path: Path = getattr(copy_of, name)
    path.unlink()
    if target == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    assert str(path) in refused("report", "--run", copy_of.path)


@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "elsewhere"])
@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "serve"])
def test_linked_weights_are_refused(copy_of: RunFolder, refused: Refused, command: str, target: str) -> None:
    copy_of.weights.rename(copy_of.path / "elsewhere")
    if target == "pipe":
        os.mkfifo(copy_of.weights)
    else:
        copy_of.weights.symlink_to(target)
    assert str(copy_of.weights) in refused(
        command, "--run", copy_of.path, *(["image.png"] if command == "predict" else [])
    )


@pytest.mark.parametrize("name", ["plots", "onnx"])
def test_a_linked_folder_in_a_run_is_refused(copy_of: RunFolder, tmp_path: Path, refused: Refused, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(copy_of.path / name, ignore_errors=True)
    (copy_of.path / name).symlink_to(tmp_path / "elsewhere")
    if name == "onnx":
        assert "onnx: it is a symbolic link; give another one" in refused("export", "--run", copy_of.path)
    else:
        with pytest.raises(StorageError, match="plots cannot be written .it is a symbolic link.; remove it"):
            plots.draw(copy_of)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_run_is_read_through_a_link_to_its_folder(copy_of: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy_of.path)
    assert main(["report", "--run", str(tmp_path / "link")]) == 0
    (tmp_path / "config.json").symlink_to(copy_of.config)
    assert main(["study", "--config", str(tmp_path / "config.json"), "--seeds", "0"]) == 2


# Contents

NESTED = "[" * 100_000
ESCAPES = "\x1b]0;title\x07\x1b[31m"  # sets the title of a terminal, and its color


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config", {"widths": [60_000, 8, 8]}),
        ("config", {"size": 60_000}),
        ("config", {"workers": 1_000_000}),
        ("config", {"padding": 10**9}),
        ("config", {"recipe": ESCAPES}),
        ("environment", {"dataset": []}),
        ("environment", {"dataset": {"name": [1], "fingerprint": "", "notes": []}}),
        ("environment", {"versions": "1.0"}),
        ("environment", {"compute_plan": {"device": "cpu", "precision": "float32", "threads": "many"}}),
        ("result", {"evaluated_on": ESCAPES}),
        ("result", {"eval_accuracy": 7}),
        ("result", {"notes": "a note"}),
        ("result", {"calibration": {"temperature": 0, "images": 5, "source": "validation"}}),
        ("result", {"calibration": {"temperature": 1.5, "images": 5, "source": ESCAPES}}),
        ("result", {"calibration": {"temperature": 1.5}}),
        ("result", {"calibration": 1.5}),
        ("result", {"energy_threshold": float("nan")}),
        ("result", {"energy_threshold": float("inf")}),
        ("result", {"energy_threshold": 10**400}),
        ("result", {"seconds": float("inf")}),
        ("result", {"seconds": -1}),
        ("result", {"lr_max": float("nan")}),
        ("result", {"lr_min": float("inf")}),
        ("result", {"tta_seconds": 10**400}),
        ("result", {ESCAPES: 0}),
        ("network", {"layers": [{"layer": "Linear-1", "output_shape": ["x"], "parameters": 0}]}),
    ],
)
def test_a_record_with_a_wrong_value_is_refused(
    copy_of: RunFolder, refused: Refused, name: str, values: dict[str, object]
) -> None:
    path: Path = getattr(copy_of, name)
    changed(path, **values)
    line = refused("report", "--run", copy_of.path)
    assert path.name in line and line.isprintable()


@pytest.mark.parametrize("name", ["config", "environment", "result", "history", "network"])
def test_deeply_nested_json_is_refused(copy_of: RunFolder, refused: Refused, name: str) -> None:
    path: Path = getattr(copy_of, name)
    path.write_text(NESTED)
    assert str(path) in refused("report", "--run", copy_of.path)


@pytest.mark.parametrize(
    "values",
    [
        {"epoch": "one"},
        {"epoch": 10**9},
        {"lr": float("nan")},
        {"train_accuracy": 2},
        {"eval_loss": None},
        {"train_loss": 10**150},
        {"extra": 0},
    ],
)
def test_a_history_with_a_wrong_value_is_refused(
    copy_of: RunFolder, refused: Refused, values: dict[str, object]
) -> None:
    first, *others = copy_of.history.read_text().splitlines()
    copy_of.history.write_text("\n".join([json.dumps({**json.loads(first), **values}), *others]))
    assert str(copy_of.history) in refused("report", "--run", copy_of.path)


@pytest.mark.parametrize("loss", [1e4, 1.48e228, -1e300, math.inf])
def test_a_report_shows_a_loss_of_any_size(copy_of: RunFolder, loss: float) -> None:
    lines = [json.loads(line) for line in copy_of.history.read_text().splitlines()]
    lines[-1] |= {"train_loss": loss, "eval_loss": loss}
    copy_of.history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["report", "--run", str(copy_of.path)]) == 0
    assert f"last epoch: {loss:.3g} (test)" in copy_of.report.read_text()


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("predictions", {"logits": np.zeros((3, 10), np.float32), "labels": np.zeros(2, np.int64)}),
        ("predictions", {"logits": np.zeros((3, 10), np.float32), "labels": np.full(3, 10)}),
        ("predictions", {"logits": np.zeros(3, np.float32), "labels": np.zeros(3, np.int64)}),
        ("predictions", {"logits": np.array(["a"]), "labels": np.zeros(1, np.int64)}),
        ("predictions", {"labels": np.zeros(3, np.int64)}),
        ("misclassified", {"classes": np.arange(10)}),
        ("misclassified", {"classes": np.array(["a"] * 10)}),
        ("misclassified", {"classes": np.array([ESCAPES, *"bcdefghij"])}),
        ("misclassified", {"classes": np.array(["", *"bcdefghij"])}),
        ("misclassified", {"classes": np.array(["\u202etxt", *"bcdefghij"])}),
        ("augmentations", {"originals": np.zeros((2, 8, 8), np.uint8)}),
        ("interpretation", {"label_issues": np.array([10**6])}),
        ("augmentations", {name: np.zeros((0, 8, 8, 3), np.uint8) for name in ("originals", "augmented")}),
        ("augmentations", {name: np.zeros((2, 0, 8, 3), np.uint8) for name in ("originals", "augmented")}),
        ("predictions", {"logits": np.zeros((0, 10), np.float32), "labels": np.zeros(0, np.int64)}),
        ("interpretation", {"misclassified": np.array([], np.int64)}),
        ("interpretation", {"train_label_issue_images": np.zeros((0, 32, 32, 3), np.uint8)}),
        ("interpretation", {"duplicate_images": np.zeros((0, 2, 32, 32, 3), np.uint8)}),
    ],
)
def test_arrays_of_another_shape_or_meaning_are_refused(
    copy_of: RunFolder, refused: Refused, name: str, arrays: dict[str, NDArray[Any]]
) -> None:
    path: Path = getattr(copy_of, name)
    before = {} if name == "predictions" else copy_of.read_arrays(path)
    copy_of.write_arrays(path, **{**before, **arrays})
    line = refused("report", "--run", copy_of.path)
    assert str(path) in line and line.isprintable()


@pytest.mark.parametrize("more", [1, -1])
@pytest.mark.parametrize("name", ["predictions", "training_margins"])
def test_arrays_of_other_images_than_those_of_the_data_are_refused(
    copy_of: RunFolder, refused: Refused, name: str, more: int
) -> None:
    path: Path = getattr(copy_of, name)
    arrays = copy_of.read_arrays(path)
    copy_of.write_arrays(
        path, **{key: np.resize(values, (len(values) + more, *values.shape[1:])) for key, values in arrays.items()}
    )
    copy_of.interpretation.unlink()
    line = refused("report", "--run", copy_of.path)
    assert f"{path} does not belong to this run: it has the shape [" in line and line.isprintable()


@pytest.mark.parametrize("name", ["predictions", "training_margins"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_arrays_that_are_not_finite_are_refused(copy_of: RunFolder, refused: Refused, name: str, value: float) -> None:
    path: Path = getattr(copy_of, name)
    arrays = copy_of.read_arrays(path)
    arrays["logits" if name == "predictions" else "margins"].flat[3] = value
    copy_of.write_arrays(path, **arrays)
    copy_of.interpretation.unlink()
    line = refused("report", "--run", copy_of.path)
    assert str(path) in line and "has values that are not finite" in line


@pytest.mark.parametrize("dtype", ["f2", "f8", "g", ">f4"])
def test_logits_of_another_precision_or_byte_order_are_refused(
    copy_of: RunFolder, refused: Refused, dtype: str
) -> None:
    arrays = copy_of.read_arrays(copy_of.predictions)
    copy_of.write_arrays(copy_of.predictions, **{**arrays, "logits": arrays["logits"].astype(dtype)})
    assert "logits is not an array of float32" in refused("report", "--run", copy_of.path)


def test_a_header_of_an_array_that_is_not_python_is_refused(copy_of: RunFolder, refused: Refused) -> None:
    header = b"{'descr': (\n"
    with zipfile.ZipFile(copy_of.predictions, "w") as archive:
        archive.writestr("logits.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert str(copy_of.predictions) in refused("report", "--run", copy_of.path)


def test_an_array_that_unpacks_to_far_more_than_its_file_is_refused(copy_of: RunFolder, refused: Refused) -> None:
    packed = zipfile.ZipFile(copy_of.predictions, "w", zipfile.ZIP_DEFLATED)
    with packed as archive, archive.open("logits.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**27, 1)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(300):
            file.write(bytes(2**20))
    assert "a file of this size may unpack to at most" in refused("report", "--run", copy_of.path)


def test_an_array_that_claims_more_than_it_holds_is_refused(copy_of: RunFolder, refused: Refused) -> None:
    with zipfile.ZipFile(copy_of.predictions, "w") as archive, archive.open("logits.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 1)}
        np.lib.format.write_array_header_1_0(file, header)
    assert "logits.npy claims the shape" in refused("report", "--run", copy_of.path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_an_array_that_is_packed_by_a_method_without_a_bound_is_refused(
    copy_of: RunFolder, refused: Refused, method: int
) -> None:
    with zipfile.ZipFile(copy_of.predictions, "w", zipfile.ZIP_STORED if method == 99 else method) as archive:
        archive.writestr("logits.npy", bytes(100))
    if method == 99:  # a method that no zip uses
        content = copy_of.predictions.read_bytes()
        place = content.index(b"PK\1\2") + 10
        copy_of.predictions.write_bytes(content[:place] + b"\x63\0" + content[place + 2 :])
    assert "logits.npy is not compressed by deflate" in refused("report", "--run", copy_of.path)


def test_a_line_of_the_history_that_is_too_long_is_refused(copy_of: RunFolder, refused: Refused) -> None:
    copy_of.history.write_text("[" + "[]," * 30_000 + "[]]")
    assert "a line has 90,004 bytes; the limit is 65,536" in refused("report", "--run", copy_of.path)


CURVE = {"lrs": [1e-3, 1e-2], "losses": [2.0, 1.0], "smoothed": [2.0, 1.0], "suggestions": {}, "stopped": "completed"}


@pytest.mark.parametrize(
    "values", [{"smoothed": [2.0]}, {"losses": []}, {"lrs": [0, 1e-2]}, {"lrs": [-1, 1]}, {"lr_max": 1e300}]
)
def test_a_curve_that_is_not_that_of_a_sweep_is_refused(
    copy_of: RunFolder, refused: Refused, values: dict[str, object]
) -> None:
    copy_of.write_json(copy_of.lr_finder, {**CURVE, "lr_min": 1e-3, "lr_max": 1e-2, **values})
    assert str(copy_of.lr_finder) in refused("report", "--run", copy_of.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": [ESCAPES, *"bcdefghij"]},
        {"classes": [["a"], *"bcdefghij"]},
        {"classes": ["a"] * 10},
        {"classes": [1, *"bcdefghij"]},
        {"classes": [*"abc"]},
        {"classes": []},
        {"preprocessing": {"input_size": 60_000, "mean": [0.5] * 3, "std": [0.5] * 3}},
        {"preprocessing": {"input_size": 32, "mean": [0.5] * 3, "std": [0.5, 0, 0.5]}},
        {"preprocessing": {"input_size": 32, "mean": [0.5] * 3, "std": [0.5] * 2}},
        {"preprocessing": {"input_size": 32, "mean": [float("nan")] * 3, "std": [0.5] * 3}},
        {"preprocessing": []},
        {"temperature": 0},
        {"temperature": -1.5},
        {"temperature": 1000},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": True},
        {"temperature": "1"},
        {"temperature": None},
        {"energy_threshold": "3"},
        {"energy_threshold": False},
        {"energy_threshold": float("nan")},
        {"energy_threshold": float("inf")},
        {"energy_threshold": 10**400},
        {"architecture": {"network": "whitened_convnet", "widths": [60_000, 8, 8], "activation": "relu"}},
        {"architecture": {"network": "whitened_convnet", "widths": [4096, 4096, 4096], "activation": "relu"}},
        {"architecture": {"network": "custom_resnet", "widths": [True, 8, 8], "activation": "relu"}},
    ],
)
def test_weights_that_describe_another_or_no_network_are_refused(
    copy_of: RunFolder, refused: Refused, changes: dict[str, object]
) -> None:
    tensors, metadata = load_tensors(copy_of.weights)
    save_tensors(copy_of.weights, tensors, {**metadata, **changes})
    line = refused("predict", "--run", copy_of.path, "image.png")
    assert str(copy_of.weights) in line and line.isprintable()


def test_weights_that_are_not_finite_are_refused(copy_of: RunFolder, refused: Refused) -> None:
    tensors, metadata = load_tensors(copy_of.weights)
    tensors["linear.weight"][0, 0] = float("nan")
    save_tensors(copy_of.weights, tensors, metadata)
    assert "a weight is not finite" in refused("predict", "--run", copy_of.path, "image.png")


@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "serve"])
@pytest.mark.parametrize(
    "values",
    [
        torch.full((8,), math.inf),
        torch.full((8,), 1e300, dtype=torch.float64),  # infinite in the precision of the network
        torch.full((8,), math.nan, dtype=torch.bfloat16),
        torch.zeros(8, dtype=torch.complex64),
        torch.zeros(8, dtype=torch.int64),
        torch.zeros(8, dtype=torch.bool),
    ],
    ids=str,
)
def test_statistics_that_are_not_finite_or_of_another_type_are_refused(
    copy_of: RunFolder, refused: Refused, values: torch.Tensor, command: str
) -> None:
    tensors, metadata = load_tensors(copy_of.weights)
    name = next(name for name, tensor in tensors.items() if name.endswith("running_var") and tensor.shape == (8,))
    save_tensors(copy_of.weights, {**tensors, name: values}, metadata)
    line = refused(command, "--run", copy_of.path, *(["image.png"] if command == "predict" else []))
    assert str(copy_of.weights) in line and ("not finite" in line or f"is {values.dtype}, not torch.float32" in line)


def test_a_header_of_weights_that_is_not_that_of_its_file_is_refused(copy_of: RunFolder, refused: Refused) -> None:
    os.truncate(copy_of.weights, 2**40)  # a hole, which occupies no disk space
    line = refused("predict", "--run", copy_of.path, "image.png")
    assert "it has 1,099,511,627,776 bytes; the limit is" in line


def test_probabilities_that_are_not_finite_are_refused(copy_of: RunFolder, tmp_path: Path, refused: Refused) -> None:
    tensors, metadata = load_tensors(copy_of.weights)
    for name, tensor in tensors.items():
        if name.endswith("running_var"):
            tensor.fill_(-1)
    save_tensors(copy_of.weights, tensors, metadata)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "image.png")
    assert "no finite probabilities" in refused("predict", "--run", copy_of.path, tmp_path / "image.png")


@pytest.mark.parametrize(
    "plan", [{"threads": 1_000_000}, {"threads": 0}, {"threads": "2"}, {"device": "auto"}, {"x": 1}]
)
def test_a_compute_plan_that_nobody_chose_is_refused(
    copy_of: RunFolder, refused: Refused, plan: dict[str, object]
) -> None:
    recorded = copy_of.read_json(copy_of.environment)
    changed(copy_of.environment, compute_plan={**recorded["compute_plan"], **plan})
    assert str(copy_of.environment) in refused("evaluate", "--run", copy_of.path)


@pytest.mark.parametrize("values", [{"widths": [60_000, 8, 8]}, {"workers": 10**6}, {"data": ["digits"]}, {ESCAPES: 1}])
@pytest.mark.parametrize("option", ["--config", "--resume"])
def test_a_configuration_with_a_wrong_value_starts_nothing(
    copy_of: RunFolder, refused: Refused, values: dict[str, object], option: str
) -> None:
    changed(copy_of.config, **values)
    line = refused("train", option, copy_of.config if option == "--config" else copy_of.path)
    assert str(copy_of.config) in line and line.isprintable()
