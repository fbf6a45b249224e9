"""Write CSV tables that every program reads alike."""

import csv
from collections.abc import Iterable
from typing import Protocol


class _Stream(Protocol):
    def write(self, text: str, /) -> object: ...


class CsvRows:
    r"""Writes rows to `stream`, a text file. Each row ends with "\n" instead of "\r\n".

    The csv writer itself must end rows with "\r\n". If the writer ended rows with "\n", Python before 3.13 would not
    quote a name that contains "\r".
    """

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._writer = csv.writer(self)

    def write_row(self, values: Iterable[object]) -> None:
        self._writer.writerow(values)

    def write(self, row: str) -> None:
        """Write `row`, which the csv writer has formatted."""
        self._stream.write(row.removesuffix("\r\n") + "\n")
