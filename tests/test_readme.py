"""The README does what it says and quotes only what was recorded."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from onecycle import cli
from onecycle.data import load_dataset
from onecycle.data.readers.entries import MOST_ENTRIES
from onecycle.distributed.peers import SILENT_SECONDS
from onecycle.run.autosave import SAVE_SECONDS
from onecycle.serve.batching import WAIT_SECONDS
from onecycle.serve.limits import LIMITS
from onecycle.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def run_example(part: str) -> None:
    """The one example with `part` in it."""
    (example,) = (found for found in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if part in found)
    exec(compile(example, "README.md", "exec"), {})


def test_the_example_with_a_network_of_ones_own_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run_example("find_lr")
    accuracy = re.fullmatch(r"test accuracy (\d+\.\d)%\n", capsys.readouterr().out)
    assert accuracy and float(accuracy[1]) > 80


def test_the_example_that_writes_pictures_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_example("mkdir")
    dataset = load_dataset("photos")
    assert len(dataset.train) + len(dataset.evaluation) == 1797
    assert f"drawn for testing, {len(dataset.evaluation)} images" in " ".join(README.split())


def test_the_example_with_a_picture_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunFolder(ROOT / "results" / "fast-cifar10")
    Image.fromarray(record.read_arrays(record.augmentations)["originals"][4]).save(tmp_path / "cat.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    run_example("onecycle.load()")
    assert capsys.readouterr().out.startswith("cat 0.")


def test_the_example_that_reads_labels_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunFolder(ROOT / "results" / "fast-cifar10")
    for number, pixels in enumerate(record.read_arrays(record.augmentations)["originals"]):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", str(tmp_path), "--out", "labels"]) == 0
    run_example("pyarrow")
    assert "file_count" in capsys.readouterr().out


def test_every_command_line_shown_is_one_that_the_program_takes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^onecycle (\S+) ?([^#\n]*)", README, flags=re.MULTILINE)
    assert {command for command, _ in lines} == {
        *(
            "train",
            "find-lr",
            "study",
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
    for command, options in lines:
        assert cli.main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", options):
            assert option in shown, f"{command} has no {option}"


def test_every_file_and_picture_it_names_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_its_figures_are_those_of_the_recorded_runs() -> None:
    names = ("baseline-cifar10", "baseline-cifar10-seed1", "baseline-cifar10-seed2")
    results = [json.loads((ROOT / f"results/{name}/result.json").read_text()) for name in names]
    words = " ".join(README.split())

    def listed(name: str, form: str, runs: list[dict[str, Any]] = results) -> str:
        *first, last = (form.format(run[name]) for run in runs)
        return f"{', '.join(first)} and {last}"

    for figures in (
        f"**{listed('test_accuracy', '{:.2%}').replace('%', ' %')}** (seeds 0, 1 and 2;",
        f"LR max {listed('lr_max', '{:.2e}')};",
        f"LR min {listed('lr_min', '{:.2e}')}",
        f"{listed('minutes', '{:.0f}', [{'minutes': run['seconds'] / 60} for run in results])} minutes on 2 cores",
        f"{listed('peak_memory_gib', '{}')} GiB",
    ):
        assert figures in words
    for seed, result in enumerate(results):
        assert (result["seed"], result["recipe"], result["epochs"]) == (seed, "baseline", 24)
        assert (result["evaluated_on"], result["best_epoch"]) == ("test", 24)
        assert result["test_accuracy"] >= 0.90


def test_the_lr_finders_pair_is_within_a_point_of_the_recorded_grids_best() -> None:
    study = json.loads((ROOT / "results/lr_finder_quality/study.json").read_text())
    cells = {(cell["multiple"], cell["rule"]): cell["accuracy"] for cell in study["cells"]}
    below = 100 * (max(cells.values()) - cells[1, "finder"])
    assert below <= 1.0
    assert f"{below:.1f} points" in README


def test_its_speeds_are_those_of_the_recorded_comparison() -> None:
    record = json.loads((ROOT / "results/step_time.json").read_text())
    for name, seconds in record["seconds"].items():
        ratio = f"{record['ratios'][name]:.1f}" if name in record["ratios"] else "1"
        assert f"| {seconds:.2f} | {ratio} | {record['peak_memory_gib'][name]:.1f} |" in README
    assert record["ratios"]["usual"] >= 6.5
    assert record["ratios"]["channels_last"] >= 5
    assert record["ratios"]["lightning"] >= 3.3
    assert record["batch_size"] == 512


def test_what_it_says_of_the_fast_ways_accuracy_is_what_was_recorded() -> None:
    verdict = json.loads((ROOT / "results/fast_mode_accuracy.json").read_text())["verdict"]
    words = " ".join(README.split())
    first, second, third = verdict["differences_points"]
    assert f"{first:+.2f}, {second:+.2f} and {third:+.2f} points: {verdict['mean_points']:.2f} on average" in words
    low, high = verdict["interval_95_points"]
    assert f"95 % interval from {low:.2f} to {high:.2f}" in words
    assert abs(verdict["mean_points"]) <= 0.5


def test_what_it_says_of_the_data_is_what_was_recorded() -> None:
    words = " ".join(README.split())
    epoch = json.loads((ROOT / "results/epoch_time.json").read_text())["ratios"]
    scale = json.loads((ROOT / "results/scale.json").read_text())["ratios"]
    assert f"takes {epoch['albumentations']:.2f} times as long as its steps" in words
    assert f"{epoch['batched']:.2f} times with `--augmentation batched`" in words
    step, memory = scale["step_microseconds_an_image"], scale["own_gib"]
    assert f"a step takes {step:.2f} times as long as with 10,000" in words
    assert f"the process holds {memory:.2f} times as much memory" in words
    start = json.loads((ROOT / "results/start_time.json").read_text())["seconds"]
    assert f"`onecycle --help` takes {start['help']:.2f} seconds" in words
    later, first = start["later_run"], start["first_run"]
    assert f"comes {later:.1f} seconds after the command, {first:.1f} in the first run on a machine" in words
    assert start["help"] <= 0.7
    assert start["first_run"] <= 10
    assert epoch["albumentations"] <= 1.05
    assert max(scale.values()) <= 1.1


def variants(study: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((ROOT / f"results/studies/{study}/summary.json").read_text())["variants"]
    return summary


def in_percent(estimated: dict[str, Any]) -> str:
    low, high = estimated["interval_95"]
    return f"{100 * estimated['mean']:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def test_its_figures_of_quick_and_fast_are_those_of_the_recorded_studies() -> None:
    quick, fast = variants("quick")["quick"], variants("fast")["fast"]
    first = variants("quick-first")["quick"]
    seconds = {name: f"{value:.0f}" for name, value in recorded_race()["wall_seconds"].items()}
    assert f"make train RECIPE=quick   # {100 * quick['accuracy']['mean']:.2f} % in a minute" in README
    for name, variant in (("quick", quick), ("fast", fast)):
        views = f"**{in_percent(variant['tta_accuracy'])}**" if variant["tta_accuracy"] else ""
        cells = [f"`--recipe {name}`, {len(variant['seeds'])} seeds", in_percent(variant["accuracy"]), views]
        assert f"| {' | '.join(cells)} | {seconds[name]} |".replace("  ", " ") in README
    words = " ".join(README.split())
    assert (
        f"[{100 * first['accuracy']['mean']:.2f} %](results/studies/quick-first) in "
        f"{first['training_seconds']['mean']:.0f} seconds of training, where this one has "
        f"{100 * quick['accuracy']['mean']:.2f} % in {quick['training_seconds']['mean']:.0f}"
    ) in words
    assert f"{100 * variants('fast-first')['fast']['tta_accuracy']['mean']:.2f} % in [nine epochs]" in words
    assert f"{100 * variants('fast-second')['fast']['tta_accuracy']['mean']:.2f} % with [one seed]" in words
    assert quick["accuracy"]["mean"] >= 0.9
    assert quick["accuracy"]["interval_95"][0] >= 0.899
    assert fast["tta_accuracy"]["mean"] >= 0.94


def recorded_race() -> dict[str, Any]:
    race: dict[str, Any] = json.loads((ROOT / "results/time_to_accuracy.json").read_text())
    return race


def test_its_figures_of_the_race_against_a_plain_port_are_those_recorded() -> None:
    race = recorded_race()

    def listed(key: str) -> str:
        *first, last = (f"{100 * run[key]:.2f}" for run in race["runs"]["port"])
        return f"{', '.join(first)} and {last} %"

    row = [f"{len(race['runs']['port'])} seeds", listed("accuracy"), listed("tta_accuracy")]
    assert f"port of airbench94-Muon, {' | '.join(row)} | {race['wall_seconds']['port']:.0f} |" in README
    words, seconds = " ".join(README.split()), race["seconds"]
    assert (
        f"`quick` takes {seconds['quick']:.0f} seconds and `fast` {seconds['fast']:.0f}, which is "
        f"{race['fast_to_port']:.2f} of the port's {seconds['port']:.0f}."
    ) in words
    assert race["wall_seconds"]["quick"] <= 100
    assert race["fast_to_port"] <= 0.6


def test_what_each_saving_gives_is_what_the_recorded_ablation_says() -> None:
    ablation = variants("quick-ablation")
    whole = ablation.pop("quick")
    table = README[README.index("| `quick` without") :].split("\n\n")[0]
    assert table.count("\n") == 2 + len(ablation)
    assert f"| {in_percent(whole['accuracy'])} | {whole['training_seconds']['mean']:.0f} |" in table
    for name, variant in ablation.items():
        difference = variant["against_the_first"]["accuracy"]
        low, high = (100 * end for end in difference["interval_95"])
        resolved = "" if difference["resolved"] else ", not resolved"
        cells = [f"{100 * difference['mean']:+.2f} ({low:+.2f} to {high:+.2f}){resolved}"]
        assert f"`{name}` | {cells[0]} | {variant['training_seconds']['mean']:.0f} |" in table
        assert len(variant["seeds"]) == 5


def test_what_it_says_of_the_reports_lists_and_time_is_what_was_recorded() -> None:
    planted, timed = (json.loads((ROOT / f"results/{name}.json").read_text()) for name in ("suspects", "report_time"))
    words = " ".join(README.split())
    found = planted["mean_found"]
    known, similar = (planted["known_duplicates"][kind] for kind in ("near-duplicates", "very similar"))
    for figures in (
        f"In {len(planted['found']['duplicates'])} copies of CIFAR-10, "
        f"with {planted['planted_of_each_kind']} of each planted",
        f"{found['labels of test images']:.0%} of the wrong labels of test images",
        f"{found['labels of training images']:.0%} of those of training images",
        f"and {found['duplicates']:.0%} of the duplicates",
        f"Of the {known['pairs']} near-duplicates that people have found",
        f"{known['found']:.0%} are listed",
        f"{similar['found']:.0%} of the {similar['pairs']} pairs that they call very similar",
        f"is written in {timed['seconds']:.0f} seconds",
        f"a process of {timed['peak_memory_gib']:.2f} GiB, and has {timed['report_megabytes']:.1f} MB",
    ):
        assert figures.replace("%", " %") in words
    assert all(min(shares) >= 0.8 for shares in planted["found"].values())
    assert timed["seconds"] < 20 and timed["peak_memory_gib"] < 1 and timed["report_megabytes"] < 3
    assert (timed["recipe"], timed["test_images"]) == ("baseline", 10_000)


def test_what_it_says_of_kills_and_damage_is_what_was_recorded() -> None:
    record = json.loads((ROOT / "results/reliability.json").read_text())
    words = " ".join(README.split())
    by_workers = [record[f"kills at random instants, {workers} workers"] for workers in (0, 2)]
    chain = record["kills in one run, one after another"]
    renamings, flushes = (record[f"kills at each os.{name} of a run"] for name in ("replace", "fsync"))
    stops, damaged = record["stops by a signal, in all phases"], record["damaged checkpoints"]
    disk, full = record["ENOSPC at a write of a run"], record["full file systems, given room"]
    cost = record["cost for the specified network"]
    check, part = cost["milliseconds of a step's check"], cost["part of an epoch's time"]
    for figures in (
        f"{by_workers[0]['kills']} kills at random instants without workers and {by_workers[1]['kills']} with two ("
        f"{' and '.join(str(kills['before anything was saved']) for kills in by_workers)} of them before anything was "
        f"saved), {chain['kills']} in one run, one inside each of a run's {renamings['kills']} renamings and "
        f"{flushes['kills']} flushes; {stops['stops']} stops by a signal",
        f"a disk that fails at each of {disk['failures']} writes; {full['systems']} file systems that fill up",
        f"Of {damaged['cases']} damaged checkpoints every one was noticed",
        f"and {record['bad inputs refused in one line']} bad inputs",
        f"saving takes {cost['seconds to save']:.2f} seconds",
        f"gradients {check:.1f} ms: {100 * part:.2f} %",
    ):
        assert figures in words
    for counted in (*by_workers, renamings, flushes):
        assert counted["bit-identical"] == counted["kills"]
    assert [kills["kills"] for kills in by_workers] == [50, 50]
    assert (chain["kills"], chain["bit-identical"]) == (10, True)
    assert stops["resumed bit-identical"] == stops["stops"]
    assert damaged["noticed"] == damaged["recovered by the one before"] == damaged["cases"] >= 200
    assert record["bad inputs refused in one line"] >= 60
    assert cost["part of an epoch's time"] < 0.01


def recorded(name: str) -> Any:
    return json.loads((ROOT / f"results/{name}.json").read_text())


def test_what_it_says_of_ones_own_pictures_is_what_was_recorded() -> None:
    digits, jpegs = (recorded("own_pictures")[name] for name in ("digits as PNG", "JPEG archive"))
    words = " ".join(README.split())
    assert f"**{100 * digits['test_accuracy']:.2f} %** of them right after {digits['seconds']:.0f} seconds" in words
    assert f"with `--recipe quick` it comes to **{100 * jpegs['test_accuracy']:.2f} %**" in words
    assert digits["named rightly by predict"] == pytest.approx(digits["test_accuracy"], abs=0.003)
    assert (jpegs["recipe"], jpegs["train_images"], jpegs["test_images"]) == ("quick", 50_000, 10_000)


def test_what_it_says_of_prediction_is_what_was_recorded() -> None:
    shipped, prediction = recorded("shipped_network"), recorded("prediction")
    words = " ".join(README.split())
    accuracy = shipped["recorded"]
    speeds = prediction["images_a_second"]["the network that comes with the package"]["batches of 250"]
    for figures in (
        f"with {100 * accuracy['accuracy']:.2f} % of CIFAR-10's test images right, "
        f"{100 * accuracy['tta_accuracy']:.2f} % with `--tta`",
        f"it has {shipped['megabytes']:.1f} MB",
        f"On {prediction['files']:,} JPEGs of 32×32 that is "
        f"{prediction['files_a_second_whole_command']:,.0f} files a second",
        f"decoding is {100 * prediction['share_of_decoding']:.0f} % of the work",
        f"onnxruntime names {speeds['onnxruntime, float32']:,.0f} images a second of",
        f"torch {speeds['torch, float32']:,.0f} in float32 and {speeds['torch, bfloat16']:,.0f} in bfloat16",
    ):
        assert figures in words
    assert shipped["megabytes"] <= 14 and prediction["files"] == 10_000


def test_what_it_says_of_the_service_is_what_was_recorded() -> None:
    record = recorded("serving")
    words = " ".join(README.split())
    for clients, found in record["clients"].items():
        times = f"{found['p50_milliseconds']:.0f} | {found['p99_milliseconds']:.0f}"
        assert f"| {clients} | {found['requests_a_second']:.0f} | {times} |" in README
        assert found["lost"] == 0
    held = record["memory"]["mib_after_each_tenth"]
    assert f"nor of {record['memory']['requests']:,} more" in words
    assert f"went from {held[0]} to {held[-1]} MiB" in words
    assert record["memory"]["lost"] == 0 and held[-1] - held[1] < 30
    assert record["clients"].keys() == {"1", "16", "128"}
    assert record["under attack"].keys() == {"slow clients", "huge uploads", "bombs", "a flood"}
    for found in record["under attack"].values():
        assert found["answered_during"] > 0 and found["answered_after"] == 20 and found["lost_after"] == 0


def test_what_it_says_of_large_data_is_what_was_recorded() -> None:
    words, record = " ".join(README.split()), recorded("large_data")
    small, large = record["sizes"]["50000"], record["sizes"]["1300000"]
    assert f"in {record['archives']} archives were decoded at {large['read_images_per_second']:,} a second" in words
    assert f"50,000 were at {small['read_images_per_second']:,}." in words
    assert f"training began after {large['seconds_to_first_step']:.1f} seconds, with 50,000 after" in words
    faster = record["ratios"]["trained_images_per_second"]
    assert f"after {small['seconds_to_first_step']:.1f}, and went on at {faster:.2f} times the images a second" in words
    assert record["ratios"]["trained_images_per_second"] > 0.9
    assert f"held more than {max(record['more'].values())} MiB more" in words
    assert max(record["more"].values()) < 200


def test_what_it_says_of_runs_in_several_processes_is_what_was_recorded() -> None:
    words, record = " ".join(README.split()), recorded("same_bits")
    for recipe in ("quick", "baseline"):
        for threads in ("1 thread", "2 threads"):
            assert record[f"{recipe}, {threads}"]["identical by processes"] == {"1": True, "2": True, "4": True}
    killed = record["killed"]
    assert f"Short runs on {record['images']:,} images of CIFAR-10" in words
    assert f"Then {killed['kills']} by `{record['recipes'][0]}` were begun by four processes" in words
    assert f"by one: {killed['identical']} had the same bits" in words


def test_what_it_says_of_all_epochs_in_two_processes_is_what_was_recorded() -> None:
    words, results = " ".join(README.split()), ROOT / "results"
    sharded, *alone = (
        json.loads((results / f"baseline-cifar10{which}" / "result.json").read_text("utf-8"))
        for which in ("-shards", "", "-seed1", "-seed2")
    )
    how = json.loads((results / "baseline-cifar10-shards" / "environment.json").read_text("utf-8"))
    assert len(how["processes"]) == 2 and sharded["epochs"] == alone[0]["epochs"] == 24
    assert f"`{how['command']}` on two cores of an {how['hardware']['cpu']}" in words
    accuracy, minutes = 100 * sharded["test_accuracy"], sharded["seconds"] / 60
    assert f"[{accuracy:.2f} % in {minutes:.0f} minutes](results/baseline-cifar10-shards)" in words
    earlier = json.loads((results / "baseline-cifar10-shards-first" / "result.json").read_text("utf-8"))
    assert f"beside other work, came to {100 * earlier['test_accuracy']:.2f} %" in words
    first, *others = (f"{100 * result['test_accuracy']:.2f} %" for result in alone)
    assert f"came to {first}, {' and '.join(others)}" in words
    took = [result["seconds"] / 60 for result in alone]
    assert f"in {min(took):.0f} to {max(took):.0f} minutes, on a Xeon" in words


def test_what_it_says_of_how_far_a_training_scales_is_what_was_recorded() -> None:
    words, record = " ".join(README.split()), recorded("scaling")
    assert f"train {record['on_this_machine']['ratio']:.2f} times as many images a second as one with two" in words
    assert f"on the others it is off by {100 * record['largest_error']['unseen']:.0f} % at the most" in words
    worst = max(record["points"], key=lambda point: abs(point["predicted"] / point["seconds"] - 1))
    assert (worst["processes"], worst["megabits_per_second"]) == (4, 1000) and worst["predicted"] < worst["seconds"]
    pays = record["prediction"]["twice_as_many_pay_up_to"]
    assert (
        f"at least a tenth faster up to about {pays['10000']} machines with 10 Gbit/s between them, "
        f"and up to about {pays['1000']} with 1 Gbit/s"
    ) in words
    slowest = record["prediction"]["images_per_second"]["100"]
    assert slowest[1] < slowest[0]  # "with 100 Mbit/s a second one only slows the first down"
    assert record["prediction"]["batch_size"] == 512
    assert record["on_this_machine"]["ratio"] >= 0.97 and record["largest_error"]["unseen"] <= 0.15


def test_what_it_says_of_a_step_without_shards_is_what_was_recorded() -> None:
    words, record = " ".join(README.split()), recorded("earlier_commit")
    assert f"a step takes {record['ratio']:.2f} times as long as before there were shards" in words
    assert len(record["ratios"]) >= 40 and record["batch_size"] == 512
    assert record["ratio"] <= 1.01 and record["interval_95"][1] <= 1.01


def test_what_it_says_of_nodes_that_are_killed_is_what_was_recorded() -> None:
    words, record = " ".join(README.split()), recorded("on_ray")
    study, pictures = record["study"], record["pictures"]
    same = study["identical_to_the_local_engine"]
    assert record["nodes"] == 3 and study["exit_code"] == 0
    assert study["nodes_killed"] == 4
    assert (
        f"four times one was killed and replaced while a study of {study['runs']} runs was under way: "
        f"{study['done']} were done, {same} with the same bits"
    ) in words
    assert f"Of {pictures['pictures']:,} pictures, half of them in archives" in words
    assert 2 * pictures["in_archives"] == pictures["exactly_once"] == pictures["pictures"]
    assert pictures["lost"] == pictures["doubled"] == 0 and pictures["identical_to_the_local_engine"]
    assert 2 * pictures["parts_done_when_the_node_was_killed"] == pictures["parts"]


def test_the_limits_of_the_service_are_those_it_tells() -> None:
    words = " ".join(README.split())
    assert (
        f"A request may bring {LIMITS.files} files, {LIMITS.file_bytes // 2**20} MiB each and "
        f"{LIMITS.request_bytes // 2**20} MiB in all, within {LIMITS.upload_seconds} seconds, and a picture may have "
        f"{LIMITS.pixels // 10**6} million pixels"
    ) in words
    assert WAIT_SECONDS == 0.003 and "that come within three milliseconds are computed together" in words


def test_the_times_and_numbers_it_names_are_those_of_the_code() -> None:
    words = " ".join(README.split())
    assert SAVE_SECONDS == 300 and "saved after every epoch and every five minutes within one" in words
    assert SILENT_SECONDS < 60 and "named within a minute" in words
    assert MOST_ENTRIES == 10_000_000 and "more than ten million files" in words
