"""Commands that read a mutated run folder end with a result or with one line, and touch nothing outside the folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from child import contents, onecycle
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from mutations import mutate, replace
from PIL import Image
from real_runs import Folders

_RECORDS = ["config.json", "environment.json", "result.json", "history.jsonl", "lr_finder.json", "network.json"]
_ARRAYS = ["predictions.npz", "misclassified.npz", "interpretation.npz", "augmentations.npz", "training_margins.npz"]

# What each command reads.
_READ = {
    "report": [*_RECORDS, *_ARRAYS],
    "compare": [*_RECORDS, *_ARRAYS[:3]],
    "interpret": ["config.json", "environment.json", "predictions.npz", "training_margins.npz", "weights.safetensors"],
    "evaluate": ["config.json", "environment.json", "result.json", "weights.safetensors"],
    "predict": ["weights.safetensors"],
    "study": ["../../study.json", *_RECORDS[:4], *_ARRAYS[:2]],
    "repeat": ["config.json", "environment.json"],
    "resume": [*_RECORDS[:2], "lr_finder.json", "checkpoint.safetensors", "checkpoint-before.safetensors"],
    "report stopped": ["config.json", "environment.json", "history.jsonl", "stopped.json", "lr_finder.json"],
}
# What a command may create: someone may have put a link in its place.
_WRITTEN = [".lock", "report.html", "plots", "tensorboard", "summary.json", "history.jsonl", "stopped.json"]


@pytest.mark.parametrize("command", _READ)
def test_a_mutated_run_folder_gives_a_result_or_one_line(
    command: str,
    folders: Folders,
    tmp_path_factory: pytest.TempPathFactory,
    fuzz: Callable[[Callable[[], None]], None],
) -> None:
    @settings(max_examples=5, phases=[Phase.generate], database=None)  # shrinking would take minutes
    @given(data=st.data())
    def check(data: DataObject) -> None:
        here = tmp_path_factory.mktemp("input")
        outside = here / "outside"
        outside.mkdir()
        (outside / "precious").write_text("precious")
        (here / "within").mkdir()
        shutil.copytree(folders.study, here / "study")
        shutil.copytree(folders.stopped, here / "stopped")
        run = here / ("stopped" if command in ("resume", "report stopped") else "study/baseline/seed-0")
        for name in data.draw(st.lists(st.sampled_from(_READ[command]), min_size=1, max_size=2, unique=True)):
            mutate(data.draw, run / name, outside)
        if data.draw(st.integers(0, 4)) == 0:
            replace(data.draw, run / data.draw(st.sampled_from(_WRITTEN)), outside)
        before = contents(outside), sorted(here.iterdir())
        outcome = onecycle(*_arguments(command, run, folders), within=here / "within")
        outcome.require_clean()
        assert len(outcome.errors) <= 1, outcome
        assert (contents(outside), sorted(here.iterdir())) == before
        shutil.rmtree(here)

    fuzz(check)


def _arguments(command: str, run: Path, folders: Folders) -> list[str | Path]:
    if command == "interpret":
        (run / "interpretation.npz").unlink(missing_ok=True)
    if command == "predict":
        Image.new("RGB", (32, 32)).save(run.parents[2] / "within" / "image.png")
    return {
        "report": ["report", "--run", run],
        "compare": ["compare", "--run", folders.complete, "--run", run, "--out", "compare.html"],
        "interpret": ["report", "--run", run],
        "evaluate": ["evaluate", "--run", run],
        "predict": ["predict", "--run", run, "image.png"],
        "study": ["study", "--resume", run.parents[1]],
        "repeat": ["train", "--config", run / "config.json", "--out", "runs"],  # config.json names a shared folder
        "resume": ["train", "--resume", run],
        "report stopped": ["report", "--run", run],
    }[command]
