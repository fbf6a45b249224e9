"""Predict a batch of images, with Grad-CAM heatmaps where requested."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.predict.explain import grad_cam
from onecycle.predict.predictor import Prediction, Predictor


class Question(NamedTuple):
    """What a client asks for: the prediction of a uint8 image `[S,S,3]` and, if `explain` is true, its heatmap."""

    image: NDArray[np.uint8]
    explain: bool


class Answer(NamedTuple):
    """A prediction and, if requested, the heatmap `[h,w]` of the most likely class, with values from 0 to 1.

    A network that does not define `features` has no heatmaps.
    """

    prediction: Prediction
    heatmap: NDArray[np.float32] | None


class Inference:
    """Predicts the images of a batch of questions with one pass through the network.

    Raises:
        InputError: raised by a call, when probabilities from the network are not finite.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._prepared = predictor.plan.prepare(predictor.model).eval()

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        predictor = self._predictor
        images = torch.from_numpy(np.stack([question.image for question in questions]))
        normalized = predictor.preprocessing.normalize(images.to(predictor.plan.device))
        with torch.no_grad(), predictor.plan.autocast():
            if has_features := self._prepared.has_features:
                features = self._prepared.features(normalized)
                logits = self._prepared.classify(features)
            else:
                logits = self._prepared(normalized)
        predictions = predictor.to_predictions(logits)
        explained = [place for place, question in enumerate(questions) if question.explain and has_features]
        heatmaps: dict[int, NDArray[np.float32]] = {}
        if explained:
            most_likely = logits[explained].argmax(dim=1)
            heatmaps = dict(
                zip(explained, grad_cam(predictor.model, features[explained], most_likely).numpy(), strict=True)
            )
        return [Answer(prediction, heatmaps.get(place)) for place, prediction in enumerate(predictions)]
