"""Converts rows and labels of programs, including numpy's and pandas' types, to plain values.

Neither library is imported: their scalars and arrays are recognized by their methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from online.errors import ClientError

_PLAIN: Final = (str, int, bool, type(None))


class NotANumber(ClientError):
    """A number that JSON cannot represent; nothing was sent.  ``field`` is its path in the body."""

    field: str
    value: float
    text = "{field} is {value}, which is no number: leave it out"


class NotAValue(ClientError):
    """A value of an unsupported type; nothing was sent."""

    field: str
    kind: str
    text = "{field} is a {kind}: give a number, text, true, false or None"


class NotRows(ClientError):
    """A table without column names; nothing was sent."""

    field: str
    what: str
    remedy: str
    text = "{field} is {what}: {remedy}"


def plain_value(field: str, value: Any) -> Any:
    """Convert a value for JSON: numpy numbers become numbers, pandas' missing values None.

    Raises NotANumber for NaN and infinity, NotAValue for an unsupported type; ``field`` is the path
    in their messages.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotANumber(field, float(value))
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): plain_value(_at(field, name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(f"{field}[{i}]", inner) for i, inner in enumerate(value)]
    if hasattr(value, "to_dict") and hasattr(value, "index"):  # a row of a data frame
        return plain_value(field, value.to_dict())
    if hasattr(value, "tolist"):  # numpy: a scalar becomes a Python number, an array a list
        return plain_value(field, value.tolist())
    if kind.__name__ == "NAType":
        return None
    if isinstance(value, str | int):  # a subclass, such as an enumeration
        return value
    raise NotAValue(field, kind.__name__)


def _at(field: str, name: object) -> str:
    return f"{field}.{name}" if field else str(name)


def plain_rows(field: str, table: Any, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Convert a table to rows: a data frame, a list of rows, or an array with column ``names``.

    A missing cell of a data frame becomes None in a column of objects.  In a numeric column it is
    NaN, which is refused, because the caller may not mean a missing value.
    Raises NotANumber, NotAValue, NotRows.
    """
    return [plain_value(f"{field}[{i}]", row) for i, row in enumerate(_rows(field, table, names))]


def _rows(field: str, table: Any, names: Sequence[str] | None) -> Iterator[Any]:
    if hasattr(table, "columns") and hasattr(table, "to_dict"):  # a data frame
        texts = [name for name, kind in table.dtypes.items() if getattr(kind, "kind", "O") == "O"]
        for row in table.to_dict("records"):
            missing = {n: None for n in texts if isinstance(row[n], float) and math.isnan(row[n])}
            yield {**row, **missing}
    elif isinstance(table, Mapping):
        raise NotRows(field, "one row", "give a list of rows, or a data frame")
    elif getattr(table, "ndim", 0) == 2:
        if names is None or len(names) != table.shape[1]:
            what = f"an array of {table.shape[1]} columns with {len(names or ())} names"
            raise NotRows(field, what, "name each column: names=[…], or give a data frame")
        for row in table.tolist():
            yield dict(zip(names, row, strict=True))
    else:
        yield from table
