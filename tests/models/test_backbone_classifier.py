import pytest
import torch
from torch import nn

from onecycle.core.errors import InputError
from onecycle.models import BackboneClassifier, Batch
from onecycle.models.backbone_classifier import channel_means

IMAGES, LABELS = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


def classifier(*, frozen: bool = False) -> BackboneClassifier:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 2, stride=2), nn.BatchNorm2d(6), nn.Dropout(), nn.ReLU())
    model = BackboneClassifier(backbone, 6, classes=3)
    if frozen:
        model.freeze_backbone()
    return model


@pytest.mark.parametrize("frozen", [True, False])
def test_training_changes_the_head_and_the_backbone_if_it_is_not_frozen(frozen: bool) -> None:
    model = classifier(frozen=frozen).train()
    assert model.has_frozen_backbone == frozen
    model.training_step(Batch(IMAGES, LABELS)).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    of_backbone = {f"backbone.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")}
    assert trained == {"head.linear.weight", "head.linear.bias"} | (set() if frozen else of_backbone)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_backbone_stays_in_evaluation_mode_so_batch_norm_keeps_its_statistics(frozen: bool) -> None:
    model = classifier(frozen=frozen).train()
    assert model.training and model.head.training
    assert not any(module.training for module in model.backbone.modules())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits = model.training_step(Batch(IMAGES, LABELS)).logits
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert torch.equal(logits, model.eval()(IMAGES))


def test_the_head_gives_the_same_logits_for_feature_maps_and_their_means() -> None:
    model = classifier()
    features = model.features(IMAGES)
    assert features.shape == (4, 6, 4, 4) and channel_means(features).shape == (4, 6, 1, 1)
    torch.testing.assert_close(model.head(channel_means(features)), model(IMAGES))
    torch.testing.assert_close(model.classify(features), model.head.linear(features.mean(dim=(2, 3))))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_summary_tells_which_layers_are_trained(frozen: bool) -> None:
    summary = classifier(frozen=frozen).summary((3, 8, 8))
    names = ["Conv2d-1", "BatchNorm2d-2", "Dropout-3", "ReLU-4", "Linear-5"]
    assert [layer.layer for layer in summary.layers] == names
    backbone, head = 3 * 6 * 4 + 6 + 2 * 6, 6 * 3 + 3
    assert summary.parameters == backbone + head
    assert summary.trainable_parameters == head + (0 if frozen else backbone)


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 classes, not 1"):
        BackboneClassifier(nn.Identity(), 3, classes=1)
