import pytest
import torch
from torch import nn

from onecycle.core.errors import InputError
from onecycle.models import BackboneClassifier, Batch

IMAGES, LABELS = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


def block(inputs: int, outputs: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride=size), nn.BatchNorm2d(outputs), nn.ReLU())


def classifier(*, tunes: bool = True) -> BackboneClassifier:
    torch.manual_seed(0)
    frozen, tuned = block(3, 5, 2), block(5, 6, 1)
    if tunes:
        return BackboneClassifier(frozen, tuned, 6, classes=3)
    return BackboneClassifier(nn.Sequential(frozen, tuned), nn.Identity(), 6, classes=3)


def test_only_the_head_is_trained_and_batch_norm_keeps_its_statistics() -> None:
    model = classifier().train()
    assert model.training and model.head.training
    assert not any(module.training for part in (model.frozen, model.head.tuned) for module in part.modules())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.training_step(Batch(IMAGES, LABELS)).loss.backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("head.")}
    assert {"head.linear.weight", "head.tuned.0.weight"} < trained
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(("tunes", "shape"), [(True, (4, 5, 4, 4)), (False, (4, 6, 1, 1))])
def test_the_head_gives_the_logits_of_the_whole_network_from_the_output_of_the_frozen_layers(
    tunes: bool, shape: tuple[int, ...]
) -> None:
    model = classifier(tunes=tunes)
    frozen, features = model.inputs_of_head(IMAGES), model.features(IMAGES)
    assert frozen.shape == shape and features.shape == (4, 6, 4, 4)
    torch.testing.assert_close(model.head(frozen), model(IMAGES))
    torch.testing.assert_close(model.classify(features), model.head.linear(features.mean(dim=(2, 3))))


def test_the_summary_lists_the_frozen_layers_as_not_trainable() -> None:
    summary = classifier().summary((3, 8, 8))
    names = ["Conv2d-1", "BatchNorm2d-2", "ReLU-3", "Conv2d-4", "BatchNorm2d-5", "ReLU-6", "Linear-7"]
    assert [layer.layer for layer in summary.layers] == names
    frozen, head = 3 * 5 * 4 + 5 + 2 * 5, 5 * 6 + 6 + 2 * 6 + 21
    assert (summary.parameters, summary.trainable_parameters) == (frozen + head, head)


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 classes, not 1"):
        BackboneClassifier(nn.Identity(), nn.Identity(), 3, classes=1)
