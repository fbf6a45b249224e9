"""What the network makes of several pictures at once, and what it looked at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.predict.explain import grad_cam
from onecycle.predict.predictor import Prediction, Predictor


class Question(NamedTuple):
    """An image uint8 `[S,S,3]`, and whether to say what the network looked at."""

    image: NDArray[np.uint8]
    explain: bool


class Answer(NamedTuple):
    """A prediction, and Grad-CAM `[h,w]` for its likeliest class, from 0 to 1, where it was asked for."""

    prediction: Prediction
    heat: NDArray[np.float32] | None


class Inference:
    """Answers questions: all that it is given in one pass through the network."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._running = predictor.acceleration.prepare(predictor.model).eval()

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        predictor = self._predictor
        images = torch.from_numpy(np.stack([question.image for question in questions]))
        normalized = predictor.preprocessing.normalize(images.to(predictor.acceleration.device))
        with torch.no_grad(), predictor.acceleration.autocast():
            features = self._running.features(normalized)
            probabilities = self._running.classify(features).float().softmax(dim=1)  # [B,C]
        explained = [place for place, question in enumerate(questions) if question.explain]
        heat: dict[int, NDArray[np.float32]] = {}
        if explained:
            likeliest = probabilities[explained].argmax(dim=1)
            heat = dict(zip(explained, grad_cam(predictor.model, features[explained], likeliest).numpy(), strict=True))
        return [
            Answer(Prediction(classes=predictor.classes, probabilities=tuple(row)), heat.get(place))
            for place, row in enumerate(probabilities.tolist())
        ]
