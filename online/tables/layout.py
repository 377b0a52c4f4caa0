"""Data structures of a plan for reading tables: inputs, shards, columns."""

from __future__ import annotations

from typing import Literal

import msgspec

from evaluation.dialect import Dialect
from online.tables.columns import Kind

Form = Literal["parquet", "csv", "jsonl", "dsjson"]


class Input(msgspec.Struct, frozen=True):
    """A file at the time when the run was planned.

    Attributes:
        place, path: URI of its filesystem, and its path there.
        changed_at: POSIX seconds of its last change; 0 if unknown.
        rows: Number of rows, invalid ones included.
        dialect: How values are separated; None: they are not, as in Parquet and JSON.
    """

    place: str
    path: str
    form: Form
    compressed: bool
    size: int
    changed_at: float
    rows: int
    dialect: Dialect | None = None


class Shard(msgspec.Struct, frozen=True):
    """Rows that are scored together and written to one file.

    ``first`` is the number of its first row in the input, ``rows`` their count.  For Parquet they
    are rows ``begin`` to ``end`` of a row group; for text files bytes ``begin`` to ``end`` of the
    uncompressed content.  ``sampled`` are rows (counted from ``first``) that are also scored one by
    one.
    """

    number: int
    input: int
    group: int
    begin: int
    end: int
    first: int
    rows: int
    sampled: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the shard's file among the run's files."""
        return f"{self.number:06d}.parquet"


class Column(msgspec.Struct, frozen=True, omit_defaults=True):
    """A feature of the table, with its declaration.

    Attributes:
        least, most: A row with a number outside this range is invalid; None: no bound.
        required: Whether a row without it is invalid.
        named: Whether it is declared as a category or text: then it may be written as numbers.
    """

    name: str
    kind: Kind
    least: float | None = None
    most: float | None = None
    required: bool = False
    named: bool = False


class Layout(msgspec.Struct, frozen=True):
    """How the columns of the table are read.

    Attributes:
        features: In the order of the table.
        key, time: Columns of the row's id, and of the time for which its features are valid; None:
            there is none.
        text_bytes_max: The service's bound for a text.
        action: Column of the chosen action: read as text, whatever its type in the file.
    """

    features: tuple[Column, ...]
    key: str | None
    time: str | None
    text_bytes_max: int = 1_024
    action: str | None = None
