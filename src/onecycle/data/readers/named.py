"""Data sets on the web that are known by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onecycle.core.cache import cache_folder
from onecycle.core.errors import InputError, OnecycleError
from onecycle.data.readers.download import RemoteFile, download
from onecycle.data.readers.formats import ReadOptions
from onecycle.data.readers.sets import Sets


class UnavailableError(InputError):
    """A data set was not found, and its download failed. `reason` says why it failed."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A data set on the web that `--data NAME` reads.

    `find` returns the path of the data set in a folder such as ./data, or None. In the cache, the `files`
    are in the folder called `folder`. If `folder` is empty, there is only one file, directly in the cache.
    """

    name: str
    title: str
    files: Sequence[RemoteFile]
    find: Callable[[Path], Path | None]
    read: Callable[[Path, ReadOptions], Sets]
    folder: str = ""
    has_coarse: bool = False

    def download(self) -> Path:
        """Download what is missing of the data set, and return its path.

        Raises:
            UnavailableError: when it cannot be downloaded.
        """
        folder = cache_folder() / self.folder
        try:
            for file in self.files:
                if not (folder / file.name).exists():
                    download(file, folder)
        except OnecycleError as error:
            urls = ", ".join(file.url for file in self.files)
            raise UnavailableError(
                f"{self.title} was not found, and {error}. Download {urls} and give its path with --data or "
                "$ONECYCLE_DATA, or use --data digits, which needs no download",
                str(error),
            ) from error
        return folder if self.folder else folder / self.files[0].name
