"""Reads a table without a description as rows of plain values: CSV, TSV or Parquet.

The delimiter and the presence of a header are inferred from the first lines.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from online.tables.actions import NO_REWARD, NULLS, action_in, action_of
from online.tables.errors import InputRefused
from refusals import installing, reason
from replay.plain import is_plain

Value = float | int | str | bool | None

_DELIMITERS: Final = ",\t;|"
_LINES: Final = 50  # from which delimiter and header are inferred
_NAME: Final = re.compile(r"(?=.*[^\W\d_])[^\d\s+-].{0,63}")  # has a letter, begins as no number
_SUFFIXES: Final = (".csv", ".tsv", ".txt")
_PARQUET: Final = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class Table:
    """A file of rows.

    Attributes:
        names: Names of its columns; ``c1``, ``c2`` … without a header.
        header: Whether the first line names the columns.
        delimiter: Delimiter of values; None for Parquet.
        action, reward: For a log of choices: columns of the action's name and of the reward.
    """

    path: Path
    names: tuple[str, ...]
    header: bool
    delimiter: str | None
    action: str | None = None
    reward: str | None = None

    def rows(self) -> Iterator[dict[str, Value]]:
        """Yield all rows; an empty cell is None.  Raises InputRefused, naming the line."""
        if self.delimiter is None:
            for row in _parquet_rows(self.path):
                if self.action is not None:
                    row[self.action] = action_of(row[self.action])
                yield row
            return
        try:
            with _text(self.path) as lines:
                reader = csv.reader(lines, delimiter=self.delimiter, **_quotes(self.delimiter))
                for number, cells in enumerate(reader):
                    if (number == 0 and self.header) or not cells:
                        continue
                    if len(cells) != len(self.names):
                        problem = f"line {reader.line_num}: {len(cells)} of {len(self.names)} cells"
                        raise InputRefused(str(self.path), problem, "Mend or remove the line")
                    yield {n: self._value(n, c) for n, c in zip(self.names, cells, strict=True)}
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise _unreadable(self.path, error) from error

    def _value(self, name: str, cell: str) -> Value:
        if name == self.action:
            return action_in(cell)
        if name == self.reward and cell.strip().lower() in NO_REWARD:
            return None
        return value_of(cell)


def open_table(path: Path, named: Collection[str] = ()) -> Table:
    """Infer how to read a file.  Raises InputRefused.

    Parameters:
        named: Columns that the caller knows: a first line with one of them is the header.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(_PARQUET):
        names = tuple(str(name) for name in _parquet(path).schema_arrow.names)
        return Table(path, _usable(path, names), True, None)
    if not name.endswith(_SUFFIXES):
        remedy = f"Name a file that ends in {', '.join((*_SUFFIXES, *_PARQUET))} (or .gz of a text)"
        raise InputRefused(str(path), "no table by its name", remedy)
    try:
        with _text(path) as lines:
            head = [line for line, _ in zip(lines, range(_LINES), strict=False)]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    if len(head) < 2:
        raise InputRefused(str(path), "it has no rows", "Give a file with a header and rows")
    delimiter = _delimiter(head)
    try:
        cells = list(csv.reader(head, delimiter=delimiter, **_quotes(delimiter)))
    except csv.Error as error:
        raise _unreadable(path, error) from error
    names = tuple(cell.strip() for cell in cells[0])
    header = not set(names).isdisjoint(named) or _is_header(names, cells[1:])
    if not header:
        names = tuple(f"c{i}" for i in range(1, len(names) + 1))
    return Table(path, _usable(path, names), header, delimiter)


def _usable(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the columns.  Raises InputRefused if they can't be names of features."""
    shown = f"its header is {', '.join(names)!r:.200}"
    if len(set(names)) != len(names) or not all(names):
        raise InputRefused(str(path), shown, "Name each column, and each once")
    if not all(map(is_plain, names)):
        raise InputRefused(str(path), shown, "Leave control characters out of names")
    return names


def value_of(cell: str) -> Value:
    """Parse a cell: a number, true or false, or a text; None if it is missing."""
    text = cell.strip()
    if text in NULLS:
        return None
    try:
        number = float(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)
    if not math.isfinite(number):
        return text
    return int(text) if text.lstrip("+-").isdecimal() and abs(number) < 2**53 else number


def _delimiter(head: Sequence[str]) -> str:
    """Infer the delimiter: it occurs in each of the first lines, as equally often as possible."""

    def steady(one: str) -> tuple[int, int]:
        counts = [line.count(one) for line in head]
        return (min(counts) > 0, -len(set(counts))) if max(counts) else (-1, 0)

    return max(_DELIMITERS, key=steady)


def _quotes(delimiter: str) -> Mapping[str, Any]:
    # Tab-separated texts are written literally, with quotation marks that may never close.
    return {"quoting": csv.QUOTE_NONE} if delimiter == "\t" else {}


def _is_header(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether the first line has names: words that do not occur as values below."""
    if not all(_NAME.fullmatch(cell) for cell in first):
        return False
    return not any(
        cell in (row[i].strip() for row in rest if i < len(row)) for i, cell in enumerate(first)
    )


def _text(path: Path) -> Any:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _parquet(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        remedy = f"{installing('rescore')}, or give a CSV file"
        raise InputRefused(str(path), "Parquet is read by pyarrow", remedy) from None
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Value]]:
    for batch in _parquet(path).iter_batches():
        for row in batch.to_pylist():
            yield {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Value:
    """Convert a Parquet cell to a plain value: NaN is missing, a time is text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, float | int | str | bool | None) else str(value)


def _unreadable(path: Path, error: Exception) -> InputRefused:
    if isinstance(error, UnicodeDecodeError):
        again = f"iconv -f WINDOWS-1252 -t UTF-8 {path} > utf8.csv (or -f UTF-16)"
        return InputRefused(str(path), "it is not UTF-8", f"Save it as UTF-8, for example: {again}")
    return InputRefused(str(path), reason(error), "Name a file that can be read")
