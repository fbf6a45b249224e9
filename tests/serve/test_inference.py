from dataclasses import replace

import numpy as np
import pytest

import onecycle
from onecycle.serve.inference import Inference, Question


@pytest.mark.parametrize("explain", [False, True])
def test_the_service_gives_the_calibrated_probabilities_of_the_library(explain: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    predictor = replace(onecycle.load(), temperature=0.5)
    answers = Inference(predictor)([Question(image, explain) for image in images])
    for answer, expected in zip(answers, predictor.predict_images(images), strict=True):
        assert answer.prediction.class_name == expected.class_name
        assert answer.prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        assert (answer.heatmap is not None) == explain
