import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from onecycle.core.errors import InputError
from onecycle.data import ImageSet
from onecycle.storage.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_tensors,
    load_weights,
    save_checkpoint,
    save_tensors,
)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=5, stride=4, padding=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, 10)
    )


def trained(tiny: tuple[ImageSet, ImageSet], steps: int = 3) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    model = network()
    optimizer = Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        step(model, optimizer, tiny)
    return model, optimizer


def step(model: nn.Module, optimizer: Optimizer, tiny: tuple[ImageSet, ImageSet]) -> None:
    images = torch.from_numpy(tiny[0].images).permute(0, 3, 1, 2) / 255  # [N,H,W,3] -> [N,3,H,W]
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), torch.from_numpy(tiny[0].labels)).backward()
    optimizer.step()


def loaded(path: Path) -> Checkpoint:
    state = load_checkpoint(path, path.with_name("before"))
    assert state is not None
    return state


def restore(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    loaded(path).restore(model, optimizer)


@pytest.fixture
def state(tiny: tuple[ImageSet, ImageSet], tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, *trained(tiny), {"history": [{"epoch": 1}], "seconds": 2.5})
    return path


def test_equal_tensors_make_equal_files_in_any_order(tmp_path: Path) -> None:
    tensors = {name: torch.arange(4) + number for number, name in enumerate("abcdefgh")}
    metadata: dict[str, Any] = {name: [name] * 3 for name in "pqrstuv"}
    save_tensors(tmp_path / "one", tensors, metadata)
    save_tensors(tmp_path / "other", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_equal_runs_make_equal_checkpoints(tiny: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    for name in ("one", "other"):
        save_checkpoint(tmp_path / name, *trained(tiny), {"seconds": 1.0})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    save_checkpoint(tmp_path / "more", *trained(tiny, steps=4), {"seconds": 1.0})
    assert (tmp_path / "more").read_bytes() != (tmp_path / "one").read_bytes()


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"weights": torch.randn(2, 3), "count": torch.tensor(7), "half": torch.randn(5).bfloat16()}
    metadata = {"classes": ["ä", "b"], "nested": {"mean": [0.25, 1e-300], "none": None}}
    save_tensors(tmp_path / "file", tensors, metadata)
    loaded, loaded_metadata = load_tensors(tmp_path / "file")
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert loaded_metadata == metadata


def test_channels_last_weights_are_saved_like_contiguous_ones(tmp_path: Path) -> None:
    weights = torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last)
    save_tensors(tmp_path / "channels_last", {"weights": weights}, {})
    save_tensors(tmp_path / "contiguous", {"weights": weights.contiguous()}, {})
    assert torch.equal(load_tensors(tmp_path / "channels_last")[0]["weights"], weights)
    assert (tmp_path / "channels_last").read_bytes() == (tmp_path / "contiguous").read_bytes()


def test_loading_keeps_the_memory_layout_of_the_network(tiny: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    model, _ = trained(tiny)
    save_tensors(tmp_path / "weights", model.state_dict(), {})
    other = network().to(memory_format=torch.channels_last)
    load_weights(other, load_tensors(tmp_path / "weights")[0], tmp_path / "weights")
    assert torch.equal(other[0].weight, model[0].weight)
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_checkpoint_restores_network_optimizer_random_state_and_progress_exactly(
    tiny: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    model, optimizer = trained(tiny)
    torch.manual_seed(5)
    save_checkpoint(tmp_path / "state", model, optimizer, {"history": [], "seconds": 2.5})
    random_numbers = torch.rand(3)

    torch.manual_seed(6)
    other = network()
    restored = Adam(other.parameters(), lr=0.5)
    state = loaded(tmp_path / "state")
    assert (state.progress["history"], state.progress["seconds"], state.damaged) == ([], 2.5, None)
    state.restore(other, restored)
    assert torch.equal(torch.rand(3), random_numbers)
    assert json.dumps(restored.state_dict()["param_groups"], sort_keys=True) == json.dumps(
        optimizer.state_dict()["param_groups"], sort_keys=True
    )
    old, new = optimizer.state_dict()["state"], restored.state_dict()["state"]
    assert old.keys() == new.keys() == set(range(6))
    for index, moments in old.items():
        assert moments.keys() == new[index].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(moments[name], new[index][name]) for name in moments)

    step(model, optimizer, tiny)
    step(other, restored, tiny)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True}], ids=["plain", "nesterov"])
def test_another_optimizer_is_restored_too(
    tiny: tuple[ImageSet, ImageSet], tmp_path: Path, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model, other = network(), network()
    optimizer, restored = (SGD(m.parameters(), lr=0.1, **options) for m in (model, other))
    step(model, optimizer, tiny)
    save_checkpoint(tmp_path / "state", model, optimizer, {})
    restore(tmp_path / "state", other, restored)
    step(model, optimizer, tiny)
    step(other, restored, tiny)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_checkpoint_before_the_first_step_is_restored_too(tmp_path: Path) -> None:
    model, other = network(), network()
    save_checkpoint(tmp_path / "state", model, Adam(model.parameters()), {})
    restore(tmp_path / "state", other, Adam(other.parameters()))
    assert torch.equal(model[3].weight, other[3].weight)


def test_the_weights_of_a_layer_that_is_used_twice_are_saved_under_both_names(tmp_path: Path) -> None:
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    network = nn.Sequential(block, block, nn.Flatten())
    save_tensors(tmp_path / "shared.safetensors", network.state_dict(), {})
    loaded, _ = load_tensors(tmp_path / "shared.safetensors")
    assert loaded.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded[name], tensor)


def test_nothing_is_pickled_the_file_is_a_json_header_and_plain_numbers(state: Path) -> None:
    content = state.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata.keys() == {"onecycle"}
    assert json.loads(metadata["onecycle"]).keys() == {"checksum", "history", "seconds", "param_groups"}
    assert {entry["dtype"] for entry in header.values()} == {"F32", "I64", "U8"}
    assert sum(end - start for start, end in (entry["data_offsets"] for entry in header.values())) == len(
        content[8 + length :]
    )


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match="nowhere has no weights.safetensors"):
        load_tensors(Path("nowhere/weights.safetensors"))


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_an_input_error(state: Path, keep: float) -> None:
    content = state.read_bytes()
    state.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match="state.safetensors (is damaged|has no checksum, so it is damaged)"):
        load_tensors(state)


def test_a_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load_tensors(tmp_path)


def test_files_that_onecycle_did_not_write_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this text is long enough to be a header, but it holds no weights")
    save_file({"a": torch.zeros(2)}, tmp_path / "bare")
    save_file({"a": torch.zeros(2)}, tmp_path / "theirs", {"format": "pt"})
    save_file({"a": torch.zeros(2)}, tmp_path / "not json", {"onecycle": "{"})
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickled")
    for name in ("text", "bare", "theirs", "not json", "pickled"):
        with pytest.raises(InputError, match=f"{name} has no checksum, so it is damaged, or onecycle did not write it"):
            load_tensors(tmp_path / name)


def test_weights_alone_are_not_a_checkpoint(tmp_path: Path) -> None:
    model = network()
    save_tensors(tmp_path / "weights", model.state_dict(), {"classes": ["a", "b"]})
    with pytest.raises(InputError):
        restore(tmp_path / "weights", model, Adam(model.parameters()))


def test_the_checkpoint_of_another_network_is_refused(state: Path) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    with pytest.raises(InputError, match="has the weights of another network") as error:
        restore(state, other, Adam(other.parameters()))
    assert "\n" not in str(error.value)


def test_the_checkpoint_of_another_optimizer_is_refused(state: Path) -> None:
    model = network()
    parameters = list(model.parameters())
    optimizer = Adam([{"params": parameters[:1]}, {"params": parameters[1:]}])
    with pytest.raises(InputError, match="has the state of another optimizer: .*parameter group"):
        restore(state, model, optimizer)


def test_a_failed_save_leaves_the_last_checkpoint_unchanged(state: Path) -> None:
    before = state.read_bytes()
    model = network()
    with pytest.raises(TypeError):
        save_checkpoint(state, model, Adam(model.parameters()), {"not json": object()})
    assert state.read_bytes() == before
    assert list(state.parent.iterdir()) == [state]


def test_the_checksum_is_computed_with_zeros_in_its_place(state: Path) -> None:
    content = state.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    checksum = json.loads(header["__metadata__"]["onecycle"])["checksum"]
    assert content.count(checksum.encode()) == 1
    assert hashlib.sha256(content.replace(checksum.encode(), b"0" * 64)).hexdigest() == checksum


@pytest.mark.parametrize("place", [0, 3, 8, 30, 60, 100, 1000, -1, -1000])
def test_a_flipped_bit_is_detected_anywhere(state: Path, place: int) -> None:
    content = bytearray(state.read_bytes())
    content[place] ^= 1
    state.write_bytes(content)
    with pytest.raises(InputError, match="state.safetensors (is damaged|has no checksum, so it is damaged)"):
        load_tensors(state)


def test_the_checkpoint_before_is_kept_and_loaded_if_the_newest_is_damaged(
    tiny: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    newest, before = tmp_path / "state", tmp_path / "before"
    assert load_checkpoint(newest, before) is None
    for number in range(3):
        save_checkpoint(newest, *trained(tiny), {"number": number}, keep=before)
    state = load_checkpoint(newest, before)
    assert state and (state.path, state.progress["number"], state.damaged) == (newest, 2, None)
    newest.write_bytes(newest.read_bytes()[:-1])
    state = load_checkpoint(newest, before)
    assert state and (state.path, state.progress["number"]) == (before, 1)
    assert state.damaged == f"{newest} is damaged: its checksum does not match its content"
    newest.unlink()
    state = load_checkpoint(newest, before)
    assert state and state.damaged == f"{newest} is missing"
    before.write_bytes(b"")
    with pytest.raises(
        InputError, match="the run cannot go on because all its checkpoints are damaged: .*; start a new run"
    ):
        load_checkpoint(newest, before)


def test_no_number_loses_precision(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1e-310, 5e-324, 1.7976931348623157e308, -0.0]
    tensors = {
        "float64": torch.tensor(values, dtype=torch.float64),
        "float32": torch.tensor([1e-45, 3.4e38, 1 / 3]),
        "bfloat16": torch.randn(9).bfloat16(),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "int64": torch.tensor([2**62 + 1]),
    }
    save_tensors(tmp_path / "file", tensors, {"values": values})
    loaded, loaded_metadata = load_tensors(tmp_path / "file")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name].view(torch.uint8), tensor.view(torch.uint8))
    assert [value.hex() for value in loaded_metadata["values"]] == [value.hex() for value in values]
