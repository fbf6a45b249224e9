import copy
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import convolutional
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer

from onecycle.compute.plan import EAGER, ComputePlan
from onecycle.data import ImageSet, load_dataset
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Batch, ModelComposite, StepOutput, as_composite
from onecycle.storage.checkpoint import load_checkpoint, save_checkpoint
from onecycle.storage.records import EpochRecord, History
from onecycle.train.loop import EpochTotals, Evaluation, StepReport, evaluate, fit, training_steps
from onecycle.train.lr_finder import find_lr
from onecycle.train.precise_batch_norm import set_batch_norm_statistics
from onecycle.train.scheduler import one_cycle, peak_step

RATES = {"lr_min": 1e-4, "lr_max": 1e-2}


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


def rates_of_run(images: ImageSet, **options: float) -> list[float]:
    """The learning rate of each step of a run with batches of 5."""
    model, rates = linear(), []
    fit(
        model,
        SGD(model.parameters()),
        batches(images, 5),
        batches(images, 5),
        after_step=lambda report: rates.append(report.lr),
        **RATES,
        **options,
    )
    return rates


def batches(images: ImageSet, batch_size: int, *, shuffle: bool = False, shards: int = 1) -> Batches:
    preprocessing = Preprocessing.of(images.images)
    return Batches(images, preprocessing, batch_size=batch_size, shuffle=shuffle, shards=shards)


def single_batch(images: ImageSet) -> Batch:
    (batch,) = batches(images, len(images)).epoch(0)
    return batch


@pytest.fixture(scope="module")
def ten(tiny: tuple[ImageSet, ImageSet]) -> ImageSet:
    """Ten digits. With batch size 4, they make two full batches and a short batch."""
    return tiny[0].subset(np.arange(10))


@pytest.mark.parametrize("network", [linear, convolutional])
def test_fit_trains_any_module_to_more_than_80_percent_on_digits(network: Callable[[], nn.Module]) -> None:
    digits = load_dataset("digits")
    model = network()
    train, test = batches(digits.train, 64, shuffle=True), batches(digits.evaluation, 256)
    before = evaluate(model, test)
    history = fit(model, Adam(model.parameters()), train, test, epochs=3, **RATES)
    assert history[-1].eval_accuracy > 0.8 > 0.3 > before.accuracy
    assert history[-1].eval_loss < before.loss / 2
    assert history[-1].train_loss < history[0].train_loss
    assert evaluate(model, test).accuracy == history[-1].eval_accuracy  # fit trains the given model, not a copy


def test_every_step_has_the_learning_rate_of_the_schedule_with_its_peak_at_the_end_of_epoch_5_of_24(
    ten: ImageSet,
) -> None:
    model, reports, rates = linear(), [], []
    optimizer = SGD(model.parameters())

    def after_step(report: StepReport) -> None:
        reports.append(report)
        rates.append(optimizer.param_groups[0]["lr"])

    history = fit(
        model, optimizer, batches(ten, 5), batches(ten, 5), epochs=24, lr_min=1e-5, lr_max=1e-3, after_step=after_step
    )
    assert [report.step for report in reports] == list(range(48))
    assert rates == [report.lr for report in reports]
    assert rates == [one_cycle(step, total_steps=48, peak_step=9, lr_min=1e-5, lr_max=1e-3) for step in range(48)]
    assert rates.index(max(rates)) == 9  # the last of the ten steps in five epochs
    assert (rates[0], rates[9], rates[-1]) == (1e-5, 1e-3, 1e-5)
    assert [record.lr for record in history] == rates[1::2]


def test_fit_puts_the_peak_at_peak_fraction(ten: ImageSet) -> None:
    rates = rates_of_run(ten, epochs=4, peak_fraction=0.75)
    assert rates.index(max(rates)) == 5 == peak_step(8, 0.75)


def test_training_loss_and_accuracy_are_means_over_images_including_the_short_last_batch(ten: ImageSet) -> None:
    model, reports = linear(), []
    # With a learning rate of zero, the weights are the same for every image.
    (record,) = fit(
        model,
        SGD(model.parameters()),
        batches(ten, 4),
        batches(ten, 4),
        epochs=1,
        lr_min=0.0,
        lr_max=0.0,
        after_step=reports.append,
    )
    images, labels = single_batch(ten)
    logits = model(images).detach()
    losses = cross_entropy(logits, labels, reduction="none").numpy()
    correct = (logits.argmax(dim=1) == labels).double().numpy()
    assert [report.images for report in reports] == [4, 4, 2]
    for report, count in zip(reports, (4, 8, 10), strict=True):
        assert report.totals.mean_loss == pytest.approx(losses[:count].mean(), rel=1e-6)
        assert report.totals.accuracy == correct[:count].mean()
    assert record.train_loss == reports[-1].totals.mean_loss == pytest.approx(record.eval_loss, rel=1e-6)
    assert record.train_accuracy == reports[-1].totals.accuracy == record.eval_accuracy
    # If these means were equal, a mean over batches would pass this test, too.
    assert losses[8:].mean() != pytest.approx(losses[:8].mean(), rel=1e-2)


def test_epoch_totals_compute_mean_loss_and_accuracy() -> None:
    totals = EpochTotals(loss=torch.tensor(6.0, dtype=torch.float64), correct=torch.tensor(3), images=4)
    assert (totals.mean_loss, totals.accuracy) == (1.5, 0.75)
    assert (type(totals.mean_loss), type(totals.accuracy)) == (float, float)


def test_a_step_report_survives_json_exactly() -> None:
    loss = torch.tensor(1 / 3, dtype=torch.float64) * 1e-7
    totals = EpochTotals(loss=loss, correct=torch.tensor(3), images=4)
    report = StepReport(epoch=1, step=0, images=4, lr=0.1 + 0.2, totals=totals, seconds=1 / 7)
    again = StepReport.from_json(json.loads(json.dumps(report.to_json())))
    assert again == report
    assert [type(value) for value in again.totals] == [torch.Tensor, torch.Tensor, int]
    assert again.totals.loss.dtype == torch.float64


def test_later_steps_do_not_change_an_earlier_report(tiny: tuple[ImageSet, ImageSet]) -> None:
    model, reports, figures = linear(), [], []

    def after_step(report: StepReport) -> None:
        reports.append(report)
        figures.append((report.totals.mean_loss, report.totals.accuracy, report.totals.images))

    train = batches(tiny[0], 16, shuffle=True)  # 50 images in 4 steps
    fit(model, SGD(model.parameters()), train, batches(tiny[1], 16), epochs=2, after_step=after_step, **RATES)
    assert [(report.totals.mean_loss, report.totals.accuracy, report.totals.images) for report in reports] == figures
    assert [report.totals.images for report in reports] == [16, 32, 48, 50] * 2
    assert len(set(figures)) == 8
    losses = [report.totals.loss for report in reports]
    assert {(loss.dtype, loss.requires_grad) for loss in losses} == {(torch.float64, False)}


def test_fit_equals_a_hand_written_loop_bit_for_bit(tiny: tuple[ImageSet, ImageSet]) -> None:
    train = batches(tiny[0], 16, shuffle=True)  # 50 images in 4 steps
    model, by_hand = convolutional(), convolutional()
    torch.manual_seed(1)
    fit(model, Adam(model.parameters()), train, batches(tiny[1], 16), epochs=2, **RATES)

    torch.manual_seed(1)
    optimizer = Adam(by_hand.parameters())
    step = 0
    for epoch in range(2):
        for images, labels in train.epoch(epoch):
            optimizer.param_groups[0]["lr"] = one_cycle(step, total_steps=8, peak_step=1, **RATES)
            optimizer.zero_grad()
            cross_entropy(by_hand(images.contiguous()), labels).backward()
            optimizer.step()
            step += 1
    set_batch_norm_statistics(by_hand, train, images=2000)
    assert_same_state(model, by_hand)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_evaluate_counts_every_image_once_whatever_the_batches(ten: ImageSet, batch_size: int) -> None:
    model = convolutional()
    model(single_batch(ten).images)  # changes the running statistics
    evaluation = evaluate(model, batches(ten, batch_size))
    model.eval()
    with torch.no_grad():
        logits = model(single_batch(ten).images)
    labels = torch.from_numpy(ten.labels)
    assert torch.equal(evaluation.labels, labels)
    assert evaluation.logits.shape == (10, 10)
    assert evaluation.logits.dtype == torch.float32
    torch.testing.assert_close(evaluation.logits, logits, rtol=1e-5, atol=1e-6)
    assert evaluation.loss == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-6)
    assert evaluation.accuracy == int((logits.argmax(dim=1) == labels).sum()) / 10


def test_evaluate_weights_the_short_last_batch_by_its_number_of_images() -> None:
    digits = load_dataset("digits", limit=11).evaluation
    model = linear()
    with torch.no_grad():
        model[1].weight.mul_(100)  # makes the losses of the images differ a lot
        images, labels = single_batch(digits)
        losses = cross_entropy(model(images), labels, reduction="none").double()
    assert losses[:10].mean() != pytest.approx(float(losses[10]), rel=0.2)
    for batch_size in (3, 4, 10, 11):
        assert evaluate(model, batches(digits, batch_size)).loss == pytest.approx(float(losses.mean()), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_mode_parameters_and_buffers_as_they_were(ten: ImageSet, training: bool) -> None:
    model = convolutional().train(training)
    model[1].train(not training)  # one layer is in the other mode, as a frozen batch norm would be
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    evaluate(model, batches(ten, 4))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_hooks_are_called_after_every_step_and_every_epoch_in_order(ten: ImageSet) -> None:
    model, calls = linear(), []
    evaluations: list[Evaluation] = []

    def after_epoch(record: EpochRecord, evaluation: Evaluation) -> None:
        calls.append(("epoch", record.epoch))
        evaluations.append(evaluation)

    history = fit(
        model,
        SGD(model.parameters()),
        batches(ten, 4),
        batches(ten, 6),
        epochs=2,
        after_step=lambda report: calls.append((report.epoch, report.step)),
        after_epoch=after_epoch,
        **RATES,
    )
    assert calls == [(1, 0), (1, 1), (1, 2), ("epoch", 1), (2, 3), (2, 4), (2, 5), ("epoch", 2)]
    assert [record.epoch for record in history] == [1, 2]
    assert [record.eval_loss for record in history] == [evaluation.loss for evaluation in evaluations]
    assert [record.eval_accuracy for record in history] == [evaluation.accuracy for evaluation in evaluations]
    assert all(record.seconds > 0 for record in history)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", range(1, 16))
def test_a_run_resumed_from_any_step_equals_the_uninterrupted_run_bit_for_bit(
    tiny: tuple[ImageSet, ImageSet], tmp_path: Path, stop: int
) -> None:
    train, test = batches(tiny[0], 16, shuffle=True), batches(tiny[1], 16)  # 50 images in 4 steps
    state, before = tmp_path / "state.safetensors", tmp_path / "before"
    history: History = []

    def after_step(report: StepReport) -> None:
        if report.step == stop:
            save_checkpoint(state, model, optimizer, {"last_step": report.to_json()})
            raise Stopped

    uninterrupted = convolutional()
    torch.manual_seed(1)  # dropout uses this random state
    expected = fit(uninterrupted, Adam(uninterrupted.parameters()), train, test, epochs=4, **RATES)

    model = convolutional()
    optimizer = Adam(model.parameters())
    torch.manual_seed(1)
    with pytest.raises(Stopped):
        fit(
            model,
            optimizer,
            train,
            test,
            epochs=4,
            after_step=after_step,
            after_epoch=lambda record, _: history.append(record),
            **RATES,
        )

    model = convolutional()
    optimizer = Adam(model.parameters())
    torch.manual_seed(2)
    saved = load_checkpoint(state, before)
    assert saved is not None
    saved.restore(model, optimizer)
    report = StepReport.from_json(saved.progress["last_step"])
    rest = fit(model, optimizer, train, test, epochs=4, first_epoch=len(history), last_step=report, **RATES)
    assert_same_state(model, uninterrupted)
    assert without_times([*history, *rest]) == without_times(expected)


def test_restored_moments_get_the_memory_layout_of_their_filters(tiny: tuple[ImageSet, ImageSet]) -> None:
    train, test = batches(tiny[0], 16, shuffle=True), batches(tiny[1], 16)
    plan = ComputePlan(channels_last=True)

    def trained(restored: bool) -> nn.Module:
        model = convolutional()
        optimizer = Adam(model.parameters())
        torch.manual_seed(1)
        fit(model, optimizer, train, test, epochs=1, plan=plan, **RATES)
        if restored:  # a checkpoint file restores the moments as contiguous tensors
            for values in optimizer.state.values():
                values["exp_avg"] = values["exp_avg"].contiguous()
        fit(model, optimizer, train, test, epochs=2, first_epoch=1, plan=plan, **RATES)
        for parameter, values in optimizer.state.items():
            assert values["exp_avg"].stride() == parameter.stride()
        return model

    assert_same_state(trained(restored=True), trained(restored=False))


def test_after_batch_can_stop_an_evaluation_between_two_batches(tiny: tuple[ImageSet, ImageSet]) -> None:
    model, test = linear(), batches(tiny[1], 8)  # 20 images in 3 batches
    calls: list[int] = []

    def stop_at_second() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        evaluate(model, test, after_batch=stop_at_second)
    assert len(calls) == 2


@pytest.mark.parametrize("epochs", [0, 1])
def test_fit_refuses_fewer_than_two_steps(ten: ImageSet, epochs: int) -> None:
    model = linear()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError):
        fit(model, SGD(model.parameters()), batches(ten, 10), batches(ten, 10), epochs=epochs, **RATES)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def unrelated(model: nn.Module) -> Optimizer:
    return SGD(linear().parameters())


def of_the_original_of_a_copy(model: nn.Module) -> Optimizer:
    return SGD(copy.deepcopy(model).parameters())


def of_a_frozen_parameter(model: nn.Module) -> Optimizer:
    return SGD([model[1].weight.requires_grad_(False)])


@pytest.mark.parametrize("make", [unrelated, of_the_original_of_a_copy, of_a_frozen_parameter])
@pytest.mark.parametrize("network", [linear, lambda: nn.Sequential(*linear(), nn.Identity()), convolutional])
def test_an_optimizer_without_a_trainable_parameter_of_the_model_is_refused(
    ten: ImageSet, make: Callable[[nn.Module], Optimizer], network: Callable[[], nn.Module]
) -> None:
    model = network()
    optimizer, train, steps = make(model), batches(ten, 5), []
    with pytest.raises(ValueError, match="^the optimizer holds no trainable parameter of the model; create it"):
        fit(model, optimizer, train, train, epochs=1, after_step=steps.append, **RATES)
    with pytest.raises(ValueError, match="^the optimizer holds no trainable parameter of the model; create it"):
        find_lr(model, optimizer, train, after_step=lambda *step: steps.append(step))
    assert not steps


def test_an_optimizer_of_some_parameters_is_accepted(ten: ImageSet) -> None:
    model = linear()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    fit(model, SGD([model[1].bias]), batches(ten, 5), batches(ten, 5), epochs=1, **RATES)
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert changed == [False, True]


@pytest.mark.parametrize("shards", [1, 2])
def test_a_model_whose_parameters_are_all_frozen_is_refused(ten: ImageSet, shards: int) -> None:
    model, train = linear().requires_grad_(False), batches(ten, 5, shards=shards)
    optimizer, steps = SGD(model.parameters()), []
    with pytest.raises(ValueError, match="^all parameters of the model are frozen; "):
        fit(model, optimizer, train, batches(ten, 5), epochs=1, after_step=steps.append, **RATES)
    with pytest.raises(ValueError, match="^all parameters of the model are frozen; "):
        find_lr(model, optimizer, train, after_step=lambda *step: steps.append(step))
    assert not steps


def test_groups_that_are_all_frozen_before_the_last_epoch_are_refused(ten: ImageSet) -> None:
    model, steps = linear(), []
    groups = [{"params": [model[1].weight], "epochs": 1}, {"params": [model[1].bias], "epochs": 2}]
    with pytest.raises(
        ValueError, match="^all parameter groups of the optimizer are frozen before the last of 3 epochs"
    ):
        fit(model, SGD(groups), batches(ten, 5), batches(ten, 5), epochs=3, after_step=steps.append, **RATES)
    assert not steps
    fit(model, SGD(groups), batches(ten, 5), batches(ten, 5), epochs=2, **RATES)


@pytest.mark.parametrize(
    ("last", "shape"),
    [
        ((nn.Linear(192, 9),), r"\[5, 9\]"),
        ((nn.Linear(192, 1),), r"\[5, 1\]"),
        ((nn.Linear(192, 10), nn.Unflatten(1, (10, 1))), r"\[5, 10, 1\]"),
        ((nn.Linear(192, 1), nn.Flatten(0)), r"\[5\]"),
    ],
)
def test_a_network_without_a_logit_for_each_class_is_refused(
    ten: ImageSet, last: tuple[nn.Module, ...], shape: str
) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), *last)
    optimizer, train, steps = SGD(model.parameters()), batches(ten, 5), []
    message = rf"^the network's output for a batch has the shape {shape}; it must be \[B,10\]"
    with pytest.raises(ValueError, match=message):
        fit(model, optimizer, train, train, epochs=1, after_step=steps.append, **RATES)
    with pytest.raises(ValueError, match=message):
        find_lr(model, optimizer, train, after_step=lambda *step: steps.append(step))
    with pytest.raises(ValueError, match=message):
        evaluate(model, train)
    assert not steps


def test_a_network_may_have_more_logits_than_classes(ten: ImageSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 12))
    (record,) = fit(model, SGD(model.parameters()), batches(ten, 5), batches(ten, 5), epochs=1, **RATES)
    assert np.isfinite(record.eval_loss)


def test_fit_refuses_a_cycle_whose_lowest_rate_is_above_its_highest(ten: ImageSet) -> None:
    model, steps = linear(), []
    images = batches(ten, 5)
    with pytest.raises(ValueError, match=r"^lr_min is 0\.1, above lr_max, which is 0\.01; "):
        fit(
            model,
            SGD(model.parameters()),
            images,
            images,
            epochs=1,
            lr_min=0.1,
            lr_max=0.01,
            after_step=steps.append,
        )
    assert not steps


def test_fit_accepts_two_steps(ten: ImageSet) -> None:
    rates = rates_of_run(ten, epochs=1)
    assert rates == [1e-2, 1e-4]


def test_fit_uses_the_training_step_and_criterion_of_a_composite(ten: ImageSet) -> None:
    class Smoothed(ModelComposite):
        def __init__(self) -> None:
            super().__init__()
            self.network = linear()
            self.criterion = nn.CrossEntropyLoss(label_smoothing=0.5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network(images)

        def training_step(self, batch: Batch) -> StepOutput:
            loss, logits = super().training_step(batch)
            return StepOutput(2 * loss, logits)

    model = Smoothed()
    images, labels = single_batch(ten)
    with torch.no_grad():
        loss = float(cross_entropy(model(images), labels, label_smoothing=0.5))
    (record,) = fit(model, SGD(model.parameters()), batches(ten, 5), batches(ten, 5), epochs=1, lr_min=0.0, lr_max=0.0)
    assert record.eval_loss == pytest.approx(loss, rel=1e-6)
    assert record.train_loss == pytest.approx(2 * loss, rel=1e-6)


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def without_times(history: History) -> History:
    return [replace(record, seconds=0.0, training_seconds=0.0) for record in history]


def test_a_parameter_group_with_lr_scale_learns_at_that_multiple_of_the_rate() -> None:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [network.weight]}, {"params": [network.bias], "lr_scale": 10}], lr=1)
    batch = Batch(torch.ones(3, 2), torch.tensor([0, 1, 0]))
    list(training_steps(as_composite(network), optimizer, [batch], lambda step: 0.5, plan=EAGER))
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 5.0]


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_parameter_group_with_epochs_is_frozen_after_that_many(ten: ImageSet, epochs: int) -> None:
    model = linear()
    weight, bias = model[1].weight, model[1].bias
    optimizer = SGD([{"params": [weight]}, {"params": [bias], "epochs": epochs}])
    biases: list[torch.Tensor] = [bias.detach().clone()]

    def keep(record: EpochRecord, evaluation: Evaluation) -> None:
        biases.append(bias.detach().clone())

    images = batches(ten, 5)
    fit(model, optimizer, images, images, epochs=3, after_epoch=keep, peak_fraction=0.0, **RATES)
    changed = [not torch.equal(before, after) for before, after in pairwise(biases)]
    assert changed == [epoch < epochs for epoch in range(3)]


def test_a_frozen_parameter_in_a_group_with_epochs_stays_frozen(ten: ImageSet) -> None:
    model = linear()
    weight, bias = model[1].weight, model[1].bias.requires_grad_(False)
    optimizer = SGD([{"params": [weight]}, {"params": [bias], "epochs": 2}])
    fit(model, optimizer, batches(ten, 5), batches(ten, 5), epochs=3, **RATES)
    assert not bias.requires_grad
