"""The names of the images of a set, stored compactly: 200,000 names of 30 characters take 8 MB."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

_ENCODING = "utf-8", "surrogatepass"  # a file name is not always valid Unicode


class ImageNames(Sequence[str]):
    """The file names of images, relative to the folder or the archive with the data.

    `text` is uint8 `[B]`: all names in UTF-8, each ended by a zero byte. It may be memory-mapped. `rows`, int64 `[N]`,
    selects names by their number: the first name in `text` has number 0. None selects all names.
    """

    def __init__(self, text: NDArray[np.uint8], rows: NDArray[np.int64] | None = None) -> None:
        self._text = text
        self._rows = rows

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        text = bytearray()
        for name in names:
            text += name.replace("\0", "\ufffd").encode(*_ENCODING)
            text.append(0)
        return cls(np.frombuffer(text, np.uint8))

    @classmethod
    def validated(cls, text: NDArray[np.uint8], count: int) -> Self:
        """The names in `text`, after checking it. `text` may come from someone else.

        Raises:
            ValueError: when `text` is not UTF-8, or does not hold `count` names.
        """
        text.tobytes().decode(*_ENCODING)
        names = cls(text)
        if len(names) != count:
            raise ValueError(f"it has {len(names)} names, but {count} images")
        return names

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._text == 0)

    def __len__(self) -> int:
        return len(self._ends if self._rows is None else self._rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: int | slice) -> str | Self:
        if isinstance(place, slice):
            return self.subset(np.arange(len(self))[place])
        row = range(len(self))[place] if self._rows is None else int(self._rows[place])
        start = int(self._ends[row - 1]) + 1 if row else 0
        return self._text[start : int(self._ends[row])].tobytes().decode(*_ENCODING)

    def subset(self, rows: NDArray[np.integer[Any]]) -> Self:
        """The names at `rows`, in that order. The result shares its text with this object."""
        of_text = np.asarray(rows if self._rows is None else self._rows[rows], np.int64)
        return type(self)(self._text, of_text)

    def to_array(self) -> NDArray[np.uint8]:
        """The names as an array in the format of `text`, the argument of the constructor."""
        return self._text if self._rows is None else self.of(self)._text
