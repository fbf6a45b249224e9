"""Networks, each a `ModelComposite`."""

from onecycle.models.architecture import Architecture
from onecycle.models.custom_resnet import CustomResNet
from onecycle.models.model_composite import Batch, ModelComposite, SmoothedCrossEntropy, StepOutput, as_composite
from onecycle.models.whitened_convnet import WhitenedConvNet

__all__ = [
    "Architecture",
    "Batch",
    "CustomResNet",
    "ModelComposite",
    "SmoothedCrossEntropy",
    "StepOutput",
    "WhitenedConvNet",
    "as_composite",
]
