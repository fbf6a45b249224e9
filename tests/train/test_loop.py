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
from torch.optim import SGD, Adam

from onecycle.compute.plan import PLAIN, Acceleration
from onecycle.data import ImageSet, load_dataset
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Batch, ModelComposite, StepOutput, as_composite
from onecycle.storage.checkpoint import load_state, save_state
from onecycle.storage.records import EpochRecord, History
from onecycle.train.loop import Evaluation, StepReport, Totals, evaluate, fit, training_steps
from onecycle.train.scheduler import one_cycle, peak_step

RATES = {"lr_min": 1e-4, "lr_max": 1e-2}


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


def rates_of_a_run(images: ImageSet, **options: float) -> list[float]:
    """The learning rates of a run with batches of 5, step by step."""
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


def batches(images: ImageSet, batch_size: int, *, shuffle: bool = False) -> Batches:
    return Batches(images, Preprocessing.of(images.images), batch_size=batch_size, shuffle=shuffle)


def whole(images: ImageSet) -> Batch:
    (batch,) = batches(images, len(images)).epoch(0)
    return batch


@pytest.fixture(scope="module")
def ten(tiny: tuple[ImageSet, ImageSet]) -> ImageSet:
    """Ten digits, which are two batches of four and a short one of two."""
    return tiny[0].subset(np.arange(10))


@pytest.mark.parametrize("network", [linear, convolutional])
def test_fit_trains_any_module_to_more_than_80_percent_on_digits(network: Callable[[], nn.Module]) -> None:
    digits = load_dataset("digits")
    model = network()
    train, test = batches(digits.train, 64, shuffle=True), batches(digits.evaluation, 256)
    before = evaluate(model, test)
    history = fit(model, Adam(model.parameters()), train, test, epochs=3, **RATES)
    assert history[-1].test_accuracy > 0.8 > 0.3 > before.accuracy
    assert history[-1].test_loss < before.loss / 2
    assert history[-1].train_loss < history[0].train_loss
    assert evaluate(model, test).accuracy == history[-1].test_accuracy  # it is the given model that was trained


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
    assert rates.index(max(rates)) == 9  # the last of the ten steps of five epochs
    assert (rates[0], rates[9], rates[-1]) == (1e-5, 1e-3, 1e-5)
    assert [record.lr for record in history] == rates[1::2]


def test_the_peak_can_be_elsewhere(ten: ImageSet) -> None:
    rates = rates_of_a_run(ten, epochs=4, peak_fraction=0.75)
    assert rates.index(max(rates)) == 5 == peak_step(8, 0.75)


def test_training_figures_are_means_over_samples_with_the_short_last_batch(ten: ImageSet) -> None:
    model, reports = linear(), []
    # A rate of zero changes nothing, so that every image meets the same network.
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
    images, labels = whole(ten)
    logits = model(images).detach()
    losses = cross_entropy(logits, labels, reduction="none").numpy()
    correct = (logits.argmax(dim=1) == labels).double().numpy()
    assert [report.images for report in reports] == [4, 4, 2]
    for report, seen in zip(reports, (4, 8, 10), strict=True):
        assert report.totals.mean_loss == pytest.approx(losses[:seen].mean(), rel=1e-6)
        assert report.totals.accuracy == correct[:seen].mean()
    assert record.train_loss == reports[-1].totals.mean_loss == pytest.approx(record.test_loss, rel=1e-6)
    assert record.train_accuracy == reports[-1].totals.accuracy == record.test_accuracy
    assert losses[8:].mean() != pytest.approx(losses[:8].mean(), rel=1e-2)  # else a mean over batches would do as well


def test_totals_tell_their_means() -> None:
    totals = Totals(loss=torch.tensor(6.0, dtype=torch.float64), correct=torch.tensor(3), images=4)
    assert (totals.mean_loss, totals.accuracy) == (1.5, 0.75)
    assert (type(totals.mean_loss), type(totals.accuracy)) == (float, float)


def test_a_report_goes_through_json_exactly() -> None:
    loss = torch.tensor(1 / 3, dtype=torch.float64) * 1e-7
    totals = Totals(loss=loss, correct=torch.tensor(3), images=4)
    report = StepReport(epoch=1, step=0, images=4, lr=0.1 + 0.2, totals=totals, seconds=1 / 7)
    again = StepReport.from_json(json.loads(json.dumps(report.to_json())))
    assert again == report
    assert [type(value) for value in again.totals] == [torch.Tensor, torch.Tensor, int]
    assert again.totals.loss.dtype == torch.float64


def test_a_report_that_is_kept_keeps_its_figures_as_later_steps_come(tiny: tuple[ImageSet, ImageSet]) -> None:
    model, kept, at_the_time = linear(), [], []

    def after_step(report: StepReport) -> None:
        kept.append(report)
        at_the_time.append((report.totals.mean_loss, report.totals.accuracy, report.totals.images))

    train = batches(tiny[0], 16, shuffle=True)  # 50 images in 4 steps
    fit(model, SGD(model.parameters()), train, batches(tiny[1], 16), epochs=2, after_step=after_step, **RATES)
    assert [(report.totals.mean_loss, report.totals.accuracy, report.totals.images) for report in kept] == at_the_time
    assert [report.totals.images for report in kept] == [16, 32, 48, 50] * 2
    assert len(set(at_the_time)) == 8
    assert {(report.totals.loss.dtype, report.totals.loss.requires_grad) for report in kept} == {(torch.float64, False)}


def test_fit_is_the_plain_loop_bit_for_bit(tiny: tuple[ImageSet, ImageSet]) -> None:
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
    assert_same_state(model, by_hand)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_evaluate_counts_every_image_once_whatever_the_batches(ten: ImageSet, batch_size: int) -> None:
    model = convolutional()
    model(whole(ten).images)  # moves the running statistics off their start
    evaluation = evaluate(model, batches(ten, batch_size))
    model.eval()
    with torch.no_grad():
        logits = model(whole(ten).images)
    labels = torch.from_numpy(ten.labels)
    assert torch.equal(evaluation.labels, labels)
    assert evaluation.logits.shape == (10, 10)
    assert evaluation.logits.dtype == torch.float32
    torch.testing.assert_close(evaluation.logits, logits, rtol=1e-5, atol=1e-6)
    assert evaluation.loss == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-6)
    assert evaluation.accuracy == int((logits.argmax(dim=1) == labels).sum()) / 10


def test_evaluate_counts_the_short_last_batch_no_more_than_its_share() -> None:
    digits = load_dataset("digits", limit=11).evaluation
    model = linear()
    with torch.no_grad():
        model[1].weight.mul_(100)  # so that the losses of images differ by far
        losses = cross_entropy(model(whole(digits).images), whole(digits).labels, reduction="none").double()
    assert losses[:10].mean() != pytest.approx(float(losses[10]), rel=0.2)
    for batch_size in (3, 4, 10, 11):
        assert evaluate(model, batches(digits, batch_size)).loss == pytest.approx(float(losses.mean()), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_mode_parameters_and_buffers_as_they_were(ten: ImageSet, training: bool) -> None:
    model = convolutional().train(training)
    model[1].train(not training)  # a part of the network may be frozen
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    evaluate(model, batches(ten, 4))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_hooks_are_called_once_a_step_and_once_an_epoch_in_order(ten: ImageSet) -> None:
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
    assert [record.test_loss for record in history] == [evaluation.loss for evaluation in evaluations]
    assert [record.test_accuracy for record in history] == [evaluation.accuracy for evaluation in evaluations]
    assert all(record.seconds > 0 for record in history)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", range(1, 16))
def test_a_run_continued_from_any_step_is_the_whole_run_bit_for_bit(
    tiny: tuple[ImageSet, ImageSet], tmp_path: Path, stop: int
) -> None:
    train, test = batches(tiny[0], 16, shuffle=True), batches(tiny[1], 16)  # 50 images in 4 steps
    state, before = tmp_path / "state.safetensors", tmp_path / "before"
    history: History = []

    def after_step(report: StepReport) -> None:
        if report.step == stop:
            save_state(state, model, optimizer, {"last_step": report.to_json()})
            raise Stopped

    uninterrupted = convolutional()
    torch.manual_seed(1)  # dropout draws from it
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
    saved = load_state(state, before)
    assert saved is not None
    saved.restore(model, optimizer)
    report = StepReport.from_json(saved.progress["last_step"])
    rest = fit(model, optimizer, train, test, epochs=4, first_epoch=len(history), last_step=report, **RATES)
    assert_same_state(model, uninterrupted)
    assert timeless([*history, *rest]) == timeless(expected)


def test_restored_moments_lie_in_memory_like_their_filters(tiny: tuple[ImageSet, ImageSet]) -> None:
    train, test = batches(tiny[0], 16, shuffle=True), batches(tiny[1], 16)
    how = Acceleration(channels_last=True)

    def trained(restored: bool) -> nn.Module:
        model = convolutional()
        optimizer = Adam(model.parameters())
        torch.manual_seed(1)
        fit(model, optimizer, train, test, epochs=1, acceleration=how, **RATES)
        if restored:  # as a file has them
            for values in optimizer.state.values():
                values["exp_avg"] = values["exp_avg"].contiguous()
        fit(model, optimizer, train, test, epochs=2, first_epoch=1, acceleration=how, **RATES)
        for parameter, values in optimizer.state.items():
            assert values["exp_avg"].stride() == parameter.stride()
        return model

    assert_same_state(trained(restored=True), trained(restored=False))


def test_evaluation_can_be_stopped_between_two_batches(tiny: tuple[ImageSet, ImageSet]) -> None:
    model, test = linear(), batches(tiny[1], 8)  # 20 images in 3 batches
    seen: list[int] = []

    def stop_at_second() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        evaluate(model, test, after_batch=stop_at_second)
    assert len(seen) == 2


@pytest.mark.parametrize("epochs", [0, 1])
def test_fewer_than_two_steps_make_no_cycle(ten: ImageSet, epochs: int) -> None:
    model = linear()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError):
        fit(model, SGD(model.parameters()), batches(ten, 10), batches(ten, 10), epochs=epochs, **RATES)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_two_steps_are_enough(ten: ImageSet) -> None:
    rates = rates_of_a_run(ten, epochs=1)
    assert rates == [1e-2, 1e-4]


def test_a_composite_learns_in_its_own_way(ten: ImageSet) -> None:
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
    images, labels = whole(ten)
    with torch.no_grad():
        loss = float(cross_entropy(model(images), labels, label_smoothing=0.5))
    (record,) = fit(model, SGD(model.parameters()), batches(ten, 5), batches(ten, 5), epochs=1, lr_min=0.0, lr_max=0.0)
    assert record.test_loss == pytest.approx(loss, rel=1e-6)
    assert record.train_loss == pytest.approx(2 * loss, rel=1e-6)


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def timeless(history: History) -> History:
    return [replace(record, seconds=0.0, training_seconds=0.0) for record in history]


def test_a_group_with_a_scale_learns_at_so_many_times_the_rate_of_the_step() -> None:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [network.weight]}, {"params": [network.bias], "lr_scale": 10}], lr=1)
    batch = Batch(torch.ones(3, 2), torch.tensor([0, 1, 0]))
    list(training_steps(as_composite(network), optimizer, [batch], lambda step: 0.5, acceleration=PLAIN))
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 5.0]


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_group_with_epochs_learns_in_so_many_only(ten: ImageSet, epochs: int) -> None:
    model = linear()
    weight, bias = model[1].weight, model[1].bias
    optimizer = SGD([{"params": [weight]}, {"params": [bias], "epochs": epochs}])
    seen: list[torch.Tensor] = [bias.detach().clone()]

    def keep(record: EpochRecord, evaluation: Evaluation) -> None:
        seen.append(bias.detach().clone())

    images = batches(ten, 5)
    fit(model, optimizer, images, images, epochs=3, after_epoch=keep, peak_fraction=0.0, **RATES)
    moved = [not torch.equal(before, after) for before, after in pairwise(seen)]
    assert moved == [epoch < epochs for epoch in range(3)]


def test_what_was_frozen_in_a_group_with_epochs_stays_frozen(ten: ImageSet) -> None:
    model = linear()
    weight, bias = model[1].weight, model[1].bias.requires_grad_(False)
    optimizer = SGD([{"params": [weight]}, {"params": [bias], "epochs": 2}])
    fit(model, optimizer, batches(ten, 5), batches(ten, 5), epochs=3, **RATES)
    assert not bias.requires_grad
