"""List and read the files in a folder or an archive. Archives are never extracted."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onecycle.core.errors import InputError, OnecycleError
from onecycle.core.files import printable
from onecycle.data.preprocessing import LARGEST_FILE, suffixes
from onecycle.data.readers.archive_members import Member, tar_members, too_large, zip_members

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

# These limits are far above what image data needs, and low enough that a zip bomb cannot fill memory or run for hours.
MOST_ENTRIES = 10_000_000
EXPANSION = 100, 2**28  # an archive may unpack to 100 times its size plus 256 MiB


@dataclass(frozen=True)
class Entry:
    """A file or a folder. `parts` is its path, split into names. Call `read` before requesting the next entry."""

    parts: tuple[str, ...]
    is_folder: bool
    read: Callable[[], bytes]


def entries_of(source: Path) -> Iterator[Entry]:
    """Yield the files and folders in `source`, a folder or an archive (.zip, .tar or .tar.gz, detected by content).

    Hidden names and macOS's `__MACOSX` are skipped. In a folder, links to files outside the folder are skipped, too.

    Raises:
        InputError: when `source` is unreadable, truncated or not an archive, when it contains too many or too large
            files, or when an archive is encrypted or contains links, devices or paths that point outside the archive.
    """
    with _one_line_errors(source):
        if source.is_dir():
            entries = _folder_entries(source, source.resolve(), ())
        else:
            with source.open("rb") as file:
                start = file.read(512)
            if start.startswith(b"PK"):
                entries = _archive_entries(source, zip_members(source))
            elif start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
                compressed = start.startswith(b"\x1f\x8b")
                entries = _archive_entries(source, tar_members(source, _most_bytes(source), compressed=compressed))
            else:
                raise InputError(f"{source}: not a .zip, .tar or .tar.gz archive; give an archive or a folder")
        for number, entry in enumerate(entries):
            if number >= MOST_ENTRIES:
                raise InputError(f"{source}: holds more than {MOST_ENTRIES:,} files and folders, the limit; split it")
            if entry.parts and not any(part.startswith(".") or part == "__MACOSX" for part in entry.parts):
                yield entry


def archives_in(folder: Path) -> list[Path]:
    """The archives in `folder`, sorted by name. The list is empty if `folder` also contains folders or images."""
    if not folder.is_dir():
        return []
    with _one_line_errors(folder), os.scandir(folder) as scan:
        found = sorted((item for item in scan if not item.name.startswith(".")), key=lambda item: item.name)
    if any(item.is_dir() or Path(item.name).suffix.lower() in suffixes() for item in found):
        return []
    return [Path(item.path) for item in found if item.name.lower().endswith(ARCHIVE_SUFFIXES)]


def _folder_entries(root: Path, resolved_root: Path, inside: tuple[str, ...]) -> Iterator[Entry]:
    with os.scandir(root.joinpath(*inside)) as scan:
        found = sorted(scan, key=lambda item: item.name)
    for item in found:
        parts = (*inside, item.name)
        if item.is_dir(follow_symlinks=False):
            if not item.name.startswith("."):
                yield Entry(parts, True, bytes)
                yield from _folder_entries(root, resolved_root, parts)
        elif item.is_file() and not (item.is_symlink() and not Path(item.path).resolve().is_relative_to(resolved_root)):
            file = Path(item.path)
            yield Entry(parts, False, _reader(file, file.read_bytes, item.stat().st_size, str(file)))


def _archive_entries(path: Path, members: Iterator[Member]) -> Iterator[Entry]:
    most_bytes = left = _most_bytes(path)
    for member in members:
        # What is claimed counts, too: a sparse file in a tar unpacks to more bytes than the archive holds.
        left -= member.size
        if left < 0:
            raise too_large(path, most_bytes)
        read = _reader(path, member.read, member.size, printable(f"{path}:{member.name}"))
        yield Entry(_parts(member.name, path), member.is_folder, read)


def _parts(name: str, path: Path) -> tuple[str, ...]:
    if re.match(r"[/\\]|[A-Za-z]:[/\\]", name) or ".." in re.split(r"[/\\]", name):
        raise InputError(
            f"{path}: the path {name!r} points outside the archive; create the archive again from inside the folder"
        )
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _most_bytes(path: Path) -> int:
    """The largest number of bytes that the archive `path` may unpack to."""
    times, more = EXPANSION
    return times * path.stat().st_size + more


def _reader(path: Path, read: Callable[[], bytes], size: int, where: str) -> Callable[[], bytes]:
    def checked_read() -> bytes:
        if size > LARGEST_FILE:
            raise InputError(f"{where}: has {size:,} bytes; the limit is {LARGEST_FILE:,}; replace or remove it")
        with _one_line_errors(path):
            return read()

    return checked_read


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn any error of the archive libraries into an InputError with one line about `path`."""
    try:
        yield
    except OnecycleError:
        raise
    except Exception as error:  # damaged archives raise many kinds of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read to its end ({reason}); check it, or download it again") from error
