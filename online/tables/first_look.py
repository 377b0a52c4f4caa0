"""Reads a table without a description as rows of plain values: CSV, TSV, JSON lines or Parquet.

How a text file is written is inferred from its first lines (:mod:`evaluation.dialect`).
"""

from __future__ import annotations

import csv
import gzip
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from evaluation.dialect import NULLS, Dialect, dialect_of
from online.tables.actions import NO_REWARD, action_in, action_of
from online.tables.columns import PLAIN
from online.tables.errors import InputRefused
from refusals import installing, reason
from replay.plain import is_plain

Value = float | int | str | bool | None

_LINES: Final = 50  # of JSON, from which the names are inferred
_CODE: Final = re.compile(r"0\d+")
_SUFFIXES: Final = (".csv", ".tsv", ".txt")
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_PARQUET: Final = (".parquet", ".pq")
_JSON: Final = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Table:
    """A file of rows.

    Attributes:
        names: Names of the columns with plain values.
        dialect: How its values are separated; None for Parquet and JSON lines.
        others: Columns whose values no feature can have, such as lists, with their type.
        action, reward: For a log of choices: columns of the action's name and of the reward.
    """

    path: Path
    names: tuple[str, ...]
    dialect: Dialect | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    action: str | None = None
    reward: str | None = None

    def rows(self) -> Iterator[dict[str, Value]]:
        """Yield all rows; an empty cell is None.  Raises InputRefused, naming the line."""
        if self.dialect is None:
            for row in self._records():
                if self.action is not None:
                    row[self.action] = action_of(row[self.action])
                yield row
            return
        try:
            with _text(self.path) as lines:
                reader = self.dialect.records(lines)
                for number, cells in enumerate(reader):
                    if number < self.dialect.above or not cells:
                        continue
                    if len(cells) != len(self.names):
                        problem = f"line {reader.line_num}: {len(cells)} of {len(self.names)} cells"
                        remedy = "Mend or remove the line, or what stands above the header"
                        raise InputRefused(str(self.path), problem, remedy)
                    yield {
                        name: self._value(name, cell, self.dialect)
                        for name, cell in zip(self.names, cells, strict=True)
                    }
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise _unreadable(self.path, error) from error

    def _records(self) -> Iterator[dict[str, Value]]:
        read = _parquet_rows if _named(self.path, _PARQUET) else _json_rows
        return ({n: _plain(row.get(n)) for n in self.names} for row in read(self.path))

    def _value(self, name: str, cell: str, dialect: Dialect) -> Value:
        if name == self.action:
            return action_in(cell)
        if name == self.reward and cell.strip().lower() in NO_REWARD:
            return None
        return value_of(cell, dialect)


def is_table(path: Path) -> bool:
    """Whether the file is meant as a table: by its ending, or because it exists."""
    return _named(path, (*_SUFFIXES, *_JSON, *_PARQUET)) or path.is_file()


def open_table(path: Path, named: Collection[str] = ()) -> Table:
    """Infer how to read a file.  Raises InputRefused.

    Parameters:
        named: Columns that the caller knows: a first line with one of them is the header.
    """
    if _named(path, _PARQUET):
        return _typed(path, _parquet_kinds(path))
    if _named(path, _JSON):
        return _typed(path, _json_kinds(path))
    if not _named(path, _SUFFIXES):
        known = ", ".join((*_SUFFIXES, *_JSON, *_PARQUET))
        remedy = f"Name a file that ends in {known} (or .gz of a text)"
        if _named(path, (".json",)):
            array = f"of an array: jq -c .[] {path.name} > {path.stem}.jsonl"
            remedy = f"Write one object a line into a file that ends in .jsonl; {array}"
        raise InputRefused(str(path), "no table by its name", remedy)
    try:
        with _text(path) as lines:
            dialect = dialect_of(lines, named)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error
    if dialect is None:
        raise InputRefused(str(path), "it has no rows", "Give a file with a header and rows")
    usable(str(path), dialect.names)
    return Table(path, dialect.names, dialect)


def _typed(path: Path, kinds: Mapping[str, str]) -> Table:
    usable(str(path), list(kinds))
    others = {name: kind for name, kind in kinds.items() if kind not in PLAIN}
    return Table(path, tuple(kinds), others=others)


def usable(place: str, names: Sequence[str]) -> None:
    """Refuse names of columns that can't be names of features.  Raises InputRefused."""
    shown = f"its header is {', '.join(names)!r:.200}"
    named = [name for name in names if name]
    if twice := next((name for name, n in Counter(named).items() if n > 1), None):
        raise InputRefused(place, f"two columns are named {twice!r:.80}", "Name each column once")
    title = len(names) > 2 and not any(names[1:])  # above the header
    if not named or title:
        raise InputRefused(place, shown, "Name each column, and each once, in the first line")
    if not all(map(is_plain, names)):
        raise InputRefused(place, shown, "Leave control characters out of names")


def value_of(cell: str, dialect: Dialect) -> Value:
    """Parse a cell: a number, true or false, or a text; None if it is missing.

    Digits that begin with a zero, as in a postal code, are a text.
    """
    text = cell.strip()
    if text in NULLS:
        return None
    try:
        number = dialect.number(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)
    if not math.isfinite(number) or _CODE.fullmatch(text):
        return text
    return int(text) if text.lstrip("+-").isdecimal() else number


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


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    for batch in _parquet(path).iter_batches():
        yield from batch.to_pylist()


def _parquet_kinds(path: Path) -> dict[str, str]:
    from online.tables.inputs import kind_of

    return {str(field.name): kind_of(field.type) for field in _parquet(path).schema_arrow}


def _json_kinds(path: Path) -> dict[str, str]:
    """Kinds of values in the first lines by name; that of an object or list prevails."""
    kinds: dict[str, str] = {}
    for row in islice(_json_rows(path), _LINES):
        for name, value in row.items():
            nested = isinstance(value, dict | list)
            if name and (nested or name not in kinds):
                kinds[name] = type(value).__name__ if nested else PLAIN[0]
    return kinds


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
    """Convert a cell of Parquet or JSON: NaN is missing, a time is text; others are no values."""
    if isinstance(value, date):
        return str(value)
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, int | str | None) else None


def _unreadable(path: Path, error: Exception) -> InputRefused:
    if isinstance(error, UnicodeDecodeError):
        with gzip.open(path) if _named(path, (".gz",)) else path.open("rb") as file:
            coding = "UTF-16" if file.read(2) in _UTF_16 else "WINDOWS-1252"
        again = f"iconv -f {coding} -t UTF-8 {path} > utf8.csv"
        return InputRefused(str(path), "it is not UTF-8", f"Save it as UTF-8, for example: {again}")
    return InputRefused(str(path), reason(error), "Name a file that can be read")
