"""Start a run from the weights of a trained network: `--init`."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.own_network import is_own_network
from onecycle.core.recipes import RECIPES
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Architecture, ModelComposite, OwnNetwork
from onecycle.predict.predictor import SHIPPED, Predictor, weights_of
from onecycle.storage.checkpoint import load_tensors, load_weights

SHIPPED_NAME = "shipped"


def with_digest(config: Config) -> Config:
    """`config` with the digest of its initial weights. Without initial weights, `config` is returned unchanged.

    Raises:
        InputError: when the weights are missing, or have another digest than `config` says.
    """
    if config.init is None:
        return config
    path = _path(config.init)
    digest = digest_of(path)
    if config.init_sha256 not in (None, digest):
        raise InputError(
            f"{path} has the SHA-256 {digest[:12]}…, and the run started from weights with {config.init_sha256[:12]}…; "
            "give the original weights with --init"
        )
    return replace(config, init_sha256=digest)


def digest_of(path: Path) -> str:
    """The SHA-256 of what a run takes from the weights file `path`: everything but the temperature and the threshold.

    `onecycle calibrate` changes only these two values, and so does not change the digest. After it, a run that started
    from the file can still be resumed.

    Raises:
        InputError: when the file is missing or damaged.
    """
    tensors, metadata = load_tensors(path)
    taken = {name: metadata.get(name) for name in ("architecture", "classes", "preprocessing")}
    found = hashlib.sha256(json.dumps(taken, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _path(init: str) -> Path:
    if init == SHIPPED_NAME:
        return SHIPPED
    path = Path(init).expanduser()
    if not path.exists():
        raise InputError(f"--init: there is no run folder or weights file {init}; check the name")
    return weights_of(path) if path.is_dir() else path


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The trained network whose weights a run starts from."""

    config: Config
    predictor: Predictor

    @classmethod
    def of(cls, config: Config) -> "InitialWeights | None":
        """The trained network that `config` names, or None if it names none.

        Raises:
            InputError: when the weights are missing or damaged, or belong to another network than that of `config`.
        """
        if config.init is None:
            return None
        own = config.network if is_own_network(config.network) else None
        predictor = Predictor.load(_path(config.init), network=own)
        theirs, ours = predictor.architecture, Architecture.of(config)
        if theirs != ours:
            recipes = (name for name, recipe in RECIPES.items() if Architecture.of(recipe) == theirs)
            same = next((f"--recipe {name}" for name in recipes if name != config.recipe), str(theirs))
            raise InputError(f"--init {config.init} is a network of {theirs}, and this run trains {ours}; use {same}")
        return cls(config=config, predictor=predictor)

    def preprocessing(self, of_data: Preprocessing) -> Preprocessing:
        """The preprocessing of the run. The data gives the input size, and the trained network gives the normalization.

        The first layer of the trained network needs inputs with this normalization, above all if the layer has
        whitening filters. This run converts its images to gray if all its training images are gray. It also does so if
        the trained network converts images to gray, because such a network has no filters for colors.
        """
        theirs = self.predictor.preprocessing
        return replace(theirs, input_size=of_data.input_size, gray=theirs.gray or of_data.gray)

    def load_into(self, model: ModelComposite, classes: tuple[str, ...], own: OwnNetwork | None) -> str:
        """Copy the weights into `model`, a network for `classes`. Returns a line that says what was loaded.

        The line has only the name of the file or folder, because the model card shows it, and the path may be private.

        If only the order of the classes differs, the rows of the loaded head are reordered. If the classes themselves
        differ, no head is loaded, and `model` keeps its new head.

        Raises:
            InputError: when the network is the user's own, and its weights fit only images of another size.
        """
        theirs, tensors = self.predictor, dict(self.predictor.model.state_dict())
        size = theirs.preprocessing.input_size
        head = theirs.architecture.head(len(theirs.classes), size, own) if theirs.classes != classes else set()
        what = "all weights"
        if head and set(theirs.classes) == set(classes):
            order = torch.tensor([theirs.classes.index(name) for name in classes])
            tensors |= {name: tensors[name][order] for name in head}
            what = "all weights, the head in the new order of the classes"
        elif head:
            tensors |= {name: tensor for name, tensor in model.state_dict().items() if name in head}
            what = (
                f"all weights but {', '.join(sorted(head))}: the head is new, because the classes are not "
                f"{_listed(theirs.classes)}"
            )
        load_weights(model, tensors, _path(str(self.config.init)))
        gray = ", and every image is converted to gray" if theirs.preprocessing.gray else ""
        name, digest = Path(str(self.config.init)).name, str(self.config.init_sha256)[:12]
        return (
            f"Starts from {name} (SHA-256 {digest}…) with {what}; "
            f"the normalization is that of its training images{gray}"
        )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
