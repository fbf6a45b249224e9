"""Networks, each a `ModelComposite`."""

from onecycle.models.custom_resnet import CustomResNet
from onecycle.models.model_composite import Batch, ModelComposite, StepOutput, as_composite

__all__ = ["Batch", "CustomResNet", "ModelComposite", "StepOutput", "as_composite"]
