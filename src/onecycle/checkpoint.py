"""A network's weights, and the state of a run between two epochs, as safetensors. Nothing is ever unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from onecycle.errors import InputError
from onecycle.run_folder import reading, replacing


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write `tensors` and `metadata` to `path`; equal states make equal files."""
    # safetensors refuses channels-last memory, and writes several metadata keys in a changing order.
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(contiguous, temporary, {"onecycle": json.dumps(metadata, sort_keys=True)})
        temporary.chmod(mode)  # safetensors makes its files readable by their owner alone


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `save_tensors` wrote: tensors on the CPU, and the metadata.

    Raises:
        InputError: when the file is missing, damaged or not one of ours.
    """
    try:
        with reading(path), safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["onecycle"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read, it is damaged or of another kind: {error}") from error


def save_state(path: Path, model: nn.Module, optimizer: Optimizer, progress: Mapping[str, Any]) -> None:
    """Write all that a run needs to go on: weights and buffers, the optimizer, torch's random state, and `progress`."""
    state = optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    tensors["random.torch"] = torch.get_rng_state()
    save_tensors(path, tensors, {**progress, "param_groups": state["param_groups"]})


def load_state(path: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Restore what `save_state` wrote into `model`, `optimizer` and torch's random state, and return `progress`.

    Raises:
        InputError: when the file cannot be read or belongs to another network or optimizer.
    """
    tensors, metadata = load_tensors(path)
    with reading(path):
        random_state, param_groups = tensors.pop("random.torch"), metadata.pop("param_groups")
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _below("optimizer.", tensors).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    load_weights(model, _below("model.", tensors), path)
    try:
        optimizer.load_state_dict({"state": state, "param_groups": param_groups})
    except ValueError as error:
        raise InputError(f"{path} holds the state of another optimizer: {error}") from error
    torch.set_rng_state(random_state)
    return metadata


def load_weights(model: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy `tensors`, which came from `path`, into `model`.

    Raises:
        InputError: when they belong to another network.
    """
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise InputError(
            f"{path} holds the weights of another network: {str(error).splitlines()[-1].strip()}"
        ) from error


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
