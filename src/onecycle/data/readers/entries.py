"""List and read the files in a folder or an archive. Archives are never extracted."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onecycle.core.errors import InputError, OnecycleError
from onecycle.core.files import printable
from onecycle.data.image_files import LARGEST_FILE, has_image_suffix
from onecycle.data.readers.archive_members import Member, tar_members, too_large, zip_members

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

# These limits are far above what image data needs, and low enough that a zip bomb cannot fill memory or run for hours.
MOST_ENTRIES = 10_000_000
EXPANSION = 100, 2**28  # an archive may unpack to 100 times its size plus 256 MiB


# Operating systems and network storage write files and folders with these names into the user's folders. Names are
# compared in lower case.
_SYSTEM_NAMES = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    *("$recycle.bin", "system volume information", "#recycle", "lost+found"),
}

BROKEN_LINK = "link without a target"
LOOP = "link to a folder that contains it"
SPECIAL_FILE = "file of a special kind, such as a pipe"


def is_ignored(name: str, *, is_folder: bool) -> bool:
    """Whether a file or folder is ignored, so that it is neither read nor counted as left out.

    A file or folder is ignored if its name starts with a dot, which hides it, or is a name that operating systems or
    network storage use. A folder is also ignored if its name starts with @, because network storage keeps thumbnails
    in such folders. These files and folders do not come from the user.
    """
    return name.startswith(".") or (is_folder and name.startswith("@")) or name.lower() in _SYSTEM_NAMES


@dataclass(frozen=True)
class Entry:
    """A file or a folder. `parts` is its path, split into names. Call `read` before requesting the next entry.

    If the entry is neither a folder nor a file that can be read, `problem` is a reason for `LeftOut`. Otherwise it is
    empty.
    """

    parts: tuple[str, ...]
    is_folder: bool
    read: Callable[[], bytes]
    problem: str = ""

    @property
    def is_image(self) -> bool:
        """Whether the entry is a file with the suffix of a supported image format."""
        return not (self.is_folder or self.problem) and has_image_suffix(self.parts[-1])


def entries_of(source: Path) -> Iterator[Entry]:
    """Yield the files and folders in `source`, a folder or an archive (.zip, .tar or .tar.gz, detected by content).

    Names for which `is_ignored` is true are skipped. In a folder, links are followed.

    Raises:
        InputError: when `source` is unreadable, truncated or not an archive, or when it contains too many files or a
            file that is too large. Also when an archive is encrypted, contains links or devices, or contains a path
            that points outside the archive.
    """
    with one_line_errors(source):
        if source.is_dir():
            entries = folder_entries(source, _raise)
        else:
            with source.open("rb") as file:
                start = file.read(512)
            if start.startswith(b"PK"):
                entries = _archive_entries(source, zip_members(source))
            elif start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
                compressed = start.startswith(b"\x1f\x8b")
                entries = _archive_entries(source, tar_members(source, most_bytes(source), compressed=compressed))
            else:
                raise InputError(f"{source}: not a .zip, .tar or .tar.gz archive; give an archive or a folder")
        for number, entry in enumerate(entries):
            if number >= MOST_ENTRIES:
                raise InputError(f"{source}: holds more files and folders than the limit of {MOST_ENTRIES:,}; split it")
            if entry.parts and not _is_inside_ignored(entry):
                yield entry


def archives_in(folder: Path) -> list[Path]:
    """The archives in `folder`, sorted by name. The list is empty if `folder` also contains folders or images."""
    if not folder.is_dir():
        return []
    with one_line_errors(folder), os.scandir(folder) as scan:
        found = sorted((Path(item.path) for item in scan), key=lambda path: path.name)
    visible = [path for path in found if not is_ignored(path.name, is_folder=os.path.isdir(path))]
    if any(os.path.isdir(path) or has_image_suffix(path.name) for path in visible):
        return []
    return [path for path in visible if path.name.lower().endswith(ARCHIVE_SUFFIXES)]


def folder_entries(root: Path, on_error: Callable[[OSError], None]) -> Iterator[Entry]:
    """Yield the files and folders in `root`, sorted by name. In each folder, the files come first.

    Links are followed, except for a link to a folder that contains the link. `on_error` is called with the error of a
    folder or file that cannot be read, and may raise it.
    """
    return _entries_below(root, (), [], on_error)


def _entries_below(
    root: Path, inside: tuple[str, ...], around: list[os.stat_result], on_error: Callable[[OSError], None]
) -> Iterator[Entry]:
    """Yield the entries in and below one folder.

    `inside` is the path from `root` to this folder. `around` has the status of each folder above this folder, starting
    with `root`.
    """
    try:
        around = [*around, root.joinpath(*inside).stat()]
        with os.scandir(root.joinpath(*inside)) as scan:
            found = sorted(scan, key=lambda item: item.name)
    except OSError as error:
        on_error(error)
        return
    folders: list[tuple[str, ...]] = []
    for item in found:
        if is_ignored(item.name, is_folder=False):
            continue
        parts, file = (*inside, item.name), Path(item.path)
        try:
            status = file.stat()
        except OSError as error:
            if item.is_symlink():
                yield Entry(parts, False, bytes, BROKEN_LINK)
            else:
                on_error(error)
            continue
        if stat.S_ISDIR(status.st_mode):
            if any(os.path.samestat(status, other) for other in around):
                yield Entry(parts, False, bytes, LOOP)
            elif not is_ignored(item.name, is_folder=True):
                folders.append(parts)
        elif stat.S_ISREG(status.st_mode):
            yield Entry(parts, False, _reader(file, file.read_bytes, status.st_size, str(file)))
        else:
            yield Entry(parts, False, bytes, SPECIAL_FILE)
    for parts in folders:
        yield Entry(parts, True, bytes)
        yield from _entries_below(root, parts, around, on_error)


def _raise(error: OSError) -> None:
    raise error


def _is_inside_ignored(entry: Entry) -> bool:
    *folders, name = entry.parts
    return is_ignored(name, is_folder=entry.is_folder) or any(is_ignored(part, is_folder=True) for part in folders)


def _archive_entries(path: Path, members: Iterator[Member]) -> Iterator[Entry]:
    most = left = most_bytes(path)
    for member in members:
        # Limit the sum of the claimed sizes, because a sparse file in a tar unpacks to more bytes than the tar holds.
        left -= member.size
        if left < 0:
            raise too_large(path, most)
        read = _reader(path, member.read, member.size, printable(f"{path}:{member.name}"))
        yield Entry(_parts(member.name, path), member.is_folder, read)


def _parts(name: str, path: Path) -> tuple[str, ...]:
    if re.match(r"[/\\]|[A-Za-z]:[/\\]", name) or ".." in re.split(r"[/\\]", name):
        raise InputError(
            f"{path}: the path {name!r} points outside the archive; create the archive again from inside the folder"
        )
    return tuple(part for part in name.split("/") if part not in ("", "."))


def most_bytes(path: Path) -> int:
    """The largest number of bytes that the archive `path` may unpack to."""
    times, more = EXPANSION
    return times * path.stat().st_size + more


def _reader(path: Path, read: Callable[[], bytes], size: int, where: str) -> Callable[[], bytes]:
    def checked_read() -> bytes:
        if size > LARGEST_FILE:
            raise InputError(f"{where}: has {size:,} bytes; the limit is {LARGEST_FILE:,}; replace or remove it")
        with one_line_errors(path):
            return read()

    return checked_read


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn any error of the archive libraries into an InputError with one line about `path`."""
    try:
        yield
    except OnecycleError:
        raise
    except Exception as error:  # damaged archives raise many kinds of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read to its end ({reason}); check it, or download it again") from error
