"""The home of what every model shares for training and evaluation. It knows nothing of files, screens or schedules."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from onecycle.storage.records import LayerSummary, NetworkSummary


class Batch(NamedTuple):
    """Images as the network takes them: float `[B,3,H,W]`, normalized, and labels int64 `[B]`."""

    images: torch.Tensor
    labels: torch.Tensor


class StepOutput(NamedTuple):
    """The mean loss of a batch, a scalar, and the logits `[B,C]` it was computed from."""

    loss: torch.Tensor
    logits: torch.Tensor


class ModelComposite(nn.Module):
    """Base of every model: a network from images `[B,3,H,W]` to logits `[B,C]`, with its criterion.

    A subclass defines `features` and `classify`, between which interpretation looks, or `forward` alone; one that
    learns by another criterion sets `criterion`, and one that learns in another way defines `training_step`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.criterion: nn.Module = nn.CrossEntropyLoss()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[B,C]`."""
        return self.classify(self.features(images))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last map `[B,channels,h,w]` that knows where in the images something is."""
        raise NotImplementedError

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits `[B,C]` of what `features` returned."""
        raise NotImplementedError

    def training_step(self, batch: Batch) -> StepOutput:
        """Loss and logits of a batch; the caller differentiates and steps."""
        logits = self(batch.images)
        return StepOutput(self.criterion(logits, batch.labels), logits)

    def evaluation_step(self, batch: Batch) -> StepOutput:
        """Loss and logits of a batch, in float32 and without gradients. The caller has called `eval()`."""
        with torch.no_grad():
            logits = self(batch.images).float()
            return StepOutput(self.criterion(logits, batch.labels), logits)

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Class probabilities float32 `[B,C]` of normalized images `[B,3,H,W]`, in evaluation mode."""
        modes = [(module, module.training) for module in self.modules()]  # parts may be frozen in evaluation mode
        self.eval()
        try:
            return torch.softmax(self(images).float(), dim=1)
        finally:
            for module, training in modes:
                module.training = training

    def summary(self, input_shape: tuple[int, int, int]) -> NetworkSummary:
        """Every layer in the order it runs on an input of `input_shape` (C,H,W), with output shapes and parameters.

        Sizes are in MB of 2^20 bytes at float32; forward and backward hold every output twice.
        """
        layers: list[LayerSummary] = []

        def note(module: nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            layers.append(
                LayerSummary(
                    layer=f"{type(module).__name__}-{len(layers) + 1}",
                    output_shape=tuple(output.shape[1:]),
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
    """Cross entropy that in training smooths labels and weighs classes, and in evaluation does neither.

    `label_smoothing` spreads that part of each label evenly over all classes; `weight` `[C]` is what an image of each
    class counts for. Source of the first: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """

    def __init__(self, *, label_smoothing: float = 0.0, weight: torch.Tensor | None = None) -> None:
        super().__init__(label_smoothing=label_smoothing)
        # Not among the weights of the network: it is made from the data again.
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return functional.cross_entropy(input, target)
        return functional.cross_entropy(input, target, weight=self.weight, label_smoothing=self.label_smoothing)


class PlainComposite(ModelComposite):
    """Any `nn.Module` from images to logits, as a `ModelComposite` that learns by cross entropy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits


def as_composite(network: nn.Module) -> ModelComposite:
    """`network` itself when it is a `ModelComposite`, else wrapped into one; the parameters are shared."""
    return network if isinstance(network, ModelComposite) else PlainComposite(network)
