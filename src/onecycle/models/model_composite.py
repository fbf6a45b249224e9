"""The base class of every model: training step, evaluation step, prediction and summary."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from onecycle.storage.records import LayerSummary, NetworkSummary


class Batch(NamedTuple):
    """Normalized float images `[B,3,H,W]` and their int64 labels `[B]`."""

    images: torch.Tensor
    labels: torch.Tensor


class StepOutput(NamedTuple):
    """The mean loss of a batch (a scalar) and the logits `[B,C]`."""

    loss: torch.Tensor
    logits: torch.Tensor


class ModelComposite(nn.Module):
    """Base class of every model: a network that maps images `[B,3,H,W]` to logits `[B,C]`, and its criterion.

    A subclass defines either both `features` and `classify`, or only `forward`. Grad-CAM needs `features` and
    `classify`. A subclass may also set another `criterion`, or override `training_step`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.criterion: nn.Module = nn.CrossEntropyLoss()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[B,C]`."""
        return self.classify(self.features(images))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last feature map `[B,channels,h,w]`."""
        raise NotImplementedError

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits `[B,C]` from the output of `features`."""
        raise NotImplementedError

    @property
    def has_features(self) -> bool:
        """Whether the network defines `features` and `classify`."""
        return type(self).features is not ModelComposite.features

    def training_step(self, batch: Batch) -> StepOutput:
        """Loss and logits of a batch. The caller computes gradients and updates parameters."""
        logits = self(batch.images)
        return StepOutput(self.criterion(logits, batch.labels), logits)

    def evaluation_step(self, batch: Batch) -> StepOutput:
        """Loss and logits of a batch, in float32 and without gradients. Call `eval()` first."""
        with torch.no_grad():
            logits = self(batch.images).float()
            return StepOutput(self.criterion(logits, batch.labels), logits)

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Class probabilities, float32 `[B,C]`, of normalized images `[B,3,H,W]`, computed in evaluation mode."""
        modes = [(module, module.training) for module in self.modules()]  # modules may be in different modes
        self.eval()
        try:
            return torch.softmax(self(images).float(), dim=1)
        finally:
            for module, training in modes:
                module.training = training

    def summary(self, input_shape: tuple[int, int, int]) -> NetworkSummary:
        """The layers in execution order, with output shapes and parameters, for an input of `input_shape` (C,H,W)."""
        layers: list[LayerSummary] = []

        def note(module: nn.Module, _: tuple[torch.Tensor, ...], output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output  # some layers, such as nn.GRU, have more outputs
            layers.append(
                LayerSummary(
                    layer=f"{type(module).__name__}-{len(layers) + 1}",
                    output_shape=tuple(getattr(first, "shape", ())[1:]),
                    parameters=sum(p.numel() for p in module.parameters()),
                )
            )

        leaves = [m for m in self.modules() if not list(m.children()) and m is not self.criterion]
        hooks = [leaf.register_forward_hook(note) for leaf in leaves]
        first = next(self.parameters())
        try:
            self.predict(torch.zeros(1, *input_shape, device=first.device))
        finally:
            for hook in hooks:
                hook.remove()
        return NetworkSummary(
            input_shape=input_shape,
            layers=tuple(layers),
            parameters=sum(p.numel() for p in self.parameters()),
            trainable_parameters=sum(p.numel() for p in self.parameters() if p.requires_grad),
        )


class TrainingCrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy. Label smoothing and class weights apply in training mode, but not in evaluation mode.

    `label_smoothing` is the fraction of each label that is spread evenly over all classes. `weight` `[C]` are the loss
    weights of the classes. The loss of an image is its smoothed cross entropy times the weight of its class. The
    loss of a batch is the sum of these losses, divided by the number of images. Therefore the losses of the shards,
    each weighted by its share of the images, add up to the loss of the batch. For the same reason, the influence of a
    class does not depend on the batch size.

    `nn.CrossEntropyLoss` differs in two ways. In the smoothed part, it multiplies the term of each class by the weight
    of that class, which favors rare classes on every image. It divides the sum of the losses by the sum of the images'
    weights, not by the number of images.

    Source of label smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """

    def __init__(self, *, label_smoothing: float = 0.0, weight: torch.Tensor | None = None) -> None:
        super().__init__(label_smoothing=label_smoothing)
        # The class weights come from the data, so the state dict does not contain them.
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return functional.cross_entropy(input, target)
        if self.weight is None:
            return functional.cross_entropy(input, target, label_smoothing=self.label_smoothing)
        losses = functional.cross_entropy(input, target, label_smoothing=self.label_smoothing, reduction="none")  # [B]
        return (losses * self.weight[target]).mean()


class PlainComposite(ModelComposite):
    """Wraps any `nn.Module` that maps images to logits. The criterion is cross entropy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits


def as_composite(network: nn.Module) -> ModelComposite:
    """`network` itself if it is a `ModelComposite`, else a wrapper that shares its parameters."""
    return network if isinstance(network, ModelComposite) else PlainComposite(network)
