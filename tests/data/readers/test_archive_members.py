"""Archives are read as their writer meant them, and never take more memory than they claim to need."""

import base64
import gzip
import io
import os
import struct
import tarfile
import tracemalloc
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from onecycle.core.errors import InputError
from onecycle.data.readers.entries import entries_of

MIB = 2**20

# By Info-ZIP's zip 3.0 of Debian: `zip -r -X` of köt/1.png, with its name in UTF-8, and `zip -r -X -P secret`.
INFO_ZIP = (
    "UEsDBAoAAAAAANa2fV0AAAAAAAAAAAAAAAAFAAAAa8O2dC9QSwMECgAAAAAA1rZ9XYMW3IwBAAAAAQAAAAoAAABrw7Z0LzEucG5n"
    "eFBLAQIeAwoAAAAAANa2fV0AAAAAAAAAAAAAAAAFAAAAAAAAAAAAEADtQQAAAABrw7Z0L1BLAQIeAwoAAAAAANa2fV2DFtyMAQAA"
    "AAEAAAAKAAAAAAAAAAEAAACkgSMAAABrw7Z0LzEucG5nUEsFBgAAAAACAAIAawAAAEwAAAAAAA=="
)
ENCRYPTED = (
    "UEsDBAoACQAAALi2fV2DFtyMDQAAAAEAAAADAAAAYS8xJTd6nCsyk9RBkIAjsFBLBwiDFtyMDQAAAAEAAABQSwECHgMKAAkAAAC4"
    "tn1dgxbcjA0AAAABAAAAAwAAAAAAAAABAAAApIEAAAAAYS8xUEsFBgAAAAABAAEAMQAAAD4AAAAAAA=="
)


def read(path: Path) -> dict[str, bytes]:
    return {"/".join(entry.parts): entry.read() for entry in entries_of(path) if not entry.is_folder}


def zip_with(path: Path, names: Sequence[bytes], extra: bytes = b"") -> Path:
    """Write a zip whose members have these raw names, without the flag for UTF-8. Each contains its number."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            member = zipfile.ZipInfo("x")
            member.filename = f"{number}".rjust(len(name), "#")
            member.extra = extra
            archive.writestr(member, f"{number}")
    content = path.read_bytes()
    for number, name in enumerate(names):
        content = content.replace(f"{number}".rjust(len(name), "#").encode(), name)
    path.write_bytes(content)
    return path


def unicode_path(raw: bytes, name: str) -> bytes:
    """Info-ZIP's extra field that says that `raw` means `name`."""
    field = struct.pack("<BL", 1, zlib.crc32(raw)) + name.encode()
    return struct.pack("<HH", 0x7075, len(field)) + field


def test_backslashes_separate_folders_in_a_zip_without_slashes(tmp_path: Path) -> None:
    path = zip_with(tmp_path / "windows.zip", [b"photos\\cats\\1.png", b"photos\\dogs\\2.png", b"photos\\empty\\"])
    assert read(path) == {"photos/cats/1.png": b"0", "photos/dogs/2.png": b"1"}
    assert [entry.parts for entry in entries_of(path) if entry.is_folder] == [("photos", "empty")]


def test_a_backslash_may_be_a_part_of_a_letter(tmp_path: Path) -> None:
    japanese = [f"{letter}/1.png".encode("cp932") for letter in "表能"]  # their second byte is that of a backslash
    path = zip_with(tmp_path / "japanese.zip", japanese)
    assert list(read(path)) == [name.decode("cp437") for name in japanese]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("köt/é.png".encode(), "köt/é.png"),  # as macOS's Archive Utility writes it
        (unicodedata.normalize("NFD", "köt/é.png").encode(), unicodedata.normalize("NFD", "köt/é.png")),
        ("猫/कुत्ता.png".encode(), "猫/कुत्ता.png"),
        ("😀/1.png".encode(), "😀/1.png"),
        ("köt/é.png".encode("cp437"), "köt/é.png"),  # as Windows wrote it in western countries
        ("köt/1.png".encode("cp1252"), "k÷t/1.png"),  # the code page is unknown
        (b"plain/1.png\0.exe", "plain/1.png"),
    ],
)
def test_a_name_without_the_flag_for_utf_8_is_read_as_its_writer_meant_it(
    tmp_path: Path, raw: bytes, name: str
) -> None:
    assert read(zip_with(tmp_path / "names.zip", [raw, b"a/b.png"])) == {name: b"0", "a/b.png": b"1"}


def test_a_zip_by_info_zip_is_read_as_it_was_meant(tmp_path: Path) -> None:
    (tmp_path / "info-zip.zip").write_bytes(base64.b64decode(INFO_ZIP))
    assert read(tmp_path / "info-zip.zip") == {"köt/1.png": b"x"}


def test_a_folder_has_one_name_whatever_its_files_are_called(tmp_path: Path) -> None:
    path = zip_with(
        tmp_path / "names.zip", ["köt/".encode() + file for file in (b"1.png", b"\xff.png", "ö.png".encode())]
    )
    assert {entry.parts[0] for entry in entries_of(path)} == {"köt"}


def test_a_name_in_an_extra_field_is_used_if_it_belongs_to_the_member(tmp_path: Path) -> None:
    raw = b"k?t/1.png"
    timestamp = struct.pack("<HHBL", 0x5455, 5, 1, 0)
    for number, (extra, name) in enumerate(
        [
            (timestamp + unicode_path(raw, "猫/1.png"), "猫/1.png"),
            (unicode_path(b"renamed/1.png", "猫/1.png"), "k?t/1.png"),
        ]
    ):
        assert list(read(zip_with(tmp_path / f"{number}.zip", [raw], extra))) == [name]


@pytest.mark.parametrize(
    ("raw", "extra"),
    [
        (b"..\\x.png", b""),
        (b"a\\..\\..\\x.png", b""),
        (b"\\x.png", b""),
        ("é/../../x.png".encode(), b""),
        ("..\\é.png".encode(), b""),
        (b"x.png", unicode_path(b"x.png", "../x.png")),
        (b"x.png", unicode_path(b"x.png", "C:\\x.png")),
    ],
)
def test_a_name_that_leads_outside_is_refused_however_it_is_written(tmp_path: Path, raw: bytes, extra: bytes) -> None:
    with pytest.raises(InputError, match="points outside the archive"):
        read(zip_with(tmp_path / "names.zip", [raw], extra))


def test_an_encrypted_zip_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "encrypted.zip"
    path.write_bytes(base64.b64decode(ENCRYPTED))
    with pytest.raises(InputError, match=rf"^{path}: is encrypted; unpack it, or create it again without a password$"):
        list(entries_of(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_needs_another_method_than_deflate_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "files.zip", "w", method) as archive:
        archive.writestr("a/1.png", "1")
    with pytest.raises(InputError, match=r"'a/1\.png' is not compressed by deflate, .*; create the archive again with"):
        list(entries_of(tmp_path / "files.zip"))


def test_links_in_a_tar_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_text("1")
    os.link(tmp_path / "a" / "1.png", tmp_path / "a" / "hard.png")
    os.symlink("1.png", tmp_path / "a" / "soft.png")
    for name, message in [
        ("hard", r"'a/hard\.png' is a hard link; put a copy of the file into the archive \(tar --hard-dereference\)"),
        ("soft", r"'a/soft\.png' is a symbolic link; put the file itself into the archive \(tar --dereference, "),
    ]:
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for file in ("1", name):
                archive.add(tmp_path / "a" / f"{file}.png", f"a/{file}.png")
        with pytest.raises(InputError, match=message):
            read(tmp_path / f"{name}.tar")


# Memory


def most_memory(path: Path) -> tuple[int, str]:
    """The peak of memory in bytes while all of `path` is read, and the first error."""
    error = ""
    tracemalloc.start()
    try:
        for entry in entries_of(path):
            try:
                entry.read()
            except InputError as unreadable:
                error = error or str(unreadable)
    except InputError as refused:
        error = error or str(refused)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, error


def lying_zip(path: Path, method: int, claimed: int) -> Path:
    """Write a zip with a member that unpacks to 64 MiB of zeros and claims to have `claimed` bytes."""
    with zipfile.ZipFile(path, "w", method, compresslevel=9) as archive:
        archive.writestr("a/1.png", bytes(64 * MIB))
    true, false = (struct.pack("<L", size) for size in (64 * MIB, claimed))
    path.write_bytes(path.read_bytes().replace(true, false))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("claimed", [0, 100, MIB])
def test_a_member_of_a_zip_is_not_unpacked_beyond_what_it_claims(tmp_path: Path, method: int, claimed: int) -> None:
    peak, _ = most_memory(lying_zip(tmp_path / "files.zip", method, claimed))
    assert peak < 4 * MIB


def test_a_member_of_a_zip_that_claims_less_than_it_has_is_unreadable(tmp_path: Path) -> None:
    _, error = most_memory(lying_zip(tmp_path / "files.zip", zipfile.ZIP_DEFLATED, 100))
    assert "files.zip: cannot be read to its end (Bad CRC-32" in error


def extended(kind: bytes, content: bytes) -> bytes:
    """A tar's extended header of this type, with the blocks of its content."""
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def pax(key: str, size: int, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended pax header that sets `key` to `size` zeros."""
    length = len(f" {key}=\n") + size
    length += len(str(length + len(str(length))))
    return extended(kind, f"{length} {key}=".encode() + bytes(size) + b"\n")


def member(name: str) -> bytes:
    return tarfile.TarInfo(name).tobuf()


LARGE_HEADERS: Mapping[str, list[bytes]] = {
    "one pax header at the start": [pax("comment", 64 * MIB), member("a")],
    "one pax header": [member("first"), pax("comment", 64 * MIB), member("a")],
    "one global pax header": [pax("comment", 64 * MIB, tarfile.XGLTYPE), member("a")],
    "a long name": [extended(tarfile.GNUTYPE_LONGNAME, b"a" * 64 * MIB), member("a")],
    "a long link": [extended(tarfile.GNUTYPE_LONGLINK, b"a" * 64 * MIB), member("a")],
    "many pax headers of one member": [pax("comment", MIB // 2)] * 64 + [member("a")],
    "many global pax headers": [
        part for number in range(64) for part in (pax(f"{number}", MIB // 2, tarfile.XGLTYPE), member(f"{number}"))
    ],
}


@pytest.mark.parametrize("kind", LARGE_HEADERS)
def test_large_headers_of_a_tar_are_refused_before_they_are_in_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "files.tar.gz"
    path.write_bytes(gzip.compress(b"".join([*LARGE_HEADERS[kind], bytes(10240)])))
    peak, error = most_memory(path)
    assert f"{path}: the headers of a file have more than 1,048,576 bytes; create the archive again" in error
    assert peak < 12 * MIB


def test_the_headers_of_a_tar_are_not_kept(tmp_path: Path) -> None:
    parts = [part for number in range(64) for part in (pax("comment", MIB // 2), member(f"{number}"))]
    (tmp_path / "files.tar.gz").write_bytes(gzip.compress(b"".join([*parts, bytes(10240)])))
    peak, error = most_memory(tmp_path / "files.tar.gz")
    assert error == ""
    assert peak < 12 * MIB


def test_long_names_and_large_headers_below_the_limit_are_read(tmp_path: Path) -> None:
    names = ["/".join(["folder" * 20] * 20) + f"/{number}" for number in range(3)]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "files.tar", "w", format=format, pax_headers={"comment": "c" * 1000}) as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 3 * MIB
                info.pax_headers = {"SCHILY.xattr.user.note": "n" * 500_000}
                archive.addfile(info, io.BytesIO(bytes(info.size)))
        assert read(tmp_path / "files.tar") == dict.fromkeys(names, bytes(3 * MIB))


def test_a_sparse_file_of_many_parts_is_read_quickly(tmp_path: Path) -> None:
    parts = 20_000
    size = 64 * MIB
    starts = ",".join(f"{size // parts * part},1" for part in range(parts))
    info = tarfile.TarInfo("a")
    info.size = parts
    info.pax_headers = {"GNU.sparse.map": starts, "GNU.sparse.size": f"{size}"}
    with tarfile.open(tmp_path / "files.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"x" * parts))
    ((content,),) = [read(tmp_path / "files.tar").values()]
    assert len(content) == size and content.count(b"x") == parts
