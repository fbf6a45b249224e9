"""One training step: the forward and backward pass of a batch, without the optimizer step."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from onecycle.compute.plan import ComputePlan
from onecycle.models import Batch, ModelComposite


class StepResult(NamedTuple):
    """The mean loss of a batch, its number of correct predictions and its number of images.

    `margins` float32 `[B]` is, for each image, the logit of its label minus the largest other logit. The gradients are
    stored in the parameters. The tensors are on the device, which may still be computing them. `seconds` is the time of
    the forward and backward pass. On a GPU, it is only the time to start these passes. `training_steps` sets `seconds`.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    images: int
    margins: torch.Tensor
    seconds: float = 0.0


TrainStep = Callable[[ModelComposite, Batch, int], StepResult]
"""Called with a prepared model, a batch and the step (0-based, global)."""


def whole_batch_step(plan: ComputePlan) -> TrainStep:
    """A train step that computes the whole batch at once."""

    def step(prepared: ModelComposite, batch: Batch, number: int) -> StepResult:
        with plan.autocast():
            loss, logits = prepared.training_step(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        logits = logits.detach()
        correct = (logits.argmax(dim=1) == batch.labels).sum()
        return StepResult(loss.detach(), correct, len(batch.labels), margins_of(logits, batch.labels))

    return step


def margins_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logit of each label minus the largest other logit: float32 `[B]`, from logits `[B,C]` and labels `[B]`."""
    logits, labels = logits.float(), labels.unsqueeze(1)
    others = logits.scatter(1, labels, -torch.inf)
    return logits.gather(1, labels).squeeze(1) - others.amax(dim=1)
