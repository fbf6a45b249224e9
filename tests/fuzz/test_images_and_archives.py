"""Mutated images and archives are read or refused in lines, by commands, the readers of data sets, and the service."""

import io
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from child import called, contents, onecycle
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from mutated_images import encoded, mutated_image
from mutations import Draw, mutated_bytes, zipped

from onecycle.core.errors import OnecycleError

Fuzz = Callable[[Callable[[], None]], None]
_SETTINGS = settings(max_examples=4, phases=[Phase.generate], database=None)  # shrinking would take minutes


def _within(folder: Path) -> tuple[Path, Path]:
    """A working folder for a command, and a folder outside of it that the command must leave as it is."""
    (folder / "within").mkdir()
    (folder / "outside").mkdir()
    (folder / "outside" / "precious").write_text("precious")
    return folder / "within", folder / "outside"


@pytest.mark.parametrize("reader", ["predict", "check", "service"])
def test_mutated_images_are_read_or_refused(reader: str, tmp_path_factory: pytest.TempPathFactory, fuzz: Fuzz) -> None:
    @_SETTINGS
    @given(data=st.data())
    def check(data: DataObject) -> None:
        here = tmp_path_factory.mktemp("images")
        within, outside = _within(here)
        for number in range(12):
            path = (
                within / "images" / "ab"[number % 2] / f"{number}{data.draw(st.sampled_from(['.png', '.tif', '.jpg']))}"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mutated_image(data.draw))
        before = contents(outside), sorted(here.iterdir()), contents(within)
        if reader == "service":
            outcome = called(_decode, sorted(map(str, within.glob("images/*/*"))), within=within)
        else:
            outcome = onecycle(reader, "images", within=within)
        outcome.require_clean(decodes=True)
        (within / "output").unlink()
        assert (contents(outside), sorted(here.iterdir()), contents(within)) == before

    fuzz(check)


def _decode(files: Sequence[str]) -> int:
    """Decode `files` like the service, in its memory. Print the refusals."""
    from onecycle.serve import decoder
    from onecycle.serve.limits import LIMITS

    requests, responses = io.BytesIO(), io.BytesIO()
    for content in map(Path.read_bytes, map(Path, files)):
        requests.write(decoder.REQUEST.pack(len(content)) + content)
    requests.seek(0)
    decoder.serve(requests, responses, size=32, most_pixels=LIMITS.pixels)
    responses.seek(len(decoder.READY))
    for _ in files:
        is_decoded, length = decoder.RESPONSE.unpack(responses.read(decoder.RESPONSE.size))
        answer = responses.read(length)
        if is_decoded:
            assert length == 3 * 32 * 32
        else:
            print(f"onecycle: {answer.decode()}", file=sys.stderr)
    assert not responses.read()
    return 0


# Archives

_PNG = encoded("RGB", "PNG")
_FILES = {f"{split}/{name}/{row}.png": _PNG for split in ("train", "test") for name in "ab" for row in range(2)}
_NAMES = [
    "../x",
    "/etc/x",
    "a\\b.png",
    "C:/x",
    "train/a/..",
    "train/a/\x1b[31m.png",
    "train/\udcff/x.png",
    "",
    "/",
    "a/" * 500,
]
_NAMES += [
    "train/a/0.png",
    "TRAIN/A/0.png",
    "train/a/0.png/x.png",
    "train/a\u0301/x.png",
    "train/á/x.png",
    "train/c /x.png",
]
_TYPES = [
    tarfile.REGTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
    b"S",
    b"L",
    b"x",
    b"g",
    b"?",
]
_PAX = {
    "size": ["0", "-1", "9" * 30, "nan"],
    "path": ["../x", "\0"],
    "GNU.sparse.map": ["0,9" * 9],
    "GNU.sparse.size": ["x", "99999999"],
}


def _files(draw: Draw) -> dict[str, bytes]:
    files = dict(_FILES)
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(_NAMES) | st.text(max_size=20))
        files[name] = draw(st.sampled_from([_PNG, b"", b"text"]) | st.binary(max_size=600))
    return files


def _a_zip(draw: Draw) -> bytes:
    return zipped(draw, {name.encode(errors="replace").decode(): content for name, content in _files(draw).items()})


def _a_tar(draw: Draw) -> bytes:
    buffer = io.BytesIO()
    format = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    with tarfile.open(fileobj=buffer, mode=draw(st.sampled_from(["w", "w:gz"])), format=format) as archive:
        for name, content in _files(draw).items():
            info = tarfile.TarInfo(name.replace("\0", "") or "x")
            info.size = len(content)
            if draw(st.integers(0, 9)) == 0:
                info.type = draw(st.sampled_from(_TYPES))
                info.linkname = draw(st.sampled_from(["/etc/passwd", "../../outside/precious", "train/a/0.png"]))
            if format == tarfile.PAX_FORMAT and draw(st.integers(0, 9)) == 0:
                key = draw(st.sampled_from(sorted(_PAX)))
                info.pax_headers = {key: draw(st.sampled_from(_PAX[key]))}
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("reader", ["check", "predict", "load"])
def test_mutated_archives_are_read_or_refused(
    reader: str,
    tmp_path_factory: pytest.TempPathFactory,
    fuzz: Fuzz,
    binary_archive: Path,
    python_archive: Path,
) -> None:
    cifar10 = {"binary": binary_archive, "python": python_archive}

    @_SETTINGS
    @given(data=st.data())
    def check(data: DataObject) -> None:
        here = tmp_path_factory.mktemp("archive")
        within, outside = _within(here)
        draw = data.draw
        kind = draw(st.sampled_from(["zip", "zip", "tar", "tar", *cifar10]))
        if kind in cifar10:
            (within / "archive.tar.gz").write_bytes(_mutated_cifar10(draw, cifar10[kind].read_bytes()))
        else:
            content = (_a_zip if kind == "zip" else _a_tar)(draw)
            (within / "archive.tar.gz").write_bytes(mutated_bytes(draw, content) if draw(st.booleans()) else content)
        before = contents(outside), sorted(here.iterdir())
        if reader == "load":
            outcome = called(_load, ["archive.tar.gz"], within=within)
        else:
            outcome = onecycle(
                reader, "archive.tar.gz", *(["--out", "out"] if reader == "predict" else []), within=within
            )
        outcome.require_clean(decodes=True)
        assert (contents(outside), sorted(here.iterdir())) == before
        assert {path.name for path in within.iterdir()} <= {"archive.tar.gz", "out", "output"}

    fuzz(check)


def _mutated_cifar10(draw: Draw, content: bytes) -> bytes:
    """An official archive with other content in one of its files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as before, tarfile.open(fileobj=buffer, mode="w:gz") as after:
        members = before.getmembers()
        changed = draw(st.integers(0, len(members) - 1))
        for number, member in enumerate(members):
            file = before.extractfile(member)
            inside = file.read() if file else b""
            if number == changed:
                inside = mutated_bytes(draw, inside)
                member.size = len(inside)
            after.addfile(member, io.BytesIO(inside))
    return buffer.getvalue()


def _load(arguments: Sequence[str]) -> int:
    """Load a data set as for training."""
    from onecycle.data import load_dataset

    try:
        dataset = load_dataset(Path(arguments[0]))
    except OnecycleError as error:
        print(f"onecycle: {error}", file=sys.stderr)
        return 2
    assert dataset.train.images.shape[1:] == (32, 32, 3)
    return 0
