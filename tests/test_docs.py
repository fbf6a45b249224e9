"""The README and docs/ mention only files and names that exist, and numbers that are recorded in results/."""

import json
import re
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image

import onecycle
from onecycle import cli
from onecycle.core.older_records import with_current_names
from onecycle.core.option_groups import FromData
from onecycle.core.recipes import QUICK, fitted
from onecycle.data import load_dataset
from onecycle.data.readers.entries import MOST_ENTRIES
from onecycle.distributed.heartbeat import SILENT_SECONDS
from onecycle.models import OwnNetwork
from onecycle.run.autosave import SAVE_SECONDS
from onecycle.serve.batching import WAIT_SECONDS
from onecycle.serve.limits import LIMITS
from onecycle.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README = PAGES[ROOT / "README.md"]
TEXT = "\n".join(PAGES.values())
WORDS = " ".join(TEXT.split())
MOST_README_LINES = 150


def recorded(name: str) -> Any:
    """A record in results/, with its fields renamed to their current names."""
    return with_current_names(json.loads((ROOT / f"results/{name}.json").read_text(encoding="utf-8")))


def run_example(part: str) -> None:
    """Run the only Python example of the README and docs/ that contains `part`."""
    (example,) = (found for found in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL) if part in found)
    exec(compile(example, "example", "exec"), {})


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= MOST_README_LINES


def test_every_page_starts_with_what_its_reader_can_do() -> None:
    for path, page in PAGES.items():
        if path.name not in ("README.md", "promises.md"):
            assert re.match(r"# .+\n\nAfter reading this page you ", page), path.name


def test_the_readme_links_every_page() -> None:
    for path in PAGES:
        assert path.name == "README.md" or f"(docs/{path.name})" in README, path.name


def anchors_of(page: str) -> set[str]:
    """The anchors that GitHub makes for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_example_with_your_own_network_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run_example("find_lr")
    accuracy = re.fullmatch(r"test accuracy (\d+\.\d)%\n", capsys.readouterr().out)
    assert accuracy and float(accuracy[1]) > 80


def test_the_example_with_your_own_network_for_the_command_line_builds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"```python\n(# nets\.py\n.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "nets.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert "--network nets.py:small" in TEXT
    assert OwnNetwork.load("nets.py:small").build(10, 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_example_that_writes_images_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_example("mkdir")
    dataset = load_dataset("photos")
    assert len(dataset.train) + len(dataset.evaluation) == 1797
    assert f"Of these images, {len(dataset.evaluation)} are drawn for testing" in WORDS


def test_the_example_of_prediction_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunFolder(ROOT / "results" / "fast-cifar10")
    Image.fromarray(record.read_arrays(record.augmentations)["originals"][4]).save(tmp_path / "cat.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    run_example("onecycle.load()")
    assert capsys.readouterr().out.startswith("cat 0.")


def test_the_example_that_reads_predictions_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunFolder(ROOT / "results" / "fast-cifar10")
    for number, pixels in enumerate(record.read_arrays(record.augmentations)["originals"]):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", str(tmp_path), "--out", "predictions"]) == 0
    run_example("pyarrow")
    assert "file_count" in capsys.readouterr().out


def test_every_command_line_is_one_that_the_program_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^onecycle (\S+) ?([^#\n]*)", TEXT, flags=re.MULTILINE)
    commands = {command for command, _ in re.findall(r"^onecycle (\S+) ?([^#\n]*)", README, flags=re.MULTILINE)}
    assert (
        {command for command, _ in lines if command != "COMMAND"}
        == commands
        == {
            *(
                "train",
                "find-lr",
                "study",
                "calibrate",
                "check",
                "evaluate",
                "report",
                "compare",
                "predict",
                "export",
                "serve",
                "summary",
            )
        }
    )
    for command, options in lines:
        assert cli.main([command, "--help-all"]) == 0
        listed = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", options):
            assert option in listed, f"{command} has no {option}"


def test_every_link_leads_somewhere() -> None:
    for path, page in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", page):
            if target.startswith(("https://", "http://")):
                continue
            file, _, anchor = target.partition("#")
            linked = (path.parent / file).resolve() if file else path
            assert linked.exists(), f"{path.name} links {target}"
            assert not anchor or anchor in anchors_of(PAGES[linked]), f"{path.name} links {target}"


def test_the_figures_of_baseline_are_recorded() -> None:
    names = ("baseline-cifar10", "baseline-cifar10-seed1", "baseline-cifar10-seed2")
    results = [recorded(f"{name}/result") for name in names]

    def listed(name: str, form: str, runs: list[dict[str, Any]] = results) -> str:
        *first, last = (form.format(run[name]) for run in runs)
        return f"{', '.join(first)} and {last}"

    for figures in (
        f"**{listed('eval_accuracy', '{:.2%}').replace('%', ' %')}** (seeds 0, 1 and 2;",
        f"LR max {listed('lr_max', '{:.2e}')};",
        f"LR min {listed('lr_min', '{:.2e}')}",
        f"{listed('minutes', '{:.0f}', [{'minutes': run['seconds'] / 60} for run in results])} minutes on 2 cores",
        f"{listed('peak_memory_gib', '{}')} GiB",
    ):
        assert figures in WORDS
    for seed, result in enumerate(results):
        assert (result["seed"], result["recipe"], result["epochs"]) == (seed, "baseline", 24)
        assert (result["evaluated_on"], result["best_epoch"]) == ("test", 24)
        assert result["eval_accuracy"] >= 0.90


def test_the_lr_finders_pair_is_within_a_point_of_the_recorded_grids_best() -> None:
    study = recorded("lr_finder_quality/study")
    cells = {(cell["multiple"], cell["rule"]): cell["accuracy"] for cell in study["cells"]}
    below = 100 * (max(cells.values()) - cells[1, "finder"])
    assert below <= 1.0
    assert f"{below:.1f} points" in TEXT


def test_the_speeds_are_recorded() -> None:
    record = recorded("step_time")
    for name, seconds in record["seconds"].items():
        ratio = f"{record['ratios'][name]:.1f}" if name in record["ratios"] else "1"
        assert f"| {seconds:.2f} | {ratio} | {record['peak_memory_gib'][name]:.1f} |" in TEXT
    assert record["ratios"]["usual"] >= 6.5
    assert record["ratios"]["channels_last"] >= 5
    assert record["ratios"]["lightning"] >= 3.3
    assert record["batch_size"] == 512


def test_the_speeds_of_a_cpu_with_only_avx2_are_recorded() -> None:
    record = recorded("step_time_avx2")
    assert record["cpu"] == "AVX2"
    assert record["batch_size"] == 512
    for name, seconds in record["seconds"].items():
        ratio = f"{record['ratios'][name]:.1f}" if name in record["ratios"] else "1"
        assert f"| {seconds:.1f} | {ratio} | {record['peak_memory_gib'][name]:.1f} |" in TEXT
    assert record["ratios"].keys() == {"usual", "channels_last", "lightning_32", "jax", "keras_jax", "keras_tf"}
    assert min(record["ratios"].values()) > 1.5
    roofline = recorded("roofline")
    assert f"the peak of {roofline['peak_gflop_per_second']:.0f} GFLOP/s" in WORDS
    gains = [point["gflop_per_second"] for point in roofline["points"]]
    factors = sorted(gain["Winograd"] / gain["oneDNN"] for gain in gains)
    assert f"{factors[0]:.1f} to {factors[-1]:.1f} times as fast as oneDNN" in WORDS


def test_the_speeds_of_a_cpu_with_avx512_are_recorded() -> None:
    record = recorded("step_time_avx512")
    assert record["environment"]["hardware"]["cpu"] == "AMD EPYC"
    usual, channels_last = (f"{record['ratios'][name]:.1f} times" for name in ("usual", "channels_last"))
    turns = record["turns"]["onecycle"]
    step = f"{record['seconds']['onecycle']:.1f} seconds ({min(turns):.1f} to {max(turns):.1f} in three turns)"
    assert f"a step takes {step}. The usual script takes {usual} as long" in WORDS
    assert f"the same in channels-last memory {channels_last} ([" in WORDS
    layers: dict[str, list[dict[str, float]]] = {}
    for point in recorded("roofline_avx512")["points"]:
        layers.setdefault(point["layer"], []).append(point["gflop_per_second"])
    assert len(layers) == 5
    for layer, passes in layers.items():
        libraries = ("oneDNN", "Winograd", "oneDNN, bfloat16", "Winograd, bfloat16")
        rates = [statistics.harmonic_mean([rates[library] for rates in passes]) for library in libraries]
        assert f"| {layer} | {' | '.join(f'{rate:.0f}' for rate in rates)} |" in TEXT


def test_the_times_of_the_recipes_are_recorded() -> None:
    amx = recorded("recipe_time")["classes"]["AMX bfloat16"]
    avx512 = recorded("recipe_time_avx512")["classes"]["this CPU"]
    avx2 = recorded("recipe_time_avx2")["classes"]["AVX2"]
    for recipe in ("quick", "fast", "baseline"):
        minutes = [f"{times[recipe]['minutes']:.1f}" for times in (amx, avx512, avx2)]
        assert f"| `{recipe}` | {' | '.join(minutes)} |" in TEXT
    assert f"| `accurate` | not measured | {avx512['accurate']['minutes']:.0f} | not measured |" in TEXT
    assert recorded("recipe_time_avx512")["environment"]["hardware"]["cpu"] == "AMD EPYC"
    pair = [f"{avx512[recipe]['minutes']:.0f}" for recipe in ("accurate", "baseline")]
    assert "with AVX-512 it takes {} minutes, and `baseline` takes {} (".format(*pair) in WORDS
    assert f"took {avx512['baseline']['seconds_per_step']['32']:.1f} seconds when [the minutes with" in WORDS
    without = recorded("recipe_time_avx2_pytorch")["classes"]["AVX2"]
    pair = [f"{without[recipe]['minutes']:.1f}" for recipe in ("quick", "fast")]
    assert "take {} minutes for `quick`, and {} for `fast`".format(*pair) in WORDS
    slower, faster = (without[recipe]["minutes"] / avx2[recipe]["minutes"] for recipe in ("quick", "fast"))
    assert f"{slower:.1f}" == f"{faster:.1f}" == "1.8"
    assert "On AVX2, these kernels make `quick` and `fast` 1.8 times as fast" in WORDS
    assert "`quick` and `fast` take 1.8 times as long with AVX2" in WORDS
    for recipe in ("quick", "fast", "baseline"):
        (row,) = re.findall(rf"^\| `{recipe}`.*$", README, flags=re.MULTILINE)
        for shown, times in zip(row.strip("|").split("|")[2:], (amx, avx512, avx2), strict=True):
            number, unit = shown.split()
            assert float(number) * (60 if unit == "hours" else 1) == pytest.approx(times[recipe]["minutes"], rel=0.05)


def test_the_accuracy_of_the_fastest_plan_is_recorded() -> None:
    verdict = recorded("fast_mode_accuracy")["verdict"]
    first, second, third = verdict["differences_points"]
    assert f"{first:+.2f}, {second:+.2f} and {third:+.2f} points: {verdict['mean_points']:.2f} on average" in WORDS
    low, high = verdict["interval_95_points"]
    assert f"95 % interval from {low:.2f} to {high:.2f}" in WORDS
    assert abs(verdict["mean_points"]) <= 0.5


def test_the_accuracy_by_winograds_algorithm_is_recorded() -> None:
    study = recorded("winograd_accuracy")
    assert {cell["computed"] for cell in study["cells"]} == {
        "float32",
        "float32, channels-last, native kernels, Winograd",
    }
    verdict, (low, high) = study["verdict"], study["verdict"]["interval_95_points"]
    assert len(verdict["seeds"]) == 5
    assert f"{verdict['mean_points']:.2f} points on average, with a 95 % interval from {low:.2f} to {high:.2f}" in WORDS


@pytest.mark.parametrize("recipe", ["quick", "fast", "baseline"])
def test_the_effect_of_the_statistics_of_batch_norm_is_recorded(recipe: str) -> None:
    study = recorded(f"batch_norm/{recipe}")
    found, config = study["difference_points"], study["config"]
    low, high = found["interval_95"]
    assert len(study["cells"]) == 5
    scope = f", {config['epochs']} epochs on {config['limit']:,} images" if config["limit"] else ""
    assert f"| `{recipe}`{scope} | {found['mean']:+.2f} ({low:+.2f} to {high:+.2f}) |" in WORDS
    assert high >= 0, "they are not worse than averages"


def test_quick_fast_and_baseline_learn_the_digits_with_batches_of_any_size() -> None:
    differences = []
    for recipe in ("quick", "fast", "baseline"):
        reached = []
        for batch_size in (16, 128, 1000):
            study = recorded(f"batch_norm/digits-{recipe}-{batch_size}")
            assert (study["config"]["data"], study["config"]["batch_size"]) == ("digits", batch_size)
            (cell,) = study["cells"]
            assert cell["accuracy"]["images"] > 0.95
            reached.append(f"{100 * cell['accuracy']['images']:.2f} %")
            differences.append(100 * (cell["accuracy"]["averages"] - cell["accuracy"]["images"]))
        assert f"| `{recipe}` | {' | '.join(reached)} |" in WORDS
    limits = f"between {-min(differences):.2f} points lower and {max(differences):.2f} points higher"
    assert limits in WORDS


def test_the_statistics_of_batch_norm_take_less_than_two_percent_of_a_run() -> None:
    times = recorded("time_to_accuracy")
    for recipe in ("quick", "fast"):
        share = statistics.median(cell["share_of_training"] for cell in recorded(f"batch_norm/{recipe}")["cells"])
        assert f"{100 * share:.1f} % of the training time of `quick` and of `fast`" in WORDS
        assert share * times["seconds"][recipe] / times["wall_seconds"][recipe] < 0.02


def test_what_degraded_training_images_cost_and_bring_is_recorded() -> None:
    for options, name in (("fast", "corruptions_fast"), ("fast --degraded 0.5", "corruptions_fast_degraded")):
        record = recorded(name)
        assert (record["evaluated_on"], record["images"]) == ("validation", 1000)
        jpeg = [record["jpeg"][quality] for quality in ("95", "75", "50")]
        figures = [record["clean"], *jpeg, record["mean_over_corruptions"]]
        cells = " | ".join(f"{100 * found['accuracy']:.1f} %" for found in figures)
        assert f"| [`{options}`](../results/{name}.json) | {cells} |" in WORDS


def test_the_calibration_of_the_included_network_is_recorded() -> None:
    (found,) = (each for each in recorded("calibration")["recorded"] if each["run"] == "fast-cifar10")
    before, after = found["before"], found["after"]
    errors = [each["calibration_error_points"] for each in (after, before)]
    assert f"Its temperature, {found['temperature']:.3f}, comes from" in WORDS
    assert "expected calibration error is {:.1f} points instead of {:.1f}".format(*errors) in WORDS
    assert f"log loss {after['log_loss']:.3f} instead of {before['log_loss']:.3f}" in WORDS
    assert errors[0] <= 1.5
    quick = [cell for cell in recorded("calibration")["cells"] if cell["recipe"] == "quick"]
    points = (cell[when]["calibration_error_points"] for when in ("before", "after") for cell in quick)
    assert "had errors of {:.1f}, {:.1f} and {:.1f} points, and have {:.1f}, {:.1f} and {:.1f}".format(*points) in WORDS
    assert onecycle.load().temperature == pytest.approx(found["temperature"], abs=1e-4)


def test_the_cost_of_data_and_the_start_times_are_recorded() -> None:
    epoch = recorded("epoch_time")["ratios"]
    scale = recorded("scale")["ratios"]
    assert f"takes {epoch['albumentations']:.2f} times as long as its steps" in WORDS
    assert f"{epoch['batched']:.2f} times with `--augmentation batched`" in WORDS
    step, memory = scale["step_microseconds_an_image"], scale["own_gib"]
    assert f"a step takes {step:.2f} times as long as with 10,000" in WORDS
    assert f"the process holds {memory:.2f} times as much memory" in WORDS
    start = recorded("start_time")["seconds"]
    assert f"`onecycle --help` takes {start['help']:.2f} seconds" in WORDS
    later, first = start["later_run"], start["first_run"]
    assert (
        f"comes {later:.1f} seconds after the command, and {first:.1f} seconds in the first run on a machine" in WORDS
    )
    assert start["help"] <= 0.7
    assert start["first_run"] <= 10
    before, now = recorded("setup_time")["seconds"].values()
    assert f"with empty caches and packages from a local mirror, it takes {now['all']:.0f} seconds" in WORDS
    assert f"{now['install']:.0f} to install, and {now['step']:.0f} until the first step" in WORDS
    assert f"it took {before['all']:.0f} seconds, {before['install']:.0f} of them to install" in WORDS
    assert recorded("setup_time")["environment"]["hardware"]["cpu"] == "AMD EPYC"
    assert epoch["albumentations"] <= 1.05
    assert max(scale.values()) <= 1.1


def variants(study: str) -> dict[str, Any]:
    summary: dict[str, Any] = recorded(f"studies/{study}/summary")["variants"]
    return summary


def in_percent(estimated: dict[str, Any]) -> str:
    low, high = estimated["interval_95"]
    return f"{100 * estimated['mean']:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def test_the_figures_of_quick_and_fast_are_recorded() -> None:
    quick, fast = variants("quick")["quick"], variants("fast")["fast"]
    first = variants("quick-first")["quick"]
    seconds = {name: f"{value:.0f}" for name, value in recorded_race()["wall_seconds"].items()}
    assert f"| `quick` | {100 * quick['accuracy']['mean']:.2f} % (mean of 10 seeds) |" in README
    assert f"augmentation | {100 * fast['tta_accuracy']['mean']:.2f} % (mean of 5 seeds) |" in README
    for name, variant in (("quick", quick), ("fast", fast)):
        views = f"**{in_percent(variant['tta_accuracy'])}**" if variant["tta_accuracy"] else ""
        cells = [f"`--recipe {name}`, {len(variant['seeds'])} seeds", in_percent(variant["accuracy"]), views]
        assert f"| {' | '.join(cells)} | {seconds[name]} |".replace("  ", " ") in TEXT
    assert (
        f"[{100 * first['accuracy']['mean']:.2f} %](../results/studies/quick-first) in "
        f"{first['training_seconds']['mean']:.0f} seconds of training, where this one has "
        f"{100 * quick['accuracy']['mean']:.2f} % in {quick['training_seconds']['mean']:.0f}"
    ) in WORDS
    assert f"{100 * variants('fast-first')['fast']['tta_accuracy']['mean']:.2f} % ([nine epochs]" in WORDS
    assert f"{100 * variants('fast-second')['fast']['tta_accuracy']['mean']:.2f} % ([one seed]" in WORDS
    assert quick["accuracy"]["mean"] >= 0.9
    assert quick["accuracy"]["interval_95"][0] >= 0.899
    assert fast["tta_accuracy"]["mean"] >= 0.94


def recorded_race() -> dict[str, Any]:
    race: dict[str, Any] = recorded("time_to_accuracy")
    return race


def test_the_comparison_with_a_plain_port_is_recorded() -> None:
    race = recorded_race()

    def listed(key: str) -> str:
        *first, last = (f"{100 * run[key]:.2f}" for run in race["runs"]["port"])
        return f"{', '.join(first)} and {last} %"

    row = [f"{len(race['runs']['port'])} seeds", listed("accuracy"), listed("tta_accuracy")]
    assert f"port of airbench94-Muon, {' | '.join(row)} | {race['wall_seconds']['port']:.0f} |" in TEXT
    seconds = race["seconds"]
    assert (
        f"`quick` takes {seconds['quick']:.0f} seconds and `fast` {seconds['fast']:.0f}, which is "
        f"{race['fast_to_port']:.2f} of the port's {seconds['port']:.0f}."
    ) in WORDS
    assert race["wall_seconds"]["quick"] <= 100
    assert race["fast_to_port"] <= 0.6


def test_the_ablation_is_recorded() -> None:
    ablation = variants("quick-ablation")
    whole = ablation.pop("quick")
    table = TEXT[TEXT.index("| `quick` without") :].split("\n\n")[0]
    assert table.count("\n") == 2 + len(ablation)
    assert f"| {in_percent(whole['accuracy'])} | {whole['training_seconds']['mean']:.0f} |" in table
    for name, variant in ablation.items():
        difference = variant["against_the_first"]["accuracy"]
        low, high = (100 * end for end in difference["interval_95"])
        significant = "" if difference["significant"] else ", not significant"
        cells = [f"{100 * difference['mean']:+.2f} ({low:+.2f} to {high:+.2f}){significant}"]
        assert f"`{name}` | {cells[0]} | {variant['training_seconds']['mean']:.0f} |" in table
        assert len(variant["seeds"]) == 5


def test_the_quality_of_the_reports_lists_is_recorded() -> None:
    planted, timed = (recorded(name) for name in ("label_issues", "report_time"))
    found = planted["mean_found"]
    known, similar = (planted["known_duplicates"][kind] for kind in ("near-duplicates", "very similar"))
    for figures in (
        f"In {len(planted['found']['duplicates'])} copies of CIFAR-10, "
        f"with {planted['planted_of_each_kind']} of each kind planted",
        f"{found['labels of test images']:.0%} of the wrong labels of test images",
        f"{found['labels of training images']:.0%} of the wrong labels of training images",
        f"and {found['duplicates']:.0%} of the duplicates",
        f"Of the {known['pairs']} near-duplicates that people have found",
        f"{known['found']:.0%} are listed",
        f"{similar['found']:.0%} of the {similar['pairs']} pairs that they call very similar",
        f"takes {timed['seconds']:.0f} seconds, including the start of Python",
        f"with {timed['peak_memory_gib']:.2f} GiB of memory. The file has {timed['report_megabytes']:.1f} MB",
    ):
        assert figures.replace("%", " %") in WORDS
    assert all(min(shares) >= 0.8 for shares in planted["found"].values())
    assert timed["seconds"] < 20 and timed["peak_memory_gib"] < 1 and timed["report_megabytes"] < 3
    assert (timed["recipe"], timed["eval_images"]) == ("baseline", 10_000)


def test_the_counts_of_kills_and_damage_are_recorded() -> None:
    record = recorded("reliability")
    by_workers = [record[f"kills at random instants, {workers} workers"] for workers in (0, 2)]
    chain = record["kills in one run, one after another"]
    renamings, flushes = (record[f"kills at each os.{name} of a run"] for name in ("replace", "fsync"))
    stops, damaged = record["stops by a signal, in all phases"], record["damaged checkpoints"]
    disk, full = record["ENOSPC at a write of a run"], record["full file systems, given room"]
    cost = record["cost for the specified network"]
    check, part = cost["milliseconds of a step's check"], cost["part of an epoch's time"]
    for figures in (
        f"{by_workers[0]['kills']} kills at random moments without workers and {by_workers[1]['kills']} with two "
        "workers ("
        f"{' and '.join(str(kills['before anything was saved']) for kills in by_workers)} of them before the "
        f"first checkpoint), and {chain['kills']} in one run; - one kill inside each of a run's {renamings['kills']} "
        f"renames and {flushes['kills']} flushes; - {stops['stops']} stops by a signal",
        f"a disk that fails at each of {disk['failures']} writes, and {full['systems']} file systems that fill up",
        f"Of {damaged['cases']} damaged checkpoints every one was detected",
        f"{record['bad inputs refused in one line']} bad inputs were refused",
        f"saving takes {cost['seconds to save']:.2f} seconds",
        f"gradients {check:.1f} ms: {100 * part:.2f} %",
    ):
        assert figures in WORDS
    for counted in (*by_workers, renamings, flushes):
        assert counted["bit-identical"] == counted["kills"]
    assert [kills["kills"] for kills in by_workers] == [50, 50]
    assert (chain["kills"], chain["bit-identical"]) == (10, True)
    assert stops["resumed bit-identical"] == stops["stops"]
    assert damaged["noticed"] == damaged["recovered by the one before"] == damaged["cases"] >= 200
    assert record["bad inputs refused in one line"] >= 60
    assert cost["part of an epoch's time"] < 0.01


def test_the_figures_of_your_own_images_are_recorded() -> None:
    digits, jpegs = (recorded("own_images")[name] for name in ("digits as PNG", "JPEG archive"))
    assert (
        f"a test accuracy of **{100 * digits['eval_accuracy']:.2f} %** after {digits['seconds']:.0f} seconds" in WORDS
    )
    assert f"`--recipe quick` reaches **{100 * jpegs['eval_accuracy']:.2f} %** on it" in WORDS
    assert digits["named rightly by predict"] == pytest.approx(digits["eval_accuracy"], abs=0.003)
    assert (jpegs["recipe"], jpegs["train_images"], jpegs["eval_images"]) == ("quick", 50_000, 10_000)


def test_the_accuracies_of_transfer_on_few_photographs_are_recorded() -> None:
    summary = recorded("transfer")["summary"]
    names = ("transfer", "transfer with a frozen backbone", "quick at 32 pixels", "quick at 64 pixels")
    for data, shown in (
        ("signs 5", "10 hand signs, 5 of each"),
        ("signs 10", "10 hand signs, 10 of each"),
        ("signs 20", "10 hand signs, 20 of each"),
        ("cats and dogs", "cats and dogs, 96 of each"),
    ):
        variants = [summary[f"{data}, {name}"] for name in names]
        cells = [", ".join(f"{100 * accuracy:.1f}" for accuracy in variant["accuracies"]) for variant in variants]
        assert f"| {shown} | {' | '.join(f'{cell} %' for cell in cells)} |" in TEXT
        assert [len(variant["accuracies"]) for variant in variants] == [2] * 4
    for name, seconds in (
        (
            name,
            [
                summary[f"{data}, {name}"]["median seconds"]
                for data in ("signs 5", "signs 10", "signs 20", "cats and dogs")
            ],
        )
        for name in names
    ):
        assert f"| {name} | {min(seconds):.0f} to {max(seconds):.0f} |" in TEXT
    again = [each["median seconds of another seed"] for name, each in summary.items() if "frozen" in name]
    assert f"{min(again):.0f} to {max(again):.0f} seconds with another seed" in WORDS


def test_the_figures_of_transfer_beside_lightning_are_recorded() -> None:
    runs = recorded("transfer_beside_lightning")["runs"]

    def figures(variant: str, field: str, scale: int, digits: int) -> str:
        values = (runs[f"cats and dogs, {variant}, seed {seed}"][field] for seed in (0, 1))
        return " and ".join(f"{scale * value:.{digits}f}" for value in values)

    both = ("transfer", "Lightning")
    ours, theirs = ([figures(name, "accuracy", 100, 1), figures(name, "seconds", 1, 0)] for name in both)
    assert "`transfer` reaches {} % in {} seconds with its report".format(*ours) in WORDS
    assert "Lightning {} % in {} seconds".format(*theirs) in WORDS


def test_the_figures_of_fitted_recipes_are_recorded() -> None:
    names = {
        "two classes of CIFAR-10": "cifar10-automobile-horse",
        "CIFAR-10": "cifar10-",
        "embedded digits": "digits",
        "photographs of hand signs": "sign-digits",
    }
    cells = [cell for cell in recorded("fitted_recipes")["cells"] if (cell["recipe"], cell["seed"]) == ("quick", 0)]

    def accuracy(name: str, images: int, batch_size: int, epochs: int) -> str:
        (found,) = (
            cell["accuracy"]
            for cell in cells
            if cell["set"].startswith(name)
            and (cell["images"], cell["batch_size"], cell["epochs"]) == (images, batch_size, epochs)
        )
        return f"{100 * found:.2f} %"

    rows = re.findall(r"^\| ([\w -]+) \| ([\d,]+) \| ([\d,]+) and (\d+) \| (\S+ %) \| (.*?) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 7
    for name, *values, found, with_own in rows:
        images, batch_size, epochs = (int(value.replace(",", "")) for value in values)
        config = fitted(replace(QUICK, from_data=get_args(FromData)), images)
        assert (config.batch_size, config.epochs) == (batch_size, epochs)
        if images < 50_000:
            assert found == accuracy(names[name], images, batch_size, epochs)
        if with_own.endswith("%"):
            assert with_own == accuracy(names[name], images, 1000, 4)
    steps = {(c["batch_size"], c["epochs"]): (c["accuracy"], c["steps"]) for c in cells if c["images"] == 2000}
    assert steps[125, 8] == (0.7395, 128) and steps[62, 8] == (0.742, 264) and steps[62, 4] == (0.696, 132)
    assert "8 epochs reach 73.95 % in 128 steps of 125 images and 74.2 % in 264 steps of 62" in WORDS
    assert "4 epochs reach 69.6 % in 132 steps of 62" in WORDS
    assert steps[125, 16][0] == 0.767 and "16 reach 76.7 %" in WORDS
    of_500 = [cell["accuracy"] for cell in cells if cell["images"] == 500]
    assert f"all measured values reach {100 * min(of_500):.2f} to {100 * max(of_500):.1f} %" in WORDS


def test_the_figures_of_prediction_are_recorded() -> None:
    shipped, prediction = recorded("shipped_network"), recorded("prediction")
    accuracy = shipped["recorded"]
    speeds = prediction["images_a_second"]["the network that comes with the package"]["batches of 250"]
    for figures in (
        f"with a test accuracy of {100 * accuracy['accuracy']:.2f} % on CIFAR-10, and "
        f"{100 * accuracy['tta_accuracy']:.2f} % with `--tta`",
        f"its file has {shipped['megabytes']:.1f} MB",
        f"On {prediction['files']:,} JPEGs of 32×32 pixels the whole command processes "
        f"{prediction['files_a_second_whole_command']:,.0f} files per second",
        f"decoding is {100 * prediction['share_of_decoding']:.0f} % of the work",
        f"onnxruntime predicts {speeds['onnxruntime, float32']:,.0f} images per second",
        f"torch {speeds['torch, float32']:,.0f} in float32 and {speeds['torch, bfloat16']:,.0f} in bfloat16",
    ):
        assert figures in WORDS
    assert shipped["megabytes"] <= 14 and prediction["files"] == 10_000


def test_the_figures_of_images_of_something_else_are_recorded() -> None:
    record = recorded("out_of_distribution")
    area = {kind: areas["energy"] for kind, areas in record["auroc"].items()}
    noise = [area[kind] for kind in area if kind.endswith("noise")]
    assert record["chosen"] == "energy" and area["textures"] < 0.9
    for figures in (
        f"is {area['digits']:.3f} for handwritten digits, {area['photographs']:.3f} for photographs",
        f"{min(noise):.3f} to {max(noise):.3f} for noise, but only {area['textures']:.3f} for textures",
        f"Of the textures it calls {100 * record['called_unlike']['textures']:.0f} % unlike",
    ):
        assert figures in WORDS


def test_the_figures_of_the_service_are_recorded() -> None:
    record = recorded("serving")
    for clients, found in record["clients"].items():
        times = f"{found['p50_milliseconds']:.0f} | {found['p99_milliseconds']:.0f}"
        assert f"| {clients} | {found['requests_a_second']:.0f} | {times} |" in TEXT
        assert found["lost"] == 0
    held = record["memory"]["mib_after_each_tenth"]
    assert f"No request was lost, here or in a further {record['memory']['requests']:,}" in WORDS
    assert f"went from {held[0]} to {held[-1]} MiB" in WORDS
    assert record["memory"]["lost"] == 0 and held[-1] - held[1] < 30
    assert record["clients"].keys() == {"1", "16", "128"}
    assert record["under attack"].keys() == {"slow clients", "huge uploads", "bombs", "a flood"}
    for found in record["under attack"].values():
        assert found["answered_during"] > 0 and found["answered_after"] == 20 and found["lost_after"] == 0


def test_the_figures_of_large_data_are_recorded() -> None:
    record = recorded("large_data")
    small, large = record["sizes"]["50000"], record["sizes"]["1300000"]
    assert f"JPEGs in {record['archives']} archives on two cores of an AMD EPYC" in WORDS
    rates = f"{large['read_images_per_second']:,} images per second, and 50,000 at {small['read_images_per_second']:,}."
    assert f"They were decoded at {rates}" in WORDS
    assert (
        f"the first step came after {large['seconds_to_first_step']:.1f} seconds, and with 50,000 images after" in WORDS
    )
    faster = record["ratios"]["trained_images_per_second"]
    assert (
        f"images after {small['seconds_to_first_step']:.1f}. Training ran at {faster:.2f} times the images per second"
        in WORDS
    )
    assert record["ratios"]["trained_images_per_second"] > 0.9
    assert f"No process held more than {max(record['more'].values())} MiB of additional private memory" in WORDS
    assert max(record["more"].values()) < 200


def test_the_figures_of_table_memory_are_recorded() -> None:
    record = recorded("table_memory")
    parquet, npz = record["formats"]["parquet"], record["formats"]["npz"]
    assert f"{record['images']:,} synthetic images of 32×32 pixels are {record['decoded_mib']} MiB when" in WORDS
    for measured in (parquet, npz):
        assert f"{measured['peak_mib']} MiB" in WORDS and f"{measured['times_the_decoded_pixels']:.2f} times" in WORDS
        assert measured["times_the_decoded_pixels"] < 1.5
    assert f"has {parquet['peak_mib_of_small_data']} and {npz['peak_mib_of_small_data']} MiB" in WORDS


def test_the_figures_of_identical_runs_are_recorded() -> None:
    record = recorded("same_bits")
    for recipe in ("quick", "baseline"):
        for threads in ("1 thread", "2 threads"):
            assert record[f"{recipe}, {threads}"]["identical by processes"] == {"1": True, "2": True, "4": True}
    killed = record["killed"]
    assert f"Short runs on {record['images']:,} images of CIFAR-10" in WORDS
    assert f"Then {killed['kills']} runs of `{record['recipes'][0]}` were started with four processes" in WORDS
    assert f"or one: {killed['identical']} had the same bits" in WORDS


def test_the_run_in_two_processes_is_recorded() -> None:
    sharded, *alone = (recorded(f"baseline-cifar10{which}/result") for which in ("-shards", "", "-seed1", "-seed2"))
    environment = recorded("baseline-cifar10-shards/environment")
    assert len(environment["processes"]) == 2 and sharded["epochs"] == alone[0]["epochs"] == 24
    assert f"`{environment['command']}` on two cores of an {environment['hardware']['cpu']}" in WORDS
    accuracy, minutes = 100 * sharded["eval_accuracy"], sharded["seconds"] / 60
    assert f"[{accuracy:.2f} % in {minutes:.0f} minutes](../results/baseline-cifar10-shards)" in WORDS
    earlier = recorded("baseline-cifar10-shards-first/result")
    assert f"beside other work, reached {100 * earlier['eval_accuracy']:.2f} %" in WORDS
    first, *others = (f"{100 * result['eval_accuracy']:.2f} %" for result in alone)
    assert f"reached {first}, {' and '.join(others)}" in WORDS
    took = [result["seconds"] / 60 for result in alone]
    assert f"in {min(took):.0f} to {max(took):.0f} minutes, on a Xeon" in WORDS


def test_the_figures_of_scaling_are_recorded() -> None:
    record = recorded("scaling")
    assert f"train {record['on_this_machine']['ratio']:.2f} times as many images per second as one process" in WORDS
    assert f"On the others it is off by {100 * record['largest_error']['unseen']:.0f} % at the most" in WORDS
    worst = max(record["points"], key=lambda point: abs(point["predicted"] / point["seconds"] - 1))
    assert (worst["processes"], worst["megabits_per_second"]) == (4, 1000) and worst["predicted"] < worst["seconds"]
    pays = record["prediction"]["twice_as_many_pay_up_to"]
    assert (
        f"doubling the machines gains at least 10 % up to about {pays['10000']} machines at 10 Gbit/s, "
        f"and up to about {pays['1000']} at 1 Gbit/s"
    ) in WORDS
    slowest = record["prediction"]["images_per_second"]["100"]
    assert slowest[1] < slowest[0]  # docs/distributed.md: "With 100 Mbit/s, a second machine slows the first one down"
    assert record["prediction"]["batch_size"] == 512
    assert record["on_this_machine"]["ratio"] >= 0.97 and record["largest_error"]["unseen"] <= 0.15


def test_the_cost_of_shards_is_recorded() -> None:
    record = recorded("earlier_commit")
    assert f"a step takes {record['ratio']:.2f} times as long as before there were shards" in WORDS
    assert len(record["ratios"]) >= 40 and record["batch_size"] == 512
    assert record["ratio"] <= 1.01 and record["interval_95"][1] <= 1.01


def test_the_step_before_and_after_the_rooms_is_recorded() -> None:
    record = recorded("step_before_rooms")
    assert f"neither slower nor faster: it takes {record['ratio']:.2f} times as long" in WORDS
    low, high = record["interval_95"]
    assert 0.99 <= low <= high <= 1.01


def test_the_figures_of_killed_nodes_are_recorded() -> None:
    record = recorded("on_ray")
    study, images = record["study"], record["images"]
    same = study["identical_to_the_local_engine"]
    assert record["nodes"] == 3 and study["exit_code"] == 0
    assert study["nodes_killed"] == 4
    assert (
        f"We ran a study of {study['runs']} runs on three Ray nodes of one machine, and killed and replaced a node "
        f"four times. {study['done']} runs finished, {same} of them with the same bits"
    ) in WORDS
    assert f"We predicted {images['images']:,} images, half of them in archives" in WORDS
    assert 2 * images["in_archives"] == images["exactly_once"] == images["images"]
    assert images["lost"] == images["doubled"] == 0 and images["identical_to_the_local_engine"]
    assert 2 * images["parts_done_when_the_node_was_killed"] == images["parts"]


def test_the_limits_of_the_service_are_those_of_the_code() -> None:
    assert (
        f"A request may have {LIMITS.files} files, {LIMITS.file_bytes // 2**20} MiB each and "
        f"{LIMITS.request_bytes // 2**20} MiB in total, and must arrive within {LIMITS.upload_seconds} seconds. "
        f"An image may have {LIMITS.pixels // 10**6} million pixels"
    ) in WORDS
    assert (
        f"with at most {LIMITS.decoder_bytes // 2**20} MiB each. A process that takes longer than "
        f"{LIMITS.decode_seconds} seconds for an image is ended and replaced, and the others go on. If images of other "
        f"requests wait, that happens after {LIMITS.busy_decode_seconds} seconds"
    ) in WORDS
    assert WAIT_SECONDS == 0.003 and "that arrive within three milliseconds are computed together" in WORDS


def test_other_limits_are_those_of_the_code() -> None:
    assert SAVE_SECONDS == 300 and "saved after every epoch and every five minutes within one" in WORDS
    assert SILENT_SECONDS < 60 and "named within a minute" in WORDS
    assert MOST_ENTRIES == 10_000_000 and "more than ten million files" in WORDS
