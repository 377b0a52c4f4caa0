"""How a text file of separated values is written: delimiter, header, decimal sign.

All of it is inferred from the first lines, the same for every reader of tables.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

NULLS: Final = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "nan", "NaN")
"""Texts for a missing value in a text file."""

_DELIMITERS: Final = ",\t;|"
_LINES: Final = 50  # from which all of it is inferred
_NAME: Final = re.compile(r"(?=.*[^\W\d_])[^\d\s+-].{0,63}")  # has a letter, begins as no number
NAMED: Final = re.compile(r"sep=(.)")
"""Excel's line above the header."""

_COMMA: Final = re.compile(r"[+-]?(\d+,(\d\d?|\d{4,})|(0|\d{4,}),\d+)")  # not 1,234
_NO_COMMA: Final = re.compile(r"[+-]?\d+((,\d+)*\.\d+|(,\d+){2,})")


class Dialect(msgspec.Struct, frozen=True):
    """How a file of separated values is written.

    Attributes:
        names: Names of its columns; ``c1``, ``c2`` … without a header.  A column that has no name
            in the header, such as a row's number, is called "".
        above: Number of records above the first row: the header, and Excel's ``sep=;``.
        decimal: Sign before the decimals of a number: a point, or a comma.
    """

    names: tuple[str, ...]
    delimiter: str = ","
    above: int = 1
    decimal: str = "."

    @property
    def quotes(self) -> bool:
        """Whether values may be quoted; tab-separated texts are written literally."""
        return self.delimiter != "\t"

    def records(self, lines: Iterable[str]) -> Any:
        """Return a reader of all records, those above the first row included."""
        return _records(lines, self.delimiter)

    def number(self, text: str) -> float:
        """Parse the number in a cell.  Raises ValueError, also for ``1_000``.

        Python takes underscores for separators; in a table they stand in codes.
        """
        if "_" in text or (self.decimal == "," and "." in text):
            raise ValueError(text)
        return float(text.replace(self.decimal, "."))

    def is_number(self, text: str) -> bool:
        """Whether the text is a number."""
        try:
            self.number(text)
        except ValueError:
            return False
        return True


def dialect_of(lines: Iterable[str], named: Collection[str] = ()) -> Dialect | None:
    """Infer how a file is written from its first lines; None if it has no row.

    Parameters:
        named: Columns that the caller knows: a first line with one of them is the header.

    Raises csv.Error.
    """
    head = list(islice(lines, _LINES))
    said = NAMED.fullmatch(head[0].strip()) if head else None
    if said is not None:
        del head[0]
    if not head or (len(head) == 1 and said is None):
        return None
    delimiter = said[1] if said is not None else _delimiter(head)
    first, *rest = [[cell.strip() for cell in cells] for cells in _records(head, delimiter)]
    header = not set(first).isdisjoint(named) or _is_header(first, rest)
    names = tuple(first) if header else tuple(f"c{i}" for i in range(1, len(first) + 1))
    decimal = "," if delimiter != "," and _commas(rest) else "."
    return Dialect(names, delimiter, header + (said is not None), decimal)


def _records(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    quoting: Mapping[str, Any] = {"quoting": csv.QUOTE_NONE} if delimiter == "\t" else {}
    return csv.reader(lines, delimiter=delimiter, **quoting)


def _delimiter(head: Sequence[str]) -> str:
    """Return the delimiter that divides the first records, as equally as possible.

    Of two that do alike it is the one that divides them into more: each may be part of values, as
    a comma is before decimals.
    """

    def steady(one: str) -> tuple[int, int, int]:
        widths = [len(cells) for cells in _records(head, one) if cells]
        if len(head) == _LINES:
            widths = widths[:-1] or widths  # a quoted value of the last one may be cut off
        if max(widths, default=1) == 1:
            return -1, 0, 0
        return min(widths) > 1, -len(set(widths)), min(widths)

    return max(_DELIMITERS, key=steady)


def _is_header(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether the first line has names, words that do not occur as values below; some are empty."""
    named = [(i, cell) for i, cell in enumerate(first) if cell]
    if not named or not all(_NAME.fullmatch(cell) for _, cell in named):
        return False
    return not any(cell in (row[i] for row in rest if i < len(row)) for i, cell in named)


def _commas(rest: Iterable[Sequence[str]]) -> bool:
    """Whether numbers have decimal commas: some have, and none has a point or more commas."""
    cells = [cell for row in rest for cell in row]
    return any(map(_COMMA.fullmatch, cells)) and not any(map(_NO_COMMA.fullmatch, cells))
