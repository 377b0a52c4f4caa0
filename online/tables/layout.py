"""Inputs, shards and columns: how tables are cut, and how rows are taken."""

from __future__ import annotations

from typing import Literal

import msgspec

from online.tables.columns import Kind

Form = Literal["parquet", "csv", "jsonl"]


class Input(msgspec.Struct, frozen=True):
    """A file as it was when the run was planned.

    Attributes:
        place, path: What its filesystem is opened by, and where it is on it.
        changed_at: POSIX seconds of its last change; 0 if the filesystem does not tell.
        rows: Rows that it holds, bad ones included.
    """

    place: str
    path: str
    form: Form
    compressed: bool
    size: int
    changed_at: float
    rows: int


class Shard(msgspec.Struct, frozen=True):
    """Rows that are scored together, and written to one file.

    ``first`` is the number of its first row in the input, ``rows`` how many it has.  Of a Parquet
    file they are rows ``begin`` to ``end`` of a row group; of a text file bytes ``begin`` to
    ``end`` of what it holds uncompressed.  ``sampled`` are rows (counted from ``first``) that are
    also scored one by one.
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
    """A feature of the table; what is declared of it, too.

    Attributes:
        least, most: A row with a number outside of these is bad; None: there is no bound.
        required: Whether a row without it is bad.
    """

    name: str
    kind: Kind
    least: float | None = None
    most: float | None = None
    required: bool = False


class Layout(msgspec.Struct, frozen=True):
    """How columns of the table are taken.

    Attributes:
        features: In the order of the table.
        key, time: Columns of the row's id and of when its features were true; None: there is none.
        text_bytes_max, features_max: Bounds of the service for a text, and for the number of
            features.
        action: Column of the action that was taken: a text, whatever it is in the file.
    """

    features: tuple[Column, ...]
    key: str | None
    time: str | None
    text_bytes_max: int = 1_024
    action: str | None = None
