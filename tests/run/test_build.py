from dataclasses import replace

import pytest
import torch
from torch.optim import Adam

from onecycle.compute.plan import PLAIN, Acceleration
from onecycle.core.config import BASELINE, FAST, QUICK, Config
from onecycle.core.errors import InputError
from onecycle.models import CustomResNet, TrainingCrossEntropy, WhitenedConvNet
from onecycle.run.build import Experiment, assemble
from onecycle.train.optimizers import Muon

TINY = {"data": "digits", "limit": 60, "batch_size": 20}


def made(config: Config, **changes: object) -> Experiment:
    return assemble(replace(config, **TINY, **changes), PLAIN)


def rates(experiment: Experiment) -> dict[str, float]:
    """The rate, to that of the schedule, of each parameter by name."""
    names = {id(parameter): name for name, parameter in experiment.model.named_parameters()}
    groups = experiment.optimizer.param_groups
    return {names[id(p)]: group.get("lr_scale", 1) for group in groups for p in group["params"]}


def test_the_baseline_is_the_custom_resnet_with_adam_and_plain_cross_entropy() -> None:
    experiment = made(BASELINE, augmentation="batched")
    assert isinstance(experiment.model, CustomResNet)
    assert isinstance(experiment.optimizer, Adam)
    assert type(experiment.model.criterion) is torch.nn.CrossEntropyLoss
    assert set(rates(experiment).values()) == {1}


def test_every_learned_parameter_of_a_recipe_is_in_one_group_and_no_other_is() -> None:
    experiment = made(FAST)
    assert isinstance(experiment.model, WhitenedConvNet)
    assert isinstance(experiment.optimizer, Muon)
    found = rates(experiment)
    assert found.keys() == {name for name, p in experiment.model.named_parameters() if p.requires_grad}
    assert "whitening.weight" not in found
    assert sum(len(group["params"]) for group in experiment.optimizer.param_groups) == len(found)


def test_biases_learn_so_many_times_faster_than_the_linear_layer() -> None:
    found = rates(made(FAST, bias_lr_scale=10))
    assert found["groups.0.2.bias"] == pytest.approx(10 * found["linear.weight"])
    assert found["groups.0.0.weight"] == 1


@pytest.mark.parametrize("how", [None, replace(PLAIN, threads=1)], ids=["measured", "given"])
def test_the_first_weights_are_those_of_the_runs_threads_whatever_the_process_computed_with_before(
    how: Acceleration | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()

    def whitening(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        return assemble(replace(QUICK, widths=(8, 8, 8), **TINY), how).model.whitening.weight.clone()  # type: ignore

    try:
        assert torch.equal(whitening(threads=4), whitening(threads=1))
    finally:
        torch.set_num_threads(before)


def test_the_rate_of_what_sgd_trains_grows_with_the_batch() -> None:
    assert rates(made(FAST))["linear.weight"] == pytest.approx(20 * 0.0035)


def test_the_biases_of_the_whitening_layer_learn_in_so_many_epochs_only() -> None:
    experiment = made(FAST, whitening_epochs=1)
    (group,) = (group for group in experiment.optimizer.param_groups if group.get("epochs") is not None)
    assert group["epochs"] == 1
    assert [id(parameter) for parameter in group["params"]] == [id(experiment.model.whitening.bias)]
    assert rates(experiment) == rates(made(FAST, whitening_epochs=None))


def test_with_sgd_filters_learn_like_the_linear_layer_and_are_not_orthogonalized() -> None:
    experiment = made(FAST, optimizer="sgd")
    found = rates(experiment)
    assert found["groups.0.0.weight"] == found["linear.weight"]
    assert not any(group["orthogonalize"] for group in experiment.optimizer.param_groups)


def test_a_network_that_is_not_whitened_learns_its_first_layer() -> None:
    found = rates(made(FAST, whitening=False))
    assert found["whitening.weight"] == 1


def test_a_first_layer_that_is_learned_is_not_fixed() -> None:
    experiment = made(FAST, whitening=False)
    assert not any(group["params"] for group in experiment.optimizer.param_groups if group.get("epochs") is not None)
    assert rates(experiment).keys() == {name for name, p in experiment.model.named_parameters() if p.requires_grad}


def test_labels_are_smoothed_in_training_and_not_in_evaluation() -> None:
    criterion = made(FAST, label_smoothing=0.2).model.criterion
    assert isinstance(criterion, TrainingCrossEntropy)
    logits, labels = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0])
    plain = torch.nn.functional.cross_entropy(logits, labels)
    smoothed = 0.8 * plain + 0.2 * -logits.log_softmax(1).mean()
    assert torch.allclose(criterion.train()(logits, labels), smoothed)
    assert torch.equal(criterion.eval()(logits, labels), plain)


def test_weighed_classes_count_alike_in_training_and_evaluation_does_not_weigh() -> None:
    experiment = assemble(replace(BASELINE, **{**TINY, "limit": 61}, class_weights=True), PLAIN)
    labels = torch.from_numpy(experiment.dataset.train.labels)
    counts = labels.bincount()
    assert sorted(counts.tolist()) == [6] * 9 + [7]
    logits = torch.randn(len(labels), 10, generator=torch.Generator().manual_seed(0))
    criterion = experiment.model.criterion
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    mean_of_classes = torch.stack([losses[labels == label].mean() for label in range(10)]).mean()
    assert torch.allclose(criterion.train()(logits, labels), mean_of_classes)
    assert torch.allclose(criterion.eval()(logits, labels), losses.mean())
    assert not [name for name in experiment.model.state_dict() if "criterion" in name]


@pytest.mark.parametrize(("option", "value"), [("hole", 33), ("padding", 32)])
def test_an_augmentation_larger_than_the_images_is_refused(option: str, value: int) -> None:
    with pytest.raises(InputError, match=f"--{option} is {value}; it must be .* the images' side, which is 32"):
        made(FAST, **{option: value})
