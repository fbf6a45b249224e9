"""A folder of archives is one data set. Several processes decode the archives, and resume after an interruption."""

import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onecycle.core.errors import InputError, StorageError
from onecycle.data import load_dataset
from onecycle.data.check import check
from onecycle.data.readers.image_folder import read_image_folder
from onecycle.data.store import parallel_decode
from onecycle.data.store.cache import images_folder

ARCHIVES = 6
READ = """
import multiprocessing, sys, time
from onecycle.data import load_dataset
from onecycle.data.store import parallel_decode

run, most = parallel_decode._Task.run, int(sys.argv[3])

def run_or_wait(task, *arguments):
    if len(list(task.folder.glob("?" * 32))) >= most:  # the wanted number of archives is decoded
        if multiprocessing.parent_process():
            while True:  # until this helper finds that its parent has ended
                arguments[1]()
                time.sleep(0.01)
        sys.stdin.read()  # until the test closes the pipe
    run(task, *arguments)

parallel_decode._Task.run = run_or_wait
parallel_decode.usable_cores = lambda: int(sys.argv[2])
print(load_dataset(sys.argv[1]).fingerprint)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return images_folder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 600 small JPEG files of random pixels, in three classes."""
    rng = np.random.default_rng(0)
    for number in range(600):
        split = "test" if number % 5 == 0 else "train"
        path = tmp_path / "images" / split / f"class {number % 3}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def archives(folder: Path) -> Path:
    """A folder of archives in every format. They contain the files of `folder` in random order."""
    target = folder.parent / "archives"
    target.mkdir()
    files = np.random.default_rng(1).permutation(np.array(sorted(folder.rglob("*.jpg")), dtype=object))
    kinds = [".tar", ".tar.gz", ".zip", ".tgz", ".TAR", ".tar"]
    for number, (part, kind) in enumerate(zip(np.array_split(files, ARCHIVES), kinds, strict=True)):
        pack(target / f"{number}{kind}", folder, part)
    return target


def pack(archive: Path, folder: Path, files: Iterator[Path], top: str = "") -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for file in files:
                opened.write(file, top + str(file.relative_to(folder)))
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix.endswith("gz") else "w") as opened:
            for file in files:
                opened.add(file, top + str(file.relative_to(folder)))


def fingerprints(source: Path) -> list[str]:
    train, test = read_image_folder(source, 32).by_split.values()
    return [train.fingerprint, test.fingerprint]


def start(source: Path, processes: int = 1, *, wait_after: int = ARCHIVES) -> subprocess.Popen[str]:
    """Read `source` in a process. After `wait_after` archives, it waits until its standard input is closed.

    Its helpers then wait until it ends.
    """
    command = [sys.executable, "-c", READ, str(source), str(processes), str(wait_after)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True)


def decoded_in(cache: Path) -> set[Path]:
    """The folders with decoded archives in `cache`. They exist only until the whole data set is decoded."""
    return {path for path in cache.glob("unfinished-*/*") if re.fullmatch("[0-9a-f]{32}", path.name)}


def wait_for_decoded(cache: Path, process: subprocess.Popen[str], count: int = 1) -> None:
    while len(decoded_in(cache)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def blacken(decoded: set[Path]) -> int:
    """Make the decoded images of some archives black, and count them. Only if these are used, the data set has them."""
    for folder in decoded:
        (folder / "images").write_bytes(bytes((folder / "images").stat().st_size))
    return sum((folder / "images").stat().st_size // (32 * 32 * 3) for folder in decoded)


def black_images(source: Path) -> int:
    train, test = read_image_folder(source, 32).by_split.values()
    return sum(int((images.images == 0).all(axis=(1, 2, 3)).sum()) for images in (train, test))


@pytest.mark.parametrize("processes", [1, 3])
def test_archives_are_read_as_if_all_were_in_one_folder_in_any_number_of_processes(
    folder: Path, archives: Path, processes: int, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_decode, "usable_cores", lambda: processes)
    expected = fingerprints(folder)
    assert fingerprints(archives) == expected
    assert len(list(own_cache.iterdir())) == 2  # one data set from the folder, and one from the archives
    written = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*")}
    assert fingerprints(archives) == expected
    assert {path: path.stat().st_mtime_ns for path in own_cache.rglob("*")} == written


def test_the_same_test_set_is_drawn_from_archives_and_from_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for number, name in enumerate(("class 0", "class 1", "class 2")):  # one archive per class, as is common
        pack(tmp_path / "few" / f"{number}.tar", folder / "train", sorted((folder / "train" / name).iterdir()))
    one, other = (read_image_folder(source, 32) for source in (folder / "train", tmp_path / "few"))
    assert one.drawn == other.drawn is not None
    assert one.test.fingerprint == other.test.fingerprint


def test_each_archive_may_have_one_more_folder_around_its_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nested").mkdir()
    files = sorted(folder.rglob("*.jpg"))
    for number in range(2):
        pack(tmp_path / "nested" / f"{number}.tar", folder, files[number::2], top=f"part {number}/")
    assert fingerprints(tmp_path / "nested") == fingerprints(folder)
    shutil.rmtree(tmp_path / "nested")
    (tmp_path / "nested").mkdir()
    files = sorted((folder / "train").rglob("*.jpg"))
    for number in range(2):
        pack(tmp_path / "nested" / f"{number}.tar", folder / "train", files[number::2], top=f"part {number}/")
    assert load_dataset(tmp_path / "nested").train.classes == ("class 0", "class 1", "class 2")


def test_check_accepts_a_folder_of_archives(folder: Path, archives: Path) -> None:
    shutil.copy(folder / "train" / "class 1" / "0001.jpg", folder / "test" / "class 0" / "again.jpg")
    (folder / "train" / "class 0" / "truncated.jpg").write_bytes(
        (folder / "train" / "class 1" / "0001.jpg").read_bytes()[:300]
    )
    added = [folder / "test" / "class 0" / "again.jpg", folder / "train" / "class 0" / "truncated.jpg"]
    pack(archives / "added.tar", folder, added)
    (archives / "README.txt").write_text("a description")
    found, expected = check(archives), check(folder)
    assert (found.classes, found.counts) == (expected.classes, expected.counts)
    ((first, second),) = found.repeated
    assert {re.sub(".*:", "", image.name) for image in (first, second)} == {
        "train/class 1/0001.jpg",
        "test/class 0/again.jpg",
    }
    (problem,) = found.problems
    assert problem.startswith(f"{archives}/added.tar:train/class 0/truncated.jpg: the image cannot be read")


@pytest.mark.parametrize("stop_signal", [signal.SIGKILL, signal.SIGINT])
def test_after_an_interruption_archives_that_were_decoded_are_not_decoded_again(
    stop_signal: signal.Signals, archives: Path, own_cache: Path
) -> None:
    process = start(archives, wait_after=2)
    wait_for_decoded(own_cache, process, 2)
    process.send_signal(stop_signal)
    process.communicate()
    done = decoded_in(own_cache)
    assert 2 <= len(done) < ARCHIVES
    assert blacken(done) == black_images(archives) < 600
    assert len(list(own_cache.iterdir())) == 1


def test_helpers_end_with_the_process_that_started_them(archives: Path, own_cache: Path) -> None:
    def alive() -> list[str]:
        lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
        return [line for line in lines if str(archives).encode() in line]

    process = start(archives, processes=3, wait_after=1)
    wait_for_decoded(own_cache, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive()


def test_a_second_process_waits_for_the_first(archives: Path, own_cache: Path) -> None:
    first = start(archives, wait_after=1)
    wait_for_decoded(own_cache, first)
    second = start(archives)
    assert second.stderr
    assert second.stderr.readline() == f"another process is reading {archives}; waiting for it\n"
    before = decoded_in(own_cache)
    time.sleep(0.1)
    assert decoded_in(own_cache) == before
    printed = [process.communicate()[0] for process in (first, second)]
    assert printed[0] == printed[1] != ""
    assert len(list(own_cache.iterdir())) == 1


def test_a_changed_folder_of_archives_is_read_again(folder: Path, archives: Path) -> None:
    before = fingerprints(archives)
    red = folder / "train" / "class 0" / "red.jpg"
    Image.new("RGB", (32, 32), "red").save(red)
    pack(archives / "added.zip", folder, [red])
    after = read_image_folder(archives, 32)
    assert len(after.train) == 481
    assert [after.train.fingerprint, after.test.fingerprint] == fingerprints(folder) != before


def test_after_a_damaged_archive_the_others_stay_decoded(
    folder: Path, archives: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_decode, "usable_cores", lambda: 1)  # a single process decodes the archives in order
    last = max(archives.iterdir())
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"^{last}: cannot be read to its end \(unexpected end of data\)"):
        read_image_folder(archives, 32)
    assert len(decoded_in(own_cache)) == ARCHIVES - 1
    last.write_bytes(whole)
    assert blacken(decoded_in(own_cache)) == black_images(archives) < 600


def test_unusable_images_of_all_archives_are_listed_and_decoded_archives_are_kept(
    folder: Path, archives: Path, own_cache: Path
) -> None:
    for number in range(2):
        text = folder / "train" / "class 0" / f"text {number}.jpg"
        text.write_bytes(b"not an image")
        pack(archives / f"more {number}.tar", folder, [text])
    message = r"2 of 602 images cannot be used: .*more 0\.tar:train/class 0/text 0\.jpg: not an image .*more 1\.tar:"
    with pytest.raises(InputError, match=rf"^{archives}: {message}"):
        read_image_folder(archives, 32)
    for number in range(2):
        (archives / f"more {number}.tar").unlink()
    assert len(decoded_in(own_cache)) == ARCHIVES + 2
    blacken(decoded_in(own_cache))
    assert black_images(archives) == 600


def test_a_full_disk_gives_one_line_and_decoded_archives_are_kept(archives: Path, own_cache: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may be larger than 1 MB. Each decoded archive fits (300 KB), but the whole training set does not (1.5 MB).
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(
            StorageError, match=r"cannot be written \(File too large\); make room there, or set XDG_CACHE"
        ):
            read_image_folder(archives, 32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(decoded_in(own_cache)) == ARCHIVES
    assert blacken(decoded_in(own_cache)) == black_images(archives) == 600


def test_an_archive_that_changes_while_it_is_read_is_refused(archives: Path, tmp_path: Path) -> None:
    successive = iter(["before", "after"])
    first_archive = min(archives.iterdir())
    source = parallel_decode.DecodeSource(first_archive, next(successive), lambda _: next(successive))
    with pytest.raises(InputError, match=r"0\.tar: changed while it was read; try again"):
        parallel_decode.decode([source], 32, tmp_path)
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_duplicate_name_is_refused_with_its_archives(folder: Path, archives: Path) -> None:
    name = "train/class 1/0001.jpg"
    pack(archives / "more.tar", folder, [folder / name])
    with pytest.raises(InputError, match=rf"^{name} is in {archives}/\d\S+ and in more\.tar; keep one$"):
        read_image_folder(archives, 32)
    (archives / "more.tar").unlink()
    pack(archives.parent / "twice.tar", folder, [*sorted(folder.rglob("*.jpg")), folder / name])
    with pytest.raises(InputError, match=rf"^{archives.parent}/twice\.tar: contains {name} twice; keep one$"):
        read_image_folder(archives.parent / "twice.tar", 32)


def test_archives_of_classes_beside_archives_of_splits_are_refused(folder: Path, archives: Path) -> None:
    pack(archives / "other.tar", folder / "train", [folder / "train" / "class 1" / "0001.jpg"])
    with pytest.raises(
        InputError, match=rf"^{archives}/other\.tar: has no split such as train/ or test/, but {archives}/0\.tar has"
    ):
        read_image_folder(archives, 32)


def test_archives_called_train_and_test_without_these_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    for split in ("train", "test"):
        pack(tmp_path / "sets" / f"{split}.tar", folder / split, sorted((folder / split).rglob("*.jpg")))
    with pytest.raises(InputError, match=r"test\.tar: test looks like a split; move the class folders of this archive"):
        read_image_folder(tmp_path / "sets", 32)
