import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from onecycle.data import ImageSet
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Batch, CustomResNet, ModelComposite, TrainingCrossEntropy, as_composite
from onecycle.storage.records import LayerSummary


def small_network() -> nn.Sequential:
    """A network with a norm and dropout, which work differently in training and evaluation."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 10)
    )


@pytest.fixture
def model() -> ModelComposite:
    return as_composite(small_network())


@pytest.fixture(scope="module")
def batch(tiny: tuple[ImageSet, ImageSet]) -> Batch:
    preprocessing = Preprocessing.of(tiny[0].images)
    return Batch(preprocessing.normalize(torch.from_numpy(tiny[0].images)), torch.from_numpy(tiny[0].labels))


def state_of(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_training_step_returns_the_mean_cross_entropy_and_logits_with_gradients(
    model: ModelComposite, batch: Batch
) -> None:
    model.train()
    loss, logits = model.training_step(batch)
    assert (loss.shape, logits.shape) == ((), (50, 10))
    of_labels = logits.log_softmax(dim=1)[torch.arange(50), batch.labels]
    assert loss.item() == pytest.approx(-of_labels.mean().item(), rel=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_few_training_steps_fit_the_tiny_set(model: ModelComposite, batch: Batch) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = model.eval().evaluation_step(batch).loss.item()
    model.train()
    for _ in range(30):
        optimizer.zero_grad()
        model.training_step(batch).loss.backward()
        optimizer.step()
    loss, logits = model.eval().evaluation_step(batch)
    assert loss.item() < before / 4
    assert (logits.argmax(dim=1) == batch.labels).float().mean() > 0.9


def test_the_loss_is_float32_under_bfloat16_autocast(model: ModelComposite, batch: Batch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, logits = model.training_step(batch)
    assert (loss.dtype, logits.dtype) == (torch.float32, torch.bfloat16)
    loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("autocast", [False, True])
def test_an_evaluation_step_is_float32_without_gradients(model: ModelComposite, batch: Batch, autocast: bool) -> None:
    model.eval()
    before = state_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss, logits = model.evaluation_step(batch)
    assert (loss.dtype, logits.dtype) == (torch.float32, torch.float32)
    assert not loss.requires_grad
    assert not logits.requires_grad
    assert loss.item() == pytest.approx(functional.cross_entropy(logits, batch.labels).item(), abs=1e-6)
    assert state_of(model) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("training", [True, False])
def test_predictions_are_probabilities_in_evaluation_mode_and_change_nothing(
    model: ModelComposite, batch: Batch, training: bool
) -> None:
    model.train(training)
    before = state_of(model)
    probabilities = model.predict(batch.images)
    assert (probabilities.dtype, probabilities.shape) == (torch.float32, (50, 10))
    assert not probabilities.requires_grad
    assert probabilities.min() >= 0
    assert (probabilities.sum(dim=1) - 1).abs().max() < 1e-5
    assert torch.equal(probabilities, model.predict(batch.images))  # dropout is off
    assert torch.allclose(probabilities[:1], model.predict(batch.images[:1]), atol=1e-6)  # no batch statistics are used
    assert state_of(model) == before
    assert all(module.training is training for module in model.modules())


def test_predictions_are_float32_under_bfloat16_autocast(model: ModelComposite, batch: Batch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probabilities = model.predict(batch.images)
    assert probabilities.dtype == torch.float32
    assert (probabilities.sum(dim=1) - 1).abs().max() < 1e-5


def test_a_failed_prediction_restores_the_mode_too(model: ModelComposite) -> None:
    model.train()
    with pytest.raises(RuntimeError):
        model.predict(torch.zeros(1, 1, 1, 1))
    assert model.training


def test_a_module_in_evaluation_mode_stays_in_evaluation_mode(model: ModelComposite, batch: Batch) -> None:
    model.train()
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.eval()
    model.predict(batch.images)
    assert not norm.training
    model.summary((3, 32, 32))
    assert not norm.training
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_a_summary_does_not_change_mode_hooks_gradients_and_statistics(training: bool) -> None:
    model = CustomResNet(input_size=8).train(training)
    model.linear.register_forward_hook(lambda module, inputs, output: None)
    before, hooks, random = state_of(model), hooks_of(model), torch.get_rng_state()
    first, second = model.summary((3, 8, 8)), model.summary((3, 8, 8))
    assert first == second
    assert state_of(model) == before
    assert hooks_of(model) == hooks == 1
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training is training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_failed_summary_removes_its_hooks(model: ModelComposite) -> None:
    with pytest.raises(RuntimeError):
        model.summary((1, 5, 5))
    assert hooks_of(model) == 0


def test_a_summary_counts_frozen_parameters_apart_and_excludes_the_criterion(model: ModelComposite) -> None:
    list(model.parameters())[0].requires_grad_(False)
    summary = model.summary((3, 32, 32))
    names = [row.layer for row in summary.layers]
    assert names == ["Conv2d-1", "BatchNorm2d-2", "ReLU-3", "Dropout-4", "Flatten-5", "Linear-6"]
    assert summary.parameters - summary.trainable_parameters == 4 * 3 * 3 * 3
    assert summary.parameters == sum(row.parameters for row in summary.layers)


def test_any_module_becomes_a_composite_that_shares_its_parameters(batch: Batch) -> None:
    network = small_network()
    model = as_composite(network)
    assert isinstance(model, ModelComposite)
    assert [id(p) for p in model.parameters()] == [id(p) for p in network.parameters()]
    assert [id(b) for b in model.buffers()] == [id(b) for b in network.buffers()]
    network.eval()
    assert torch.equal(model.eval()(batch.images), network(batch.images))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = copy.deepcopy(network.state_dict())
    model.train()
    model.training_step(batch).loss.backward()
    optimizer.step()
    assert all((network.state_dict()[name] != value).any() for name, value in before.items() if value.ndim)


def test_as_composite_returns_a_composite_itself(model: ModelComposite) -> None:
    assert as_composite(model) is model


def test_a_model_may_have_another_criterion(batch: Batch) -> None:
    class Smoothed(ModelComposite):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 32 * 32, 10)
            self.criterion = nn.CrossEntropyLoss(label_smoothing=0.2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.linear(images.flatten(1))

    model = Smoothed()
    loss, logits = model.training_step(batch)
    expected = functional.cross_entropy(logits, batch.labels, label_smoothing=0.2)
    assert loss.item() == pytest.approx(expected.item())
    assert model.evaluation_step(batch).loss.item() == pytest.approx(expected.item())
    assert [row.layer for row in model.summary((3, 32, 32)).layers] == ["Linear-1"]
    assert np.isfinite(loss.item())


def written_out(logits: torch.Tensor, labels: torch.Tensor, smoothing: float, weights: torch.Tensor) -> torch.Tensor:
    """The weighted loss of a batch, image by image: the weight of its class times its smoothed cross entropy."""
    losses = []
    for scores, label in zip(logits, labels, strict=True):
        log_probabilities = scores - scores.logsumexp(0)
        smoothed = (1 - smoothing) * log_probabilities[label] + smoothing * log_probabilities.mean()
        losses.append(-weights[label] * smoothed)
    return torch.stack(losses).sum() / len(labels)


@given(count=st.integers(1, 512), smoothing=st.sampled_from([0.0, 0.1, 0.2, 0.5]), seed=st.integers(0, 100))
def test_class_weights_multiply_the_smoothed_loss_of_each_image(count: int, smoothing: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (count,), generator=generator)
    weights = torch.tensor([0.1, 0.7, 2.0, 30.0])
    criterion = TrainingCrossEntropy(label_smoothing=smoothing, weight=weights).train()
    expected = written_out(logits, labels, smoothing, weights.double())
    assert criterion(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    unsmoothed = functional.cross_entropy(logits, labels).item()
    assert criterion.eval()(logits, labels).item() == pytest.approx(unsmoothed, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.1, 0.2])
def test_smoothing_with_class_weights_teaches_the_label_of_the_large_class(smoothing: float) -> None:
    weights = torch.tensor([1000 / (2 * 950), 1000 / (2 * 50)])
    criterion = TrainingCrossEntropy(label_smoothing=smoothing, weight=weights).train()
    logits = torch.zeros(1, 2, requires_grad=True)  # of an image of the large class
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(500):
        optimizer.zero_grad()
        criterion(logits, torch.tensor([0])).backward()
        optimizer.step()
    assert logits.softmax(1)[0].tolist() == pytest.approx([1 - smoothing / 2, smoothing / 2], abs=1e-4)


@pytest.mark.parametrize("batch_size", [16, 64, 512])
def test_each_class_has_the_same_share_of_the_loss_at_every_batch_size(batch_size: int) -> None:
    labels = torch.tensor([0] * 1000 + [1] * 20)[torch.randperm(1020, generator=torch.Generator().manual_seed(0))]
    criterion = TrainingCrossEntropy(weight=torch.tensor([1020 / 2000, 1020 / 40])).train()
    share = torch.zeros(2, dtype=torch.float64)
    for batch in labels.split(batch_size):
        logits = torch.zeros(len(batch), 2, dtype=torch.float64, requires_grad=True)
        (criterion(logits, batch) * len(batch)).backward()
        of_images = logits.grad.abs().sum(1)
        share += torch.stack([of_images[batch == label].sum() for label in (0, 1)])
    assert (share / share.sum()).tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


class OfRows(nn.Module):
    """A network that reads the rows of an image 8 pixels wide one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(24, 5, batch_first=True)
        self.linear = nn.Linear(5, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.rows(images.permute(0, 2, 1, 3).flatten(2))
        return self.linear(outputs[:, -1])


def test_a_summary_has_the_first_output_of_a_layer_with_several_outputs() -> None:
    rows, linear = as_composite(OfRows()).summary((3, 8, 8)).layers
    assert rows == LayerSummary(layer="GRU-1", output_shape=(8, 5), parameters=3 * 5 * (24 + 5 + 2))
    assert linear.output_shape == (10,)
