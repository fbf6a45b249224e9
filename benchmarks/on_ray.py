"""Check that nothing is lost when nodes of a Ray cluster die.

The first part runs a study on the local engine, and then on Ray while nodes are killed at random times. It counts the
runs that finish on Ray, and the runs with bit-identical results on both engines. The second part predicts the classes
of many images, half of them in archives, and kills a node half-way. It counts the images that have no prediction or
several, and compares all predictions with those of the local engine. The nodes are on this machine, with one core each.
Killing a node kills all its processes.
"""

import argparse
import io
import os
import random
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from local_ray_nodes import SETTINGS, Nodes
from numpy.typing import NDArray
from PIL import Image
from studies import contents, rounded, write

from onecycle.compute import hardware
from onecycle.data import load_dataset
from onecycle.predict.predictor import load
from onecycle.run import environment

DAMAGED = 1000  # every 1000th file is not an image
IN_AN_ARCHIVE = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12, help="runs of the study")
    parser.add_argument("--nodes", type=int, default=3, help="nodes, with a core each")
    parser.add_argument(
        "--kills", type=int, default=4, help="nodes that are killed during the study; a new one replaces each"
    )
    parser.add_argument("--study", default="--recipe quick --limit 5000 --device cpu", help="options of the study")
    parser.add_argument("--images", type=int, default=100_000, help="images to predict")
    parser.add_argument("--data", default="cifar10", help="data set from which the images are taken")
    parser.add_argument("--seed", type=int, default=0, help="random seed for kill times and killed nodes")
    parser.add_argument("--folder", type=Path, help="for all files; by default a temporary one")
    parser.add_argument("--out", type=Path, default=Path("results/on_ray.json"))
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    draws = random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, Nodes() as nodes:
        for _ in range(options.nodes):
            nodes.add()
        study = run_study(Path(folder), nodes, draws, options.study, runs=options.runs, kills=options.kills)
        print(study, flush=True)
        images = predict(Path(folder), nodes, draws, options.data, options.images)
        print(images, flush=True)
    record = {
        "nodes": options.nodes,
        "study": study,
        "images": images,
        "environment": environment.describe(hardware.detect(), load().plan),
    }
    write(options.out, record)
    return 0


def onecycle(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "onecycle", *map(str, arguments)]


def run_study(
    folder: Path, nodes: Nodes, draws: random.Random, options: str, *, runs: int, kills: int
) -> dict[str, Any]:
    """Run the study on the local engine and then on Ray. Kill Ray nodes during the second run."""
    arguments = ["study", *shlex.split(options), "--seeds", runs, "--cores", 1, "--workers", 0, "--out"]
    seconds = {}
    started = time.perf_counter()
    subprocess.run(onecycle(*arguments, folder / "local"), check=True)
    seconds["local"] = time.perf_counter() - started
    started = time.perf_counter()
    command = onecycle(*arguments, folder / "ray", "--engine", "ray", "--address", nodes.address)
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    mean = seconds["local"] / len(nodes.workers) / (kills + 1)
    killed = 0
    while killed < kills:
        # A checkpoint shows that a run is in progress, so that the kill can interrupt it.
        wait_for(folder / "ray", "*/*/seed-*/checkpoint.safetensors", driver)
        time.sleep(draws.uniform(0, 2 * mean))
        if driver.poll() is not None:
            break
        nodes.kill(draws.choice(nodes.workers))
        nodes.add()
        killed += 1
    output, _ = driver.communicate()
    seconds["ray"] = time.perf_counter() - started
    print(output)
    expected, found = (contents(next((folder / engine).iterdir())) for engine in ("local", "ray"))
    places = {str(Path(name).parent) for name in expected if name.endswith("/result.json")}
    same = [place for place in places if of(found, place) == of(expected, place)]
    return {
        "command": shlex.join(map(str, arguments[:-1])),
        "exit_code": driver.returncode,
        "runs": runs,
        "done": sum(name.endswith("/result.json") for name in found),
        "identical_to_the_local_engine": len(same),
        "nodes_killed": killed,
        "runs_begun_again_or_gone_on_with": output.count("lost with"),
        "seconds": {name: rounded(value) for name, value in seconds.items()},
    }


def of(files: dict[str, object], place: str) -> dict[str, object]:
    return {name: content for name, content in files.items() if name.startswith(f"{place}/")}


def predict(folder: Path, nodes: Nodes, draws: random.Random, data: str, count: int) -> dict[str, Any]:
    """Predict on the local engine and then on Ray. Kill a Ray node when half of the output files are written."""
    sources, names = generate(folder / "images", load_dataset(data).train.images, count)
    seconds = {}
    started = time.perf_counter()
    subprocess.run(onecycle("predict", *sources, "--out", folder / "local-predictions"))
    seconds["local"] = time.perf_counter() - started
    parts = len(list((folder / "local-predictions" / "predictions").iterdir()))
    started = time.perf_counter()
    remote = folder / "ray-predictions"
    driver = subprocess.Popen(
        onecycle("predict", *sources, "--out", remote, "--engine", "ray", "--address", nodes.address)
    )
    wait_for(remote, "predictions/part-*.parquet", driver, parts // 2)
    done = len(list(remote.glob("predictions/part-*.parquet")))
    nodes.kill(draws.choice(nodes.workers))
    driver.wait()
    seconds["ray"] = time.perf_counter() - started
    tables = {name: pq.read_table(remote / name) for name in ("predictions", "unreadable")}
    found = Counter(name for table in tables.values() for name in keys(table))
    same = all(table.equals(pq.read_table(folder / "local-predictions" / name)) for name, table in tables.items())
    return {
        "exit_code": driver.returncode,
        "images": len(names),
        "in_archives": sum(member is not None for _, member in names),
        "parts": parts,
        "parts_done_when_the_node_was_killed": done,
        "exactly_once": sum(found[name] == 1 for name in names),
        "lost": sum(found[name] == 0 for name in names),
        "doubled": sum(times > 1 for times in found.values()),
        "unreadable": tables["unreadable"].num_rows,
        "identical_to_the_local_engine": same,
        "seconds": {name: rounded(value) for name, value in seconds.items()},
        "bytes_of_parquet": sum(path.stat().st_size for path in remote.rglob("*.parquet")),
        "most_certain": pc.max(tables["predictions"]["probability"]).as_py(),
    }


def keys(table: pa.Table) -> list[tuple[str, str | None]]:
    return list(zip(table["file"].to_pylist(), table["member"].to_pylist(), strict=True))


def wait_for(folder: Path, pattern: str, driver: subprocess.Popen[Any], count: int = 1) -> None:
    """Wait until `folder` has `count` files that match `pattern`, or the driver has ended."""
    while driver.poll() is None and len(list(folder.glob(pattern))) < count:
        time.sleep(0.05)


def generate(folder: Path, images: NDArray[np.uint8], count: int) -> tuple[list[Path], set[tuple[str, str | None]]]:
    """Write `count` JPEGs of `images` `[N,H,W,3]`, half as files and half in archives.

    If `count` exceeds N, images repeat with a lower JPEG quality. One image in `DAMAGED` is unreadable.

    Returns the sources for `onecycle predict`, and the file and member names of all images.
    """

    def content(number: int) -> bytes:
        repetition, row = divmod(number, len(images))
        return b"not an image" if number % DAMAGED == 7 else jpeg(images[row], repetition)

    files, names = folder / "files", set()
    files.mkdir(parents=True)
    for number in range(count // 2):
        path = files / f"{number:06}.jpg"
        path.write_bytes(content(number))
        names.add((str(path), None))
    archives = []
    each = min(IN_AN_ARCHIVE, max(1, count // 4))
    for first in range(count // 2, count, each):
        archives.append(folder / f"{first:06}.tar")
        with tarfile.open(archives[-1], "w") as archive:
            for number in range(first, min(first + each, count)):
                member, data = tarfile.TarInfo(f"{number:06}.jpg"), content(number)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                names.add((str(archives[-1]), member.name))
    return [files, *archives], names


def jpeg(pixels: NDArray[np.uint8], repetition: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=max(50, 95 - 10 * repetition))
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
