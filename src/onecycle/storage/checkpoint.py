"""A network's weights, and the state of a run between two steps, as safetensors. Nothing is ever unpickled."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from torch.optim import Optimizer

from onecycle.core.errors import InputError
from onecycle.core.files import reading, replacing

# The first thing in a file's metadata, which are JSON within JSON: hence the backslashes.
_CHECKSUM = re.compile(rb'\{\\"checksum\\": \\"([0-9a-f]{64})\\"')
_NO_CHECKSUM = "0" * 64  # in its own place, when the checksum is computed
_BEFORE_CHECKSUM = 1000  # bytes at most


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], *, keep: Path | None = None
) -> None:
    """Write `tensors`, each as precise as it is, and `metadata` to `path`; equal states make equal files.

    The file has the sha256 of its content in it. It is read back and checked before it takes its place; the old file is
    then kept under the name `keep`.

    Raises:
        InputError: when it cannot be written.
    """
    # safetensors refuses channels-last memory, and writes several metadata keys in a changing order.
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = {"checksum": _NO_CHECKSUM, **json.loads(json.dumps(metadata, sort_keys=True))}
    content = memoryview(safetensors.torch.save(contiguous, {"onecycle": json.dumps(told)}))
    place = _place_of_checksum(content)
    assert place, "the metadata come first in the file"
    checksum = hashlib.sha256(content).hexdigest()
    with replacing(path, keep=keep, check=_checked) as temporary, temporary.open("wb") as file:
        file.writelines([content[: place.start], checksum.encode(), content[place.stop :]])


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `save_tensors` wrote: tensors on the CPU, and the metadata.

    Raises:
        InputError: when the file is missing, damaged or not one of ours.
    """
    with reading(path):
        content = _checked(path)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads(header["__metadata__"]["onecycle"])
        del metadata["checksum"]
        try:
            return safetensors.torch.load(content), metadata
        except SafetensorError as error:
            raise ValueError(str(error)) from error


def _checked(path: Path) -> bytes:
    """The content of a file that has its own checksum in it.

    Raises:
        InputError: when it is not what was written.
    """
    content = path.read_bytes()
    if not (place := _place_of_checksum(content)):
        raise InputError(f"{path} cannot be read: it has no checksum, so it is damaged or of another kind")
    digest = hashlib.sha256(content[: place.start])
    digest.update(_NO_CHECKSUM.encode())
    digest.update(memoryview(content)[place.stop :])
    if digest.hexdigest().encode() != content[place.start : place.stop]:
        raise InputError(f"{path} is damaged: its checksum is not that of its content")
    return content


def _place_of_checksum(content: bytes | memoryview) -> slice | None:
    found = _CHECKSUM.search(content, 0, _BEFORE_CHECKSUM)
    return slice(*found.span(1)) if found else None


@dataclass(frozen=True, kw_only=True)
class State:
    """A run between two steps: what `save_state` wrote."""

    path: Path
    progress: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    damaged: str | None  # what is wrong with the newest file, where this is the one before

    @property
    def measured(self) -> dict[str, torch.Tensor]:
        """What the run had measured, on the CPU."""
        return _below("measured.", self.tensors)

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put it into `model`, `optimizer` and torch's random states.

        Raises:
            InputError: when it belongs to another network or optimizer; both are then of no use.
        """
        with reading(self.path):
            values: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in _below("optimizer.", self.tensors).items():
                index, _, key = name.partition(".")
                values.setdefault(int(index), {})[key] = tensor
            load_weights(model, _below("model.", self.tensors), self.path)
            try:
                optimizer.load_state_dict({"state": values, "param_groups": self.progress["param_groups"]})
            except ValueError as error:
                raise InputError(f"{self.path} holds the state of another optimizer: {error}") from error
            torch.set_rng_state(self.tensors["random.cpu"])
            if "random.cuda" in self.tensors:
                torch.cuda.set_rng_state(self.tensors["random.cuda"])


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    progress: Mapping[str, Any],
    *,
    measured: Mapping[str, torch.Tensor] | None = None,
    keep: Path | None = None,
) -> None:
    """Write all that a run needs to go on: weights and buffers, the optimizer, torch's random states, `progress` as
    JSON and what it `measured` as tensors.

    Python's and NumPy's random states have no part in a run: what they would draw is a function of seed, epoch and
    position. The state that was at `path` before is kept at `keep`.

    Raises:
        InputError: when it cannot be written; the state before is then as it was.
    """
    state = optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    tensors |= {f"measured.{name}": tensor for name, tensor in (measured or {}).items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if any(tensor.is_cuda for tensor in tensors.values()):
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    save_tensors(path, tensors, {**progress, "param_groups": state["param_groups"]}, keep=keep)


def load_state(path: Path, before: Path) -> State | None:
    """The state at `path`, else the one kept at `before`; None where there are no such files.

    Raises:
        InputError: when what there is is damaged.
    """
    damage: list[str] = []
    for file in (path, before):
        try:
            if file.exists():
                tensors, progress = load_tensors(file)
                return State(path=file, progress=progress, tensors=tensors, damaged=" ".join(damage) or None)
            damage.append(f"{file} is missing")
        except InputError as error:
            damage.append(str(error))
    if path.exists() or before.exists():
        raise InputError(f"no checkpoint is whole, so the run cannot go on: {'; '.join(damage)}; begin a new run")
    return None


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


def weights_digest(model: nn.Module) -> str:
    """The start of the sha256, in hex, of all parameters and buffers."""
    digest = hashlib.sha256()
    for values in model.state_dict().values():
        digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
