"""Fixtures of all tests: a separate cache, no access to the web, and tiny data sets made from the embedded digits."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; torch reads OMP_NUM_THREADS on import
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
import pickle
import platform
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from local_ray_nodes import SETTINGS, Nodes
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from onecycle.compute.kernels import native
from onecycle.data import ImageSet, load_dataset

# No deadline, because durations depend on the machine. In CI the examples are always the same.
settings.register_profile(
    "onecycle", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("onecycle")

# A shell makes background jobs ignore SIGINT. The processes that the tests start would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests fork processes from one server process, which imports the slow modules once.
_IMPORTED = ("data.augment.albumentations", "report.plots", "run.experiment", "study.study", "cli")
multiprocessing.get_context("forkserver").set_forkserver_preload(
    [*(f"onecycle.{name}" for name in _IMPORTED), "torch._dynamo"]
)

_DATA = os.environ.get("ONECYCLE_DATA")


@pytest.fixture(scope="module")
def timm_stand_in() -> Iterator[None]:
    """Import the stand-in for timm, whose tiny network is the backbone `timm:tiny`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "stand_ins")
        patch.delitem(sys.modules, "timm", raising=False)
        yield
        sys.modules.pop("timm", None)


@pytest.fixture(scope="session")
def for_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test workers share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def cache_home(for_all_workers: Path) -> Iterator[Path]:
    """One cache for all fixtures: kernels are compiled once, and all runs use the compute plan of the first run."""
    folder = for_all_workers / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def isolated(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the user's cache and data from the test. Block downloads: the proxy is port 9, where nothing listens."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    # Tests that run in parallel disturb each other's measurements of compute plans. Such measurements age.
    for file in cache_home.glob("onecycle/autotune/*.json"):
        with suppress(FileNotFoundError):
            os.utime(file)
    monkeypatch.delenv("ONECYCLE_DATA", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium or Chrome, if it is installed."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def ray_settings(cache_home: Path) -> Iterator[None]:
    """Set the environment variables that Ray's processes read when they start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def nodes(ray_settings: None) -> Iterator[Nodes]:
    """A Ray cluster of two nodes with one core each, and a head without cores."""
    with Nodes() as nodes:
        for _ in range(2):
            nodes.add()
        yield nodes


@pytest.fixture(scope="session")
def native_kernels(cache_home: Path) -> None:
    """Require the native kernels, which every Linux machine with a C compiler must have. Others skip the test."""
    if platform.system() != "Linux" or not shutil.which("cc"):
        pytest.skip("the native kernels need Linux and a C compiler")
    assert native.compiled() is not None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with CIFAR-10 and its samples: `$ONECYCLE_DATA`, or `shared/cifar10` beside the repository."""
    folder = Path(_DATA) if _DATA else Path(__file__).resolve().parents[2] / "shared" / "cifar10"
    if not (folder / "cifar-10-binary-sample.tar.gz").is_file():
        pytest.skip(f"the CIFAR-10 files are not in {folder}; set ONECYCLE_DATA to their folder")
    return folder.resolve()


@pytest.fixture(scope="session")
def tiny() -> tuple[ImageSet, ImageSet]:
    """The first five training and two test digits of each class, in the order of the data set."""
    digits = load_dataset("digits")

    def first(images: ImageSet, each: int) -> ImageSet:
        return images.subset(np.sort(np.concatenate([np.flatnonzero(images.labels == c)[:each] for c in range(10)])))

    return first(digits.train, 5), first(digits.evaluation, 2)


@pytest.fixture(scope="session")
def image_folder(tiny: tuple[ImageSet, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set as `train/<class>/<row>.png` and `test/<class>/<row>.png`. Copy it to change it."""
    root = tmp_path_factory.mktemp("folder") / "handwritten"
    for split, images in zip(("train", "test"), tiny, strict=True):
        for row, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            path = root / split / images.classes[label] / f"{row:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="session")
def binary_folder(tiny: tuple[ImageSet, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set in CIFAR-10's binary layout, with ten records per training batch. Copy it to change it."""
    root = tmp_path_factory.mktemp("binary") / "cifar-10-batches-bin"
    root.mkdir()
    (root / "batches.meta.txt").write_text("\n".join(tiny[0].classes) + "\n\n")
    for name, batch in _batches(tiny).items():
        records = np.concatenate([batch.labels[:, None].astype(np.uint8), _planes(batch)], axis=1)
        (root / f"{name}.bin").write_bytes(records.tobytes())
    return root


@pytest.fixture(scope="session")
def python_folder(tiny: tuple[ImageSet, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set in CIFAR-10's python layout. Copy it to change it."""
    root = tmp_path_factory.mktemp("python") / "cifar-10-batches-py"
    root.mkdir()
    names = {b"label_names": [name.encode() for name in tiny[0].classes]}
    (root / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    for name, batch in _batches(tiny).items():
        values = {b"batch_label": name.encode(), b"labels": batch.labels.tolist(), b"data": _planes(batch)}
        (root / name).write_bytes(pickle.dumps(values, protocol=2))
    return root


@pytest.fixture(scope="session")
def binary_archive(binary_folder: Path) -> Path:
    return _archived(binary_folder, "cifar-10-binary.tar.gz")


@pytest.fixture(scope="session")
def python_archive(python_folder: Path) -> Path:
    return _archived(python_folder, "cifar-10-python.tar.gz")


def _archived(folder: Path, name: str) -> Path:
    path = folder.parents[1] / f"{folder.parent.name}-archive" / name
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def _batches(tiny: tuple[ImageSet, ImageSet]) -> dict[str, ImageSet]:
    train, test = tiny
    parts = [train.subset(rows) for rows in np.split(np.arange(len(train)), 5)]
    return {f"data_batch_{i}": part for i, part in enumerate(parts, start=1)} | {"test_batch": test}


def _planes(batch: ImageSet) -> np.ndarray:
    return np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2)).reshape(len(batch), -1)  # [n,32,32,3] -> [n,3072]
