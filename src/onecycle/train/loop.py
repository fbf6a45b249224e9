"""The training loop: knows no files and no screens; its caller says what to do after a step and after an epoch."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from torch.optim import Optimizer

from onecycle.compute.plan import PLAIN, Acceleration
from onecycle.data.batches import Batches
from onecycle.distributed import ranks
from onecycle.models import Batch, ModelComposite, as_composite
from onecycle.storage.records import EpochRecord, History
from onecycle.train.nonfinite import NO_LAYER, NOT_LOOKED_AT, NonFiniteError, all_finite, first_not_finite
from onecycle.train.scheduler import one_cycle, peak_step
from onecycle.train.sharded_step import Learn, learning, whole


class Totals(NamedTuple):
    """Sums over the images of an epoch so far, on the device that computes them."""

    loss: torch.Tensor
    correct: torch.Tensor
    images: int

    @property
    def mean_loss(self) -> float:
        """Reading it waits for the device."""
        return float(self.loss) / self.images

    @property
    def accuracy(self) -> float:
        """The part of the images that were classified correctly. Reading it waits for the device."""
        return int(self.correct) / self.images


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Where training stands after a step."""

    epoch: int  # 1-based
    step: int  # 0-based, global
    images: int  # in this step
    lr: float
    totals: Totals
    seconds: float  # of training in this epoch so far
    margins: torch.Tensor | None = None  # as in `StepOutcome`; not among what is written down

    def to_json(self) -> dict[str, Any]:
        """Where training stands as plain values, exactly. It waits for the device."""
        totals = {**self.totals._asdict(), "loss": float(self.totals.loss), "correct": int(self.totals.correct)}
        return {**{name: value for name, value in vars(self).items() if name != "margins"}, "totals": totals}

    @classmethod
    def from_json(cls, values: dict[str, Any], device: str = "cpu") -> Self:
        """The inverse of `to_json`, with the totals on `device`."""
        loss, correct, images = (values["totals"][name] for name in Totals._fields)
        sums = torch.tensor(loss, dtype=_type_of_sums(device), device=device), torch.tensor(correct, device=device)
        return cls(**{**values, "totals": Totals(*sums, images)})


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a network does on a whole split, in its order: logits float32 `[N,C]`, labels int64 `[N]`."""

    loss: float
    accuracy: float
    logits: torch.Tensor
    labels: torch.Tensor


class StepOutcome(NamedTuple):
    """What one training step came to: the global step, and the rest as in `Learned`."""

    step: int
    loss: torch.Tensor
    correct: torch.Tensor
    images: int
    margins: torch.Tensor


def training_steps(
    running: ModelComposite,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    lr_of_step: Callable[[int], float],
    *,
    acceleration: Acceleration,
    first_step: int = 0,
    learn: Learn | None = None,
) -> Iterator[StepOutcome]:
    """Train `running`, a model that `acceleration` has prepared, on `batches`, one step each time the caller asks.

    A parameter group of `optimizer` that has an "lr_scale" learns at so many times the rate of the step. `learn` is how
    a batch is learned from, whole unless it is given.

    Raises:
        NonFiniteError: on a CPU, when a loss or a gradient is not finite; parameters and optimizer are as after the
            step before.
    """
    running.train()
    learn = learn or whole(acceleration)
    for step, batch in enumerate(batches, start=first_step):
        for group in optimizer.param_groups:
            group["lr"] = lr_of_step(step) * group.get("lr_scale", 1.0)
        optimizer.zero_grad()
        learned = learn(running, batch, step)
        # A GPU would have to be waited for; there it is noticed when the loss is read, or the state is saved.
        if acceleration.device == "cpu" and not all_finite(learned.loss, running):
            raise NonFiniteError(step, _where(running, batch, acceleration))
        optimizer.step()
        yield StepOutcome(step, *learned)


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    acceleration: Acceleration = PLAIN,
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """What `model` does on every image of `batches`, each counted once. The mode of `model` is left as it is.

    Raises:
        ValueError: when the batches are cut into shards that several processes have shared out.
    """
    # Compiling is worth it for training alone, and so a result can be computed again where there is no compiler.
    running = replace(acceleration, torch_compile=False).prepare(as_composite(model)).eval()
    others = ranks.current()
    if batches.shards > 1 and others.size > 1:
        raise ValueError("in several processes each has but its shards of these batches; evaluate some without shards")
    nothing = torch.empty(0, device=acceleration.device)  # this process may have none of the batches
    losses, logits = [nothing], [nothing]
    mine = others.block(len(batches))
    for batch in batches.epoch(0, first=mine.start, stop=mine.stop):
        with acceleration.autocast():
            output = running.evaluation_step(batch)
        losses.append(output.loss.view(1))
        logits.append(output.logits.float())
        after_batch()
    labels = torch.from_numpy(batches.images.labels[batches.order(0)])
    means = others.concatenated(torch.cat(losses).cpu()).tolist()
    all_logits = others.concatenated(torch.cat(logits).cpu())
    total = math.fsum(loss * batches.size(number) for number, loss in enumerate(means))
    correct = int((all_logits.argmax(dim=1) == labels).sum())
    return Evaluation(loss=total / len(labels), accuracy=correct / len(labels), logits=all_logits, labels=labels)


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    train: Batches,
    evaluation: Batches,
    *,
    epochs: int,
    lr_min: float,
    lr_max: float,
    peak_fraction: float = 5 / 24,
    acceleration: Acceleration = PLAIN,
    first_epoch: int = 0,
    last_step: StepReport | None = None,
    after_step: Callable[[StepReport], None] = lambda report: None,
    after_evaluation_batch: Callable[[], None] = lambda: None,
    after_epoch: Callable[[EpochRecord, Evaluation], None] = lambda record, evaluation: None,
) -> History:
    """Train any `nn.Module` from images to logits with one cycle of the learning rate, and evaluate after every epoch.

    `optimizer` holds the parameters of `model`; its learning rate is set at every step, and the whole network is put in
    training mode at the start of every epoch. The parameters of a group that has "epochs" need no gradient after so
    many. `first_epoch` (0-based) continues a run that was restored, after its `last_step` where it stands within that
    epoch. Returns the records of the epochs it ran.

    Raises:
        ValueError: when there are fewer than two steps, which make no cycle.
        NonFiniteError: when a loss or a gradient is not finite; on a CPU the parameters are as after the step before.
    """
    running = acceleration.prepare(as_composite(model))
    _lay_out_like_parameters(optimizer)
    steps = partial(training_steps, running, optimizer, acceleration=acceleration, learn=learning(train, acceleration))
    lr_of_step = _cycle(epochs, len(train), peak_fraction, lr_min, lr_max)
    history: History = []
    for epoch in range(first_epoch, epochs):
        report = before = last_step if epoch == first_epoch else None  # what was done of it, in a run that was restored
        started = time.perf_counter() - (before.seconds if before else 0)
        first = before.step + 1 if before else epoch * len(train)
        _freeze(optimizer, epoch)
        outcomes = steps(train.epoch(epoch, first=first - epoch * len(train)), lr_of_step, first_step=first)
        for report in _reports(outcomes, epoch, lr_of_step, before=before, started=started):
            after_step(report)
        assert report, "an epoch has a step at least"
        train_loss, train_accuracy = report.totals.mean_loss, report.totals.accuracy  # waits for the device
        if not math.isfinite(train_loss):
            raise NonFiniteError(report.step, NOT_LOOKED_AT)
        training_seconds = time.perf_counter() - started
        tested = evaluate(model, evaluation, acceleration=acceleration, after_batch=after_evaluation_batch)
        record = EpochRecord(
            epoch=epoch + 1,
            lr=report.lr,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            test_loss=tested.loss,
            test_accuracy=tested.accuracy,
            seconds=time.perf_counter() - started,
            training_seconds=training_seconds,
        )
        history.append(record)
        after_epoch(record, tested)
    return history


def _cycle(
    epochs: int, steps_an_epoch: int, peak_fraction: float, lr_min: float, lr_max: float
) -> Callable[[int], float]:
    total_steps = epochs * steps_an_epoch
    if total_steps < 2:
        raise ValueError(f"{epochs} epochs of {steps_an_epoch} steps make no cycle, which needs at least 2 steps")
    peak = peak_step(total_steps, peak_fraction)
    return partial(one_cycle, total_steps=total_steps, peak_step=peak, lr_min=lr_min, lr_max=lr_max)


def _where(running: ModelComposite, batch: Batch, acceleration: Acceleration) -> str:
    """The layer where something is not finite: an output that any rank finds, else a gradient, which all share."""
    found = first_not_finite(running, batch, acceleration) if len(batch.labels) else NO_LAYER
    of_all: list[str] = ranks.current().of_all(found)
    return min(of_all, key=lambda where: (where == NO_LAYER, not where.startswith("the output")))


def _lay_out_like_parameters(optimizer: Optimizer) -> None:
    """Give what was restored from a file the memory layout of its parameter, as it has from the first step."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _freeze(optimizer: Optimizer, epoch: int) -> None:
    """Fix the parameters of a group that has "epochs" after so many."""
    for group in optimizer.param_groups:
        if (epochs := group.get("epochs")) is not None and epoch >= epochs:
            for parameter in group["params"]:
                parameter.requires_grad_(False)


def _reports(
    steps: Iterable[StepOutcome],
    epoch: int,
    lr_of_step: Callable[[int], float],
    *,
    before: StepReport | None,
    started: float,
) -> Iterator[StepReport]:
    """Of every step of the epoch that is left after the one `before`."""
    totals = before.totals if before else None
    for outcome in steps:
        loss = outcome.loss.to(_type_of_sums(outcome.loss.device.type)) * outcome.images
        if totals is None:
            totals = Totals(loss, outcome.correct, outcome.images)
        else:
            totals = Totals(totals.loss + loss, totals.correct + outcome.correct, totals.images + outcome.images)
        yield StepReport(
            epoch=epoch + 1,
            step=outcome.step,
            images=outcome.images,
            lr=lr_of_step(outcome.step),
            totals=totals,
            seconds=time.perf_counter() - started,
            margins=outcome.margins,
        )


def _type_of_sums(device: str) -> torch.dtype:
    return torch.float32 if device == "mps" else torch.float64  # Apple's GPUs have none of these
