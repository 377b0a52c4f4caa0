"""Reads a CSV or Parquet file, or a data frame, in batches of columns.

The file is read twice, first only labels and predictions (to infer task and classes), then all
columns.  Only one batch is in memory at a time.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from evaluation.errors import TableUnusable

BATCH_ROWS: Final = 8192
_BLOCK_BYTES: Final = 1 << 20
_MISSING: Final = ["", "NA", "N/A", "n/a", "nan", "NaN", "NAN", "null", "NULL", "None", "?"]
_SEPARATORS: Final = ",;\t|"
_DIGITS: Final = {16: 3, 32: 7, 64: 15}
"""Significant digits of a float by its bits."""


@dataclass(frozen=True, slots=True)
class Table:
    """A file that can be read repeatedly, in batches of columns; or a table in memory.

    Attributes:
        separator: Separator of a CSV file; None: the file is Parquet.
        held: The table, if it is in memory; then ``path`` is its name in errors.
    """

    path: Path
    names: tuple[str, ...]
    separator: str | None
    held: pa.Table | None = None

    def batches(self, columns: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
        """Yield columns of consecutive rows, at most ``BATCH_ROWS`` rows per batch.

        Raises TableUnusable if the file is truncated or a line does not match the header.
        """
        try:
            if self.held is not None:
                yield from _even(self.held.select(list(columns)).to_batches())
            elif self.separator is None:
                yield from self._parquet(columns)
            else:
                yield from self._csv(columns)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise TableUnusable(
                self.path.name, None, _first_line(error), "Mend the file there, or write it again"
            ) from None

    def _csv(self, columns: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
        convert = arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=list(columns),
            null_values=_MISSING,
            strings_can_be_null=True,
        )
        with pa.input_stream(str(self.path), compression="detect") as raw:
            reader = arrow_csv.open_csv(
                raw,
                read_options=arrow_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=self.separator, newlines_in_values=True
                ),
                convert_options=convert,
            )
            yield from _even(reader)

    def _parquet(self, columns: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
        with parquet.ParquetFile(self.path) as file:
            yield from _even(
                file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns), use_threads=False)
            )


def _even(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, pa.Array]]:
    """Yield batches of ``BATCH_ROWS`` rows, so that reports do not depend on the file's blocks."""
    held: list[pa.RecordBatch] = []
    n = 0
    for batch in batches:
        held.append(batch)
        n += batch.num_rows
        while n >= BATCH_ROWS:
            whole = pa.Table.from_batches(held)
            yield _columns(whole.slice(0, BATCH_ROWS))
            rest = whole.slice(BATCH_ROWS)
            held, n = rest.to_batches(), rest.num_rows
    if n:
        yield _columns(pa.Table.from_batches(held))


def _columns(table: pa.Table) -> dict[str, pa.Array]:
    whole = table.combine_chunks()
    return {name: _plain(whole.column(name).combine_chunks()) for name in whole.column_names}


def _plain(column: Any) -> Any:
    """Return the column as one chunk without dictionary encoding."""
    if isinstance(column, pa.ChunkedArray):  # without rows, or of an extension type
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    return column


def open_table(path: Path) -> Table:
    """Open a file and read its header.

    Raises:
        TableUnusable: The file does not exist, is of an unknown kind, or has no header.
    """
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    try:
        if kind in ("parquet", "pq"):
            with parquet.ParquetFile(path) as file:
                return Table(path, _top_names(file.schema_arrow), None)
        if kind in ("csv", "tsv", "txt"):
            return _open_csv(path)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise TableUnusable(
            path.name, None, _first_line(error), "Name a readable CSV or Parquet file"
        ) from None
    raise TableUnusable(
        path.name, None, f"its name ends in .{kind}" if kind else "its name has no ending",
        "Name a .csv, .csv.gz, .tsv or .parquet file",
    )  # fmt: skip


def table_of(frame: Any) -> Table:
    """Return a table for a data frame (pandas, polars, pyarrow) or a mapping of columns.

    Raises TableUnusable.
    """
    name = Path("the frame")
    try:
        if isinstance(frame, pa.Table):
            held = frame
        elif isinstance(frame, Mapping):
            held = pa.table({str(column): list(values) for column, values in frame.items()})
        elif hasattr(frame, "to_dict") and hasattr(frame, "columns") and hasattr(frame, "dtypes"):
            held = pa.Table.from_pandas(frame, preserve_index=False)
        else:
            held = pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        remedy = "Give a data frame of plain columns, or the path of a CSV or Parquet file"
        raise TableUnusable(name.name, None, _first_line(error), remedy) from None
    held = held.rename_columns([str(column) for column in held.column_names])
    return Table(name, _top_names(held.schema), None, held)


def _top_names(schema: Any) -> tuple[str, ...]:
    nested = (pa.types.is_nested, pa.types.is_binary)
    return tuple(f.name for f in schema if not any(test(f.type) for test in nested))


def _open_csv(path: Path) -> Table:
    with pa.input_stream(str(path), compression="detect") as raw:
        head = raw.read(_BLOCK_BYTES)
    text = head.decode("utf-8-sig", errors="strict" if len(head) < _BLOCK_BYTES else "ignore")
    lines = text.splitlines()
    if not lines or not lines[0].strip():
        raise TableUnusable(path.name, None, "it is empty", "Name a file with a header and rows")
    separator = max(_SEPARATORS, key=lambda s: lines[0].count(s))
    names = next(csv.reader(lines, delimiter=separator))
    if all(_number(name) is not None for name in names):
        raise TableUnusable(
            path.name, None, "its first line is all numbers", "Give the file a header"
        )
    return Table(path, tuple(names), separator)


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else repr(error)


def numbers(column: Any) -> tuple[Any, int]:
    """Return the column as float64, nulls for other values, and the number of such values."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return pc.cast(column, pa.float64(), safe=False), 0
    if pa.types.is_boolean(column.type):
        return pc.cast(pc.cast(column, pa.int8()), pa.float64()), 0
    if pa.types.is_decimal(column.type):
        return pc.cast(column, pa.float64()), 0
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        try:
            return pc.cast(trimmed, pa.float64()), 0
        except pa.ArrowInvalid:
            values = [_number(text) for text in trimmed.to_pylist()]
            bad = sum(v is None for v in values) - column.null_count
            return pa.array(values, pa.float64()), bad
    return pa.nulls(len(column), pa.float64()), len(column) - column.null_count


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def texts(column: Any) -> list[str | None]:
    """Return the column as text; whole floats are written without a decimal point."""
    if pa.types.is_boolean(column.type):
        return [None if v is None else ("true" if v else "false") for v in column.to_pylist()]
    if pa.types.is_floating(column.type):
        digits = _DIGITS.get(column.type.bit_width, 7)
        return [None if v is None or v != v else _text(v, digits) for v in column.to_pylist()]
    out: list[str | None] = pc.cast(column, pa.string()).to_pylist()
    return out


def _text(value: float, digits: int) -> str:
    """Write a number with all digits that it has: labels may be long numbers."""
    return f"{value:.0f}" if value.is_integer() else f"{value:.{digits}g}"
