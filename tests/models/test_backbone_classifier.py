import pytest
import torch
from torch import nn

from onecycle.core.errors import InputError
from onecycle.models import BackboneClassifier, Batch
from onecycle.models.backbone_classifier import pooled

IMAGES, LABELS = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


def classifier() -> BackboneClassifier:
    torch.manual_seed(0)
    return BackboneClassifier(nn.Sequential(nn.Conv2d(3, 5, 2, stride=2), nn.BatchNorm2d(5), nn.ReLU()), 5, classes=3)


def test_only_the_head_is_trained_and_batch_norm_keeps_its_statistics() -> None:
    model = classifier().train()
    assert model.training and model.head.training and not any(module.training for module in model.backbone.modules())
    before = {name: buffer.clone() for name, buffer in model.backbone.named_buffers()}
    model.training_step(Batch(IMAGES, LABELS)).loss.backward()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == {
        "head.linear.weight",
        "head.linear.bias",
    }
    assert all(torch.equal(before[name], buffer) for name, buffer in model.backbone.named_buffers())


def test_the_head_alone_gives_the_logits_of_the_whole_network_from_pooled_features() -> None:
    model = classifier()
    features = model.features(IMAGES)
    assert features.shape == (4, 5, 4, 4)
    torch.testing.assert_close(model.head(pooled(features)), model(IMAGES))
    torch.testing.assert_close(pooled(features), features.mean(dim=(2, 3)))


def test_the_summary_lists_the_backbone_as_not_trainable() -> None:
    summary = classifier().summary((3, 8, 8))
    assert [layer.layer for layer in summary.layers] == ["Conv2d-1", "BatchNorm2d-2", "ReLU-3", "Linear-4"]
    assert (summary.parameters, summary.trainable_parameters) == (3 * 5 * 4 + 5 + 2 * 5 + 18, 18)


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 classes, not 1"):
        BackboneClassifier(nn.Identity(), 3, classes=1)
