"""Plan, run, interrupt, resume and summarize studies on the embedded digits."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from networks import NARROW_CONFIG
from rich.console import Console

from onecycle.cli import main
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.recipes import FAST, QUICK
from onecycle.storage.run_folder import RunFolder
from onecycle.study import run, study
from onecycle.study.summary import summarize, table


@pytest.fixture
def quick(tmp_path: Path) -> Config:
    short = {"limit": 40, "epochs": 1, "batch_size": 20, "lr_max": 1e-3, "lr_min": 1e-4}
    return replace(NARROW_CONFIG, **short, report=False, out=tmp_path)


NETWORKS = """
from torch import nn

def small(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, classes))

def wide(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 9), nn.ReLU(), nn.Linear(9, classes))
"""


def silent() -> Console:
    return Console(file=StringIO(), width=140)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A context in which another process holds the lock of `folder`."""
    program = "import sys; from pathlib import Path; from onecycle.core.files import locked\n"
    program += "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield


def test_a_grid_makes_every_combination_and_vary_each_value_alone(quick: Config) -> None:
    planned = study.plan(quick, seeds=2, grid=["batch_size=10,20", "precision=float32,auto"])
    assert list(planned.variants) == [
        "batch_size=10,precision=float32",
        "batch_size=10,precision=auto",
        "batch_size=20,precision=float32",
        "batch_size=20,precision=auto",
    ]
    alone = study.plan(quick, seeds=2, vary=["batch-size=10", "precision=float32"])
    assert list(alone.variants) == ["baseline", "batch_size=10", "precision=float32"]
    runs = alone.runs()
    assert [config.seed for _, config in runs] == [0, 0, 0, 1, 1, 1], "the runs with the same seed are close in time"
    assert [config.batch_size for _, config in runs] == [20, 10, 20] * 2


def test_another_recipe_is_a_variant_on_the_same_data(quick: Config) -> None:
    planned = study.plan(quick, seeds=1, vary=["recipe=fast", "epochs=2"])
    (_, first), (name, other), _ = planned.runs()
    assert name == "recipe=fast"
    assert first == quick
    assert (other.network, other.epochs, other.lr_max) == (FAST.network, FAST.epochs, FAST.lr_max)
    assert (other.data, other.limit, other.out) == (quick.data, quick.limit, quick.out)


def test_another_recipe_has_the_size_that_the_user_names_and_otherwise_its_own() -> None:
    named = {"data": "photos", "labels": "mine.csv", "coarse": True, "shards": 2, "size": 64}
    config = replace(QUICK, **named, from_data=("epochs", "sizes"))
    (_, fast) = study.plan(config, seeds=1, vary=["recipe=fast"]).runs()[1]
    assert fast.recipe == "fast" and {name: getattr(fast, name) for name in named} == named
    exact = replace(config, from_data=(), sizes=(64,))
    (_, fast) = study.plan(exact, seeds=1, vary=["recipe=fast"]).runs()[1]
    assert fast.size == 64 and "sizes" in fast.from_data
    (_, transfer) = study.plan(replace(QUICK, data="photos"), seeds=1, vary=["recipe=transfer"]).runs()[1]
    assert (transfer.recipe, transfer.size) == ("transfer", 128)


def test_a_single_size_is_a_list_of_one() -> None:
    planned = study.plan(replace(FAST, data="digits"), seeds=1, vary=["sizes=32,16-32"])
    assert [config.sizes for _, config in planned.runs()] == [FAST.sizes, (32,), (16, 32)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size", "is not of the form field=value,value"),
        ("color=red", "variants cannot differ in"),
        ("seed=1,2", "variants cannot differ in"),
        ("batch_size=0", "--batch-size is 0"),
        ("batch_size=many", "--batch-size is 'many'; it must be a whole number"),
        ("precision=half", "--precision is 'half'"),
        ("recipe={}", "--recipe is {}"),
        ("recipe=fastest", "--recipe is 'fastest'"),
        ("data=digits", "variants cannot differ in"),
    ],
)
def test_an_impossible_variation_is_refused_before_any_run(quick: Config, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        study.plan(quick, seeds=1, grid=[text])


@pytest.mark.parametrize("field", ["data", "labels", "out", "seed", "../../data"])
def test_a_study_of_someone_else_cannot_name_folders_outside_of_its_own(quick: Config, field: str) -> None:
    planned = study.plan(quick, seeds=1).to_json()
    with pytest.raises(InputError, match="variants cannot differ in"):
        study.Study.from_json({**planned, "variants": {f"{field}=../../x": {field: "../../x"}}})


def test_the_folder_of_a_variant_is_in_the_study_even_if_a_value_is_a_path(quick: Config, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETWORKS)
    network = f"{tmp_path}/../{tmp_path.name}/nets.py:small"
    planned = study.plan(replace(quick, widths=Config().widths), seeds=1, grid=[f"network=custom_resnet,{network}"])
    folders = [run.folder for run in planned.runs_in(Path("study"))]
    assert [folder.parent.parent for folder in folders] == [Path("study")] * 2
    assert study.Study.from_json(planned.to_json()) == planned


def test_a_study_of_more_runs_than_anyone_would_start_is_refused(quick: Config) -> None:
    with pytest.raises(InputError, match="--seeds is 1000000000000; it must be at most 10000 for 1 variants"):
        study.Study.from_json({**study.plan(quick, seeds=1).to_json(), "seeds": 10**12})


@pytest.mark.parametrize(
    "arguments",
    [
        {"vary": ["flip=random"]},  # the recipe already has this value
        {"vary": ["epochs=2,2"]},
        {"vary": ["bias_lr_scale=1"]},  # the recipe has the equal value 1.0
    ],
)
def test_two_identical_runs_are_refused(quick: Config, arguments: dict[str, list[str]]) -> None:
    with pytest.raises(InputError, match="are the same run"):
        study.plan(quick, seeds=1, **arguments)


@pytest.mark.parametrize("grid", [["epochs=2", "epochs=3"], ["precision=auto,float32", "precision=bfloat16"]])
def test_a_field_that_the_grid_lists_twice_is_refused(quick: Config, grid: list[str]) -> None:
    with pytest.raises(InputError, match="--grid lists a field twice"):
        study.plan(quick, seeds=1, grid=grid)


def test_none_is_an_allowed_value(quick: Config) -> None:
    planned = study.plan(quick, seeds=1, vary=["lr_max=none"])
    assert [config.lr_max for _, config in planned.runs()] == [1e-3, None]


def test_grid_and_vary_exclude_each_other(quick: Config) -> None:
    with pytest.raises(InputError, match="use only one of them"):
        study.plan(quick, seeds=1, grid=["epochs=2"], vary=["batch_size=10"])


@pytest.mark.parametrize(("name", "value"), [("seeds", 0), ("threshold", 0.0), ("threshold", 90.0)])
def test_impossible_seeds_and_thresholds_are_refused(quick: Config, name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"--{name} is"):
        study.plan(quick, **{"seeds": 1, name: value})  # type: ignore[arg-type]


def test_the_last_seed_of_a_study_is_one_that_a_run_can_have(quick: Config) -> None:
    largest = replace(quick, seed=2**63 - 1)
    assert study.plan(largest, seeds=1)
    with pytest.raises(InputError, match=r"^--seeds is 2; .* the last seed must be below 2\*\*63$"):
        study.plan(largest, seeds=2)


def test_a_study_is_a_folder_of_run_folders_with_a_summary(quick: Config) -> None:
    planned = study.plan(quick, seeds=2, vary=["lr_max=5e-4"], threshold=0.05)
    path = study.start(planned, silent())
    summary = json.loads((path / "summary.json").read_text())
    assert summary["variants"].keys() == {"baseline", "lr_max=0.0005"}
    for name, variant in summary["variants"].items():
        assert variant["seeds"] == [0, 1]
        results = [json.loads((path / name / f"seed-{seed}" / "result.json").read_text()) for seed in (0, 1)]
        assert variant["accuracy"]["values"] == [result["eval_accuracy"] for result in results]
        assert variant["images"]["images"] == 40
        assert variant["by_class"].keys() == set("0123456789")
        assert variant["tta_accuracy"] is None
        assert 0 < variant["training_seconds"]["mean"] < variant["seconds"]["mean"]
    first, second = summary["variants"].values()
    difference = second["against_the_first"]["accuracy"]
    assert difference["values"] == pytest.approx(
        [b - a for a, b in zip(first["accuracy"]["values"], second["accuracy"]["values"], strict=True)]
    )
    assert difference["significant"] is False, "two seeds are too few"


def test_an_interrupted_study_goes_on_to_the_same_result(quick: Config) -> None:
    planned = study.plan(quick, seeds=2)
    whole = study.start(planned, silent())
    expected = json.loads((whole / "summary.json").read_text())
    again = study.start(planned, silent())
    kept = (again / "baseline" / "seed-0" / "result.json").stat().st_mtime_ns
    (again / "baseline" / "seed-1" / "result.json").unlink()  # as if the study had been killed early in its second run
    study.resume(again, silent())
    summary = json.loads((again / "summary.json").read_text())
    assert summary["variants"]["baseline"]["accuracy"] == expected["variants"]["baseline"]["accuracy"]
    assert (again / "baseline" / "seed-0" / "result.json").stat().st_mtime_ns == kept, "it was not run again"


def test_starting_the_same_study_again_goes_on_with_the_stopped_one(quick: Config) -> None:
    planned, console = study.plan(quick, seeds=1), silent()
    stopped = study.start(planned, console)
    (stopped / "baseline" / "seed-0" / "result.json").unlink()  # as if the study had been killed early in its only run
    with held(stopped):
        assert study.start(planned, console) != stopped, "a study that another process holds is left alone"
    assert "started earlier" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert study.start(planned, console) == stopped
    assert "Resuming this study, which was started earlier." in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("when", ["no summary", "result and checkpoint"])
def test_a_study_that_was_stopped_at_its_end_is_completed(
    quick: Config, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study.start(study.plan(quick, seeds=2), silent())
    expected = json.loads((path / "summary.json").read_text())
    if when == "no summary":
        (path / "summary.json").unlink()
    else:
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "remove_checkpoints", lambda folder: None)
            path = study.start(study.plan(quick, seeds=2), silent())
        assert not RunFolder(path / "baseline" / "seed-1").is_complete
    study.resume(path, silent())
    summary = json.loads((path / "summary.json").read_text())
    assert summary["variants"]["baseline"]["accuracy"] == expected["variants"]["baseline"]["accuracy"]


def test_a_run_that_fails_does_not_prevent_the_others(quick: Config) -> None:
    path = quick.out / "study"
    with pytest.raises(InputError, match=r"1 of 3 runs failed; the first is lr_max=1e\+30, seed 0: .*not finite"):
        study.start(study.plan(replace(quick, out=path), seeds=1, vary=["lr_max=1e30,5e-4"]), silent())
    (folder,) = path.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["variants"].keys() == {"baseline", "lr_max=0.0005"}


def test_a_run_that_runs_out_of_memory_does_not_prevent_the_others(
    quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = run.experiment.run

    def fails_for_seed_0(config: Config, *arguments: Any) -> RunFolder:
        if config.seed == 0:
            raise RuntimeError("DefaultCPUAllocator:\n can't allocate memory")
        return train(config, *arguments)

    monkeypatch.setattr(run.experiment, "run", fails_for_seed_0)
    with pytest.raises(InputError, match="1 of 2 runs failed; the first is baseline, seed 0: RuntimeError: Default"):
        study.start(study.plan(quick, seeds=2), silent())
    (path,) = quick.out.glob("study-*")
    assert RunFolder(path / "baseline" / "seed-1").is_complete


@pytest.mark.parametrize("name", ["studies [old]", "studies [/old]", ":cat:", "[red]"])
def test_the_screen_shows_paths_and_reasons_as_they_are(quick: Config, name: str) -> None:
    console, out = silent(), quick.out / name
    with pytest.raises(InputError, match="1 of 1 runs failed"):
        study.start(study.plan(replace(quick, out=out, data=f"{out}/photos"), seeds=1), console)
    assert isinstance(console.file, StringIO)
    (path,) = out.iterdir()
    printed = console.file.getvalue()
    assert f"Study folder: {path}\n" in printed and f"seed 0: {out}/photos: no such file" in printed


def test_runs_with_different_seeds_are_evaluated_on_the_same_images(quick: Config) -> None:
    path = study.start(study.plan(replace(quick, validation=100, limit=50), seeds=2), silent())
    runs = [RunFolder(path / "baseline" / f"seed-{seed}") for seed in (0, 1)]
    assert runs[0].read_result().fingerprint == runs[1].read_result().fingerprint
    labels = [folder.read_arrays(folder.predictions)["labels"] for folder in runs]
    assert (labels[0] == labels[1]).all()


def test_variants_on_images_of_different_sizes_are_compared(quick: Config) -> None:
    path = study.start(study.plan(quick, seeds=1, vary=["size=16"]), silent())
    summary = json.loads((path / "summary.json").read_text())
    assert summary["variants"]["size=16"]["against_the_first"].keys() == {"accuracy"}


def test_runs_on_different_data_are_not_summarized(quick: Config) -> None:
    path = study.start(study.plan(quick, seeds=1), silent())
    other = study.start(study.plan(replace(quick, limit=30), seeds=1), silent())
    folders = [RunFolder(where / "baseline" / "seed-0") for where in (path, other)]
    with pytest.raises(InputError, match=r"have different data \(fingerprints \w+, \w+\); repeat them"):
        summarize({"both": folders}, 0.9)


def test_the_table_shows_both_accuracies_with_test_time_augmentation(quick: Config) -> None:
    recipe = replace(
        FAST, widths=(8, 8, 8), data="digits", limit=60, epochs=2, batch_size=20, precision="float32", out=quick.out
    )
    console = Console(file=StringIO(), width=200)
    path = study.start(study.plan(recipe, seeds=1, vary=["flip=random"], threshold=0.01), console)
    summary = json.loads((path / "summary.json").read_text())
    for variant in summary["variants"].values():
        assert variant["above_threshold"] == 1
        assert f"{100 * variant['accuracy']['mean']:.2f}" in console.file.getvalue()
        assert f"{100 * variant['tta_accuracy']['mean']:.2f}" in console.file.getvalue()
    assert summary["variants"]["flip=random"]["against_the_first"].keys() == {"accuracy", "tta_accuracy"}


def test_the_table_shows_a_mean_and_a_difference_with_their_intervals() -> None:
    accuracy = {"mean": 0.9401, "values": [0.94] * 5, "interval_95": [0.9381, 0.9421]}
    difference = {"mean": 0.0012, "values": [0.001] * 5, "interval_95": [-0.0003, 0.0027], "significant": False}
    seconds = {"mean": 61.0}
    variant = {"seeds": [0, 1, 2, 3, 4], "accuracy": accuracy, "tta_accuracy": None, "above_threshold": 1.0}
    variant |= {"training_seconds": seconds, "seconds": seconds, "against_the_first": {"accuracy": difference}}
    console = silent()
    console.print(table({"variants": {"flip=random": variant}, "threshold": 0.94}))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "94.01 (93.81 to 94.21)" in printed
    assert "+0.12 (-0.03 to +0.27), not significant" in printed


def test_the_command_runs_and_resumes_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--network whitened_convnet --widths 8 8 8 --data digits --limit 40 --epochs 1 --batch-size 20"
    options += " --lr-max 1e-3 --lr-min 1e-4 --workers 0 --seeds 1"
    assert main(["study", *options.split(), "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    (path / "summary.json").unlink()
    assert main(["study", "--resume", str(path)]) == 0
    assert (path / "summary.json").exists()
    assert main(["study", "--resume", str(path), "--seeds", "3"]) == 2
    assert main(["study", "--vary", "color=red", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"config": {"epochs": 0}},
        {"seeds": "3"},
        {"seeds": 1.0},
        {"threshold": "a"},
        {"threshold": 3},
        {"variants": {}},
        {"variants": []},
        {"variants": {"x": 3}},
        {"variants": {"../../x": {}}},
        {"variants": {"baseline": {}, "epochs=2": {"epochs": 3}}},
    ],
)
def test_a_damaged_study_is_refused_and_nothing_is_changed(quick: Config, change: dict[str, object]) -> None:
    path = quick.out / "a" / "study"
    path.mkdir(parents=True)
    outside = quick.out / "x" / "seed-0"
    outside.mkdir(parents=True)
    values = study.plan(quick, seeds=1).to_json()
    (path / "study.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(InputError):
        study.resume(path, silent())
    assert [file.name for file in path.iterdir()] == ["study.json"]
    assert outside.exists()


def test_a_run_with_another_configuration_is_not_part_of_the_study(quick: Config) -> None:
    path = study.start(study.plan(quick, seeds=1), silent())
    changed = study.plan(replace(quick, epochs=2), seeds=2)
    (path / "study.json").write_text(json.dumps(changed.to_json()))
    with pytest.raises(InputError, match=r"1 of 2 runs failed.*config\.json differs from study\.json; remove"):
        study.resume(path, silent())
    assert RunFolder(path / "baseline" / "seed-1").is_complete, "the other runs are carried out"


def test_a_damaged_run_is_named_after_the_others_have_run(quick: Config) -> None:
    path = study.start(study.plan(quick, seeds=2), silent())
    (path / "baseline" / "seed-0" / "predictions.npz").write_bytes(b"half")
    (path / "baseline" / "seed-1" / "result.json").unlink()
    with pytest.raises(InputError, match=r"seed-0/predictions\.npz is damaged or of another kind"):
        study.resume(path, silent())
    assert RunFolder(path / "baseline" / "seed-1").is_complete


def test_resume_refuses_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no study folder"):
        study.resume(tmp_path / "none", silent())
    with pytest.raises(InputError, match=r"study\.json"):
        study.resume(tmp_path, silent())


def test_a_study_fits_each_variant_to_the_data_unless_its_value_is_named(quick: Config) -> None:
    config = replace(QUICK, data="digits", from_data=("epochs", "sizes"), batch_size=20, out=quick.out)
    planned = study.plan(config, seeds=1, vary=["epochs=3", "recipe=fast"])
    _, other_epochs, fast = (config for _, config in planned.runs())
    assert (other_epochs.epochs, other_epochs.from_data) == (3, ("sizes",))
    assert fast.from_data == ("batch_size", "epochs", "sizes")
    exact = study.plan(replace(config, from_data=()), seeds=1, vary=["recipe=fast"])
    assert [config.from_data for _, config in exact.runs()] == [(), ()]
    with pytest.raises(InputError, match="variants cannot differ in"):
        study.plan(config, seeds=1, vary=["from_data=sizes"])


def test_a_run_of_a_study_with_fitted_values_is_done_once(quick: Config) -> None:
    config = replace(quick, from_data=("batch_size",), recipe="quick")
    path = study.start(study.plan(config, seeds=1), silent())
    (run,) = study._read(path).runs_in(path)
    assert RunFolder(run.folder).read_config().batch_size == 20
    assert run.is_done()


def test_a_study_imports_no_code_that_only_its_folder_names(quick: Config, tmp_path: Path) -> None:
    network = f"{tmp_path}/nets.py:small"
    marker = tmp_path / "imported"
    (tmp_path / "nets.py").write_text(NETWORKS)
    planned = study.plan(replace(quick, network=network, widths=Config().widths), seeds=1)
    (tmp_path / "nets.py").write_text(f"open({str(marker)!r}, 'w').close()")
    path = tmp_path / "study"
    path.mkdir()
    (path / "study.json").write_text(json.dumps(planned.to_json()))
    with pytest.raises(InputError, match="has a network of its own, whose code is loaded only if you name it"):
        study.resume(path, silent())
    assert not marker.exists()
    with pytest.raises(InputError, match=r"1 of 1 runs failed; .* cannot be loaded: AttributeError"):
        study.resume(path, silent(), network=network)
    assert marker.exists()


def test_all_runs_of_a_study_train_the_same_code(quick: Config, tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(NETWORKS)
    own = replace(quick, network=f"{file}:small", widths=Config().widths)
    planned = study.plan(own, seeds=1, vary=[f"network={file}:wide"])
    _, (_, wide) = planned.runs()
    assert wide.network_sha256 == hashlib.sha256(NETWORKS.encode()).hexdigest()
    file.write_text(NETWORKS + "# changed")
    assert study.plan(own, seeds=1, vary=[f"network={file}:wide"]) != planned
    with pytest.raises(InputError, match=r"2 of 2 runs failed; .* restore that code"):
        study.start(planned, silent())


def test_a_study_of_several_own_networks_is_resumed_by_its_command(quick: Config, tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(NETWORKS)
    own = replace(quick, network=f"{file}:small", widths=Config().widths)
    planned = study.plan(own, seeds=1, vary=[f"network={file}:wide"])
    path = tmp_path / "study"
    path.mkdir()
    (path / "study.json").write_text(json.dumps(planned.to_json()))
    with pytest.raises(InputError, match="trains several networks of your own, .*; repeat the command that started"):
        study.resume(path, silent(), network=own.network)


def test_all_runs_of_a_study_start_from_the_same_weights(quick: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run folder or weights file"):
        study.plan(replace(quick, init=str(tmp_path / "gone")), seeds=1)
    assert study.plan(replace(quick, init="shipped"), seeds=1).config.init_sha256 is not None
