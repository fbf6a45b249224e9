"""The training loop. It writes no files and prints nothing: hooks report steps and epochs to the caller."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from torch.optim import Optimizer

from onecycle.compute.plan import EAGER, ComputePlan
from onecycle.data.batches import Batches
from onecycle.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from onecycle.models import Batch, ModelComposite, as_composite
from onecycle.storage.records import EpochRecord, History
from onecycle.train.nonfinite import NO_LAYER, ON_A_GPU, NonFiniteError, all_finite, first_not_finite
from onecycle.train.precise_batch_norm import images_after_epoch, set_batch_norm_statistics
from onecycle.train.scheduler import one_cycle, peak_step
from onecycle.train.sharded_step import ShardedStep
from onecycle.train.single_images import require_trainable
from onecycle.train.train_step import StepResult, TrainStep, whole_batch_step


class EpochTotals(NamedTuple):
    """The loss and the correct predictions, summed over the images of an epoch so far. Tensors are on the device."""

    loss: torch.Tensor
    correct: torch.Tensor
    images: int

    @property
    def mean_loss(self) -> float:
        """The mean loss of the images so far. Reading it waits for the device."""
        return float(self.loss) / self.images

    @property
    def accuracy(self) -> float:
        """The fraction of correct predictions so far. Reading it waits for the device."""
        return int(self.correct) / self.images


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The state of training after a step, for hooks and checkpoints."""

    epoch: int  # 1-based
    step: int  # 0-based, global
    images: int  # number of images in this step
    lr: float
    totals: EpochTotals
    seconds: float  # training time in this epoch so far
    margins: torch.Tensor | None = None  # the margins of the `StepResult`; `to_json` leaves them out
    computing_seconds: float | None = None  # `seconds` of the `StepResult`; `to_json` leaves it out

    def to_json(self) -> dict[str, Any]:
        """The values that a checkpoint needs, as plain Python values in full precision. Waits for the device."""
        totals = {**self.totals._asdict(), "loss": float(self.totals.loss), "correct": int(self.totals.correct)}
        left_out = ("margins", "computing_seconds")
        return {**{name: value for name, value in vars(self).items() if name not in left_out}, "totals": totals}

    @classmethod
    def from_json(cls, values: dict[str, Any], device: str = "cpu") -> Self:
        """The inverse of `to_json`, with the totals on `device`."""
        loss, correct, images = (values["totals"][name] for name in EpochTotals._fields)
        sums = torch.tensor(loss, dtype=_sum_dtype(device), device=device), torch.tensor(correct, device=device)
        return cls(**{**values, "totals": EpochTotals(*sums, images)})


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of a model on a whole split: logits float32 `[N,C]` and labels int64 `[N]`, in the split's order."""

    loss: float
    accuracy: float
    logits: torch.Tensor
    labels: torch.Tensor


def make_train_step(batches: Batches, plan: ComputePlan) -> TrainStep:
    """The train step for `batches`: a `ShardedStep` if they are split into shards, otherwise a whole-batch step."""
    return ShardedStep(batches, plan) if batches.shards > 1 else whole_batch_step(plan)


def prepare(model: nn.Module, batches: Batches, plan: ComputePlan) -> ModelComposite:
    """`model`, prepared by `plan`. A forward pass raises `ValueError` if the model lacks logits for some classes."""
    classes = len(batches.images.classes)

    def require_logits(_: nn.Module, __: object, logits: torch.Tensor) -> None:
        if logits.dim() != 2 or logits.shape[1] < classes:
            raise ValueError(
                f"the network's output for a batch has the shape {list(logits.shape)}; it must be [B,{classes}], one "
                "logit for each image and class"
            )

    prepared = plan.prepare(as_composite(model))
    # Without this check, the loss would fail with an error about a class index. On a GPU, such an error makes all later
    # operations of the process fail.
    prepared.register_forward_hook(require_logits)
    return prepared


def require_optimized(model: nn.Module, optimizer: Optimizer, *, epochs: int = 1) -> None:
    """Check that `optimizer` still trains at least one parameter of `model` in the last of the `epochs`.

    Raises:
        ValueError: when there is no such parameter.
    """
    trainable = {parameter for parameter in model.parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError("all parameters of the model are frozen; set requires_grad of the parameters to train")
    groups = [group for group in optimizer.param_groups if trainable.intersection(group["params"])]
    if not groups:
        raise ValueError(
            "the optimizer holds no trainable parameter of the model; create it from the parameters of the model that "
            "is trained, not of a copy or of another model"
        )
    if all(group.get("epochs") is not None and group["epochs"] < epochs for group in groups):
        raise ValueError(
            f"all parameter groups of the optimizer are frozen before the last of {epochs} epochs; increase "
            'or remove "epochs" in one of the groups'
        )


def training_steps(
    prepared: ModelComposite,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    lr_of_step: Callable[[int], float],
    *,
    plan: ComputePlan,
    first_step: int = 0,
    train_step: TrainStep | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[tuple[int, StepResult]]:
    """Train `prepared`, a model that `plan` has prepared, on `batches`. Each iteration performs one step.

    Yields the step (0-based, global) and the result of the step. The learning rate of a parameter group is
    `lr_of_step(step)`, multiplied by the group's "lr_scale" if it has one. `train_step` is by default a step on the
    whole batch.

    Raises:
        NonFiniteError: on a CPU, when a loss or a gradient is not finite. Parameters and optimizer are then left in the
            state after the previous step.
    """
    prepared.train()
    train_step = train_step or whole_batch_step(plan)
    for step, batch in enumerate(batches, start=first_step):
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr_of_step(step) * parameters.get("lr_scale", 1.0)
        optimizer.zero_grad()
        started = time.perf_counter()
        result = train_step(prepared, batch, step)
        result = result._replace(seconds=time.perf_counter() - started)
        # On a GPU, this check would make every step wait for the device. There, the loss of each epoch and the saved
        # weights are checked instead.
        if plan.device == "cpu" and not all_finite(result.loss, prepared):
            raise NonFiniteError(f"step {step}", _where_not_finite(prepared, batch, plan, group))
        optimizer.step()
        yield step, result


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    evaluated_on: str = "evaluation",
    plan: ComputePlan = EAGER,
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate `model` once on every image of `batches`. The model keeps its training or evaluation mode.

    `evaluated_on` names the split in messages.

    Raises:
        NonFiniteError: when a logit or the loss is not finite.
        ValueError: when several processes have split the batches into shards, or when `model` does not give one logit
            for each class.
    """
    # Compiling pays off in training only, and an evaluation must be repeatable without a compiler.
    prepared = prepare(model, batches, replace(plan, torch_compile=False)).eval()
    group = batches.group
    if batches.shards > 1 and group.size > 1:
        raise ValueError(
            "each process has only its own shards of these batches; evaluate batches that are not split into shards"
        )
    nothing = torch.empty(0, device=plan.device)  # torch.cat needs a tensor even if this process has no batch
    losses, logits = [nothing], [nothing]
    mine = group.shard_range(len(batches))
    for batch in batches.epoch(0, first=mine.start, stop=mine.stop):
        with plan.autocast():
            output = prepared.evaluation_step(batch)
        losses.append(output.loss.view(1))
        logits.append(output.logits.float())
        after_batch()
    labels = torch.from_numpy(batches.images.labels[batches.order(0)])
    means = group.all_gather(torch.cat(losses).cpu()).tolist()
    all_logits = group.all_gather(torch.cat(logits).cpu())
    _require_finite(means, all_logits, evaluated_on)
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
    evaluated_on: str = "evaluation",
    plan: ComputePlan = EAGER,
    first_epoch: int = 0,
    last_step: StepReport | None = None,
    after_step: Callable[[StepReport], None] = lambda report: None,
    after_evaluation_batch: Callable[[], None] = lambda: None,
    after_epoch: Callable[[EpochRecord, Evaluation], None] = lambda record, evaluation: None,
) -> History:
    """Train a `model` that maps images to logits, with one cycle of the learning rate. Evaluate it after every epoch.

    `optimizer` holds the parameters of `model`. The learning rate is set at every step, and the whole model is put into
    training mode at the start of every epoch. A parameter group with "epochs" is frozen after that many epochs. Before
    each evaluation, `set_batch_norm_statistics` computes the running statistics of batch norm from training images.

    To continue a restored run, give `first_epoch` (0-based). If that epoch is partly trained, `last_step` is the report
    of its last completed step. `evaluated_on` names the split of `evaluation` in messages. Returns one record for each
    epoch trained in this call.

    Raises:
        ValueError: before the first step, when the run has fewer than the two steps that one cycle needs, when `lr_min`
            is above `lr_max`, when `optimizer` holds no trainable parameter of `model`, or when `model` does not give
            one logit for each class.
        InputError: before the first step, when `train` has a batch or shard with a single image on which `model` cannot
            be trained.
        NonFiniteError: when a loss, a gradient or a logit of the evaluation is not finite. On a CPU the parameters are
            then left in the state after the previous step.
    """
    require_optimized(model, optimizer, epochs=epochs)
    require_trainable(model, train)
    prepared = prepare(model, train, plan)
    _match_memory_layout(optimizer)
    steps = partial(
        training_steps,
        prepared,
        optimizer,
        plan=plan,
        train_step=make_train_step(train, plan),
        group=train.group,
    )
    lr_of_step = _cycle(epochs, len(train), peak_fraction, lr_min, lr_max)
    history: History = []
    for epoch in range(first_epoch, epochs):
        report = restored = last_step if epoch == first_epoch else None
        started = time.perf_counter() - (restored.seconds if restored else 0)
        first = restored.step + 1 if restored else epoch * len(train)
        _freeze(optimizer, epoch)
        results = steps(train.epoch(epoch, first=first - epoch * len(train)), lr_of_step, first_step=first)
        for report in _reports(results, epoch, lr_of_step, restored=restored, started=started):
            after_step(report)
        assert report, "an epoch has at least one step"
        train_loss, train_accuracy = report.totals.mean_loss, report.totals.accuracy  # waits for the device
        if not math.isfinite(train_loss):
            raise NonFiniteError(f"step {report.step}", ON_A_GPU)
        images = images_after_epoch(epoch, epochs, len(train.images))
        set_batch_norm_statistics(model, train, plan=plan, images=images)
        training_seconds = time.perf_counter() - started
        evaluated = evaluate(
            model, evaluation, evaluated_on=evaluated_on, plan=plan, after_batch=after_evaluation_batch
        )
        record = EpochRecord(
            epoch=epoch + 1,
            lr=report.lr,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            eval_loss=evaluated.loss,
            eval_accuracy=evaluated.accuracy,
            seconds=time.perf_counter() - started,
            training_seconds=training_seconds,
        )
        history.append(record)
        after_epoch(record, evaluated)
    return history


def _cycle(
    epochs: int, steps_per_epoch: int, peak_fraction: float, lr_min: float, lr_max: float
) -> Callable[[int], float]:
    total_steps = epochs * steps_per_epoch
    if total_steps < 2:
        raise ValueError(f"{epochs} epochs of {steps_per_epoch} steps are too short; one cycle needs at least 2 steps")
    if lr_min > lr_max:
        raise ValueError(f"lr_min is {lr_min:g}, above lr_max, which is {lr_max:g}; lower lr_min or raise lr_max")
    peak = peak_step(total_steps, peak_fraction)
    return partial(one_cycle, total_steps=total_steps, peak_step=peak, lr_min=lr_min, lr_max=lr_max)


def _require_finite(losses: list[float], logits: torch.Tensor, evaluated_on: str) -> None:
    """Check the mean loss of each batch and the logits `[N,C]` of an evaluation.

    Raises:
        NonFiniteError: when a loss or a logit is infinity or NaN. Without this check, `argmax` would return a class
            even for NaN, and this class could count as a correct prediction.
    """
    images = int((~logits.isfinite()).any(dim=1).sum())
    if images or not all(map(math.isfinite, losses)):
        where = (
            f"{images:,} of {len(logits):,} have logits with infinity or NaN"
            if images
            else "the loss of a batch is infinity or NaN"
        )
        raise NonFiniteError(f"the result on the {evaluated_on} images", where)


def _where_not_finite(prepared: ModelComposite, batch: Batch, plan: ComputePlan, group: ProcessGroup) -> str:
    """Describe the first layer that computed infinity or NaN.

    An output on any rank takes precedence over a gradient. Outputs differ between ranks, but the gradients are the same
    on all ranks.
    """
    found = first_not_finite(prepared, batch, plan) if len(batch.labels) else NO_LAYER
    of_ranks: list[str] = group.all_gather_object(found)
    return min(of_ranks, key=lambda where: (where == NO_LAYER, not where.startswith("the output")))


def _match_memory_layout(optimizer: Optimizer) -> None:
    """Convert loaded optimizer state to the memory layout of its parameter.

    State that a training step created already has this layout.
    """
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _freeze(optimizer: Optimizer, epoch: int) -> None:
    """Freeze the parameter groups that are no longer trained from `epoch` (0-based) on.

    A parameter group with "epochs" is trained for that many epochs.
    """
    for group in optimizer.param_groups:
        if (epochs := group.get("epochs")) is not None and epoch >= epochs:
            for parameter in group["params"]:
                parameter.requires_grad_(False)


def _reports(
    results: Iterable[tuple[int, StepResult]],
    epoch: int,
    lr_of_step: Callable[[int], float],
    *,
    restored: StepReport | None,
    started: float,
) -> Iterator[StepReport]:
    """A report for each remaining step of the epoch. The totals continue from the totals of `restored`."""
    totals = restored.totals if restored else None
    for step, result in results:
        loss = result.loss.to(_sum_dtype(result.loss.device.type)) * result.images
        if totals is None:
            totals = EpochTotals(loss, result.correct, result.images)
        else:
            totals = EpochTotals(totals.loss + loss, totals.correct + result.correct, totals.images + result.images)
        yield StepReport(
            epoch=epoch + 1,
            step=step,
            images=result.images,
            lr=lr_of_step(step),
            totals=totals,
            seconds=time.perf_counter() - started,
            margins=result.margins,
            computing_seconds=result.seconds,
        )


def _sum_dtype(device: str) -> torch.dtype:
    return torch.float32 if device == "mps" else torch.float64  # Apple GPUs have no float64
