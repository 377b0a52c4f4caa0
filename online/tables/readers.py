"""Reads a shard as validated rows, and names invalid rows with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.dialect import Dialect
from online.tables.actions import action_in, action_of
from online.tables.columns import ABSENT, Floats, Index, Numbers, Rows, Text
from online.tables.errors import InputRefused
from online.tables.inputs import json_kind, json_row, opened, parquet, parsed
from online.tables.layout import Column, Form, Input, Layout, Shard
from online.tables.logged_choices import NoChoice
from online.tables.places import failures

BATCH_ROWS: Final = 16_384
"""Most rows in memory at once."""

_NUMBER_MAX: Final = 1e100  # as for requests to the service
_INTEGER_MAX: Final = 2**53
_TOO_LARGE: Final = "beyond 2^53"
_CALLED: Final = {"number": "a number", "integer": "a number", "bool": "a bool"}
_KEY_BYTES_MAX: Final = 512
_SKIP_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Bad:
    """An invalid row: its number in the file, the column (or ""), and the reason."""

    row: int
    column: str
    reason: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a shard.

    Attributes:
        rows: The valid rows.
        numbers: Their numbers in the file, int64.
        keys: Their keys; None: the table has none.
        bad: The invalid rows.
        times: Times for which the features are valid, in POSIX seconds, float64; None: unknown.
    """

    rows: Rows
    numbers: Index
    keys: list[str] | None
    bad: list[Bad]
    times: Floats | None

    @property
    def newest(self) -> float | None:
        """Newest time of the valid rows; None without one."""
        return None if self.times is None or not len(self.times) else float(self.times.max())


def read(one: Input, shard: Shard, layout: Layout) -> Iterator[Piece]:
    """Yield the shard's rows, at most ``BATCH_ROWS`` of a Parquet file at once.

    Raises LocationFailed, and InputRefused if it is damaged, or was changed since the planning.
    """
    if one.form == "parquet":
        first = shard.first
        for batch in _parquet_batches(one, shard, layout):
            numbers = np.arange(first, first + batch.num_rows)
            first += batch.num_rows
            yield _piece(one, batch, numbers, [], layout)
        return
    data = _bytes(one, shard)
    for batch, numbers, bad in (
        _json(one, shard, layout, data)
        if one.dialect is None
        else _csv(one, one.dialect, shard, layout, data)
    ):
        yield _piece(one, batch, numbers, bad, layout)


def _wanted(layout: Layout) -> list[str]:
    names = [column.name for column in layout.features]
    return list(dict.fromkeys([*names, *(n for n in (layout.key, layout.time) if n is not None)]))


def _parquet_batches(one: Input, shard: Shard, layout: Layout) -> Iterator[pa.RecordBatch]:
    file = parquet(one)
    place = f"{one.path}, row group {shard.group}"
    if file.metadata.num_row_groups <= shard.group:
        raise InputRefused(place, "it was removed during the run", "Begin a new run")
    at = 0
    try:
        for batch in file.iter_batches(
            BATCH_ROWS, row_groups=[shard.group], columns=_wanted(layout), use_threads=False
        ):
            low, high = max(shard.begin - at, 0), min(shard.end - at, batch.num_rows)
            at += batch.num_rows
            if low < high:
                yield batch.slice(low, high - low)
            if at >= shard.end:
                return
    except (pa.ArrowException, OSError) as error:
        raise InputRefused(place, f"it can't be read ({error})", "Write the file again") from error
    raise InputRefused(place, f"it ends after {at} rows", "Write the file again, begin a new run")


def _bytes(one: Input, shard: Shard) -> bytes:
    with failures(one.path), opened(one) as stream:
        if one.compressed:
            left = shard.begin
            while left and (skipped := stream.read(min(left, _SKIP_BYTES))):
                left -= len(skipped)
        else:
            stream.seek(shard.begin)
        data: bytes = stream.read(shard.end - shard.begin)
    if len(data) < shard.end - shard.begin:
        raise InputRefused(one.path, "it has become shorter during the run", "Begin a new run")
    return data


# -- text ------------------------------------------------------------------------------------


def _types(layout: Layout) -> dict[str, pa.DataType]:
    """Return the types in which the columns of a text file are read."""
    kinds = {"bool": pa.bool_(), "text": pa.string()}
    types = {column.name: kinds.get(column.kind, pa.float64()) for column in layout.features}
    own = {layout.key: pa.string(), layout.time: pa.float64()}
    return types | {name: kind for name, kind in own.items() if name is not None}


def _csv(
    one: Input, dialect: Dialect, shard: Shard, layout: Layout, data: bytes
) -> Iterator[tuple[pa.RecordBatch, Index, list[Bad]]]:
    types, wanted = _types(layout), _wanted(layout)
    try:
        table, bad_lines = _parsed(data, dialect, wanted, types)
        cast: list[tuple[int, str]] = []
    except pa.ArrowInvalid:  # a value has another type: read texts to find it
        table, bad_lines = _parsed(data, dialect, wanted, dict.fromkeys(types, pa.string()))
        table, cast = _cast(table, types, dialect)
    numbers = np.setdiff1d(np.arange(shard.rows), [line for line, _ in bad_lines])
    if len(numbers) != table.num_rows:
        raise InputRefused(
            f"{one.path}, rows {shard.first} to {shard.first + shard.rows - 1}",
            f"{table.num_rows} rows where there were {len(numbers)}",
            "Put values that contain carriage returns between quotes; begin a new run",
        )  # fmt: skip
    bad = [Bad(shard.first + line, "", why) for line, why in bad_lines]
    wrong = np.ones(len(numbers), dtype=np.bool_)
    for at, name in cast:
        if wrong[at]:
            kind = "true or false" if types[name] == pa.bool_() else "a number"
            bad.append(Bad(shard.first + int(numbers[at]), name, f"not {kind}"))
        wrong[at] = False
    table = table.filter(pa.array(wrong)) if cast else table
    numbers = numbers[wrong] + shard.first
    at = 0
    for batch in table.to_batches(BATCH_ROWS):
        yield batch, numbers[at : at + batch.num_rows], bad
        at, bad = at + batch.num_rows, []
    if bad:  # no row is valid
        yield pa.RecordBatch.from_pylist([], schema=table.schema), numbers[:0], bad


def _parsed(
    data: bytes, dialect: Dialect, wanted: list[str], types: dict[str, pa.DataType]
) -> tuple[pa.Table, list[tuple[int, str]]]:
    bad: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        bad.append((row.number - 1, f"{row.actual_columns} fields, not {row.expected_columns}"))
        return "skip"

    return parsed(data, dialect, wanted, types, skip), bad


def _cast(
    table: pa.Table, types: dict[str, pa.DataType], dialect: Dialect
) -> tuple[pa.Table, list[tuple[int, str]]]:
    """Convert texts to their types; also returns rows and columns of invalid ones (null there)."""
    wrong: list[tuple[int, str]] = []
    columns = []
    for name in table.column_names:
        texts = table[name].combine_chunks()
        kind = types[name]
        if kind == pa.string():
            columns.append(texts)
            continue
        values: list[Any] = []
        for i, text in enumerate(texts.to_pylist()):
            try:
                values.append(None if text is None else _value(text, kind, dialect))
            except ValueError:
                wrong.append((i, name))
                values.append(None)
        columns.append(pa.array(values, kind))
    return pa.table(columns, names=table.column_names), wrong


def _value(text: str, kind: pa.DataType, dialect: Dialect) -> Any:
    if kind == pa.float64():
        return dialect.number(text)
    if (lower := text.lower()) in ("true", "1", "false", "0"):
        return lower in ("true", "1")
    raise ValueError(text)


def _json(
    one: Input, shard: Shard, layout: Layout, data: bytes
) -> Iterator[tuple[pa.RecordBatch, Index, list[Bad]]]:
    expected = {column.name: column.kind for column in layout.features}
    schema = pa.schema(list(_types(layout).items()))
    lines = data.split(b"\n")[: shard.rows]
    for begin in range(0, len(lines), BATCH_ROWS):
        good, numbers, bad = [], [], []
        for i, line in enumerate(lines[begin : begin + BATCH_ROWS], shard.first + begin):
            row = _json_row(line, i, expected, layout, one.form)
            if isinstance(row, Bad):
                bad.append(row)
            else:
                good.append(row)
                numbers.append(i)
        batch = pa.RecordBatch.from_pylist(good, schema=schema)
        yield batch, np.array(numbers, dtype=np.int64), bad


def _json_row(
    line: bytes, number: int, expected: dict[str, Any], layout: Layout, form: Form
) -> dict[str, Any] | Bad:
    try:
        row = json_row(line, form)
    except msgspec.DecodeError as error:
        return Bad(number, "", f"no JSON ({error})")
    except NoChoice as error:
        return Bad(number, "", str(error))
    if not isinstance(row, dict):
        return Bad(number, "", "no JSON object")
    if layout.action is not None and isinstance(row.get(layout.action), bool | int | float):
        row[layout.action] = action_of(row[layout.action])
    for column in layout.features:
        if column.named and type(value := row.get(column.name)) is int:
            row[column.name] = str(value)  # as in files of other forms
    for name, kind in expected.items():
        if (
            (value := row.get(name)) is not None
            and json_kind(value) != kind
            and not (kind == "integer" and json_kind(value) == "number")
        ):
            return Bad(number, name, f"not {_CALLED.get(kind, kind)}")
        if isinstance(value, int) and abs(value) > _INTEGER_MAX:
            return Bad(number, name, _TOO_LARGE)
    if layout.key is not None and isinstance(key := row.get(layout.key), int):
        row[layout.key] = str(key)
    if layout.key is not None and not isinstance(row.get(layout.key), str | None):
        return Bad(number, layout.key, "a key is a whole number or text")
    if layout.time is not None:
        at = row.get(layout.time)
        if not isinstance(at, int | float) or isinstance(at, bool) or abs(at) > _INTEGER_MAX:
            return Bad(number, layout.time, "no time in POSIX seconds")
    return row


# -- checks ----------------------------------------------------------------------------------


def _piece(
    one: Input, batch: pa.RecordBatch, numbers: Index, bad: list[Bad], layout: Layout
) -> Piece:
    """Validate each value as the service validates requests."""
    n = batch.num_rows
    good = np.ones(n, dtype=np.bool_)
    columns: dict[str, Numbers | Text] = {}
    refused = list(bad)

    def refuse(wrong: npt.NDArray[Any], column: str, reason: str) -> None:
        fresh = np.flatnonzero(wrong & good)
        refused.extend(Bad(int(numbers[i]), column, reason) for i in fresh.tolist())
        good[fresh] = False

    anything = np.zeros(n, dtype=np.bool_)
    for column in layout.features:
        values = batch.column(column.name)
        if column.name == layout.action or column.named:
            values = _named(one, values, column)
        if column.required and values.null_count:
            absent = ~values.is_valid().to_numpy(zero_copy_only=False)
            refuse(absent, column.name, "it is required, and missing")
        if column.kind == "text":
            text = _text(values, layout.text_bytes_max, column.name, refuse)
            columns[column.name] = text
            anything |= text.codes != ABSENT
            continue
        made = _numbers(one, values, column, refuse)
        columns[column.name] = made
        anything |= True if made.present is None else made.present
    refuse(~anything, "", "no features")
    keys = None
    if layout.key is not None:
        keys = _keys(batch.column(layout.key), layout.key, refuse)
    times = None
    if layout.time is not None:
        times = _times(one, batch.column(layout.time), layout.time, refuse)
    rows = Rows(n, columns)
    if good.all():
        return Piece(rows, numbers, keys, refused, times)
    if keys is not None:
        keys = [key for key, kept in zip(keys, good.tolist(), strict=True) if kept]
    times = None if times is None else times[good]
    return Piece(rows.take(good), numbers[good], keys, refused, times)


def _numbers(one: Input, values: pa.Array, column: Column, refuse: Any) -> Numbers:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    present = None
    if values.null_count:
        present = values.is_valid().to_numpy(zero_copy_only=False)
        values = values.fill_null(False if pa.types.is_boolean(values.type) else 0)
    try:
        if pa.types.is_boolean(values.type):
            values = values.cast(pa.uint8())
        if pa.types.is_decimal(values.type):
            values = values.cast(pa.float64())
        raw = values.to_numpy(zero_copy_only=False)
        numbers = np.ascontiguousarray(raw, dtype=np.float64)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputRefused(
            f"{one.path}, column {column.name}", f"no numbers ({error})", "Begin a new run"
        ) from error
    if raw.dtype.kind in "iu":
        wrong = (raw < -_INTEGER_MAX) | (raw > _INTEGER_MAX)
        if wrong.any():
            refuse(wrong, column.name, _TOO_LARGE)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(numbers) <= _NUMBER_MAX)
    if wrong.any():
        refuse(wrong, column.name, "not a finite number in ±1e+100")
        numbers = np.where(wrong, 0.0, numbers)
    if column.least is not None or column.most is not None:
        low = -np.inf if column.least is None else column.least
        high = np.inf if column.most is None else column.most
        wrong = (numbers < low) | (numbers > high)
        refuse(wrong if present is None else wrong & present, column.name, "outside of its range")
    kind = "integer" if raw.dtype.kind in "iu" and column.kind != "bool" else column.kind
    return Numbers(kind, numbers, present)


def _named(one: Input, values: pa.Array, column: Column) -> pa.Array:
    """Convert categories or actions to texts.

    17 is "17", also if the file has 17.0, as columns of whole numbers are often written of which
    some are missing.
    """
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    given = values.dictionary.to_pylist()
    if column.named and any(isinstance(v, float) and not v.is_integer() for v in given):
        problem = "it holds number, and is declared as text"
        place = f"{one.path}, column {column.name}"
        raise InputRefused(place, problem, "Write it as declared, or declare it so")
    if one.form == "csv":
        given = [action_in(value) for value in given]
    elif not column.named or pa.types.is_primitive(values.type.value_type):
        given = [action_of(value) for value in given]
    return pa.array(given, pa.string()).take(values.indices)


def _text(values: pa.Array, bytes_max: int, name: str, refuse: Any) -> Text:
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    codes = values.indices.fill_null(ABSENT).to_numpy(zero_copy_only=False).astype(np.int32)
    texts: list[str] = values.dictionary.to_pylist()
    long = [i for i, text in enumerate(texts) if text is not None and len(text) > bytes_max]
    if long:
        refuse(np.isin(codes, long), name, f"text of more than {bytes_max} characters")
    return Text(codes, texts)


def _keys(values: pa.Array, name: str, refuse: Any) -> list[str]:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    texts = values.cast(pa.string())
    lengths = pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
    if (wrong := lengths == 0).any():
        refuse(wrong, name, "no key")
    if (wrong := lengths > _KEY_BYTES_MAX).any():
        refuse(wrong, name, f"a key of more than {_KEY_BYTES_MAX} bytes")
    keys: list[str] = texts.to_pylist()
    return keys


def _times(one: Input, values: pa.Array, name: str, refuse: Any) -> Floats:
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        micros = values.cast(pa.timestamp("us")).cast(pa.int64())
        seconds = pc.divide(micros.cast(pa.float64()), 1e6)
    else:
        try:
            seconds = values.cast(pa.float64())
        except pa.ArrowException as error:
            raise InputRefused(
                f"{one.path}, column {name}", f"no times ({error})",
                "Give timestamps or POSIX seconds",
            ) from error  # fmt: skip
    numbers: Floats = seconds.fill_null(np.nan).to_numpy(zero_copy_only=False)
    if (wrong := ~np.isfinite(numbers)).any():
        refuse(wrong, name, "no time")
    return numbers
