import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from onecycle.core.errors import InputError
from onecycle.core.own_network import is_own_network, require_consent
from onecycle.models import Architecture, ModelComposite, OwnNetwork
from onecycle.models.custom_resnet import CustomResNet

CODE = """
from torch import nn
import onecycle_test_beside

assert False not in onecycle_test_beside.imported

class Classes:
    @staticmethod
    def small(classes, size):
        return small(classes, size)

def small(classes, size):
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))

def composite(classes, size):
    from onecycle.models import CustomResNet
    return CustomResNet(classes, size)

def fails(classes, size):
    raise KeyError("two\\nlines")

def takes_too_little(classes):
    return nn.Identity()

def no_module(classes, size):
    return 3

def other_classes(classes, size):
    return small(classes + 1, size)

def no_logits(classes, size):
    return nn.Conv2d(3, classes, 1)

def wrong_size(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(5, classes))

def frozen(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, classes)).requires_grad_(False)

number = 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the current folder, which imports another one beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("onecycle_test_nets", "onecycle_test_beside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "onecycle_test_beside.py").write_text("imported = [True]\n")
    path = tmp_path / "onecycle_test_nets.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "onecycle_test_nets.py:small",
        "./onecycle_test_nets.py:small",
        "onecycle_test_nets:small",
        "onecycle_test_nets:Classes.small",
        "{folder}/onecycle_test_nets.py:small",
    ],
)
def test_a_function_in_a_file_or_a_module_builds_a_network(code: Path, name: str) -> None:
    own = OwnNetwork.load(name.format(folder=code.parent))
    model = own.build(7, 16)
    assert isinstance(model, ModelComposite) and model.training and not model.has_features
    assert model(torch.zeros(3, 3, 16, 16)).shape == (3, 7)
    assert not any(isinstance(parameter, nn.UninitializedParameter) for parameter in model.parameters())
    assert own.sha256 == OwnNetwork.load("onecycle_test_nets:small").sha256


def test_a_model_composite_is_taken_as_it_is(code: Path) -> None:
    model = OwnNetwork.load(f"{code}:composite").build(10, 16)
    assert isinstance(model, CustomResNet) and model.has_features


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("missing", "cannot be loaded: AttributeError: "),
        ("number", "is not a function"),
        ("fails", "fails: KeyError: 'two\\nlines'; it must take the number of classes and the input size"),
        ("takes_too_little", "fails: TypeError: "),
        ("no_module", "returns a int; it must be an nn.Module"),
        ("other_classes", "maps 2 images to [2, 11]; it must map them to the logits [2,10]"),
        ("no_logits", "maps 2 images to [2, 10, 16, 16]; "),
        ("wrong_size", "fails: RuntimeError: "),
        ("frozen", "has no parameter to train"),
    ],
)
def test_a_function_that_builds_no_network_is_refused_in_one_line(code: Path, function: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        OwnNetwork.load(f"onecycle_test_nets.py:{function}").build(10, 16)
    assert str(error.value).startswith(f"--network onecycle_test_nets.py:{function} ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("import no_such_module", "ModuleNotFoundError: "), ("def", "SyntaxError: "), ("1 / 0", "ZeroDivisionError: ")],
)
def test_a_file_that_cannot_be_imported_is_refused_in_one_line(code: Path, content: str, reason: str) -> None:
    code.write_text(content)
    with pytest.raises(InputError, match=f"^--network .*:small cannot be loaded: {reason}[^\n]*$"):
        OwnNetwork.load(f"{code}:small")


def test_a_missing_file_and_a_module_without_a_source_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nets\.py; check the name"):
        OwnNetwork.load(f"{tmp_path}/nets.py:small")
    with pytest.raises(InputError, match="cannot be loaded: ModuleNotFoundError"):
        OwnNetwork.load("no_such_module:small")
    with pytest.raises(InputError, match="has no source file; put the function into a file"):
        OwnNetwork.load("builtins:print")


def test_building_leaves_the_random_state_to_the_function_alone(code: Path) -> None:
    torch.manual_seed(3)
    expected = CustomResNet(10, 16).linear.weight, torch.rand(1)
    torch.manual_seed(3)
    model = OwnNetwork.load(f"{code}:composite").build(10, 16)
    assert torch.equal(model.state_dict()["linear.weight"], expected[0])
    assert torch.equal(torch.rand(1), expected[1])


def test_an_architecture_of_an_own_network_needs_its_code(code: Path) -> None:
    own = OwnNetwork.load(f"{code}:small")
    architecture = Architecture(network="anything:small", network_sha256=own.sha256)
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert architecture.build(10, 16, own)(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert architecture.head(10, 16, own) == {"network.3.weight", "network.3.bias"}
    with pytest.raises(InputError, match="the code of anything:small is missing; add --network anything:small"):
        architecture.build(10, 16)
    code.write_text(CODE + "# changed\n")
    with pytest.raises(InputError, match="and the network was trained with .*; restore that code"):
        architecture.build(10, 16, OwnNetwork.load(f"{code}:small"))


@pytest.mark.parametrize(
    "values",
    [
        {"network": "a:b"},
        {"network": "custom_resnet", "network_sha256": "a" * 64},
        {"network": "resnet50"},
        {"network": "a\nb:c", "network_sha256": "a" * 64},
        {"network": ":c", "network_sha256": "a" * 64},
        {"network": "a:b", "network_sha256": 3},
    ],
)
def test_an_architecture_that_names_no_network_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="network"):
        Architecture.from_json(values)


@pytest.mark.parametrize("name", ["a:b", "a.b:c", "nets.py:Net", "/my nets/a.py:f", "C:\\nets.py:f", "a:b.c"])
def test_names_of_own_networks(name: str) -> None:
    assert is_own_network(name)
    require_consent(name, name, "runs/a")
    require_consent("custom_resnet", None, "runs/a")
    for other in (None, "custom_resnet", name + "2"):
        with pytest.raises(InputError, match="^runs/a has a network of its own, whose code is loaded only if you name"):
            require_consent(name, other, "runs/a")


@pytest.mark.parametrize("name", ["custom_resnet", "a", ":b", "a:", "a:1", "a:b c", "a\x1b:b", "a:b;rm"])
def test_other_names_are_no_own_networks(name: str) -> None:
    assert not is_own_network(name)


def test_a_file_that_changes_within_a_second_is_run_as_it_is_now(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    source = (
        "from torch import nn\n\ndef small(classes, size):\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))\n"
    )
    for classes in (3, 4, 3):
        file.write_text(source.replace("3", str(classes)))  # always the same number of bytes
        assert OwnNetwork.load(f"{file}:small").build(classes, 8)
