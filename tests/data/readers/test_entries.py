import gzip
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onecycle.core.errors import InputError
from onecycle.data.readers import entries
from onecycle.data.readers.entries import BROKEN_LINK, LOOP, SPECIAL_FILE, archives_in, entries_of
from onecycle.data.readers.left_out import LeftOut

_NOISE = np.random.default_rng(0).bytes(20_000)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("a/one", "a/b/two", ".hidden", "a/.DS_Store", "__MACOSX/a/._one", ".git/config"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() + _NOISE)
    return root


def _tar(tree: Path) -> Path:
    with tarfile.open(tree.with_suffix(".tar"), "w") as archive:
        archive.add(tree, ".")
    return tree.with_suffix(".tar")


def _tar_gz(tree: Path) -> Path:
    with tarfile.open(tree.with_suffix(".tar.gz"), "w:gz") as archive:
        archive.add(tree, ".")
    return tree.with_suffix(".tar.gz")


def _zip(tree: Path) -> Path:
    with zipfile.ZipFile(tree.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(tree.rglob("*")):
            archive.write(path, path.relative_to(tree))
    return tree.with_suffix(".zip")


def _read(source: Path) -> dict[str, bytes]:
    return {"/".join(entry.parts): entry.read() for entry in entries_of(source) if not entry.is_folder}


@pytest.mark.parametrize("pack", [lambda tree: tree, _tar, _tar_gz, _zip], ids=["folder", "tar", "tar.gz", "zip"])
def test_a_folder_and_its_archives_hold_the_same_visible_files(tree: Path, pack: Callable[[Path], Path]) -> None:
    source = pack(tree)
    assert _read(source) == {name: name.encode() + _NOISE for name in ("a/one", "a/b/two")}
    assert {"/".join(entry.parts) for entry in entries_of(source) if entry.is_folder} - {""} == {"a", "a/b"}


@pytest.mark.parametrize("pack", [_tar, _tar_gz, _zip])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.98])
def test_a_truncated_archive_is_refused(tree: Path, pack: Callable[[Path], Path], share: float) -> None:
    archive = pack(tree)
    archive.write_bytes(archive.read_bytes().rstrip(b"\0")[: int(archive.stat().st_size * share)])
    with pytest.raises(
        InputError, match=r"tree\.\S+: cannot be read to its end \(.+\); check it, or download it again"
    ):
        _read(archive)


def test_a_tar_that_ends_between_two_files_is_refused(tree: Path) -> None:
    archive = _tar(tree)
    with tarfile.open(archive) as tar:
        last = tar.getmembers()[-1].offset
    archive.write_bytes(archive.read_bytes()[:last])
    with pytest.raises(InputError, match="unexpected end of data"):
        _read(archive)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_tar_with_a_damaged_header_is_refused(tree: Path, compressed: bool) -> None:
    archive = _tar(tree)
    with tarfile.open(archive) as tar:
        last = tar.getmembers()[-1].offset
    content = bytearray(archive.read_bytes())
    content[last : last + 100] = b"?" * 100
    archive.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(InputError, match="unexpected end of data"):
        _read(archive)


def test_a_wrong_checksum_is_refused(tree: Path) -> None:
    zipped, zipped_tar = _zip(tree), _tar_gz(tree)
    with zipfile.ZipFile(zipped) as archive:
        inside = archive.getinfo("a/one").header_offset + 1000
    for archive_path, position in [(zipped, inside), (zipped_tar, -8)]:
        content = bytearray(archive_path.read_bytes())
        content[position] ^= 255
        archive_path.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read to its end \(.*(CRC|invalid|Error)"):
            _read(archive_path)


@pytest.mark.parametrize("content", [b"", b"just text", b"\x1f\x8b", gzip.compress(b"just text", mtime=0), b"PK\3\4"])
def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"file\.zip: (not a \.zip, \.tar or \.tar\.gz archive|cannot be read)"):
        _read(tmp_path / "file.zip")


@pytest.mark.parametrize("pack", [lambda tree: tree, _tar, _tar_gz, _zip], ids=["folder", "tar", "tar.gz", "zip"])
def test_names_that_the_user_did_not_give_are_ignored(tree: Path, pack: Callable[[Path], Path]) -> None:
    names = ["a/Thumbs.db", "a/desktop.ini", "ehthumbs.db", ".thumbnails/1.png", "a/@eaDir/one/SYNOPHOTO_THUMB_M.jpg"]
    for name in [*names, "#recycle/old.png", "$RECYCLE.BIN/S-1/old.png", "System Volume Information/x", "lost+found/x"]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"not the user's")
    (tree / "a" / "@name.png").touch()
    source = pack(tree)
    assert _read(source).keys() == {"a/one", "a/b/two", "a/@name.png"}
    assert {"/".join(entry.parts) for entry in entries_of(source) if entry.is_folder} - {""} == {"a", "a/b"}


def test_the_documentation_lists_the_ignored_names() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "your-own-images.md"
    assert not [name for name in entries._SYSTEM_NAMES if f"`{name}`" not in page.read_text().lower()]


def test_links_are_followed_also_out_of_the_folder(tree: Path) -> None:
    outside = tree.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "three").write_text("3")
    (tree / "a" / "file").symlink_to(outside / "deep" / "three")
    (tree / "linked").symlink_to(outside)
    (tree / "again").symlink_to("linked")
    (tree / "a" / "inside").symlink_to(tree / "a" / "one")
    found = ("a/one", "a/b/two", "a/file", "linked/deep/three", "again/deep/three", "a/inside")
    assert _read(tree).keys() == set(found)
    linked = tree.parent / "other name"
    linked.symlink_to(tree)
    assert _read(linked).keys() == set(found)


def test_loops_of_links_end_and_links_without_a_target_are_named(tree: Path) -> None:
    outside = tree.parent / "outside"
    outside.mkdir()
    (tree / "a" / "around").symlink_to(tree)
    (tree / "a" / "here").symlink_to(".")
    (tree / "a" / "out").symlink_to(outside)
    (outside / "back").symlink_to(tree / "a")
    (outside / "itself").symlink_to("itself")
    (tree / "a" / "nowhere.png").symlink_to(tree / "missing")
    (tree / "a" / "below a file").symlink_to("one/two")
    os.mkfifo(tree / "pipe.png")
    left_out = LeftOut()
    for entry in entries_of(tree):
        assert not entry.is_image
        if entry.problem:
            left_out.add_entry(entry)
    assert left_out.names == {
        SPECIAL_FILE: ["pipe.png"],
        BROKEN_LINK: ["a/below a file", "a/nowhere.png", "a/out/itself"],
        LOOP: ["a/around", "a/here", "a/out/back"],
    }


def test_the_files_of_a_folder_come_before_its_folders_each_by_name(tree: Path) -> None:
    (tree / "z").touch()
    assert ["/".join(entry.parts) for entry in entries_of(tree)] == ["z", "a", "a/one", "a/b", "a/b/two"]


def test_archives_are_found_beside_ignored_names_only(tree: Path) -> None:
    folder = tree.parent / "archives"
    (folder / "@eaDir").mkdir(parents=True)
    (folder / "README").touch()
    (folder / "link").symlink_to("link")
    archive = shutil.move(_zip(tree), folder)
    assert archives_in(folder) == [Path(archive)]
    (folder / "images").mkdir()
    assert archives_in(folder) == []


@pytest.mark.parametrize("pack", [_tar, _zip])
def test_links_in_archives_are_refused(tree: Path, pack: Callable[[Path], Path]) -> None:
    os.symlink("/etc/hostname", tree / "a" / "link")
    archive = pack(tree)
    if archive.suffix == ".zip":  # zipfile stores the file behind a link, so write a link entry by hand
        with zipfile.ZipFile(archive, "w") as opened:
            link = zipfile.ZipInfo("a/link")
            link.external_attr = 0o120777 << 16
            opened.writestr(link, "/etc/hostname")
            opened.writestr("a/one", "1")
    with pytest.raises(InputError, match="a/link' is a symbolic link; put the file itself into the archive"):
        _read(archive)


@pytest.mark.parametrize("name", ["/a/one", "../one", "a/../../one", "C:/one", "..\\one"])
def test_names_that_lead_outside_of_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
        archive.writestr(name, "1")
    with pytest.raises(InputError, match="points outside the archive"):
        _read(tmp_path / "files.zip")


def test_a_file_without_a_name_is_skipped(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
        archive.writestr(".", "1")
        archive.writestr("one", "1")
    assert _read(tmp_path / "files.zip").keys() == {"one"}


def test_a_name_that_is_not_valid_text_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
        archive.writestr("\u00e4\u00e4.png", "1")
    path = tmp_path / "files.zip"
    path.write_bytes(path.read_bytes().replace("\u00e4\u00e4".encode(), b"\xff\xff\xff\xff"))
    with pytest.raises(InputError, match="files.zip: cannot be read to its end"):
        _read(path)


@pytest.mark.parametrize("pack", [lambda tree: tree, _tar, _tar_gz, _zip], ids=["folder", "tar", "tar.gz", "zip"])
def test_too_many_files_are_refused(tree: Path, pack: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = pack(tree)
    monkeypatch.setattr(entries, "MOST_ENTRIES", 2)
    with pytest.raises(InputError, match="holds more files and folders than the limit of 2"):
        _read(source)


@pytest.mark.parametrize("pack", [lambda tree: tree, _tar, _tar_gz, _zip], ids=["folder", "tar", "tar.gz", "zip"])
def test_a_file_above_the_size_limit_is_refused(
    tree: Path, pack: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pack(tree)
    monkeypatch.setattr(entries, "LARGEST_FILE", 10)
    with pytest.raises(InputError, match=r"a/(one|b/two): has [\d,]+ bytes; the limit is 10"):
        _read(source)


@pytest.mark.parametrize("pack", [_tar, _tar_gz, _zip], ids=["tar", "tar.gz", "zip"])
def test_an_archive_that_unpacks_to_too_much_is_refused(
    tree: Path, pack: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "a" / "zeros").write_bytes(bytes(100_000))
    source = pack(tree)
    monkeypatch.setattr(entries, "EXPANSION", (0, 50_000))
    with pytest.raises(InputError, match="unpacks to more than 50,000 bytes and may be a zip bomb"):
        _read(source)


def test_a_missing_folder_is_reported(tree: Path) -> None:
    shutil.rmtree(tree)
    with pytest.raises(InputError, match="No such file"):
        _read(tree)
