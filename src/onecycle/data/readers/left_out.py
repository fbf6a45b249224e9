"""For each reason, count the unused files of a folder or an archive."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from onecycle.core.files import printable
from onecycle.data.image_files import HEIF_ADVICE, HEIF_SUFFIXES
from onecycle.data.readers.entries import Entry, is_ignored

BESIDE_CLASSES = "image beside the class folders"
OTHER = "file of another kind"

_NAMED = 3  # for each reason, the names of this many files are kept
# Files with further reasons count as `OTHER`. A reason may name a suffix, so files called x.1, x.2, … would otherwise
# give very many reasons.
_MOST_REASONS = 20
_MOVIES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")  # a phone stores a live photo as a picture and a movie


@dataclass
class LeftOut:
    """For each reason, the number of files that are left out, and the names of the first few of these files.

    A reason is a singular noun with more words after it, such as "file without a suffix".
    """

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(self, reason: str, name: str) -> None:
        """Count the file `name`."""
        self._count(reason, 1, [name])

    def add_entry(self, entry: Entry) -> None:
        """Count a file that is not an image, or an image that is in no class. Folders are not counted."""
        if not entry.is_folder:
            reason = BESIDE_CLASSES if entry.is_image else entry.problem or _not_an_image(entry.parts[-1])
            self.add(reason, "/".join(entry.parts))

    def discount(self, name: str) -> None:
        """Remove the file `name`, which is not an image, from the counts. A hidden file is in no count."""
        *folders, file = name.split("/")
        if is_ignored(file, is_folder=False) or any(is_ignored(folder, is_folder=True) for folder in folders):
            return
        reason = _not_an_image(name)
        reason = reason if reason in self.counts else OTHER
        self.counts[reason] -= 1
        self.names[reason] = [other for other in self.names[reason] if other != name]
        if not self.counts[reason]:
            del self.counts[reason], self.names[reason]

    def include(self, other: "LeftOut", prefix: str = "") -> None:
        """Add the counts and the names of `other`. `prefix` is put before each of these names."""
        for reason, count in other.counts.items():
            self._count(reason, count, [prefix + name for name in other.names[reason]])

    def _count(self, reason: str, count: int, names: list[str]) -> None:
        if reason not in self.counts and len(self.counts) >= _MOST_REASONS:
            reason = OTHER
        self.counts[reason] += count
        named = self.names.setdefault(reason, [])
        named += names[: _NAMED - len(named)]

    def lines(self) -> list[str]:
        """One line for each reason, like "16 files .heic, not an image format that is read (cats/1.HEIC, …)"."""
        return [self._line(reason, count) for reason, count in self.counts.most_common()]

    def _line(self, reason: str, count: int) -> str:
        noun, rest = reason.split(" ", 1)
        plural = "s" if count > 1 else ""
        names = ", ".join(map(printable, self.names[reason]))
        more = ", …" if count > len(self.names[reason]) else ""
        return f"{count:,} {noun}{plural} {rest} ({names}{more})"

    def appended_to(self, message: str) -> str:
        """`message`, followed by the counts, if files are left out."""
        return f"{message}. Left out: {'; '.join(self.lines())}" if self else message

    def to_json(self) -> dict[str, Any]:
        return {"counts": self.counts, "names": self.names}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(Counter(values["counts"]), values["names"])


def _not_an_image(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _MOVIES:
        return f"movie {suffix}, not an image"
    if suffix in HEIF_SUFFIXES:
        return f"file {suffix}, which {HEIF_ADVICE}"
    if re.fullmatch(r"\.\w{1,10}", suffix):
        return f"file {suffix}, not an image format that is read"
    return "file without a suffix such as .jpg"
