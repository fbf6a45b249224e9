import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from onecycle.compute.plan import EAGER
from onecycle.core.config import Config
from onecycle.core.recipes import BASELINE, QUICK
from onecycle.run import setup
from onecycle.run.build import assemble
from onecycle.run.progress import RunProgress


def announced(config: Config) -> str:
    """What is printed before a run with `config`, in one line."""
    out = io.StringIO()
    setup.announce(assemble(config, EAGER), RunProgress(Console(file=out, width=500)))
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize(
    ("config", "suggested"),
    [
        (BASELINE, True),
        (QUICK, False),  # the user named a recipe
        (replace(BASELINE, data="digits", limit=40), False),  # not the user's own images
    ],
)
def test_few_images_of_ones_own_and_no_recipe_suggest_one_with_the_reason(
    config: Config, suggested: bool, image_folder: Path
) -> None:
    config = config if config.data == "digits" else replace(config, data=str(image_folder))
    line = (
        "There are few images to learn from (5 for each class on average): try --recipe quick, and --recipe transfer, "
        "whose network is pretrained on ImageNet"
    )
    assert (line in announced(replace(config, batch_size=16, workers=0))) is suggested


def test_many_images_suggest_no_recipe(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "FEW_IMAGES", 4)
    assert "--recipe" not in announced(replace(BASELINE, data=str(image_folder), batch_size=16, workers=0))
