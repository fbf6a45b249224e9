"""The optimizers: Adam, and Muon. Muon uses SGD for all parameters except convolution filters."""

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch.optim import Optimizer

# Coefficients of the polynomial a x + b x³ + c x⁵. The polynomial is steep at zero: three rounds bring most singular
# values near one.
# Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
_QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 3


def orthogonalized(matrix: torch.Tensor, rounds: int = ROUNDS) -> torch.Tensor:
    """Approximately U Vᵀ, where U S Vᵀ is the singular value decomposition of `matrix` `[M,N]`. The dtype is kept.

    This Newton-Schulz iteration moves all singular values toward one. It needs only matrix products, and bfloat16 is
    precise enough for it. Each round multiplies small singular values by up to 3.4.
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


class EagerOptimizer(Optimizer):
    """An optimizer for eager code. Do not use it inside `torch.compile`.

    PyTorch wraps the methods of its optimizers for its compiler. The wrappers import the compiler, which takes seconds.
    Here the methods are not wrapped.
    """

    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)


class Adam(EagerOptimizer, torch.optim.Adam):
    """PyTorch's Adam, for eager code. It computes the same numbers as `torch.optim.Adam`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        assert closure is None, "closures are not supported"
        unwrap(torch.optim.Adam.step)(self)


class Muon(EagerOptimizer):
    """SGD with Nesterov momentum. Parameter groups with `orthogonalize` take orthogonalized steps.

    `orthogonalize` is the precision of the orthogonalization, "bfloat16" or "float32". In these groups a parameter
    `[outputs, …]` is treated as a matrix with one row for each output. Before each step the parameter is rescaled so
    that its rows have length one on average. The learning rate is then roughly the angle, in radians, by which a step
    turns a row. (PyTorch's own Muon takes only matrices, and uses weight decay instead of rescaling.)

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float = 1e-3) -> None:
        super().__init__(groups, {"lr": lr, "momentum": 0.0, "orthogonalize": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        assert closure is None, "closures are not supported"
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
                    step = _orthogonal_step(step, getattr(torch, group["orthogonalize"]))
                parameter.add_(step, alpha=-lr)


def _orthogonal_step(step: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    rows = step.movedim(1, -1)  # channels-last filters already lie in memory like this, so flattening copies nothing
    return orthogonalized(rows.flatten(1).to(precision)).view(rows.shape).movedim(-1, 1).to(step.dtype)
