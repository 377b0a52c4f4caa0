"""Rows of a table by column: numbers and texts, each present or absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from replay.example import Features

Kind = Literal["number", "integer", "bool", "text"]
"""``integer`` and ``bool`` are numbers, too; in a row as a dict they become int and bool.

The difference matters to encoders that spell a number as text, as river's ``OneHotEncoder`` does.
"""

PLAIN: Final[tuple[str, ...]] = get_args(Kind)

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]

ABSENT: Final = -1


@dataclass(frozen=True, slots=True)
class Numbers:
    """A column of n finite numbers.

    Attributes:
        values: float64 of shape (n,); 0 where absent.
        present: Mask of shape (n,); None: all are present.
    """

    kind: Kind
    values: Floats
    present: Mask | None = None

    def take(self, rows: Index | Mask) -> Numbers:
        """The selected rows, in the order of the selection."""
        present = None if self.present is None else self.present[rows]
        return Numbers(self.kind, self.values[rows], present)

    def items(self) -> list[Any]:
        """Python values of all rows."""
        items: list[Any] = self.values.tolist()
        if self.kind == "bool":
            return list(map(bool, items))
        if self.kind == "integer":  # a text file may have others later on
            return [int(x) if x.is_integer() and abs(x) <= 2**53 else x for x in items]
        return items


@dataclass(frozen=True, slots=True)
class Text:
    """A column of texts: indices into ``values`` of shape (n,), ``ABSENT`` where there is none."""

    codes: npt.NDArray[np.int32]
    values: Sequence[str]

    @property
    def present(self) -> Mask | None:
        """Mask of rows that have a text; None: all."""
        present: Mask = self.codes != ABSENT
        return None if present.all() else present

    def take(self, rows: Index | Mask) -> Text:
        """The selected rows, in the order of the selection."""
        return Text(self.codes[rows], self.values)

    def items(self) -> list[Any]:
        """Python values of all rows."""
        texts = [*self.values, None]  # the last one is at ABSENT
        return [texts[code] for code in self.codes.tolist()]


@dataclass(frozen=True, slots=True)
class Rows:
    """``n`` rows of the same columns, by name."""

    n: int
    columns: Mapping[str, Numbers | Text]

    def take(self, rows: Index | Mask) -> Rows:
        """The selected rows (indices or a mask), in the order of the selection."""
        taken = {name: column.take(rows) for name, column in self.columns.items()}
        n = int(rows.sum()) if rows.dtype == np.bool_ else len(rows)
        return Rows(n, taken)

    def within(self, ends: Mapping[str, tuple[float, float, float, float]]) -> Rows:
        """The rows with numbers clipped as the service does before it predicts.

        ``ends``: by name, lower and upper bound, and the values for numbers below and above.
        """
        columns = dict(self.columns)
        for name, (low, high, least, most) in ends.items():
            column = columns.get(name)
            if not isinstance(column, Numbers) or column.kind == "bool":
                continue
            near = np.where(column.values < low, least, column.values)
            near = np.where(column.values > high, most, near)
            if column.present is not None:
                near = np.where(column.present, near, 0.0)
            if not np.array_equal(near, column.values):
                columns[name] = Numbers(column.kind, near, column.present)
        return Rows(self.n, columns)

    def dicts(self) -> list[Features]:
        """The rows as dicts; absent values are left out."""
        names = list(self.columns)
        if not names:
            return [{} for _ in range(self.n)]
        rows = zip(*(column.items() for column in self.columns.values()), strict=True)
        dicts: list[Features] = [dict(zip(names, row, strict=True)) for row in rows]
        for name, column in self.columns.items():
            if (present := column.present) is not None:
                for i in np.flatnonzero(~present).tolist():
                    del dicts[i][name]
        return dicts

    def matrix(self, names: Sequence[str]) -> tuple[Floats, Mask | None]:
        """Numbers of shape (n, names), 0 where absent, and the mask of present ones (None: all).

        Raises KeyError for a missing column, TypeError for a column of texts.
        """
        out = np.empty((self.n, len(names)), dtype=np.float64)
        missing: Mask | None = None
        for j, name in enumerate(names):
            column = self.columns[name]
            if isinstance(column, Text):
                raise TypeError(f"column {name} holds text")
            out[:, j] = column.values
            if column.present is not None:
                if missing is None:
                    missing = np.ones(out.shape, dtype=np.bool_)
                missing[:, j] = column.present
        return out, missing
