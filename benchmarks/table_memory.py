"""Measure the memory that reading many small images from a parquet file and from a NumPy archive takes.

Synthetic images of 32×32 pixels in 100 classes, with the spectrum of photographs, are written as PNGs into one parquet
file a split, by pyarrow, and as arrays into a compressed archive, by NumPy. A process reads each of them into an empty
cache. The record has the seconds, and the peak memory of the process with all pages of files (VmHWM), also as a
multiple of the decoded pixels. The memory of a process that reads a small data set shows what the program itself takes.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from large_data import CLASSES, FIELD, FIELDS, PIXELS, SIDE, photographs
from PIL import Image
from studies import write

from onecycle.compute import hardware
from onecycle.compute.plan import ComputePlan
from onecycle.data import load_dataset
from onecycle.run import environment

TEST_SHARE = 0.1
SMALL = 1000  # images of the small data set


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="for all files: some 9 KB per image; by default a temporary one")
    parser.add_argument("--out", type=Path, default=Path("results/table_memory.json"))
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # used in child processes
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read)))
        return 0
    formats: dict[str, Any] = {}
    for name, make in WRITERS.items():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            small = measured(make, Path(folder) / "small", min(SMALL, options.images))
            formats[name] = measured(make, Path(folder) / "large", options.images)
            formats[name]["peak_mib_of_small_data"] = small["peak_mib"]
        print(f"{name}: {formats[name]}", flush=True)
    record = {
        "images": options.images,
        "decoded_mib": options.images * PIXELS >> 20,
        "formats": formats,
        "environment": environment.describe(hardware.detect(), ComputePlan()),
    }
    write(options.out, record)
    return 0


def measured(make: Callable[[Path, int], None], folder: Path, count: int) -> dict[str, Any]:
    """Let `make` write `count` images into `folder`, and read them in a process with an empty cache."""
    (folder / "data").mkdir(parents=True)
    make(folder / "data", count)
    command = [sys.executable, __file__, "--read", str(folder / "data")]
    variables = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables).stdout)
    if found.pop("images") != count:
        raise SystemExit("table_memory: the process read another number of images")
    found["files_mib"] = sum(path.stat().st_size for path in (folder / "data").iterdir()) >> 20
    found["times_the_decoded_pixels"] = round(found["peak_mib"] * 2**20 / (count * PIXELS), 3)
    found["images_per_second"] = round(count / found["seconds"])
    return dict(found)


def read(data: Path) -> dict[str, Any]:
    """Read the data set, and return the seconds and the peak memory of this process."""
    started = time.perf_counter()
    dataset = load_dataset(data)
    seconds = round(time.perf_counter() - started, 2)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    images = len(dataset.train) + len(dataset.evaluation)
    return {"images": images, "seconds": seconds, "peak_mib": int(status["VmHWM"].split()[0]) >> 10}


def synthetic(count: int) -> Iterator[np.ndarray]:
    """Yield `count` images, uint8 `[32,32,3]`. They are the same every time."""
    rng, fields = np.random.default_rng(0), photographs()
    for _ in range(count):
        field, top, left = rng.integers((FIELDS, FIELD - SIDE, FIELD - SIDE))
        yield fields[field, top : top + SIDE, left : left + SIDE]


def splits(count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each split and its labels."""
    labels = np.arange(count) % CLASSES
    test = max(CLASSES, int(TEST_SHARE * count))
    yield from (("train", labels[test:]), ("test", labels[:test]))


def write_parquet(folder: Path, count: int) -> None:
    images = synthetic(count)
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    for split, labels in splits(count):
        rows = [{"bytes": png(next(images)), "path": None} for _ in labels]
        table = pa.table({"image": rows, "label": labels}, schema=schema)
        pq.write_table(
            table, folder / f"{split}-00000-of-00001.parquet"
        )  # in one group of rows, which is the worst case


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", compress_level=1)
    return content.getvalue()


def write_npz(folder: Path, count: int) -> None:
    images, arrays = synthetic(count), dict[str, np.ndarray]()
    for split, labels in splits(count):
        arrays[f"{split}_images"] = np.stack([next(images) for _ in labels])
        arrays[f"{split}_labels"] = labels[:, None]
    np.savez_compressed(folder / "images.npz", **arrays)


WRITERS = {"parquet": write_parquet, "npz": write_npz}


if __name__ == "__main__":
    sys.exit(main())
