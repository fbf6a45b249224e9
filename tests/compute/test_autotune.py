"""Tests that choose compute plans by timing small networks on this machine. Each test has its own cache."""

import copy
import importlib.util
import itertools
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import convolutional
from torch import nn

from onecycle.compute import autotune, hardware
from onecycle.compute.autotune import Choice, Round, choose
from onecycle.compute.hardware import Hardware
from onecycle.compute.kernels import amx, native
from onecycle.compute.plan import ChannelPairs, ComputePlan
from onecycle.core.cache import cache_folder
from onecycle.core.errors import InputError
from onecycle.models import CustomResNet, ModelComposite, as_composite
from onecycle.models.custom_resnet import convolution

MACHINE = replace(hardware.detect(), cores=1, gpu=None, gpu_kind=None)  # one core: tests may run in parallel
OLD = replace(MACHINE, fast_bfloat16=False)
NEW = replace(MACHINE, fast_bfloat16=True)


Finder = Callable[[ComputePlan], ChannelPairs]


def channels_last(best: ComputePlan, _: Finder) -> ComputePlan:
    return replace(best, channels_last=True)


def im2col_gemm(best: ComputePlan, _: Finder) -> ComputePlan:
    return replace(best, im2col_gemm=True)


def native_kernels(best: ComputePlan, _: Finder) -> ComputePlan:
    return replace(best, native_kernels=True)


def winograd(best: ComputePlan, faster_by_winograd: Finder) -> ComputePlan:
    return replace(best, winograd=faster_by_winograd(best))


def names(choice: Choice) -> list[str]:
    """The names of the measured plans, in order."""
    return list(dict.fromkeys(name for round in choice.rounds for name in round.milliseconds))


def times(choice: Choice) -> list[float]:
    return [value for round in choice.rounds for value in round.milliseconds.values()]


@pytest.fixture(autouse=True)
def choices(isolated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder where `choose` caches its results. The number of threads is restored after the test."""
    native.compiled()  # compiles only once per process, so call it before the cache folder changes
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield cache_folder() / "autotune"
    torch.set_num_threads(threads)


def tiny(channels: int = 4) -> ModelComposite:
    """A network for 8×8 images with every layer that kernels can replace. A pass takes a millisecond."""
    torch.manual_seed(0)
    layers = convolution(3, channels, pool=True)
    return as_composite(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * channels, 3)))


def try_only(monkeypatch: pytest.MonkeyPatch, *changes: autotune.Change, advantage: float = 1e-9) -> None:
    """Let `choose` try only `changes`, and all of them. A correct change must be `advantage` times as fast to win."""
    monkeypatch.setattr(autotune, "BUDGET_SECONDS", 300.0)
    monkeypatch.setattr(autotune, "ROUNDS", ((8, changes),))
    monkeypatch.setattr(autotune, "ADVANTAGE", advantage)


def states() -> tuple[bytes, ...]:
    torch_state = torch.get_rng_state().numpy().tobytes()
    return torch_state, np.random.get_state()[1].tobytes(), repr(random.getstate()).encode()


@pytest.mark.parametrize(
    ("network", "size"), [(lambda: CustomResNet(10, 8), 8), (lambda: as_composite(convolutional()), 32)]
)
def test_choosing_changes_neither_the_model_nor_a_random_state(
    network: Callable[[], ModelComposite], size: int
) -> None:
    model = network().eval()
    list(model.children())[-1].train()  # all other layers are in evaluation mode
    modules = [(name, id(module), type(module), module.training) for name, module in model.named_modules()]
    places = [(id(tensor), tensor.data_ptr(), tensor.stride()) for tensor in model.state_dict(keep_vars=True).values()]
    values = copy.deepcopy(model.state_dict())
    before = states()
    for _ in ("measured", "remembered"):
        choose(model, size, MACHINE)
        assert states() == before
        assert [(n, id(m), type(m), m.training) for n, m in model.named_modules()] == modules
        tensors = model.state_dict(keep_vars=True).values()
        assert [(id(tensor), tensor.data_ptr(), tensor.stride()) for tensor in tensors] == places
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_the_choice_is_one_of_the_measured_plans_and_every_plan_took_time() -> None:
    choice = choose(CustomResNet(10, 8), 8, MACHINE)
    assert not choice.remembered
    assert names(choice)[0] == "float32"  # eager PyTorch comes first
    assert len(names(choice)) > 1
    assert str(choice.plan) in names(choice)
    assert all(value > 0 for value in times(choice))
    assert (choice.plan.device, choice.plan.threads) == ("cpu", MACHINE.cores)


def test_the_process_gets_the_threads_of_a_measured_or_remembered_choice() -> None:
    for cores in (1, 3):
        for _ in ("measured", "remembered"):
            torch.set_num_threads(2)
            choice = choose(tiny(), 8, replace(MACHINE, cores=cores))
            assert torch.get_num_threads() == choice.plan.threads == cores


def test_a_choice_is_one_line_with_the_plan_and_its_speedup() -> None:
    plan = ComputePlan(precision="bfloat16", channels_last=True, im2col_gemm=True)
    rounds = (
        Round(
            images=16,
            milliseconds={"float32": 160.0, "bfloat16, channels-last": 64.0},
            best="bfloat16, channels-last",
            failed={},
        ),
        Round(images=64, milliseconds={"bfloat16, channels-last": 200.0, str(plan): 100.0}, best=str(plan), failed={}),
    )
    choice = Choice(plan=plan, rounds=rounds)
    assert choice.speedup == 5  # 2.5 in the first round times 2 in the second
    assert str(choice) == f"{plan}; 5.0 times as fast as float32, measured now"
    assert str(replace(choice, remembered=True)) == f"{plan}; 5.0 times as fast as float32, measured before"
    assert str(replace(choice, disturbed=True)).endswith("times as fast as float32, measured now on a busy machine")
    assert choice.seconds_per_image == 0.1 / 64
    alone = Choice(
        plan=ComputePlan(),
        rounds=(Round(images=16, milliseconds={"float32": 7.5}, best="float32", failed={}),),
    )
    assert str(alone) == "float32"


def test_a_choice_written_as_json_comes_back_equal() -> None:
    measured = choose(tiny(), 8, MACHINE)
    for choice in (measured, replace(measured, remembered=True)):
        assert Choice.from_json(json.loads(json.dumps(choice.to_json()))) == choice


def test_the_second_time_the_choice_is_read_from_one_file(choices: Path) -> None:
    first = choose(tiny(), 8, MACHINE)
    (file,) = choices.iterdir()
    assert file.suffix == ".json"
    assert choose(tiny(), 8, MACHINE) == replace(first, remembered=True)
    slower = tuple(replace(r, milliseconds={n: 2 * t for n, t in r.milliseconds.items()}) for r in first.rounds)
    file.write_text(json.dumps(replace(first, rounds=slower).to_json()))
    assert choose(tiny(), 8, MACHINE) == replace(first, rounds=slower, remembered=True)
    assert list(choices.iterdir()) == [file]


@pytest.mark.parametrize("disturbed", [False, True])
def test_a_disturbed_choice_is_reused_for_a_short_time_only(
    choices: Path, monkeypatch: pytest.MonkeyPatch, disturbed: bool
) -> None:
    monkeypatch.setattr(autotune, "DISTURBED", 0.0 if disturbed else math.inf)
    first = choose(tiny(), 8, MACHINE)
    assert first.disturbed == disturbed
    (file,) = choices.iterdir()
    for seconds, remembered in (
        (autotune.DISTURBED_SECONDS - 100, True),
        (autotune.DISTURBED_SECONDS + 1, not disturbed),
    ):
        os.utime(file, (time.time() - seconds,) * 2)
        assert choose(tiny(), 8, MACHINE).remembered == remembered
    assert choose(tiny(), 8, MACHINE).remembered


def test_a_forgotten_choice_is_measured_again(choices: Path) -> None:
    options = {"device": "auto", "precision": "float32"}
    for model in (tiny(), tiny(5)):
        choose(model, 8, MACHINE, **options)
    autotune.forget(tiny(), 8, MACHINE, **options)
    autotune.forget(tiny(), 8, MACHINE, **options)  # nothing is left to forget
    assert len(list(choices.iterdir())) == 1
    assert choose(tiny(5), 8, MACHINE, **options).remembered
    assert not choose(tiny(), 8, MACHINE, **options).remembered


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b'{"plan": {"device"',
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"plan": {}}',
        b'{"plan": {"unknown": 1}, "rounds": []}',
        b'{"plan": {}, "rounds": []}',
        b'{"plan": {}, "rounds": null}',
        b'{"plan": {}, "rounds": [{"images": 16, "milliseconds": {}, "best": "one", "failed": {}}]}',
        b'{"plan": {}, "rounds": [{"images": 16, "milliseconds": {"a": 1.0}, "best": "b", "failed": {}}]}',
    ],
)
def test_a_damaged_choice_is_measured_again_and_replaced(choices: Path, damaged: bytes) -> None:
    choose(tiny(), 8, MACHINE)
    (file,) = choices.iterdir()
    file.write_bytes(damaged)
    again = choose(tiny(), 8, MACHINE)
    assert str(again)
    assert not again.remembered
    assert choose(tiny(), 8, MACHINE) == replace(again, remembered=True)
    assert list(choices.iterdir()) == [file]


def test_without_a_writable_cache_every_choice_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        choice = choose(tiny(), 8, MACHINE)
        assert not choice.remembered
        assert str(choice.plan) in names(choice)


def test_the_same_network_with_frozen_layers_is_another_choice(choices: Path) -> None:
    choose(tiny(), 8, MACHINE)
    frozen = tiny()
    next(frozen.parameters()).requires_grad_(False)
    assert str(frozen) == str(tiny())
    assert not choose(frozen, 8, MACHINE).remembered
    assert len(list(choices.iterdir())) == 2


def test_a_network_whose_code_has_changed_is_another_choice(
    choices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
from torch import nn

class Net(nn.Sequential):
    def forward(self, images):
        return super().forward(images)
"""

    def network(source: str) -> ModelComposite:
        (tmp_path / "own_net.py").write_text(source)
        spec = importlib.util.spec_from_file_location("own_net", tmp_path / "own_net.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "own_net", module)
        spec.loader.exec_module(module)
        return as_composite(module.Net(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 3)))

    choose(network(code), 8, MACHINE)
    assert choose(network(code), 8, MACHINE).remembered
    assert not choose(network(code + "# changed, and of another length"), 8, MACHINE).remembered
    assert len(list(choices.iterdir())) == 2


def test_another_model_size_machine_thread_count_or_precision_is_another_choice(choices: Path) -> None:
    for number, (model, size, machine, options) in enumerate(
        [
            (tiny(), 8, MACHINE, {}),
            (tiny(5), 8, MACHINE, {}),
            (tiny(), 9, MACHINE, {}),  # fits the same network: pooling turns both 8×8 and 9×9 images into 4×4 maps
            (tiny(), 8, replace(MACHINE, cpu="another"), {}),
            (tiny(), 8, replace(MACHINE, cores=MACHINE.cores + 1), {}),
            (tiny(), 8, MACHINE, {"precision": "float32"}),
            (tiny(), 8, MACHINE, {"precision": "bfloat16"}),
        ],
        start=1,
    ):
        assert not choose(model, size, machine, **options).remembered
        assert len(list(choices.iterdir())) == number
        assert choose(model, size, machine, **options).remembered
    assert choose(tiny(), 8, MACHINE, device="cpu").remembered  # without a GPU, the default "auto" means the CPU
    assert choose(tiny(), 8, replace(MACHINE, memory_gib=1.0)).remembered


@pytest.mark.parametrize("machine", [OLD, NEW])
@pytest.mark.parametrize("requested", ["float32", "bfloat16"])
def test_a_requested_precision_is_the_only_one_tried(
    monkeypatch: pytest.MonkeyPatch, machine: Hardware, requested: str
) -> None:
    monkeypatch.setattr(autotune, "ADVANTAGE", 1e-9)
    choice = choose(tiny(), 8, machine, precision=requested)
    assert choice.plan.precision == requested
    assert all(name.startswith(requested) for name in names(choice))
    assert len(names(choice)) > 1


def test_a_cpu_without_fast_bfloat16_never_tries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "ADVANTAGE", 1e-9)
    on_old, on_new = (names(choose(tiny(), 8, machine)) for machine in (OLD, NEW))
    assert all(name.startswith("float32") for name in on_old)
    assert any(name.startswith("bfloat16") for name in on_new)


def try_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `choose` try all plans, and prefer the newest."""
    monkeypatch.setattr(autotune, "BUDGET_SECONDS", 300.0)
    monkeypatch.setattr(autotune, "ADVANTAGE", 1e-9)


@pytest.mark.usefixtures("native_kernels")
def test_every_kernel_for_float32_is_tried_and_the_choice_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    try_all(monkeypatch)
    choice = choose(tiny(), 8, MACHINE, precision="float32")
    assert names(choice) == [
        "float32",
        "float32, channels-last",
        "float32, channels-last, Winograd",
        "float32, channels-last, native kernels, Winograd",
        "float32, channels-last, im2col GEMM, native kernels, Winograd",
    ]
    assert choice.plan.winograd == ((3, 4),)
    assert all(round.failed == {} for round in choice.rounds)
    assert choose(tiny(), 8, MACHINE, precision="float32") == replace(choice, remembered=True)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_no_compiled_kernel_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    try_all(monkeypatch)
    choice = choose(tiny(), 8, MACHINE, precision="float32")
    assert names(choice) == ["float32", "float32, channels-last", "float32, channels-last, im2col GEMM"]
    assert not choice.plan.compiled_kernels


@pytest.mark.usefixtures("native_kernels")
def test_maps_that_are_not_channels_last_need_no_compiled_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    try_only(monkeypatch, native_kernels, winograd, im2col_gemm)
    choice = choose(tiny(), 8, MACHINE, precision="float32")
    assert names(choice) == ["float32", "float32, im2col GEMM"]


@pytest.mark.usefixtures("native_kernels")
def test_winograd_brings_channels_last_maps_where_they_alone_do_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    try_only(monkeypatch, lambda best, find: autotune._with_winograd(best, find))
    choice = choose(tiny(), 8, MACHINE, precision="float32")
    assert names(choice) == ["float32", "float32, channels-last, Winograd"]
    assert choice.plan == ComputePlan(channels_last=True, winograd=((3, 4),), threads=MACHINE.cores)


@pytest.mark.usefixtures("native_kernels")
def test_convolutions_that_winograds_algorithm_does_not_speed_up_keep_their_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autotune, "ADVANTAGE", 1e9)
    choice = choose(tiny(), 8, MACHINE, precision="float32")
    assert names(choice)[:2] == ["float32", "float32, channels-last"]
    assert not any("Winograd" in name for name in names(choice))
    assert choice.plan == ComputePlan(threads=MACHINE.cores)


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("has_amx", [True, False])
def test_winograd_is_tried_in_bfloat16_only_without_amx(monkeypatch: pytest.MonkeyPatch, has_amx: bool) -> None:
    if has_amx and not amx.is_available():
        pytest.skip("this CPU has no AMX")
    monkeypatch.setattr(amx, "is_available", lambda: has_amx)
    try_all(monkeypatch)
    choice = choose(tiny(), 8, MACHINE, precision="bfloat16")
    assert any("AMX" in name for name in names(choice)) is has_amx
    assert any("Winograd" in name for name in names(choice)) is not has_amx


@pytest.mark.parametrize(
    ("machine", "device"), [(MACHINE, "cuda"), (MACHINE, "mps"), (replace(MACHINE, gpu="G", gpu_kind="mps"), "cuda")]
)
def test_a_missing_device_is_refused_before_anything_is_measured(choices: Path, machine: Hardware, device: str) -> None:
    with pytest.raises(InputError, match=f"--device is {device}, but this machine has"):
        choose(tiny(), 8, machine, device=device)
    assert not choices.exists()


@pytest.mark.parametrize(("advantage", "wins"), [(1e9, False), (1e-9, True)])
def test_a_challenger_must_win_by_the_advantage(monkeypatch: pytest.MonkeyPatch, advantage: float, wins: bool) -> None:
    try_only(monkeypatch, channels_last, im2col_gemm, advantage=advantage)
    choice = choose(tiny(), 8, MACHINE)
    assert (choice.plan.channels_last, choice.plan.im2col_gemm) == (wins, wins)
    together = "float32, channels-last, im2col GEMM" if wins else "float32, im2col GEMM"
    assert names(choice) == ["float32", "float32, channels-last", together]


@pytest.mark.parametrize(
    ("change", "seconds", "wins"),
    [
        ({"im2col_gemm": True}, 0.96, False),
        ({"im2col_gemm": True}, 0.94, True),
        ({"channels_last": True, "native_kernels": True}, 1.07, False),
        ({"channels_last": True, "native_kernels": True}, 1.05, True),
    ],
)
@pytest.mark.usefixtures("native_kernels")
def test_a_plan_must_be_5_percent_faster_but_may_be_5_percent_slower_if_it_adds_the_native_kernels(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, bool], seconds: float, wins: bool
) -> None:
    try_only(monkeypatch, lambda best, _: replace(best, **change), advantage=autotune.ADVANTAGE)
    monkeypatch.setattr(autotune.Microbenchmark, "seconds", lambda self, images, *plans: [1.0, seconds][: len(plans)])
    plan = choose(tiny(), 8, MACHINE).plan
    assert (plan.im2col_gemm or plan.native_kernels) == wins


def test_times_are_relative_to_the_first_time_of_the_rounds_first_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    try_only(monkeypatch, channels_last, im2col_gemm, advantage=1.0)
    answers, asked = iter([[1.0], [2.0, 1.0], [4.0, 2.0]]), []

    def seconds(benchmark: autotune.Microbenchmark, images: int, *plans: ComputePlan) -> list[float]:
        asked.append(len(plans))
        return next(answers)

    monkeypatch.setattr(autotune.Microbenchmark, "seconds", seconds)
    choice = choose(tiny(), 8, MACHINE, precision="float32")
    assert asked == [1, 2, 2]
    # In the second comparison, the machine takes four times as long for the same plan.
    assert list(choice.rounds[0].milliseconds.values()) == [2000.0, 1000.0, 500.0]


class Rectifying(ModelComposite):
    """A network that applies a ReLU after each layer for which the function `is_convolution` returns true."""

    def __init__(self, is_convolution: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.is_convolution = is_convolution
        self.layers = nn.ModuleList(nn.Conv2d(n, 8, 3, padding=1, bias=False) for n in (3, 8, 8, 8))
        self.linear = nn.Linear(8 * 64, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            features = layer(features).relu() if self.is_convolution(layer) else layer(features)
        return self.linear(features.flatten(1))


def is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d)


def is_plain_convolution(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d


class Normalizing(ModelComposite):
    """A block of convolution, norm and ReLU, and a linear layer. If `parts` is 2, the ReLU is not applied."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts, self.block, self.linear = parts, convolution(3, 8), nn.Linear(8 * 64, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for part in itertools.islice(self.block, self.parts):
            features = part(features)
        return self.linear(features.flatten(1))


@pytest.mark.parametrize(
    ("network", "right", "wrong", "change", "precision"),
    [
        # A subclass of `nn.Conv2d` replaces convolutions. `type(layer) is nn.Conv2d` does not recognize the subclass.
        (Rectifying, is_convolution, is_plain_convolution, im2col_gemm, "bfloat16"),
        (Rectifying, is_convolution, is_plain_convolution, winograd, "float32"),
        # The layer that replaces a norm also applies the ReLU after it. With `parts=2` this ReLU is wrong.
        (Normalizing, 3, 2, native_kernels, "bfloat16"),
        (Normalizing, 3, 2, native_kernels, "float32"),
    ],
    ids=["im2col GEMM", "Winograd", "kernels in bfloat16", "kernels in float32"],
)
@pytest.mark.usefixtures("native_kernels")
def test_a_plan_with_another_gradient_is_never_chosen_however_fast(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network, right, wrong, change, precision
) -> None:
    try_only(monkeypatch, channels_last, change)
    for argument, chosen in ((right, True), (wrong, False)):
        torch.manual_seed(0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(chosen)))
        choice = choose(network(argument), 8, MACHINE, precision=precision)
        assert len(names(choice)) == 3  # eager PyTorch, channels-last, and `change`
        assert (change(choice.plan, lambda _: ((3, 8), (8, 8))) == choice.plan) == chosen
        assert choice.plan.channels_last  # channels-last has the right gradients, so it is chosen in both cases


class Slow(ModelComposite):
    """A network that takes `seconds` for each image under any plan, on a clock that only it advances."""

    now = 0.0

    def __init__(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.seconds, self.linear = seconds, nn.Linear(3 * 64, 3)
        monkeypatch.setattr(time, "perf_counter", lambda: Slow.now)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Slow.now += self.seconds * len(images)
        return self.linear(images.flatten(1))


# For 0.3 seconds per image, the budget is 16.5 seconds: more than `BUDGET_SECONDS`, and too little for two rounds.
@pytest.mark.parametrize(("seconds_per_image", "most_images"), [(0.02, autotune.MOST_IMAGES), (0.3, 55)])
def test_a_slow_machine_keeps_the_time_budget_and_still_tries_channels_last(
    monkeypatch: pytest.MonkeyPatch, seconds_per_image: float, most_images: int
) -> None:
    monkeypatch.setattr(autotune, "MOST_IMAGES", most_images)
    monkeypatch.setattr(autotune, "FEWEST_IMAGES", 8)
    started = Slow.now
    choice = choose(Slow(seconds_per_image, monkeypatch), 8, MACHINE, precision="float32")
    budget = max(autotune.BUDGET_SECONDS, most_images * seconds_per_image)
    assert Slow.now - started < 1.5 * budget
    assert "float32, channels-last" in names(choice)
    assert autotune.FEWEST_IMAGES <= choice.rounds[0].images < 20
    if seconds_per_image == 0.3:
        assert len(choice.rounds) == 1, "the second round would exceed the budget"


def test_the_time_budget_grows_where_many_images_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "BUDGET_SECONDS", 0.01)
    monkeypatch.setattr(autotune, "FEWEST_IMAGES", 2)
    assert len(choose(Slow(0.05, monkeypatch), 8, MACHINE, precision="float32").rounds) == len(autotune.ROUNDS)


class Strict(ModelComposite):
    """A network that fails with channels-last weights, because it calls `view` on its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3, 8, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight.view(3, -1).t()


def test_a_plan_that_fails_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    try_only(monkeypatch, channels_last, im2col_gemm)
    choice = choose(Strict(), 8, MACHINE, precision="float32")
    assert names(choice) == ["float32", "float32, im2col GEMM"]
    assert choice.rounds[0].failed == {"float32, channels-last": "RuntimeError"}
    assert not choice.plan.channels_last


def test_a_network_that_needs_contiguous_weights_gets_a_plan_without_channels_last() -> None:
    choice = choose(Strict(), 8, MACHINE, precision="float32")
    assert list(choice.rounds[0].milliseconds) == ["float32"]
    assert not choice.plan.channels_last
    assert choice.rounds[0].failed == {"float32, channels-last": "RuntimeError"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_measuring_a_gpu_leaves_the_model_on_the_cpu() -> None:
    model = CustomResNet(10, 8)
    choice = choose(model, 8, hardware.detect())
    assert choice.plan.device == "cuda"
    assert all(value > 0 for value in times(choice))
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
