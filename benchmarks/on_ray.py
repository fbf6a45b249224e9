"""Is anything lost when nodes of a Ray cluster die?

A study whose nodes are killed at random instants, against the same study by the local engine: how many of its runs are
done, and how many of them identical to the last bit. And many pictures, half of them in archives, labelled while a node
is killed half-way: how many of them are there how often, and how many labels are not the local engine's. The nodes are
on this machine, each with a core; one that is killed is gone with all that runs on it.
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

DAMAGED = 1000  # one picture of so many is no picture
IN_AN_ARCHIVE = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12, help="of the study")
    parser.add_argument("--nodes", type=int, default=3, help="with a core each")
    parser.add_argument("--kills", type=int, default=4, help="of nodes during the study; each is replaced by a new one")
    parser.add_argument("--study", default="--recipe quick --limit 5000 --device cpu", help="options of the study")
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--data", default="cifar10", help="where the pictures are from")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and nodes")
    parser.add_argument("--folder", type=Path, help="for all that is written meanwhile; temporary if none")
    parser.add_argument("--out", type=Path, default=Path("results/on_ray.json"))
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, Nodes() as nodes:
        for _ in range(options.nodes):
            nodes.add()
        study = studied(Path(folder), nodes, chance, options.study, runs=options.runs, kills=options.kills)
        print(study, flush=True)
        pictures = labelled(Path(folder), nodes, chance, options.data, options.pictures)
        print(pictures, flush=True)
    record = {
        "nodes": options.nodes,
        "study": study,
        "pictures": pictures,
        "environment": environment.describe(hardware.detect(), load().acceleration),
    }
    write(options.out, record)
    return 0


def onecycle(*words: object) -> list[str]:
    return [sys.executable, "-m", "onecycle", *map(str, words)]


def studied(
    folder: Path, nodes: Nodes, chance: random.Random, options: str, *, runs: int, kills: int
) -> dict[str, Any]:
    """The study by both engines, with nodes killed under the second."""
    words = ["study", *shlex.split(options), "--seeds", runs, "--cores", 1, "--workers", 0, "--out"]
    seconds = {}
    began = time.perf_counter()
    subprocess.run(onecycle(*words, folder / "local"), check=True)
    seconds["local"] = time.perf_counter() - began
    began = time.perf_counter()
    command = onecycle(*words, folder / "ray", "--engine", "ray", "--address", nodes.address)
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    mean = seconds["local"] / len(nodes.workers) / (kills + 1)
    killed = 0
    while killed < kills:
        wait_for(folder / "ray", "*/*/seed-*/checkpoint.safetensors", driver)  # or there is nothing to lose
        time.sleep(chance.uniform(0, 2 * mean))
        if driver.poll() is not None:
            break
        nodes.kill(chance.choice(nodes.workers))
        nodes.add()
        killed += 1
    told, _ = driver.communicate()
    seconds["ray"] = time.perf_counter() - began
    print(told)
    expected, made = (contents(next((folder / engine).iterdir())) for engine in ("local", "ray"))
    places = {str(Path(name).parent) for name in expected if name.endswith("/result.json")}
    same = [place for place in places if of(made, place) == of(expected, place)]
    return {
        "command": shlex.join(map(str, words[:-1])),
        "exit_code": driver.returncode,
        "runs": runs,
        "done": sum(name.endswith("/result.json") for name in made),
        "identical_to_the_local_engine": len(same),
        "nodes_killed": killed,
        "runs_begun_again_or_gone_on_with": told.count("lost with"),
        "seconds": {name: rounded(value) for name, value in seconds.items()},
    }


def of(files: dict[str, object], place: str) -> dict[str, object]:
    return {name: content for name, content in files.items() if name.startswith(f"{place}/")}


def labelled(folder: Path, nodes: Nodes, chance: random.Random, data: str, count: int) -> dict[str, Any]:
    """The pictures by both engines, with a node killed under the second when half of the parts are done."""
    sources, names = generate(folder / "pictures", load_dataset(data).train.images, count)
    seconds = {}
    began = time.perf_counter()
    subprocess.run(onecycle("predict", *sources, "--out", folder / "here"))
    seconds["local"] = time.perf_counter() - began
    parts = len(list((folder / "here" / "predictions").iterdir()))
    began = time.perf_counter()
    there = folder / "there"
    driver = subprocess.Popen(
        onecycle("predict", *sources, "--out", there, "--engine", "ray", "--address", nodes.address)
    )
    wait_for(there, "predictions/part-*.parquet", driver, parts // 2)
    done = len(list(there.glob("predictions/part-*.parquet")))
    nodes.kill(chance.choice(nodes.workers))
    driver.wait()
    seconds["ray"] = time.perf_counter() - began
    tables = {name: pq.read_table(there / name) for name in ("predictions", "unreadable")}
    found = Counter(name for table in tables.values() for name in keys(table))
    same = all(table.equals(pq.read_table(folder / "here" / name)) for name, table in tables.items())
    return {
        "exit_code": driver.returncode,
        "pictures": len(names),
        "in_archives": sum(member is not None for _, member in names),
        "parts": parts,
        "parts_done_when_the_node_was_killed": done,
        "exactly_once": sum(found[name] == 1 for name in names),
        "lost": sum(found[name] == 0 for name in names),
        "doubled": sum(times > 1 for times in found.values()),
        "unreadable": tables["unreadable"].num_rows,
        "identical_to_the_local_engine": same,
        "seconds": {name: rounded(value) for name, value in seconds.items()},
        "bytes_of_parquet": sum(path.stat().st_size for path in there.rglob("*.parquet")),
        "most_certain": pc.max(tables["predictions"]["probability"]).as_py(),
    }


def keys(table: pa.Table) -> list[tuple[str, str | None]]:
    return list(zip(table["file"].to_pylist(), table["member"].to_pylist(), strict=True))


def wait_for(folder: Path, pattern: str, driver: subprocess.Popen[Any], count: int = 1) -> None:
    """Until there are so many such files, or the driver has ended."""
    while driver.poll() is None and len(list(folder.glob(pattern))) < count:
        time.sleep(0.05)


def generate(folder: Path, images: NDArray[np.uint8], count: int) -> tuple[list[Path], set[tuple[str, str | None]]]:
    """JPEGs of `images` `[N,H,W,3]`, over and over with falling quality: half of them files, the others in archives."""

    def content(number: int) -> bytes:
        turn, row = divmod(number, len(images))
        return b"no picture" if number % DAMAGED == 7 else jpeg(images[row], turn)

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
                member, bytes_of_it = tarfile.TarInfo(f"{number:06}.jpg"), content(number)
                member.size = len(bytes_of_it)
                archive.addfile(member, io.BytesIO(bytes_of_it))
                names.add((str(archives[-1]), member.name))
    return [files, *archives], names


def jpeg(pixels: NDArray[np.uint8], turn: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=max(50, 95 - 10 * turn))
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
