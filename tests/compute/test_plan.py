import copy
import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn

from onecycle.compute.hardware import Hardware
from onecycle.compute.kernels import amx
from onecycle.compute.kernels.convolution import FastConv2d
from onecycle.compute.plan import EAGER, ComputePlan, require_device
from onecycle.core.errors import InputError
from onecycle.data import ImageSet
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Batch, CustomResNet, as_composite

LAPTOP = Hardware(cpu="old", cpu_features="few", cores=4, memory_gib=8, fast_bfloat16=False, gpu=None, gpu_kind=None)
SERVER = dataclasses.replace(LAPTOP, cpu="new", cores=16, fast_bfloat16=True)
CUDA = dataclasses.replace(LAPTOP, gpu="NVIDIA H100", gpu_kind="cuda")
MAC = dataclasses.replace(LAPTOP, gpu="Apple GPU", gpu_kind="mps")

FAST = ComputePlan(channels_last=True, im2col_gemm=True)
FASTEST = dataclasses.replace(FAST, precision="bfloat16", native_kernels=True, amx=True)
WINOGRAD = dataclasses.replace(FAST, native_kernels=True, winograd=((3, 64), (512, 512)))
USUAL = ComputePlan(channels_last=True, precision="bfloat16")

SIZE = 16  # the last layer then has 2×2 maps, small enough for the kernels


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


def step(model: CustomResNet, batch: Batch, plan: ComputePlan) -> torch.Tensor:
    """One step of gradient descent on `model`, computed by `plan`. Returns the loss."""
    prepared = plan.prepare(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with plan.autocast():
        loss = prepared.training_step(batch).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("plan", [EAGER, FAST, FASTEST, WINOGRAD], ids=["eager", "fast", "fastest", "winograd"])
def test_a_prepared_model_shares_parameters_and_buffers(model: CustomResNet, plan: ComputePlan) -> None:
    prepared = plan.prepare(model)
    assert prepared is not model
    assert [name for name, _ in prepared.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(one is other for one, other in zip(prepared.parameters(), model.parameters(), strict=True))
    assert all(one is other for one, other in zip(prepared.buffers(), model.buffers(), strict=True))
    assert list(prepared.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("plan", [FASTEST, WINOGRAD], ids=["fastest", "winograd"])
def test_preparing_does_not_change_the_model(model: CustomResNet, plan: ComputePlan) -> None:
    modules = [(name, id(module), type(module)) for name, module in model.named_modules()]
    state = copy.deepcopy(model.state_dict())
    model.eval()
    prepared = plan.prepare(model)
    assert [(name, id(module), type(module)) for name, module in model.named_modules()] == modules
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in prepared.modules())
    prepared.train()
    assert not any(module.training for module in model.modules())


def test_preparing_replaces_every_supported_convolution_and_makes_weights_channels_last(model: CustomResNet) -> None:
    prepared = FAST.prepare(model)
    convolutions = [module for module in prepared.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 8
    assert {type(module) for module in convolutions} == {FastConv2d}
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in convolutions)
    eager = EAGER.prepare(model)
    assert [type(module) for module in eager.modules()] == [type(module) for module in model.modules()]


def test_winograds_algorithm_computes_only_the_convolutions_of_the_plan(model: CustomResNet) -> None:
    for plan in (WINOGRAD, dataclasses.replace(WINOGRAD, im2col_gemm=False)):
        layers = [layer for layer in plan.prepare(model).modules() if isinstance(layer, nn.Conv2d)]
        by_winograd = [(layer.in_channels, layer.out_channels) for layer in layers if layer.winograd]
        assert by_winograd == [(3, 64), (512, 512), (512, 512)]
        assert {(layer.im2col_gemm, layer.amx) for layer in layers} == {(plan.im2col_gemm, False)}
    assert not any(layer.winograd for layer in FASTEST.prepare(model).modules() if isinstance(layer, FastConv2d))


def test_layers_that_the_kernels_do_not_support_are_kept() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    network = as_composite(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), shared, nn.Sequential(shared), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
        )
    )
    prepared = FAST.prepare(network)
    kinds = [type(module) for module in prepared.network]
    assert kinds == [nn.Conv2d, FastConv2d, nn.Sequential, nn.ReLU, nn.Flatten, nn.Linear]
    images = torch.randn(2, 3, 4, 4)
    assert torch.allclose(prepared(images), network(images), atol=1e-6)
    assert prepared.network[1].weight is prepared.network[2][0].weight is shared.weight


def test_a_fast_plan_computes_the_eager_results_in_float64(model: CustomResNet, batch: Batch) -> None:
    model.double().eval()
    images = batch.images.double()
    with torch.no_grad():
        assert (FAST.prepare(model)(images) - model(images)).abs().max() < 1e-10


@pytest.mark.usefixtures("native_kernels")
def test_a_fast_plan_computes_the_eager_results_up_to_rounding(model: CustomResNet, batch: Batch) -> None:
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(batch.images)  # updates the running statistics of the norms
    model.eval()
    with torch.no_grad():
        eager = model(batch.images)
        spread = eager.std()
        for plan in (FAST, WINOGRAD):
            assert (plan.prepare(model)(batch.images) - eager).abs().max() < 1e-5 * spread
        with FASTEST.autocast():
            fastest = FASTEST.prepare(model)(batch.images)
    assert fastest.dtype == torch.bfloat16
    assert (fastest.float() - eager).abs().max() < 0.1 * spread
    assert (fastest.argmax(dim=1) == eager.argmax(dim=1)).float().mean() > 0.8


def test_training_a_prepared_model_trains_the_model_and_its_running_statistics(
    model: CustomResNet, batch: Batch
) -> None:
    model.double()
    batch = Batch(batch.images.double(), batch.labels)
    twin, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    losses = step(model, batch, FAST), step(twin, batch, EAGER)
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
    assert step(model, batch, FASTEST).item() == pytest.approx(step(twin, batch, EAGER).item(), rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    for (name, ours), exact in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(ours, exact, rtol=0.02, atol=0.01), name


def gradients(model: CustomResNet, batch: Batch, plan: ComputePlan) -> list[torch.Tensor]:
    twin = copy.deepcopy(model)
    step(twin, batch, plan)
    return [parameter.grad.double() for parameter in twin.parameters() if parameter.grad is not None]


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize(
    ("size", "count"),
    [pytest.param(8, 32, marks=pytest.mark.long), (16, 16), pytest.param(32, 8, marks=pytest.mark.long)],
)
def test_the_gradients_of_the_fastest_plan_are_as_accurate_as_those_of_eager_bfloat16(
    tiny: tuple[ImageSet, ImageSet], size: int, count: int
) -> None:
    squares = []  # squared relative errors: [batch, plan, parameter]
    # In a single batch, one ReLU or maximum that rounding flips may decide the comparison. So average over batches.
    for seed in range(8):
        torch.manual_seed(seed)
        rows = torch.randperm(len(tiny[0]))[:count].numpy()
        pixels = torch.from_numpy(tiny[0].images[rows, :: 32 // size, :: 32 // size].copy())
        images, labels = Preprocessing.of(tiny[0].images).normalize(pixels), torch.from_numpy(tiny[0].labels[rows])
        model = CustomResNet(input_size=size)
        exact = gradients(copy.deepcopy(model).double(), Batch(images.double(), labels), EAGER)
        found = [gradients(model, Batch(images, labels), plan) for plan in (FASTEST, USUAL)]
        squares.append([[((g - e).norm() / e.norm()) ** 2 for g, e in zip(ours, exact, strict=True)] for ours in found])
    fastest, usual = torch.tensor(squares).mean(dim=0).sqrt()
    assert usual.max() < 0.6, "eager bfloat16 is too inaccurate for a comparison"
    for (name, _), error, allowed in zip(model.named_parameters(), fastest, usual, strict=True):
        assert error <= 1.2 * allowed, name


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("plan", [FASTEST, WINOGRAD], ids=["fastest", "winograd"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_fast_step_repeats_bit_for_bit_with_the_same_number_of_threads(
    model: CustomResNet, batch: Batch, threads: int, plan: ComputePlan
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        twins = [copy.deepcopy(model) for _ in range(2)]
        losses = [step(twin, batch, plan) for twin in twins]
    finally:
        torch.set_num_threads(before)
    assert losses[0] == losses[1]
    first, second = (twin.state_dict() for twin in twins)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_prepared_model_uses_weights_that_the_model_loads_later(model: CustomResNet, batch: Batch) -> None:
    prepared = FAST.prepare(model).eval()
    torch.manual_seed(1)
    other = CustomResNet(input_size=SIZE).eval()
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert torch.allclose(prepared(batch.images), other(batch.images), atol=1e-5)


@pytest.mark.parametrize(
    ("hardware", "device", "devices"),
    [(LAPTOP, "cuda", "only cpu"), (LAPTOP, "mps", "only cpu"), (CUDA, "mps", "cpu and cuda"), (MAC, "tpu", "cpu and")],
)
def test_a_missing_device_is_refused_with_the_devices_that_the_machine_has(
    hardware: Hardware, device: str, devices: str
) -> None:
    with pytest.raises(
        InputError, match=f"^--device is {device}, but this machine has {devices}.*; use --device auto$"
    ):
        require_device(hardware, device)


def test_every_machine_has_a_cpu_and_auto_matches_any_device() -> None:
    for hardware in (LAPTOP, SERVER, CUDA, MAC):
        require_device(hardware, "cpu")
        require_device(hardware, "auto")
        EAGER.require(hardware)


# Plans with one kind of compiled kernels each.
COMPILED = [{"native_kernels": True}, {"amx": True}, {"winograd": ((3, 64),)}]


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("kernels", COMPILED, ids=str)
def test_compiled_kernels_without_a_compiler_are_refused_with_a_way_out(kernels: dict[str, Any]) -> None:
    message = r"kernels in C, which are missing here, because .*; install one with OpenMP"
    with pytest.raises(InputError, match=message):
        dataclasses.replace(FAST, **kernels).require(LAPTOP)
    FAST.require(LAPTOP)


@pytest.mark.parametrize("kernels", COMPILED, ids=str)
def test_native_kernels_amx_and_winograd_are_compiled(kernels: dict[str, Any]) -> None:
    assert dataclasses.replace(FAST, **kernels).compiled_kernels is True
    assert FAST.compiled_kernels is EAGER.compiled_kernels is False


@pytest.mark.usefixtures("native_kernels")
def test_evaluation_uses_winograds_algorithm_as_training_does(model: CustomResNet, batch: Batch) -> None:
    WINOGRAD.require(LAPTOP)
    evaluation = WINOGRAD.for_evaluation()
    assert evaluation == dataclasses.replace(WINOGRAD, native_kernels=False)
    with torch.no_grad():
        outputs = (plan.prepare(model).eval()(batch.images) for plan in (evaluation, WINOGRAD))
        assert torch.equal(*outputs)


@pytest.mark.usefixtures("no_compiler")
def test_evaluation_without_a_compiler_does_not_use_winograds_algorithm(model: CustomResNet, batch: Batch) -> None:
    assert WINOGRAD.for_evaluation() == FAST
    assert not FASTEST.for_evaluation().compiled_kernels
    WINOGRAD.for_evaluation().require(LAPTOP)
    with torch.no_grad():
        logits = WINOGRAD.for_evaluation().prepare(model).eval()(batch.images)
        assert torch.allclose(logits, model.eval()(batch.images), rtol=1e-3, atol=1e-4)


@pytest.fixture
def no_amx(native_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "is_available", lambda: False)


@pytest.mark.usefixtures("no_amx")
def test_missing_amx_is_refused_in_training_and_not_used_in_evaluation(model: CustomResNet, batch: Batch) -> None:
    without = dataclasses.replace(FASTEST, amx=False)
    with pytest.raises(InputError, match=r"AMX, which needs a CPU that supports it, .*; this CPU is old"):
        FASTEST.require(LAPTOP)
    without.require(LAPTOP)
    assert FASTEST.for_evaluation() == dataclasses.replace(without, native_kernels=False)
    assert torch.equal(step(copy.deepcopy(model), batch, FASTEST), step(model, batch, without))


def test_a_plan_written_as_json_comes_back_equal() -> None:
    for plan in (EAGER, FAST, FASTEST, WINOGRAD):
        assert ComputePlan.from_json(plan.to_json()) == plan
        read = ComputePlan.from_json(json.loads(json.dumps(plan.to_json())))
        assert read == plan
        assert hash(read) == hash(plan), "JSON's lists must become tuples"


def test_a_plan_written_before_winograds_algorithm_was_there_loads_without_it() -> None:
    for plan in (EAGER, FAST, FASTEST):
        values = plan.to_json()
        values.pop("winograd", None)
        assert ComputePlan.from_json(json.loads(json.dumps(values))) == plan


def test_the_name_of_a_plan_lists_its_kernels() -> None:
    assert str(EAGER) == "float32"
    assert str(FASTEST) == "bfloat16, channels-last, im2col GEMM, native kernels, AMX"
    assert str(WINOGRAD) == "float32, channels-last, im2col GEMM, native kernels, Winograd"


def test_applying_a_plan_sets_the_threads_of_this_process_or_leaves_them() -> None:
    before = torch.get_num_threads()
    try:
        EAGER.apply()
        assert torch.get_num_threads() == before
        ComputePlan(threads=before + 1).apply()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_only_a_bfloat16_plan_casts() -> None:
    for plan, dtype in [
        (EAGER, torch.float32),
        (FAST, torch.float32),
        (WINOGRAD, torch.float32),
        (FASTEST, torch.bfloat16),
    ]:
        with plan.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
