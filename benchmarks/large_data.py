"""Compare the cost per image of a data set of 1.3 million images with that of 50,000 images.

For each size, synthetic JPEGs of 32×32 pixels in 100 classes, with the spectrum of photographs, are packed into
--archives tar files. One process reads them into an empty cache. A second one trains on the cached images. A third one
again reads the files into an empty cache, and is killed half-way. A fourth one continues its work. The record has the
seconds, the images per second, and the peak private memory of the processes, without the pages of mapped files.
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
from onecycle.compute.plan import ComputePlan
from onecycle.core.recipes import BASELINE
from onecycle.data import load_dataset
from onecycle.run import environment
from onecycle.run.build import assemble
from onecycle.train.loop import training_steps

SIDE = 32
PIXELS = 3 * SIDE**2  # bytes of an image in the cache
CLASSES = 100
TEST = 26  # every 26th image is a test image
FIELDS, FIELD = 64, 256  # number and side of the synthetic photographs that images are cropped from
POLL_SECONDS = 0.1
WARM_STEPS = 10  # steps before the timed steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 1_300_000], metavar="N")
    parser.add_argument("--archives", type=int, default=26, help="tar files of each size")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60, help="timed training steps")
    parser.add_argument("--folder", type=Path, help="for all files: some 10 KB per image; by default a temporary one")
    parser.add_argument("--out", type=Path, default=Path("results/large_data.json"))
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # used in child processes
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read or options.train:
        measured = read(options.read) if options.read else train(options.train, options.batch_size, options.steps)
        print(json.dumps(measured))
        return 0
    sizes: dict[str, dict[str, Any]] = {}
    for count in sorted(options.sizes):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            sizes[str(count)] = measure(Path(folder), count, options)
        print(f"{count:>9,} images: {sizes[str(count)]}", flush=True)
    first, last = sizes[str(min(options.sizes))], sizes[str(max(options.sizes))]
    plans = [measured.pop("compute_plan") for measured in sizes.values()]
    record = {
        "sizes": sizes,
        "ratios": {name: round(last[name] / first[name], 3) for name in first if name.endswith("per_second")},
        "more": {name: last[name] - first[name] for name in first if name.endswith("own_mib")},
        "archives": options.archives,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "environment": environment.describe(hardware.detect(), ComputePlan.from_json(plans[-1])),
    }
    write(options.out, record)
    print("largest relative to smallest:", record["ratios"], record["more"])
    return 0


def measure(folder: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """All measurements of a data set of `count` images, which is made in `folder`."""
    data = folder / "archives"
    make(data, count, options.archives)
    measured: dict[str, Any] = {"archives_mib": sum(path.stat().st_size for path in data.iterdir()) >> 20}
    cache = folder / "cache"
    whole, own = watched(begin(cache, "--read", data))
    measured |= {
        "read_seconds": whole["seconds"],
        "read_images_per_second": round(count / whole["seconds"]),
        "read_own_mib": max(own.values()),
    }
    arguments = ("--batch-size", options.batch_size, "--train", data, "--steps")
    watched(begin(cache, *arguments, 0))  # this process measures and caches the compute plan
    process = begin(cache, *arguments, options.steps)
    trained, own = watched(process)
    measured |= trained | {"train_own_mib": own.pop(process.pid), "train_worker_own_mib": max(own.values())}
    shutil.rmtree(cache)
    return measured | interrupted(cache, data, options.archives, whole["fingerprint"])


def make(folder: Path, count: int, archives: int) -> None:
    """Pack `count` images into `archives` tar files in `folder`. The result is the same every time."""
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
            image = fields[rng.integers(FIELDS), top : top + SIDE, left : left + SIDE]
            content = io.BytesIO()
            Image.fromarray(image).save(content, "JPEG", quality=90)
            split = "train" if number % TEST else "test"
            member = tarfile.TarInfo(f"{split}/class {number // TEST % CLASSES:03}/{number:08}.jpg")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)


def photographs() -> np.ndarray:
    """Noise whose amplitude falls with frequency, as in photographs: uint8 `[FIELDS,FIELD,FIELD,3]`."""
    noise = np.random.default_rng(0).standard_normal((FIELDS, FIELD, FIELD, 3), dtype=np.float32)
    frequency = np.hypot(np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None])
    weights = 1 / np.maximum(frequency, 1 / FIELD)
    fields = np.fft.irfft2(np.fft.rfft2(noise, axes=(1, 2)) * weights[None, :, :, None], axes=(1, 2))
    return (128 + 50 * fields / fields.std()).clip(0, 255).astype(np.uint8)


def begin(cache: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start this script with `arguments` in a process that uses `cache`."""
    command = [sys.executable, __file__, *map(str, arguments)]
    variables = os.environ | {"XDG_CACHE_HOME": str(cache), "STARTED": str(time.time())}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables)


def watched(process: subprocess.Popen[str]) -> tuple[dict[str, Any], dict[int, int]]:
    """The result of `process`, and the peak private memory in MiB of it and each of its children, by process id."""
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for number in family(process.pid):
            peaks[number] = max(peaks.get(number, 0), own_mib(number))
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"large_data: a measurement ended with exit code {process.returncode}")
    assert process.stdout
    return json.loads(process.stdout.read()), peaks


def family(process: int) -> Iterator[int]:
    """The process id `process` and those of all its descendants."""
    yield process
    with suppress(OSError):  # the process may have ended
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def own_mib(process: int) -> int:
    """The resident memory of a process in MiB. It includes pages shared with the parent, but no pages of files."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return sum(int(values[name].split()[0]) for name in ("RssAnon", "RssShmem") if name in values) >> 10
    return 0


def read(data: Path) -> dict[str, Any]:
    """Read the data set and measure the duration."""
    started = time.perf_counter()
    dataset = load_dataset(data)
    return {"seconds": round(time.perf_counter() - started, 2), "fingerprint": dataset.fingerprint}


def train(data: Path, batch_size: int, steps: int) -> dict[str, Any]:
    """Train on `data`, which the cache holds. Measure the time to the first step, and the speed of later steps."""
    experiment = assemble(replace(BASELINE, data=str(data), batch_size=batch_size))
    plan = experiment.plan
    batches = itertools.chain.from_iterable(map(experiment.train.epoch, itertools.count()))
    prepared = plan.prepare(experiment.model)
    results = training_steps(prepared, experiment.optimizer, batches, lambda step: 1e-3, plan=plan)
    next(results)
    first = time.time() - float(os.environ["STARTED"])
    if steps:
        next(itertools.islice(results, WARM_STEPS - 1, None))
    started = time.perf_counter()
    images = batch_size * sum(1 for _ in itertools.islice(results, steps))
    return {
        "seconds_to_first_step": round(first, 2),
        "trained_images_per_second": round(images / (time.perf_counter() - started)),
        "compute_plan": plan.to_json(),
    }


def interrupted(cache: Path, data: Path, archives: int, fingerprint: str) -> dict[str, Any]:
    """Kill a process that has read half of `data`, and read the rest in a second process.

    The result includes the number of images that are decoded twice, once by each process. The second process must
    compute the same `fingerprint`.
    """
    process, images = begin(cache, "--read", data), cache / "onecycle" / "images"

    def parts() -> list[Path]:
        return [path for path in images.glob("unfinished-*/*/images") if not path.parent.suffix]

    while len(parts()) < archives // 2:
        if process.poll() is not None:
            raise SystemExit("large_data: the reading process ended before it could be killed; increase --sizes")
        time.sleep(POLL_SECONDS / 20)
    process.kill()
    process.wait()
    time.sleep(10 * POLL_SECONDS)  # the workers of the killed process end a moment after it
    done = sum(path.stat().st_size for path in parts()) // PIXELS
    again = sum(path.stat().st_size for path in images.glob("unfinished-*/*.unfinished/images")) // PIXELS
    continued, _ = watched(begin(cache, "--read", data))
    if continued["fingerprint"] != fingerprint:
        raise SystemExit("large_data: reading with an interruption gave another data set than reading without one")
    return {"decoded_before_kill": done + again, "decoded_again": again, "seconds_after_kill": continued["seconds"]}


if __name__ == "__main__":
    sys.exit(main())
