"""Tests of Adam against PyTorch's, and of Muon against a singular value decomposition and SGD."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from onecycle.train.optimizers import Adam, Muon, orthogonalized


def with_singular_values(rows: int, columns: int, values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, len(values), generator=generator))
    return left @ torch.diag(values) @ right.T


@given(st.integers(2, 40), st.integers(2, 40), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_orthogonalized_brings_all_singular_values_near_one(rows: int, columns: int, length: float, seed: int) -> None:
    rank = min(rows, columns)
    values = length * torch.linspace(1, 3, rank)
    result = orthogonalized(with_singular_values(rows, columns, values, seed), rounds=5)
    singular = torch.linalg.svdvals(result)
    assert float(singular.min()) > 0.6
    assert float(singular.max()) < 1.3


def test_orthogonalized_keeps_the_singular_vectors() -> None:
    matrix = with_singular_values(24, 60, torch.linspace(1, 4, 24))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    product = left.T @ orthogonalized(matrix).float() @ right.T  # diagonal if the singular vectors are unchanged
    off_diagonal = product - torch.diag(product.diagonal())
    assert float(off_diagonal.abs().max()) < 0.05
    assert float(product.diagonal().min()) > 0.5


def test_a_tall_matrix_gives_the_transposed_result_of_the_wide_one() -> None:
    matrix = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(orthogonalized(matrix), orthogonalized(matrix.T).T)


def test_a_zero_gradient_makes_no_step() -> None:
    assert not orthogonalized(torch.zeros(3, 5)).any()


def test_muon_is_nesterov_sgd_for_groups_that_are_not_orthogonalized() -> None:
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    muon = Muon([{"params": [ours], "momentum": 0.85}], lr=0.1)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.85, nesterov=True)
    for step in range(5):
        for parameter, optimizer in ((ours, muon), (theirs, sgd)):
            parameter.grad = torch.tensor([1.0, -2.0, 0.5]) * (step + 1)
            optimizer.step()
    assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_filters_are_rescaled_and_take_an_orthogonal_step(layout: torch.memory_format, precision: str) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter((5 * torch.randn(8, 4, 3, 3)).contiguous(memory_format=layout))
    before = weight.detach().clone()
    weight.grad = torch.randn(8, 4, 3, 3).contiguous(memory_format=layout)
    Muon([{"params": [weight], "orthogonalize": precision}], lr=0.25).step()
    rescaled = before * 8**0.5 / before.norm()
    rows = weight.grad.movedim(1, -1).flatten(1).to(getattr(torch, precision))
    step = orthogonalized(rows).float().view(8, 3, 3, 4).movedim(-1, 1)
    assert torch.allclose(weight, rescaled - 0.25 * step, atol=1e-6)


def test_parameters_without_a_gradient_do_not_change() -> None:
    parameter = nn.Parameter(torch.ones(2))
    Muon([{"params": [parameter]}], lr=0.1).step()
    assert torch.equal(parameter, torch.ones(2))


def test_adam_takes_the_same_steps_as_pytorchs_and_reads_its_state() -> None:
    def step(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, seed: int) -> None:
        optimizer.zero_grad()
        (parameter * torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))).sum().backward()
        optimizer.step()

    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 35).view(7, 5)) for _ in range(2))
    adam, reference = Adam([ours]), torch.optim.Adam([theirs])
    for seed in range(3):
        step(adam, ours, seed)
        step(reference, theirs, seed)
        assert torch.equal(ours, theirs)
    assert str(adam.state_dict()) == str(reference.state_dict())
    restored = Adam([theirs])
    restored.load_state_dict(reference.state_dict())
    step(adam, ours, 3)
    step(restored, theirs, 3)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_training_does_not_import_pytorchs_compiler(optimizer: str) -> None:
    program = (
        "import sys; from onecycle.core.config import Config\n"
        "from onecycle.compute.microbenchmark import Microbenchmark; from onecycle.run.build import assemble\n"
        "from onecycle.train.loop import fit\n"
        "e = assemble(Config(data='digits', limit=200, network='whitened_convnet', widths=(8, 8, 8), epochs=2,\n"
        f"    batch_size=50, optimizer='{optimizer}', augmentation='batched', lr_max=0.01, device='cpu'))\n"
        "Microbenchmark(e.model, 32, e.plan).faster_by_winograd(e.plan, 8, advantage=1)\n"
        "fit(e.model, e.optimizer, e.train, e.evaluation, epochs=1, lr_min=0.001, lr_max=0.01, plan=e.plan)\n"
        "e.optimizer.load_state_dict(e.optimizer.state_dict())\n"
        "print({'torch._dynamo', 'sympy'} & sys.modules.keys())"
    )
    completed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert completed.stdout == "set()\n"
