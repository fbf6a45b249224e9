import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from onecycle.core.errors import InputError
from onecycle.models import CustomResNet, ModelComposite
from onecycle.models.custom_resnet import residual_block

# The specification's table: layer, output shape, number of parameters.
TABLE = [
    ("Conv2d-1", (64, 32, 32), 1_728),
    ("BatchNorm2d-2", (64, 32, 32), 128),
    ("ReLU-3", (64, 32, 32), 0),
    ("Conv2d-4", (128, 32, 32), 73_728),
    ("MaxPool2d-5", (128, 16, 16), 0),
    ("BatchNorm2d-6", (128, 16, 16), 256),
    ("ReLU-7", (128, 16, 16), 0),
    ("Conv2d-8", (128, 16, 16), 147_456),
    ("BatchNorm2d-9", (128, 16, 16), 256),
    ("ReLU-10", (128, 16, 16), 0),
    ("Conv2d-11", (128, 16, 16), 147_456),
    ("BatchNorm2d-12", (128, 16, 16), 256),
    ("ReLU-13", (128, 16, 16), 0),
    ("Conv2d-14", (256, 16, 16), 294_912),
    ("MaxPool2d-15", (256, 8, 8), 0),
    ("BatchNorm2d-16", (256, 8, 8), 512),
    ("ReLU-17", (256, 8, 8), 0),
    ("Conv2d-18", (512, 8, 8), 1_179_648),
    ("MaxPool2d-19", (512, 4, 4), 0),
    ("BatchNorm2d-20", (512, 4, 4), 1_024),
    ("ReLU-21", (512, 4, 4), 0),
    ("Conv2d-22", (512, 4, 4), 2_359_296),
    ("BatchNorm2d-23", (512, 4, 4), 1_024),
    ("ReLU-24", (512, 4, 4), 0),
    ("Conv2d-25", (512, 4, 4), 2_359_296),
    ("BatchNorm2d-26", (512, 4, 4), 1_024),
    ("ReLU-27", (512, 4, 4), 0),
    ("MaxPool2d-28", (512, 1, 1), 0),
    ("Flatten-29", (512,), 0),
    ("Linear-30", (10,), 5_120),
]


@pytest.fixture(scope="module")
def network() -> CustomResNet:
    torch.manual_seed(0)
    return CustomResNet()


def test_it_inherits_model_composite() -> None:
    assert CustomResNet.__mro__[1] is ModelComposite


def test_its_thirty_layers_are_those_of_the_specification(network: CustomResNet) -> None:
    summary = network.summary((3, 32, 32))
    assert [(row.layer, row.output_shape, row.parameters) for row in summary.layers] == TABLE


def test_its_totals_and_sizes_are_those_of_the_specification(network: CustomResNet) -> None:
    summary = network.summary((3, 32, 32))
    assert summary.parameters == summary.trainable_parameters == 6_573_120 == sum(row[2] for row in TABLE)
    sizes = (summary.input_mb, summary.forward_backward_mb, summary.parameters_mb, summary.total_mb)
    assert [round(size, 2) for size in sizes] == [0.01, 6.45, 25.07, 31.53]


def test_an_image_costs_the_multiplications_of_the_table(network: CustomResNet) -> None:
    multiplications = 0
    for layer, shape, parameters in TABLE:
        if layer.startswith(("Conv2d", "Linear")):
            multiplications += parameters * (shape[1] * shape[2] if len(shape) == 3 else 1)
    with FlopCounterMode(display=False) as counter:
        network.predict(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * multiplications  # each multiplication comes with an addition


def test_it_computes_what_the_specification_defines(network: CustomResNet) -> None:
    """The test computes the expected logits with plain functions, in the order of the specification.

    Pooling comes before the norm, and a residual branch ends with a ReLU.
    """
    values = iter(network.state_dict().values())
    # Give the norms different statistics, so that a wrong order of the layers changes the logits.
    torch.manual_seed(1)
    network.train()
    with torch.no_grad():
        network(torch.randn(4, 3, 32, 32) * 2 + 0.3)
    network.eval()

    def convolution(images: torch.Tensor, *, pool: bool) -> torch.Tensor:
        convolved = functional.conv2d(images, next(values), padding=1)
        pooled = functional.max_pool2d(convolved, 2) if pool else convolved
        weight, bias, mean, variance, _ = (next(values) for _ in range(5))
        return functional.relu(functional.batch_norm(pooled, mean, variance, weight, bias))

    def residual(images: torch.Tensor) -> torch.Tensor:
        return images + convolution(convolution(images, pool=False), pool=False)

    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = convolution(images, pool=False)
        features = residual(convolution(features, pool=True))
        features = convolution(features, pool=True)
        features = residual(convolution(features, pool=True))
        expected = functional.max_pool2d(features, 4).flatten(1) @ next(values).t()
        assert (network(images) - expected).abs().max() < 1e-4
    assert next(values, None) is None


def test_a_residual_adds_its_branch_to_its_input() -> None:
    block = residual_block(4).eval()
    features = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(features), features + block.branch(features))
    last_norm = block.branch[1][1]
    torch.nn.init.zeros_(last_norm.weight)
    assert torch.equal(block(features), features)
    block(features.requires_grad_()).sum().backward()
    assert torch.equal(features.grad, torch.ones_like(features))


def test_neither_convolutions_nor_the_linear_layer_have_a_bias(network: CustomResNet) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            assert module.bias is None


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_it_takes_any_number_of_classes(classes: int) -> None:
    network = CustomResNet(classes, input_size=8)
    assert network.predict(torch.zeros(3, 3, 8, 8)).shape == (3, classes)
    assert sum(p.numel() for p in network.parameters()) == 6_573_120 + 512 * (classes - 10)


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
def test_it_takes_other_image_sizes_with_the_same_parameters(size: int) -> None:
    network = CustomResNet(input_size=size)
    summary = network.summary((3, size, size))
    assert summary.parameters == 6_573_120
    assert summary.layers[-3].output_shape == (512, 1, 1)
    assert summary.layers[-1].output_shape == (10,)


@pytest.mark.parametrize("size", [7, 1, 0, -32])
def test_images_too_small_to_be_halved_three_times_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"images of {size}×{size} are too small: .*; use 8×8 or more"):
        CustomResNet(input_size=size)


@pytest.mark.parametrize("classes", [1, 0, -1])
def test_fewer_than_two_classes_are_refused(classes: int) -> None:
    with pytest.raises(InputError, match=f"needs at least 2 classes, not {classes}$"):
        CustomResNet(classes)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 32, 31), (2, 1, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
def test_images_of_another_shape_are_refused(network: CustomResNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"takes images \[B,3,32,32\], not \[") as error:
        network(torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


def test_the_seed_determines_the_initial_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in CustomResNet(input_size=8).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
