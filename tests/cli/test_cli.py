import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from onecycle.cli import app, main
from onecycle.core.errors import InputError

COMMANDS = ("train", "find-lr", "study", "evaluate", "summary", "predict")

# The specification's table: output shape and parameters of each layer.
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


@pytest.mark.parametrize("command", ["train", "find-lr"])
def test_help_tells_options_from_the_configuration_with_their_defaults(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    main([command, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for option in ("--data", "--epochs", "--batch-size", "--lr-max", "--lr-min", "--seed", "--validation", "--out"):
        assert option in out
    assert "Passes over the training set" in out
    assert "24" in out and "512" in out


def test_help_and_prediction_do_not_wait_for_albumentations() -> None:
    program = (
        "import sys; from onecycle.cli import main; main(['train', '--help']); import onecycle.predict.predictor\n"
        "slow = {'albumentations', 'matplotlib.pyplot', 'sklearn'} & sys.modules.keys()\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "trian"),
        (["train", "--epoch", "3"], "--epoch"),
        (["train", "--epochs", "many"], "many"),
        (["train", "--epochs"], "--epochs"),
        (["train", "--epochs", "1.5"], "--epochs is '1.5'; it must be a whole number"),
        (["train", "--config", "config.json", "--recipe", "baseline"], "leave out --recipe"),
        (["evaluate"], "run"),
        (["summary", "--classes", "1"], "1 classes"),
        (["summary", "--input-size", "4"], "4×4"),
        (["predict"], "no picture"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_wrong_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("onecycle: ") and err.count("\n") == 1
    assert named.lower() in err.lower()


def test_what_a_recipe_switches_on_can_be_switched_off_and_lists_follow_their_option() -> None:
    line = "--recipe fast --no-whitening --no-test-time-augmentation --whitening-epochs none --sizes 16 32"
    _, bound, *_ = app.parse_args(["train", *line.split()], exit_on_error=False, print_error=False)
    settings = bound.arguments["settings"]
    assert (settings.whitening, settings.test_time_augmentation, settings.dirac) == (False, False, True)
    assert (settings.whitening_epochs, settings.sizes) == (None, (16, 32))


def test_debug_shows_where_an_error_came_from() -> None:
    with pytest.raises(InputError, match="no picture"):
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


def test_a_summary_counts_whitening_filters_and_scales_of_norms_as_fixed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["summary", "--json", "--recipe", "fast"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["parameters"] - summary["trainable_parameters"] == 24 * 3 * 2 * 2 + 2 * (64 + 256 + 256)


def test_the_summary_of_another_size_has_its_own_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "--json", "--classes", "3", "--input-size", "64"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["layers"][0]["output_shape"] == [64, 64, 64]
    assert summary["layers"][-1] == {"layer": "Linear-30", "output_shape": [3], "parameters": 3 * 512}
    assert summary["parameters"] == 6_573_120 - 7 * 512


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    with (tmp_path / "errors").open("w") as errors:
        writer = subprocess.Popen(
            [sys.executable, "-m", "onecycle", "summary", "--json"], stdout=subprocess.PIPE, stderr=errors
        )
        assert writer.stdout
        writer.stdout.close()
        assert writer.wait() == 0
    assert (tmp_path / "errors").read_text() == ""
