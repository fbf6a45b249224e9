"""Accuracy and time of `onecycle train` on few photographs, with a pretrained network and from scratch.

The data sets are `signs N`, with N photographs of each sign for training, and `cats and dogs`, 120 photographs each
from CIFAR-10, scaled to 256 pixels. --signs is an archive with a folder for each class. Of `signs`, the test set is the
same for all seeds, and the seed draws the training photographs. Of `cats and dogs`, the seed draws all photographs, and
onecycle draws a fifth of them for testing.

With a frozen backbone, `again` is the same run with another seed, which finds the features in the cache. The variant
`Lightning` tunes the same network with lightning_transfer.py (pip install lightning). The record in --out is written
after each run. The same command continues it. No run starts after --minutes.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from studies import write

import onecycle
from onecycle.compute import hardware
from onecycle.compute.plan import EAGER
from onecycle.run import environment
from onecycle.storage.run_folder import RunFolder

VARIANTS = {
    "transfer": "--recipe transfer",
    "transfer with a frozen backbone": "--recipe transfer --freeze-backbone",
    **{
        f"{recipe} at {size} pixels": f"--recipe {recipe} --size {size}"
        for recipe in ("quick", "fast")
        for size in (32, 64)
    },
}
LIGHTNING = "Lightning"
UPSCALED = 256  # pixels
PHOTOGRAPHS = 120  # cats, and as many dogs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signs", type=Path, default=Path("../shared/sign-digits.tar"))
    parser.add_argument("--each", type=int, nargs="*", default=[5, 20], help="photographs of each sign for training")
    parser.add_argument("--test", type=int, default=40, help="photographs of each sign for testing")
    parser.add_argument("--no-cats-and-dogs", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--variants", nargs="*", default=["transfer"], help=f"of {', '.join([*VARIANTS, LIGHTNING])}, or options"
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("results/transfer.json"))
    options = parser.parse_args()
    record = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    ends = time.monotonic() + 60 * options.minutes
    for seed in range(options.seeds):
        for name, make in data_sets(options).items():
            for variant in options.variants:
                key = f"{name}, {variant}, seed {seed}"
                if key in record["runs"]:
                    continue
                if time.monotonic() > ends:
                    print("the time is up; the same command continues")
                    return 0
                with tempfile.TemporaryDirectory() as folder:
                    make(Path(folder) / "photos", seed)
                    if variant == LIGHTNING:
                        result = measure_lightning(Path(folder), seed)
                    else:
                        result = measure(Path(folder), VARIANTS.get(variant, variant), seed)
                record["runs"][key] = {"data": name, "variant": variant, "seed": seed, **result}
                record["summary"] = summary(record["runs"])
                write(options.out, record)
                print(key, result["accuracy"], result["seconds"], flush=True)
    return 0


def data_sets(options: argparse.Namespace) -> Mapping[str, Callable[[Path, int], None]]:
    """For each data set, a function that writes its photographs for a seed into a folder."""

    def signs(each: int) -> Callable[[Path, int], None]:
        return lambda folder, seed: write_signs(options.signs, folder, seed, each=each, test=options.test)

    sets = {f"signs {each}": signs(each) for each in options.each}
    return sets if options.no_cats_and_dogs else {**sets, "cats and dogs": write_cats_and_dogs}


def write_signs(archive: Path, folder: Path, seed: int, *, each: int, test: int) -> None:
    """Write `test` photographs of each class to test/<class>/, and `each` others to train/<class>/."""
    by_class: dict[str, list[tarfile.TarInfo]] = {}
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if member.isfile() and member.name.lower().endswith((".jpg", ".jpeg", ".png")):
                by_class.setdefault(member.name.split("/")[-2], []).append(member)
        for name, members in by_class.items():
            drawn = np.random.default_rng(0).permutation(len(members))
            train = np.random.default_rng((seed, 1)).permutation(drawn[test:])[:each]
            for split, chosen in (("test", drawn[:test]), ("train", train)):
                (folder / split / name).mkdir(parents=True)
                for index in chosen:
                    content = tar.extractfile(members[index])
                    assert content, "it is a file"
                    (folder / split / name / Path(members[index].name).name).write_bytes(content.read())


def write_cats_and_dogs(folder: Path, seed: int) -> None:
    """Write photographs of the classes cat and dog of CIFAR-10, larger than they are."""
    images = onecycle.load_dataset("cifar10").train
    for name in ("cat", "dog"):
        of_class = np.flatnonzero(images.labels == images.classes.index(name))
        (folder / name).mkdir(parents=True)
        for index in np.random.default_rng(seed).permutation(of_class)[:PHOTOGRAPHS]:
            image = Image.fromarray(images.images[index]).resize((UPSCALED, UPSCALED), Image.Resampling.BICUBIC)
            image.save(folder / name / f"{index}.png")


def measure(folder: Path, options: str, seed: int) -> dict[str, Any]:
    """The accuracy of a run, and the seconds from the command to the report.

    With a frozen backbone, also those of the same run with another seed. The cache has no features and no decoded
    images at first. Its compute plans and kernels are those of the user.
    """
    variables = with_own_cache(folder)
    figures: dict[str, Any] = {}
    seeds = {"": seed, "again: ": seed + 1000} if "--freeze-backbone" in options else {"": seed}
    for prefix, of_run in seeds.items():
        out = folder / f"runs{of_run}"
        command = ["train", "--data", str(folder / "photos"), *options.split(), "--seed", str(of_run)]
        started, before = time.perf_counter(), processor_seconds()
        subprocess.run(
            [sys.executable, "-m", "onecycle", *command, "--out", str(out)],
            env=variables,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = round(time.perf_counter() - started, 1)
        run = RunFolder(next(out.iterdir()))
        result = run.read_result()
        figures |= {f"{prefix}accuracy": result.eval_accuracy, f"{prefix}seconds": seconds}
        figures[f"{prefix}processor seconds"] = round(processor_seconds() - before, 1)
        if not prefix:
            figures |= {"train_images": result.train_images, "eval_images": result.eval_images}
            figures["environment"] = run.read_json(run.environment) | {"command": f"onecycle train {options}"}
        shutil.rmtree(out)
    return figures


def with_own_cache(folder: Path) -> dict[str, str]:
    """The environment variables for a command with a cache in `folder`, which has no features and no decoded images."""
    cache = folder / "cache" / "onecycle"
    cache.mkdir(parents=True)
    users = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onecycle"
    for name in ("autotune", "kernels", "weights"):
        (users / name).mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(users / name)
    return {**os.environ, "XDG_CACHE_HOME": str(cache.parent)}


def measure_lightning(folder: Path, seed: int) -> dict[str, Any]:
    """The accuracy of lightning_transfer.py, and the seconds from its command to its end."""
    script, variables = Path(__file__).with_name("lightning_transfer.py"), with_own_cache(folder)
    started, before = time.perf_counter(), processor_seconds()
    done = subprocess.run(
        [sys.executable, script, folder / "photos", "--seed", str(seed)],
        env=variables,
        check=True,
        stdout=subprocess.PIPE,
    )
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "seconds": round(time.perf_counter() - started, 1),
        "processor seconds": round(processor_seconds() - before, 1),
        "environment": environment.describe(hardware.detect(), EAGER) | {"command": script.name},
    }


def processor_seconds() -> float:
    """The processor time of all commands so far, which other load on the machine changes little."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def summary(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each data set and variant, the accuracies of all seeds and the median of the seconds."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs.values():
        groups.setdefault(f"{run['data']}, {run['variant']}", []).append(run)

    def median(group: Sequence[Mapping[str, Any]], field: str) -> float | None:
        return round(statistics.median(run[field] for run in group), 1) if all(field in run for run in group) else None

    return {
        name: {
            "accuracies": [run["accuracy"] for run in group],
            "mean accuracy": round(statistics.fmean(run["accuracy"] for run in group), 4),
            "median seconds": median(group, "seconds"),
            "median processor seconds": median(group, "processor seconds"),
            "median seconds of another seed": median(group, "again: seconds"),
            "median processor seconds of another seed": median(group, "again: processor seconds"),
        }
        for name, group in groups.items()
    }


if __name__ == "__main__":
    sys.exit(main())
