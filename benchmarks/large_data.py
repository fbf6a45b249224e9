"""Does a set of 1.3 million images cost more than one of 50,000, by the image?

For each size, JPEGs of 32x32 pixels with the spectrum of photographs are made up, in 100 classes, and packed in as many
tar files, so that as many processes read them. These are read into an empty cache; a second process begins to train on
what is there; and a third reads them again and is killed half-way, so that a fourth goes on. Written down are seconds,
images a second, and the most memory of its own, apart from the pages of files, that any of their processes held.
"""

import argparse
import io
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from studies import write

from onecycle.compute import hardware
from onecycle.compute.plan import Acceleration
from onecycle.core.config import BASELINE
from onecycle.data import load_dataset
from onecycle.run import environment
from onecycle.run.build import assemble
from onecycle.train.loop import training_steps

SIDE = 32
PIXELS = 3 * SIDE**2  # bytes of an image in the cache
CLASSES = 100
TEST = 26  # of so many images one is for testing
FIELDS, FIELD = 64, 256  # made-up photographs, and their sides, of which images are pieces
LOOK_SECONDS = 0.1
WARM_STEPS = 10  # that are not timed, after the first


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 1_300_000], metavar="N")
    parser.add_argument("--archives", type=int, default=26, help="tar files of each size")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60, help="training steps that are timed")
    parser.add_argument("--folder", type=Path, help="for what is made: some 10 KB an image; temporary if none")
    parser.add_argument("--out", type=Path, default=Path("results/large_data.json"))
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # what the processes run
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read or options.train:
        told = read(options.read) if options.read else train(options.train, options.batch_size, options.steps)
        print(json.dumps(told))
        return 0
    sizes: dict[str, dict[str, Any]] = {}
    for count in sorted(options.sizes):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            sizes[str(count)] = measure(Path(folder), count, options)
        print(f"{count:>9,} images: {sizes[str(count)]}", flush=True)
    first, last = sizes[str(min(options.sizes))], sizes[str(max(options.sizes))]
    hows = [told.pop("acceleration") for told in sizes.values()]
    record = {
        "sizes": sizes,
        "ratios": {name: round(last[name] / first[name], 3) for name in first if name.endswith("per_second")},
        "more": {name: last[name] - first[name] for name in first if name.endswith("own_mib")},
        "archives": options.archives,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "environment": environment.describe(hardware.detect(), Acceleration.from_json(hows[-1])),
    }
    write(options.out, record)
    print("largest against smallest:", record["ratios"], record["more"])
    return 0


def measure(folder: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """All that is told of a set of `count` images, which is made in `folder`."""
    data = folder / "archives"
    make(data, count, options.archives)
    told: dict[str, Any] = {"archives_mib": sum(path.stat().st_size for path in data.iterdir()) >> 20}
    cache = folder / "cache"
    whole, own = watched(begin(cache, "--read", data))
    told |= {
        "read_seconds": whole["seconds"],
        "read_images_per_second": round(count / whole["seconds"]),
        "read_own_mib": max(own.values()),
    }
    how = ("--batch-size", options.batch_size, "--train", data, "--steps")
    watched(begin(cache, *how, 0))  # which measures how to compute; that is remembered
    process = begin(cache, *how, options.steps)
    trained, own = watched(process)
    told |= trained | {"train_own_mib": own.pop(process.pid), "train_worker_own_mib": max(own.values())}
    shutil.rmtree(cache)
    return told | interrupted(cache, data, options.archives, whole["fingerprint"])


def make(folder: Path, count: int, archives: int) -> None:
    """Pack `count` images into so many tar files of `folder`, the same every time."""
    folder.mkdir()
    numbers = np.array_split(np.random.default_rng(0).permutation(count), archives)
    with multiprocessing.get_context("fork").Pool(hardware.usable_cores()) as pool:
        pool.starmap(pack, [(folder / f"{place:03}.tar", part) for place, part in enumerate(numbers)], chunksize=1)


def pack(path: Path, numbers: np.ndarray) -> None:
    fields = photographs()
    with tarfile.open(path, "w") as archive:
        for number in numbers.tolist():
            rng = np.random.default_rng(number)
            top, left = rng.integers(FIELD - SIDE, size=2)
            piece = fields[rng.integers(FIELDS), top : top + SIDE, left : left + SIDE]
            content = io.BytesIO()
            Image.fromarray(piece).save(content, "JPEG", quality=90)
            split = "train" if number % TEST else "test"
            member = tarfile.TarInfo(f"{split}/class {number // TEST % CLASSES:03}/{number:08}.jpg")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)


def photographs() -> np.ndarray:
    """Noise whose amplitude falls with its frequency, as that of photographs does: uint8 `[FIELDS,FIELD,FIELD,3]`."""
    noise = np.random.default_rng(0).standard_normal((FIELDS, FIELD, FIELD, 3), dtype=np.float32)
    frequency = np.hypot(np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None])
    weights = 1 / np.maximum(frequency, 1 / FIELD)
    fields = np.fft.irfft2(np.fft.rfft2(noise, axes=(1, 2)) * weights[None, :, :, None], axes=(1, 2))
    return (128 + 50 * fields / fields.std()).clip(0, 255).astype(np.uint8)


def begin(cache: Path, *arguments: object) -> subprocess.Popen[str]:
    """This script with `arguments`, in a process with a cache of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    surroundings = os.environ | {"XDG_CACHE_HOME": str(cache), "BEGAN": str(time.time())}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings)


def watched(process: subprocess.Popen[str]) -> tuple[dict[str, Any], dict[int, int]]:
    """What `process` tells in the end; and the most MiB of its own that it and each of its children held, by number."""
    most: dict[int, int] = {}
    while process.poll() is None:
        for number in family(process.pid):
            most[number] = max(most.get(number, 0), own_mib(number))
        time.sleep(LOOK_SECONDS)
    if process.returncode:
        raise SystemExit(f"large_data: a measurement ended with exit code {process.returncode}")
    assert process.stdout
    return json.loads(process.stdout.read()), most


def family(process: int) -> Iterator[int]:
    yield process
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def own_mib(process: int) -> int:
    """What it holds in pages that are not a file's; those that it shares with the process it came from count, too."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return sum(int(values[name].split()[0]) for name in ("RssAnon", "RssShmem") if name in values) >> 10
    return 0


def read(data: Path) -> dict[str, Any]:
    began = time.perf_counter()
    dataset = load_dataset(data)
    return {"seconds": round(time.perf_counter() - began, 2), "fingerprint": dataset.fingerprint}


def train(data: Path, batch_size: int, steps: int) -> dict[str, Any]:
    """Train some steps on `data`, which are in the cache: how soon the first is done, and how fast the others are."""
    parts = assemble(replace(BASELINE, data=str(data), batch_size=batch_size))
    how = parts.acceleration
    batches = itertools.chain.from_iterable(map(parts.train.epoch, itertools.count()))
    done = training_steps(how.prepare(parts.model), parts.optimizer, batches, lambda step: 1e-3, acceleration=how)
    next(done)
    first = time.time() - float(os.environ["BEGAN"])
    if steps:
        next(itertools.islice(done, WARM_STEPS - 1, None))
    began = time.perf_counter()
    images = batch_size * sum(1 for _ in itertools.islice(done, steps))
    return {
        "seconds_to_first_step": round(first, 2),
        "trained_images_per_second": round(images / (time.perf_counter() - began)),
        "acceleration": how.to_json(),
    }


def interrupted(cache: Path, data: Path, archives: int, fingerprint: str) -> dict[str, Any]:
    """What is decoded twice when reading is killed half-way and begun again, which must come to `fingerprint`."""
    process, images = begin(cache, "--read", data), cache / "onecycle" / "images"

    def parts() -> list[Path]:
        return [path for path in images.glob("unfinished-*/*/images") if not path.parent.suffix]

    while len(parts()) < archives // 2:
        if process.poll() is not None:
            raise SystemExit("large_data: reading ended before it could be killed; give it more images")
        time.sleep(LOOK_SECONDS / 20)
    process.kill()
    process.wait()
    time.sleep(10 * LOOK_SECONDS)  # for its helpers to notice
    done = sum(path.stat().st_size for path in parts()) // PIXELS
    again = sum(path.stat().st_size for path in images.glob("unfinished-*/*.unfinished/images")) // PIXELS
    told, _ = watched(begin(cache, "--read", data))
    if told["fingerprint"] != fingerprint:
        raise SystemExit("large_data: what was gone on with is not what was read at once")
    return {"decoded_before_kill": done + again, "decoded_again": again, "seconds_after_kill": told["seconds"]}


if __name__ == "__main__":
    sys.exit(main())
