"""Every recipe, with and without class weights, on a data set in which one class is twenty times as large."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onecycle.compute.plan import EAGER
from onecycle.core.config import Config
from onecycle.core.recipes import BASELINE, FAST, QUICK
from onecycle.data import load_dataset
from onecycle.run.build import assemble
from onecycle.train.loop import evaluate, fit

LARGE, RARE = 3, 8  # digits that are easily confused
SMALL = {"widths": (16, 32, 32), "epochs": 8}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 140 threes and 7 eights to train on, and 36 of each to test on."""
    folder = tmp_path_factory.mktemp("uneven")
    digits = load_dataset("digits")
    for digit, training in ((LARGE, 140), (RARE, 7)):
        images = np.concatenate([split.images[split.labels == digit] for split in (digits.train, digits.evaluation)])
        for name, chosen in (("train", images[:training]), ("test", images[-36:])):
            (folder / name / str(digit)).mkdir(parents=True)
            for number, image in enumerate(chosen):
                Image.fromarray(image).save(folder / name / str(digit) / f"{number}.png")
    return folder


def recalls(config: Config) -> list[float]:
    """The recall of the large and of the rare class after training."""
    experiment = assemble(config, EAGER)
    rates = {"lr_min": config.lr_min or 0.0, "lr_max": config.lr_max or 1e-3, "peak_fraction": config.peak_fraction}
    fit(experiment.model, experiment.optimizer, experiment.train, experiment.evaluation, epochs=config.epochs, **rates)
    predictions = evaluate(experiment.model, experiment.evaluation).logits.argmax(dim=1).numpy()
    labels = experiment.dataset.evaluation.labels
    return [float((predictions[labels == label] == label).mean()) for label in (0, 1)]


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(replace(QUICK, **SMALL), id="quick"),
        pytest.param(replace(FAST, **SMALL), id="fast"),
        pytest.param(replace(BASELINE, epochs=6, workers=0), marks=pytest.mark.long, id="baseline"),
    ],
)
def test_class_weights_do_not_cost_the_large_class_and_help_the_rare_one(recipe: Config, uneven: Path) -> None:
    config = replace(recipe, data=str(uneven), batch_size=21)
    plain, weighted = recalls(config), recalls(replace(config, class_weights=True))
    assert weighted[0] >= 0.7, f"the large class is not given up: {weighted}, without weights {plain}"
    assert sum(weighted) / 2 >= max(0.7, sum(plain) / 2 - 0.02), f"{weighted}, without weights {plain}"
