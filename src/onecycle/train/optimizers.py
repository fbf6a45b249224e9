"""Muon: steps for convolution filters in which every direction counts alike, and plain SGD for all else."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

# Coefficients of a x + b x³ + c x⁵, steep at zero: three rounds bring all but the smallest singular values near one.
# Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
_QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 3


def orthogonalized(matrix: torch.Tensor, rounds: int = ROUNDS) -> torch.Tensor:
    """About U Vᵀ, where `matrix` `[M,N]` is U S Vᵀ: the same directions, all nearer to one length; of the same type.

    By a Newton-Schulz iteration, which needs only products, and bears those of bfloat16. Each round brings a singular
    value that is small beside the length of the whole matrix up to 3.4 times nearer to one.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x: torch.Tensor = matrix / (matrix.norm() + 1e-7)  # no singular value is above one
    if tall:
        x = x.T
    for _ in range(rounds):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(Optimizer):
    """Momentum with Nesterov's look ahead; in groups with `orthogonalize`, of an orthogonalized step.

    `orthogonalize` names the precision to do that in, "bfloat16" or "float32". In these groups each parameter
    `[outputs, …]` is a matrix with a row for each output. Before each step it is scaled back to a length of one for a
    row on average, so that the learning rate says how far it turns. Elsewhere this is SGD. (PyTorch's own Muon takes
    only matrices, and decays weights instead of scaling them.)

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float = 1e-3) -> None:
        super().__init__(groups, {"lr": lr, "momentum": 0.0, "orthogonalize": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step with the gradients that the parameters have."""
        assert closure is None, "the loss is never computed again"
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].mul_(momentum).add_(parameter.grad)
                step = parameter.grad.add(buffer, alpha=momentum)
                if group["orthogonalize"]:
                    parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                    step = _turned(step, getattr(torch, group["orthogonalize"]))
                parameter.add_(step, alpha=-lr)


def _turned(step: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    rows = step.movedim(1, -1)  # which is how filters lie in memory where that is fast: flattening copies nothing
    return orthogonalized(rows.flatten(1).to(precision)).view(rows.shape).movedim(-1, 1).to(step.dtype)
