"""The user's own network, given as `--network module:function` or `--network file.py:function`.

Only this module imports the code of such a network. Callers pass only names that the user has given: see
`core.own_network.require_consent`.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Self

import torch
from torch import nn

from onecycle.core.errors import InputError
from onecycle.models.model_composite import ModelComposite, as_composite


@dataclass(frozen=True, kw_only=True)
class OwnNetwork:
    """The user's function that builds a network, and the SHA-256 digest of its source file.

    The function takes the number of classes and the input size. It returns an `nn.Module` that maps float images
    `[B,3,S,S]` to logits `[B,classes]`.
    """

    name: str
    function: Callable[[int, int], nn.Module]
    sha256: str

    @classmethod
    def load(cls, name: str) -> Self:
        """Import the function that `name` identifies. This runs the code of its module.

        Python looks for a module first in its import path, and then in the current folder.

        Raises:
            InputError: when there is no such function, or its module cannot be imported or has no source file.
        """
        place, _, function_name = name.rpartition(":")
        try:
            module = _from_file(Path(place).expanduser()) if place.endswith(".py") else _imported(place)
            function = attrgetter(function_name)(module)
        except InputError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise InputError(f"--network {name} cannot be loaded: {_in_one_line(error)}; check the name") from error
        if not callable(function):
            raise InputError(f"--network {name} is not a function; name one that returns an nn.Module")
        source = getattr(module, "__file__", None)
        if not (source and os.path.isfile(source)):
            raise InputError(f"--network {name} has no source file; put the function into a file")
        return cls(name=name, function=function, sha256=hashlib.sha256(Path(source).read_bytes()).hexdigest())

    def build(self, classes: int, input_size: int) -> ModelComposite:
        """Build the network with random weights.

        Raises:
            InputError: when the function fails, when the network has no trainable parameter, or when the network does
                not map images to one logit for each class.
        """
        try:
            network = self.function(classes, input_size)
            if not isinstance(network, nn.Module):
                raise InputError(f"--network {self.name} returns a {type(network).__name__}; it must be an nn.Module")
            model = as_composite(network)
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                logits = model.eval()(torch.zeros(2, 3, input_size, input_size))  # also gives lazy layers their shapes
            model.train()
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"--network {self.name} fails: {_in_one_line(error)}; it must take the number of classes and the input "
                "size, and return an nn.Module that maps images [B,3,S,S] to logits [B,classes]"
            ) from error
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if shape != [2, classes]:
            raise InputError(
                f"--network {self.name} maps 2 images to {shape}; it must map them to the logits [2,{classes}]"
            )
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(f"--network {self.name} has no parameter to train; check requires_grad")
        return model


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"--network: there is no file {path}; check the name")
    name = f"onecycle_network_{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]}"
    _search_in(path.resolve().parent)  # so that the file can import modules beside it
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec, "a file that ends with .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up a module in `sys.modules`
    # `exec_module` could run the cached bytecode of an earlier version of the file, if both versions have the same
    # size and were saved in the same second.
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    return module


def _imported(name: str) -> ModuleType:
    _search_in(Path.cwd())
    return importlib.import_module(name)


def _search_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
