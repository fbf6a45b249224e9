import copy
import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from onecycle.compute.hardware import Hardware
from onecycle.compute.kernels import native, tiles
from onecycle.compute.kernels.convolution import FastConv2d
from onecycle.compute.plan import PLAIN, Acceleration, require_device
from onecycle.core.errors import InputError
from onecycle.data import ImageSet
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Batch, CustomResNet, as_composite

LAPTOP = Hardware(cpu="old", cpu_features="few", cores=4, memory_gib=8, fast_bfloat16=False, gpu=None, gpu_kind=None)
SERVER = dataclasses.replace(LAPTOP, cpu="new", cores=16, fast_bfloat16=True)
CUDA = dataclasses.replace(LAPTOP, gpu="NVIDIA H100", gpu_kind="cuda")
MAC = dataclasses.replace(LAPTOP, gpu="Apple GPU", gpu_kind="mps")

FAST = Acceleration(channels_last=True, small_map_products=True)
FASTEST = dataclasses.replace(FAST, precision="bfloat16", native_kernels=True, matrix_unit=True)
USUAL = Acceleration(channels_last=True, precision="bfloat16")

SIZE = 16  # the maps of the last layer are 2×2: small, so the kernels run


@pytest.fixture
def model() -> CustomResNet:
    torch.manual_seed(0)
    return CustomResNet(input_size=SIZE)


@pytest.fixture(scope="module")
def batch(tiny: tuple[ImageSet, ImageSet]) -> Batch:
    images = tiny[0].images[::3, ::2, ::2]  # 17 digits of 16×16
    return Batch(
        Preprocessing.of(images).normalize(torch.from_numpy(images.copy())), torch.from_numpy(tiny[0].labels[::3])
    )


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CC", "no-such-compiler")
    native.compiled.cache_clear()
    tiles.can_be_used.cache_clear()
    yield
    native.compiled.cache_clear()
    tiles.can_be_used.cache_clear()


def step(model: CustomResNet, batch: Batch, how: Acceleration) -> torch.Tensor:
    """One step of plain gradient descent on `model`, computed as `how` says; its loss."""
    running = how.prepare(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with how.autocast():
        loss = running.training_step(batch).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("how", [PLAIN, FAST, FASTEST], ids=["plain", "fast", "fastest"])
def test_the_prepared_copy_runs_on_the_very_parameters_and_buffers(model: CustomResNet, how: Acceleration) -> None:
    running = how.prepare(model)
    assert running is not model
    assert [name for name, _ in running.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(one is other for one, other in zip(running.parameters(), model.parameters(), strict=True))
    assert all(one is other for one, other in zip(running.buffers(), model.buffers(), strict=True))
    assert list(running.state_dict()) == list(model.state_dict())


def test_preparing_leaves_the_network_itself_as_it_was(model: CustomResNet) -> None:
    modules = [(name, id(module), type(module)) for name, module in model.named_modules()]
    state = copy.deepcopy(model.state_dict())
    model.eval()
    running = FASTEST.prepare(model)
    assert [(name, id(module), type(module)) for name, module in model.named_modules()] == modules
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in running.modules())
    running.train()
    assert not any(module.training for module in model.modules())


def test_the_prepared_copy_has_every_fitting_convolution_replaced_and_channels_last_weights(
    model: CustomResNet,
) -> None:
    running = FAST.prepare(model)
    convolutions = [module for module in running.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 8
    assert {type(module) for module in convolutions} == {FastConv2d}
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in convolutions)
    plain = PLAIN.prepare(model)
    assert [type(module) for module in plain.modules()] == [type(module) for module in model.modules()]


def test_a_network_of_ones_own_keeps_the_layers_that_do_not_fit() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    network = as_composite(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), shared, nn.Sequential(shared), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
        )
    )
    running = FAST.prepare(network)
    kinds = [type(module) for module in running.network]
    assert kinds == [nn.Conv2d, FastConv2d, nn.Sequential, nn.ReLU, nn.Flatten, nn.Linear]
    images = torch.randn(2, 3, 4, 4)
    assert torch.allclose(running(images), network(images), atol=1e-6)
    assert running.network[1].weight is running.network[2][0].weight is shared.weight


def test_the_accelerated_network_gives_the_plain_results_in_float64(model: CustomResNet, batch: Batch) -> None:
    model.double().eval()
    images = batch.images.double()
    with torch.no_grad():
        assert (FAST.prepare(model)(images) - model(images)).abs().max() < 1e-10


@pytest.mark.usefixtures("native_kernels")
def test_the_accelerated_network_gives_the_plain_results_up_to_rounding(model: CustomResNet, batch: Batch) -> None:
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(batch.images)  # so that the norms have statistics to use
    model.eval()
    with torch.no_grad():
        plain = model(batch.images)
        spread = plain.std()
        assert (FAST.prepare(model)(batch.images) - plain).abs().max() < 1e-5 * spread
        with FASTEST.autocast():
            fastest = FASTEST.prepare(model)(batch.images)
    assert fastest.dtype == torch.bfloat16
    assert (fastest.float() - plain).abs().max() < 0.1 * spread
    assert (fastest.argmax(dim=1) == plain.argmax(dim=1)).float().mean() > 0.8


def test_training_the_prepared_copy_trains_the_network_and_its_norms_statistics(
    model: CustomResNet, batch: Batch
) -> None:
    model.double()
    batch = Batch(batch.images.double(), batch.labels)
    twin, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    losses = step(model, batch, FAST), step(twin, batch, PLAIN)
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-10)
    for name, value in model.state_dict().items():
        assert (value != before[name]).any(), name
        assert (value - twin.state_dict()[name]).abs().max() < 1e-9, name
    assert all(int(value) == 1 for name, value in model.state_dict().items() if name.endswith("num_batches_tracked"))


@pytest.mark.usefixtures("native_kernels")
def test_training_in_bfloat16_keeps_float32_parameters_gradients_and_statistics(
    model: CustomResNet, batch: Batch
) -> None:
    twin = copy.deepcopy(model)
    assert step(model, batch, FASTEST).item() == pytest.approx(step(twin, batch, PLAIN).item(), rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    for (name, ours), exact in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(ours, exact, rtol=0.02, atol=0.01), name


def gradients(model: CustomResNet, batch: Batch, how: Acceleration) -> list[torch.Tensor]:
    twin = copy.deepcopy(model)
    step(twin, batch, how)
    return [parameter.grad.double() for parameter in twin.parameters() if parameter.grad is not None]


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize(
    ("size", "count"),
    [pytest.param(8, 32, marks=pytest.mark.long), pytest.param(16, 16, marks=pytest.mark.long), (32, 8)],
)
def test_the_fast_modes_gradients_are_as_good_as_those_of_plain_bfloat16(
    tiny: tuple[ImageSet, ImageSet], size: int, count: int
) -> None:
    squares = []  # of the relative errors: [batch, way, parameter]
    for seed in range(8):  # in a single one, a rounding that flips a ReLU or a maximum decides who is better
        torch.manual_seed(seed)
        rows = torch.randperm(len(tiny[0]))[:count].numpy()
        pixels = torch.from_numpy(tiny[0].images[rows, :: 32 // size, :: 32 // size].copy())
        images, labels = Preprocessing.of(tiny[0].images).normalize(pixels), torch.from_numpy(tiny[0].labels[rows])
        model = CustomResNet(input_size=size)
        exact = gradients(copy.deepcopy(model).double(), Batch(images.double(), labels), PLAIN)
        found = [gradients(model, Batch(images, labels), how) for how in (FASTEST, USUAL)]
        squares.append([[((g - e).norm() / e.norm()) ** 2 for g, e in zip(way, exact, strict=True)] for way in found])
    fast, usual = torch.tensor(squares).mean(dim=0).sqrt()
    assert usual.max() < 0.6, "so these still are gradients"
    for (name, _), error, allowed in zip(model.named_parameters(), fast, usual, strict=True):
        assert error <= 1.2 * allowed, name


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_fast_step_repeats_bit_for_bit_with_the_same_number_of_threads(
    model: CustomResNet, batch: Batch, threads: int
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        twins = [copy.deepcopy(model) for _ in range(2)]
        losses = [step(twin, batch, FASTEST) for twin in twins]
    finally:
        torch.set_num_threads(before)
    assert losses[0] == losses[1]
    first, second = (twin.state_dict() for twin in twins)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_weights_loaded_into_the_network_later_are_those_the_copy_runs_on(model: CustomResNet, batch: Batch) -> None:
    running = FAST.prepare(model).eval()
    torch.manual_seed(1)
    other = CustomResNet(input_size=SIZE).eval()
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert torch.allclose(running(batch.images), other(batch.images), atol=1e-5)


@pytest.mark.parametrize(
    ("hardware", "device", "has"),
    [(LAPTOP, "cuda", "only cpu"), (LAPTOP, "mps", "only cpu"), (CUDA, "mps", "cpu and cuda"), (MAC, "tpu", "cpu and")],
)
def test_a_device_that_the_machine_has_not_is_refused_with_what_it_has(
    hardware: Hardware, device: str, has: str
) -> None:
    message = f"device {device} is asked for, and this machine has {has}"
    with pytest.raises(InputError, match=message):
        require_device(hardware, device)


def test_every_machine_has_a_cpu_and_any_device_will_do_where_none_is_named() -> None:
    for hardware in (LAPTOP, SERVER, CUDA, MAC):
        require_device(hardware, "cpu")
        require_device(hardware, "auto")
        PLAIN.require(hardware)


@pytest.mark.usefixtures("no_compiler")
def test_native_kernels_are_refused_with_a_way_out_where_there_is_no_compiler() -> None:
    with pytest.raises(InputError, match=r"native kernels, which need a C compiler .* install one, or set CC to it"):
        FASTEST.require(LAPTOP)
    FAST.require(LAPTOP)


@pytest.fixture
def no_matrix_unit(native_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "can_be_used", lambda: False)


@pytest.mark.usefixtures("no_matrix_unit")
def test_a_matrix_unit_is_refused_where_there_is_none_and_left_out_in_evaluation(
    model: CustomResNet, batch: Batch
) -> None:
    without = dataclasses.replace(FASTEST, matrix_unit=False)
    with pytest.raises(InputError, match=r"a CPU's matrix unit \(AMX\), which needs such a CPU, .* this is old"):
        FASTEST.require(LAPTOP)
    without.require(LAPTOP)
    assert FASTEST.for_evaluation() == dataclasses.replace(without, native_kernels=False)
    assert torch.equal(step(copy.deepcopy(model), batch, FASTEST), step(model, batch, without))


def test_a_way_written_as_json_comes_back_equal() -> None:
    for how in (PLAIN, FAST, FASTEST):
        assert Acceleration.from_json(json.loads(json.dumps(how.to_json()))) == how


def test_applying_sets_the_threads_of_this_process_or_leaves_them() -> None:
    before = torch.get_num_threads()
    try:
        PLAIN.apply()
        assert torch.get_num_threads() == before
        Acceleration(threads=before + 1).apply()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_only_bfloat16_casts() -> None:
    for how, dtype in [(PLAIN, torch.float32), (FAST, torch.float32), (FASTEST, torch.bfloat16)]:
        with how.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
