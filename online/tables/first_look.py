"""Reads a table without a description as rows of plain values: CSV, TSV, JSON lines or Parquet.

The delimiter and the presence of a header are inferred from the first lines.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from online.tables.actions import NO_REWARD, NULLS, action_in, action_of
from online.tables.columns import number_of
from online.tables.errors import InputRefused
from refusals import installing, reason
from replay.plain import is_plain

Value = float | int | str | bool | None

_DELIMITERS: Final = ",\t;|"
_LINES: Final = 50  # from which delimiter and header are inferred
_NAME: Final = re.compile(r"(?=.*[^\W\d_])[^\d\s+-].{0,63}")  # has a letter, begins as no number
_CODE: Final = re.compile(r"0\d+")
_SUFFIXES: Final = (".csv", ".tsv", ".txt")
_PARQUET: Final = (".parquet", ".pq")
_JSON: Final = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Table:
    """A file of rows.

    Attributes:
        names: Names of its columns; ``c1``, ``c2`` … without a header.  A column that has no name
            in the header, such as a row's number, is called "".
        header: Whether the first line names the columns.
        delimiter: Delimiter of values; None for Parquet and JSON lines.
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
            for row in self._records():
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

    def _records(self) -> Iterator[dict[str, Value]]:
        if _named(self.path, _PARQUET):
            return _parquet_rows(self.path)
        return ({n: _plain(row.get(n)) for n in self.names} for row in _json_rows(self.path))

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
    if _named(path, _PARQUET):
        names = tuple(str(name) for name in _parquet(path).schema_arrow.names)
        return Table(path, _usable(path, names), True, None)
    if _named(path, _JSON):
        return Table(path, _usable(path, _json_names(path)), True, None)
    if not _named(path, _SUFFIXES):
        known = ", ".join((*_SUFFIXES, *_JSON, *_PARQUET))
        remedy = f"Name a file that ends in {known} (or .gz of a text)"
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
    named = [name for name in names if name]
    if len(set(named)) != len(named) or not named:
        raise InputRefused(str(path), shown, "Name each column, and each once")
    if not all(map(is_plain, names)):
        raise InputRefused(str(path), shown, "Leave control characters out of names")
    return names


def value_of(cell: str) -> Value:
    """Parse a cell: a number, true or false, or a text; None if it is missing.

    Digits that begin with a zero, as in a postal code, are a text.
    """
    text = cell.strip()
    if text in NULLS:
        return None
    try:
        number = number_of(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)
    if not math.isfinite(number) or _CODE.fullmatch(text):
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
    """Whether the first line has names, words that do not occur as values below; some are empty."""
    named = [(i, cell) for i, cell in enumerate(first) if cell]
    if not named or not all(_NAME.fullmatch(cell) for _, cell in named):
        return False
    return not any(cell in (row[i].strip() for row in rest if i < len(row)) for i, cell in named)


def _named(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(suffixes)


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


def _json_names(path: Path) -> tuple[str, ...]:
    """Names in the first lines; those of objects and lists are left out."""
    names: dict[str, bool] = {}
    for row in islice(_json_rows(path), _LINES):
        for name, value in row.items():
            names[name] = names.get(name, True) and not isinstance(value, dict | list)
    return tuple(name for name, plain in names.items() if plain and name)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    number = 0
    try:
        with _text(path) as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        problem = f"line {number}: no JSON object ({reason(error)})"
        raise InputRefused(str(path), problem, "Mend or remove the line") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _plain(value: Any) -> Value:
    """Convert a cell of Parquet or JSON to a plain value: NaN is missing, a time is text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, float | int | str | bool | None) else str(value)


def _unreadable(path: Path, error: Exception) -> InputRefused:
    if isinstance(error, UnicodeDecodeError):
        again = f"iconv -f WINDOWS-1252 -t UTF-8 {path} > utf8.csv (or -f UTF-16)"
        return InputRefused(str(path), "it is not UTF-8", f"Save it as UTF-8, for example: {again}")
    return InputRefused(str(path), reason(error), "Name a file that can be read")
