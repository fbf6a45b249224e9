import json
import re
import signal
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
from networks import NARROW
from rich.console import Console

from onecycle.cli import app, main
from onecycle.core.config import GROUPS, Config
from onecycle.core.errors import InputError
from onecycle.core.option_groups import (
    BatchedAugmentationConfig,
    OpenConfig,
    OptimizationConfig,
    PretrainedNetworkConfig,
    RobustnessConfig,
    WhitenedNetworkConfig,
)
from onecycle.core.recipes import QUICK
from onecycle.core.signals import Interrupted

COMMANDS_OF_A_RUN = ("calibrate", "evaluate", "report", "compare", "predict", "export", "serve")
COMMANDS = ("train", "find-lr", "study", "check", "summary", *COMMANDS_OF_A_RUN)
PANELS = ["Data", "Training", "Network", "Augmentation", "Compute", "Output"]
RARE_PANELS = ["Optimization", "Pretrained network", "Whitened network", "Batched augmentation", "Robustness"]

# The layers of the custom ResNet as specified: number, type, output shape and number of parameters.
LAYERS = """
 1 Conv2d 64,32,32 1728
 2 BatchNorm2d 64,32,32 128
 3 ReLU 64,32,32 0
 4 Conv2d 128,32,32 73728
 5 MaxPool2d 128,16,16 0
 6 BatchNorm2d 128,16,16 256
 7 ReLU 128,16,16 0
 8 Conv2d 128,16,16 147456
 9 BatchNorm2d 128,16,16 256
10 ReLU 128,16,16 0
11 Conv2d 128,16,16 147456
12 BatchNorm2d 128,16,16 256
13 ReLU 128,16,16 0
14 Conv2d 256,16,16 294912
15 MaxPool2d 256,8,8 0
16 BatchNorm2d 256,8,8 512
17 ReLU 256,8,8 0
18 Conv2d 512,8,8 1179648
19 MaxPool2d 512,4,4 0
20 BatchNorm2d 512,4,4 1024
21 ReLU 512,4,4 0
22 Conv2d 512,4,4 2359296
23 BatchNorm2d 512,4,4 1024
24 ReLU 512,4,4 0
25 Conv2d 512,4,4 2359296
26 BatchNorm2d 512,4,4 1024
27 ReLU 512,4,4 0
28 MaxPool2d 512,1,1 0
29 Flatten 512 0
30 Linear 10 5120
"""
TABLE = [
    (f"{name}-{number}", [int(side) for side in shape.split(",")], int(parameters))
    for number, name, shape, parameters in (line.split() for line in LAYERS.strip().splitlines())
]


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("onecycle")


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_names_every_command(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"onecycle {command}" in out
    assert err == ""


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def panels_of(text: str) -> list[str]:
    return re.findall(r"^╭─ (.+?) ─+╮$", text, re.MULTILINE)


def options_of(text: str) -> set[str]:
    """The options that start a line of a help text. A `--no-…` form follows its option on the same line."""
    return set(re.findall(r"^│ (?:\*  )?(--[a-z-]+)", text, re.MULTILINE))


def options_for(*groups: type) -> set[str]:
    return {"--" + field.name.replace("_", "-") for group in groups for field in fields(group)}


@pytest.fixture
def a_hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "console", Console(width=100))


def test_the_help_of_train_fits_on_a_screen_and_shows_the_common_options_in_panels(
    capsys: pytest.CaptureFixture[str], a_hundred_columns: None
) -> None:
    text = help_of(capsys, "train", "--help")
    assert panels_of(text) == ["Parameters", *PANELS]
    assert len(text.strip().splitlines()) <= 52
    assert max(map(len, text.splitlines())) <= 100
    rare = options_for(
        OptimizationConfig,
        PretrainedNetworkConfig,
        WhitenedNetworkConfig,
        BatchedAugmentationConfig,
        RobustnessConfig,
        OpenConfig,
    )
    assert options_of(text) == options_for(Config) - rare | {
        "--config",
        "--resume",
        "--allow-code-changes",
        "--processes",
    }
    assert "--help-all" in text


@pytest.mark.parametrize("command", ["train", "find-lr", "study"])
def test_help_all_shows_the_rare_options_in_panels_of_their_own(
    capsys: pytest.CaptureFixture[str], a_hundred_columns: None, command: str
) -> None:
    text = help_of(capsys, command, "--help-all")
    assert [panel for panel in panels_of(text) if panel not in ("Parameters", "Engine")] == PANELS + RARE_PANELS
    assert options_for(*GROUPS) <= options_of(text)


@pytest.mark.parametrize("command", ["find-lr", "study"])
def test_other_commands_that_train_show_only_their_own_options_and_name_help_all(
    capsys: pytest.CaptureFixture[str], a_hundred_columns: None, command: str
) -> None:
    text = help_of(capsys, command, "--help")
    assert not options_of(text) & options_for(*GROUPS)
    assert "All configuration options of `onecycle train` also apply; --help-all lists them." in text


def test_every_command_that_takes_a_run_names_it_run(
    capsys: pytest.CaptureFixture[str], a_hundred_columns: None
) -> None:
    commands = [name for name in app if not name.startswith("-")]
    assert sorted(commands) == sorted(COMMANDS)
    texts = {command: help_of(capsys, command, "--help") for command in commands}
    runs = {
        name: re.findall(r"^│ (?:\*  )?(.+?)  +The run folders?\b", text, re.MULTILINE) for name, text in texts.items()
    }
    assert {name: options for name, options in runs.items() if options} == {
        name: ["--run PATH..." if name == "compare" else "--run PATH"] for name in COMMANDS_OF_A_RUN
    }
    assert {name for name, text in texts.items() if "Arguments" in panels_of(text)} == {"check", "predict"}
    assert "IMAGES" in texts["predict"] and "DATA" in texts["check"]


@pytest.mark.parametrize("command", ["train", "find-lr"])
def test_help_shows_the_options_of_the_configuration_with_their_defaults(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = " ".join(help_of(capsys, command, "--help-all").split())
    for option in ("--data", "--epochs", "--batch-size", "--lr-max", "--lr-min", "--seed", "--validation", "--out"):
        assert option in out
    assert "Passes over the training set" in out
    assert "24" in out and "512" in out


def test_help_and_prediction_do_not_import_slow_libraries() -> None:
    program = (
        "import sys; from onecycle.cli import main; main(['train', '--help']); import onecycle.predict.predictor\n"
        "slow = {'albumentations', 'matplotlib.pyplot', 'sklearn'} & sys.modules.keys()\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (completed.returncode, completed.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian"),
        (["train", "--epoch", "3"], "--epoch"),
        (["train", "--epochs", "many"], "many"),
        (["train", "--epochs"], "--epochs"),
        (["train", "--epochs", "1.5"], "--epochs is '1.5'; it must be a whole number"),
        (["train", "--config", "config.json", "--recipe", "baseline"], "--config includes the recipe; remove --recipe"),
        (["report"], "run"),
        (["compare"], "run"),
        (["evaluate", "a-run"], "a-run"),
        (["evaluate", "--run", "no-such-run"], "there is no run folder no-such-run"),
        (["evaluate", "--network", "nets.py:small"], "leave out --network"),
        (["evaluate", "--labels", "labels.csv"], "--labels is for a run; add --run, or leave out --labels"),
        (["summary", "--classes", "1"], "at least 2 classes, not 1"),
        (["summary", "--classes", str(10**11)], "--classes is 100000000000; it must be at most 1,000,000"),
        (["summary", "--size", "4"], "4×4"),
        (["summary", "--size", "100000"], "--size is 100000; it must be at most 1,024"),
        (["summary", "--recipe", "transfer", "--size=-1"], "--size is -1; it must be at least 1"),
        (["predict"], "no image is given"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("onecycle: ") and err.count("\n") == 1
    assert message.lower() in err.lower()


def test_an_error_keeps_the_spaces_of_a_file_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--run", "my  runs/the  last"]) == 2
    assert capsys.readouterr().err == "onecycle: there is no run folder my  runs/the  last; check the name\n"


def test_options_that_a_recipe_turns_on_can_be_turned_off_and_lists_follow_their_option() -> None:
    line = "--recipe fast --no-whitening --no-test-time-augmentation --whitening-epochs none --sizes 16 32"
    _, bound, *_ = app.parse_args(["train", *line.split()], exit_on_error=False, print_error=False)
    config = bound.arguments["settings"].config()
    assert (config.whitening, config.test_time_augmentation, config.dirac) == (False, False, True)
    assert (config.whitening_epochs, config.sizes) == (None, (16, 32))


@pytest.mark.parametrize(
    ("line", "from_data"),
    [
        ("", ("batch_size", "epochs", "sizes")),
        ("--recipe quick --epochs=4", ("batch_size", "sizes")),
        ("--recipe fast --batch-size 1500 --sizes 32", ("epochs",)),
        ("--batch-size 512 --epochs 24 --sizes 32 --recipe quick", ()),
    ],
)
def test_options_that_nobody_names_follow_from_the_data(line: str, from_data: tuple[str, ...]) -> None:
    _, bound, *_ = app.parse_args(["train", *line.split()], exit_on_error=False, print_error=False)
    assert bound.arguments["settings"].config().from_data == from_data


def test_a_saved_configuration_leaves_nothing_to_the_data(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QUICK.to_json()))
    tokens = ["train", "--config", str(tmp_path / "config.json"), "--size", "32"]
    _, bound, *_ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    assert bound.arguments["settings"].config() == QUICK


def test_debug_shows_the_traceback_of_an_error() -> None:
    with pytest.raises(InputError, match="no image is given"):
        main(["predict", "--debug"])


def test_the_summary_in_json_is_the_specified_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["layers"] == [
        {"layer": layer, "output_shape": shape, "parameters": parameters} for layer, shape, parameters in TABLE
    ]
    assert summary["parameters"] == summary["trainable_parameters"] == 6_573_120
    assert summary["input_shape"] == [3, 32, 32]
    sizes = {name: value for name, value in summary.items() if name.endswith("_mb")}
    assert sizes == {"input_mb": 0.01, "forward_backward_mb": 6.45, "parameters_mb": 25.07, "total_mb": 31.53}


def test_the_summary_is_the_specified_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if "-" in line and "[" in line]
    assert [" ".join(row) for row in rows] == [f"{layer} {shape} {parameters:,}" for layer, shape, parameters in TABLE]
    assert out.splitlines()[-8:] == [
        "Total params: 6,573,120",
        "Trainable params: 6,573,120",
        "Non-trainable params: 0",
        "",
        "Input size (MB): 0.01",
        "Forward/backward pass size (MB): 6.45",
        "Params size (MB): 25.07",
        "Estimated total size (MB): 31.53",
    ]


def test_a_summary_counts_whitening_filters_and_scales_of_norms_as_frozen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["summary", "--json", "--recipe", "fast"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["parameters"] - summary["trainable_parameters"] == 24 * 3 * 2 * 2 + 2 * (64 + 256 + 256)


def test_a_summary_has_the_numbers_of_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "--json", "--classes", "3", "--size", "64"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["layers"][0]["output_shape"] == [64, 64, 64]
    assert summary["layers"][-1] == {"layer": "Linear-30", "output_shape": [3], "parameters": 3 * 512}
    assert summary["parameters"] == 6_573_120 - 7 * 512


def test_a_reader_that_closes_the_pipe_is_no_error(tmp_path: Path) -> None:
    with (tmp_path / "errors").open("w") as errors:
        writer = subprocess.Popen(
            [sys.executable, "-m", "onecycle", "summary", "--json"], stdout=subprocess.PIPE, stderr=errors
        )
        assert writer.stdout
        writer.stdout.close()
        assert writer.wait() == 0
    assert (tmp_path / "errors").read_text() == ""


def test_a_training_whose_reader_ends_stops_as_after_ctrl_c_and_can_be_resumed(tmp_path: Path) -> None:
    options = [*NARROW, "--data", "digits", "--limit", "50", "--batch-size", "10", "--epochs", "50", "--workers", "0"]
    options += ["--lr-min", "1e-5", "--lr-max", "1e-3", "--no-report", "--out", str(tmp_path / "runs")]
    with (tmp_path / "errors").open("w") as errors:
        command = [sys.executable, "-m", "onecycle", "train", *options]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert writer.stdout
        for line in writer.stdout:
            if line.startswith(b"Run folder: "):
                break
        writer.stdout.close()
        assert writer.wait() == 128 + signal.SIGPIPE
    (run,) = (tmp_path / "runs").iterdir()
    command_to_resume = f"onecycle train --resume {run}"
    (line,) = (tmp_path / "errors").read_text().splitlines()
    assert line == f"onecycle: interrupted; `{command_to_resume}` continues the run"
    assert main(command_to_resume.split()[1:]) == 0


@pytest.mark.parametrize(("closed", "code"), [(">&-", 2), ("2>&-", 0), ("<&-", 0), (">&- 2>&-", 2)])
def test_a_closed_standard_output_is_an_error_of_one_line(closed: str, code: int) -> None:
    command = f"'{sys.executable}' -m onecycle --version {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == code
    expected = "onecycle: standard output is closed; redirect it, for example to /dev/null\n"
    assert done.stderr == (expected if closed == ">&-" else "")
    assert bool(done.stdout) == (code == 0)


@pytest.mark.parametrize("name", ["photos.zip", "photos.TAR.GZ", "photos.tgz", "photos.tar"])
def test_an_archive_to_predict_needs_out(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / name
    archive.write_bytes(b"PK")
    assert main(["predict", str(archive)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == f"onecycle: {archive} is an archive; add --out FOLDER, or unpack it\n"


def test_the_message_of_an_interruption_has_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise Interrupted(signal.SIGINT, "`onecycle train --resume '\x9b31m/run'` continues the run")

    monkeypatch.setattr("onecycle.cli._run", interrupted)
    assert main(["train"]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "onecycle: interrupted; `onecycle train --resume '\\x9b31m/run'` continues the run"


@pytest.mark.parametrize("command", ["train", "find-lr"])
def test_an_unusable_out_is_refused_before_data_is_loaded_and_kernels_are_measured(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("the run was assembled")

    monkeypatch.setattr("onecycle.run.experiment.assemble", too_late)
    file = tmp_path / "file"
    file.write_text("")
    assert main([command, "--data", "digits", "--out", str(file)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"onecycle: cannot create a folder in --out {file}: {file} is a file; give a folder"
    ]
