"""The networks. Each network is a `ModelComposite`."""

from onecycle.models.architecture import Architecture
from onecycle.models.backbone_classifier import BackboneClassifier
from onecycle.models.custom_resnet import CustomResNet
from onecycle.models.model_composite import Batch, ModelComposite, StepOutput, TrainingCrossEntropy, as_composite
from onecycle.models.own_network import OwnNetwork
from onecycle.models.whitened_convnet import WhitenedConvNet

__all__ = [
    "Architecture",
    "BackboneClassifier",
    "Batch",
    "CustomResNet",
    "ModelComposite",
    "OwnNetwork",
    "StepOutput",
    "TrainingCrossEntropy",
    "WhitenedConvNet",
    "as_composite",
]
