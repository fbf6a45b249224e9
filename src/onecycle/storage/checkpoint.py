"""Save and load weights and checkpoints as safetensors with a checksum. Nothing is ever unpickled."""

import hashlib
import json
import os
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

from onecycle.core.errors import InputError, OnecycleError
from onecycle.core.files import reading, replacing
from onecycle.core.regular_files import open_regular, read_regular

MOST_TENSOR_BYTES = 2**32  # a checkpoint of the custom ResNet has less than 2**27
_MOST_HEADER_BYTES = 2**24  # the header holds names, shapes and the history of the run

# The checksum comes first in the metadata, which is JSON inside JSON. Hence the backslashes.
_CHECKSUM = re.compile(rb'\{\\"checksum\\": \\"([0-9a-f]{64})\\"')
_NO_CHECKSUM = "0" * 64  # stands in place of the checksum while the checksum is computed
_BEFORE_CHECKSUM = 1000  # the checksum is within this many bytes from the start of the file


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], *, keep: Path | None = None
) -> None:
    """Write `tensors` and `metadata` to `path`. Equal arguments produce identical files.

    Each tensor keeps its dtype. The file contains a SHA-256 checksum of its content, computed with zeros in place of
    the checksum. The new file is read back and verified before it replaces the old file. If `keep` is given, the old
    file is renamed to `keep`.

    Raises:
        StorageError: when the file cannot be written.
    """
    # safetensors refuses channels-last tensors. It would write several metadata keys in random order, so all metadata
    # is under one key.
    contiguous = _unshared({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    described = {"checksum": _NO_CHECKSUM, **json.loads(json.dumps(metadata, sort_keys=True))}
    content = memoryview(safetensors.torch.save(contiguous, {"onecycle": json.dumps(described)}))
    place = _place_of_checksum(content)
    assert place, "the metadata comes first in the file"
    checksum = hashlib.sha256(content).hexdigest()
    with replacing(path, keep=keep, check=_checked) as temporary, temporary.open("wb") as file:
        file.writelines([content[: place.start], checksum.encode(), content[place.stop :]])


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors`, with a copy of each tensor that shares its memory with an earlier one.

    safetensors refuses shared memory. A network that uses a layer twice has the layer's tensors under two names.
    """
    seen: set[int] = set()
    unshared = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return unshared


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Load what `save_tensors` wrote: tensors on the CPU, and the metadata.

    Raises:
        InputError: when the file is missing, damaged or not from `save_tensors`.
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
    """The content of a file, verified against the checksum in the file.

    Raises:
        InputError: when the file is damaged.
    """
    # A sparse file can be huge and still occupy little disk space. The limit prevents reading it into memory.
    content = read_regular(path, min(MOST_TENSOR_BYTES, _size_by_header(path)))
    if not (place := _place_of_checksum(content)):
        raise _without_checksum(path)
    digest = hashlib.sha256(content[: place.start])
    digest.update(_NO_CHECKSUM.encode())
    digest.update(memoryview(content)[place.stop :])
    if digest.hexdigest().encode() != content[place.start : place.stop]:
        raise InputError(f"{path} is damaged: its checksum does not match its content")
    return content


def _size_by_header(path: Path) -> int:
    """The size of the safetensors file `path` according to its header.

    Raises:
        InputError: when the file has no such header.
    """
    with reading(path), os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER_BYTES:
            raise _without_checksum(path)
        header = json.loads(file.read(length))
        ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)


def _without_checksum(path: Path) -> InputError:
    return InputError(f"{path} has no checksum, so it is damaged, or onecycle did not write it")


def _place_of_checksum(content: bytes | memoryview) -> slice | None:
    found = _CHECKSUM.search(content, 0, _BEFORE_CHECKSUM)
    return slice(*found.span(1)) if found else None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run between two steps, as `save_checkpoint` wrote it."""

    path: Path
    progress: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    damaged: str | None  # why the newest checkpoint could not be loaded; None if this checkpoint is the newest

    @property
    def measured(self) -> dict[str, torch.Tensor]:
        """The tensors that were given to `save_checkpoint` as `measured`, on the CPU."""
        return _with_prefix("measured.", self.tensors)

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Restore `model`, `optimizer` and torch's random states.

        Raises:
            InputError: when the checkpoint is of another network or optimizer. `model` and `optimizer` are then
                in an undefined state.
        """
        with reading(self.path):
            values: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in _with_prefix("optimizer.", self.tensors).items():
                index, _, key = name.partition(".")
                values.setdefault(int(index), {})[key] = tensor
            load_weights(model, _with_prefix("model.", self.tensors), self.path)
            try:
                optimizer.load_state_dict({"state": values, "param_groups": self.progress["param_groups"]})
            except ValueError as error:
                raise InputError(
                    f"{self.path} has the state of another optimizer: {error}; use a checkpoint of this run"
                ) from error
            torch.set_rng_state(self.tensors["random.cpu"])
            if "random.cuda" in self.tensors:
                torch.cuda.set_rng_state(self.tensors["random.cuda"])


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    progress: Mapping[str, Any],
    *,
    measured: Mapping[str, torch.Tensor] | None = None,
    keep: Path | None = None,
) -> None:
    """Write the state that a run needs to resume.

    The state consists of weights and buffers, the optimizer state, torch's random states, `progress` as JSON and
    `measured` as tensors. The random states of Python and NumPy are not needed: every random number from Python or
    NumPy depends only on the seed, the epoch and the position. If `keep` is given, the previous checkpoint is
    renamed to `keep`.

    Raises:
        StorageError: when the file cannot be written; the old checkpoint is then unchanged.
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


def load_checkpoint(path: Path, before: Path) -> Checkpoint | None:
    """Load the checkpoint at `path`, or the previous one at `before` if `path` is missing or damaged.

    Returns None if neither file exists.

    Raises:
        InputError: when no file can be loaded, but at least one exists.
    """
    damage: list[str] = []
    for file in (path, before):
        try:
            if file.exists():
                tensors, progress = load_tensors(file)
                return Checkpoint(path=file, progress=progress, tensors=tensors, damaged=" ".join(damage) or None)
            damage.append(f"{file} is missing")
        except OnecycleError as error:
            damage.append(str(error))
    if path.exists() or before.exists():
        raise InputError(
            f"the run cannot go on because all its checkpoints are damaged: {'; '.join(damage)}; start a new run"
        )
    return None


def load_weights(model: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy `tensors`, which were read from `path`, into `model`.

    Raises:
        InputError: when the tensors belong to another network, or are not finite in the precision of `model`.
    """
    own = model.state_dict()
    with reading(path):
        for name in own.keys() & tensors.keys():
            if tensors[name].is_complex() or tensors[name].is_floating_point() != own[name].is_floating_point():
                raise ValueError(f"{name} is {tensors[name].dtype}, not {own[name].dtype}")
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise InputError(
            f"{path} has the weights of another network: {str(error).splitlines()[-1].strip()}; "
            "use the weights of this network"
        ) from error
    with reading(path):
        if not all(values.is_meta or values.isfinite().all() for values in own.values()):
            raise ValueError("a weight is not finite")


def weights_digest(model: nn.Module) -> str:
    """A hexadecimal hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for values in model.state_dict().values():
        digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
