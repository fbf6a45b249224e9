from pathlib import Path

import pytest
import torch
from networks import NARROW
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from onecycle.cli import main
from onecycle.predict.predictor import Predictor
from onecycle.storage.run_folder import RunFolder

OPTIONS = [
    *(*NARROW, "--data", "digits", "--batch-size", "10", "--workers", "0", "--augmentation", "batched"),
    *("--optimizer", "sgd", "--precision", "float32", "--epochs", "1"),
]


def overflow_in_evaluation(module: nn.Module, _inputs: object, outputs: Tensor) -> Tensor | None:
    """A hook after each layer that makes the logits infinite, except in training.

    A high learning rate can do this, but on another CPU the same rate may stop a step or do no harm.
    """
    return outputs * torch.inf if isinstance(module, nn.Linear) and not module.training else None


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_whose_evaluation_is_not_finite_ends_in_one_line_and_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--limit", "20", "--lr-min", "1e-4", "--lr-max", "1e-3"]
    with register_module_forward_hook(overflow_in_evaluation):
        assert main(["train", *OPTIONS, *options, "--out", str(tmp_path)]) == 2
    (path,) = tmp_path.iterdir()
    reason = (
        "the result on the test images is not finite: 20 of 20 have logits with infinity or NaN, with a learning rate "
        "of up to 1.00e-03; use a lower --lr-max"
    )
    assert last_line(capsys) == f"onecycle: {reason}"
    assert reason in (path / "report.html").read_text()
    assert not RunFolder(path).is_complete


def test_evaluate_ends_in_one_line_when_its_result_is_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--limit", "20", "--lr-min", "1e-4", "--lr-max", "1e-3", "--validation", "10", "--no-report"]
    assert main(["train", *OPTIONS, *options, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    weights = RunFolder(path).weights
    predictor = Predictor.load(weights)
    with torch.no_grad():
        next(predictor.model.parameters()).fill_(torch.finfo(torch.float32).max)
    predictor.save(weights)
    assert main(["evaluate", "--run", str(path)]) == 2
    assert last_line(capsys) == (
        "onecycle: the result on the validation images is not finite: 10 of 10 have logits with infinity or NaN"
    )
