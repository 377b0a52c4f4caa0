"""Plans the reading of tables: files, columns, and shards of bounded size.

Parquet is split at row groups (and within them at ``ROWS_MAX``), text at line ends outside quotes,
so each shard can be read independently by any process.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pyarrow import fs

from evaluation.dialect import NULLS, Dialect, dialect_of
from online.tables.columns import PLAIN, Kind
from online.tables.errors import InputRefused
from online.tables.first_look import usable
from online.tables.layout import Column, Form, Input, Layout, Shard
from online.tables.line_ends import LineEnds
from online.tables.logged_choices import ABOUT, NoChoice, row_of
from online.tables.places import Location, failures, without_keys
from refusals import reason

ROWS_MAX: Final = 65_536
"""Most rows of a shard of a Parquet file."""
TEXT_BYTES: Final = 8 << 20
"""Uncompressed bytes of a shard of a text file, plus at most one line."""
SAMPLED: Final = 200
"""Rows of a run that are also scored one by one."""

_HEAD_BYTES: Final = 1 << 20
_HEAD_LINES: Final = 1_000
_MOSTLY: Final = 0.5  # share of numbers from which a CSV column is a column of numbers
_READ_AS: Final[dict[str, tuple[str, ...]]] = {
    "number": ("number", "integer"),
    "bool": ("bool",),
    "text": ("text", "integer"),  # a category that is written as whole numbers
}
"""Kinds of columns that can be read as a declared kind; CSV columns are texts anyway."""
_FORMS: Final[dict[str, Form]] = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".dsjson": "dsjson", ".tsv": "csv", ".txt": "csv",
}  # fmt: skip


def files_of(places: Sequence[str], named: Collection[str | None] = ()) -> list[Input]:
    """The files of some paths or URIs; folders are expanded, in order of names.

    ``named`` are columns that the caller knows: a first line with one of them is a header.
    ``rows`` are still 0.  Raises InputRefused, LocationFailed.
    """
    out: list[Input] = []
    for place in places:
        filesystem, path = Location(place).open()
        with failures(path):
            info = filesystem.get_file_info(path)
            if info.type == fs.FileType.NotFound:
                raise InputRefused(
                    without_keys(place), "there is no such file or folder", "Name another"
                )
            if info.type == fs.FileType.Directory:
                selector = fs.FileSelector(path, recursive=True)
                infos = sorted(filesystem.get_file_info(selector), key=lambda i: i.path)
                infos = [i for i in infos if i.is_file and i.base_name[0] not in "._"]
            else:
                infos = [info]
        if not infos:
            raise InputRefused(without_keys(place), "the folder contains no file", "Name another")
        out += [_input(place, info, {name for name in named if name}) for info in infos]
    return out


def _input(place: str, info: Any, named: Collection[str]) -> Input:
    name = info.base_name.lower()
    compressed = name.endswith(".gz")
    plain = name.removesuffix(".gz")
    form = _FORMS.get(plain[plain.rfind(".") :] if "." in plain else "")
    if form is None or (compressed and form == "parquet"):
        known = ", ".join(_FORMS)
        raise InputRefused(
            info.path, "its name does not end in a known format", f"Known: {known}, .gz"
        )
    if not info.size:
        raise InputRefused(info.path, "the file is empty", "Leave it out, or write it again")
    changed_at = (info.mtime_ns or 0) / 1e9
    one = Input(place, info.path, form, compressed, info.size, changed_at, 0)
    return msgspec.structs.replace(one, dialect=_dialect(one, named)) if form == "csv" else one


def _dialect(one: Input, named: Collection[str]) -> Dialect:
    """Infer how a text file is written.  Raises InputRefused."""
    head = _head(one)
    try:
        text = head.decode("utf-8-sig", errors="ignore" if len(head) == _HEAD_BYTES else "strict")
        dialect = dialect_of(io.StringIO(text, newline=""), named)
    except (UnicodeDecodeError, csv.Error) as error:
        problem = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else reason(error)
        raise InputRefused(one.path, problem, "Save it as CSV in UTF-8") from error
    if dialect is None:
        raise InputRefused(one.path, "the file has no rows", "Leave it out, or write it again")
    usable(one.path, dialect.names)
    return dialect


def opened(one: Input) -> Any:
    """Open a file's content; a compressed one is a decompressing stream that can't seek."""
    filesystem, _ = Location(one.place).open()
    if not one.compressed:
        return filesystem.open_input_file(one.path)
    return filesystem.open_input_stream(one.path, compression="gzip")


def parquet(one: Input) -> pq.ParquetFile:
    """Open a Parquet file.  Raises InputRefused if it is damaged, and LocationFailed."""
    try:
        with failures(one.path):
            file = opened(one)
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise InputRefused(
            one.path, f"it is no complete Parquet file ({error})", "Write it again, or leave it out"
        ) from error


# -- columns ---------------------------------------------------------------------------------


def kinds(one: Input) -> dict[str, Kind | str]:
    """Kinds of a file's columns; a type that no feature can have is given by its name.

    Raises InputRefused, LocationFailed.
    """
    if one.form == "parquet":
        return {field.name: kind_of(field.type) for field in parquet(one).schema_arrow}
    head = _head(one)
    if one.dialect is None:
        return _json_kinds(one, head)
    ends = _line_ends(one).within(head)[: one.dialect.above]
    begin = int(ends[-1]) + 1 if len(ends) else 0
    try:
        read = parsed(head[begin:], one.dialect, list(dict.fromkeys(one.dialect.names)))
    except pa.ArrowException as error:
        raise InputRefused(one.path, f"no CSV with a header ({error})", "Write it again") from error
    columns = zip(read.column_names, read.columns, strict=True)
    return {name: _csv_kind(of, one.dialect) for name, of in columns}


def parsed(
    data: bytes,
    dialect: Dialect,
    wanted: Sequence[str],
    types: Mapping[str, pa.DataType] | None = None,
    odd: Callable[[Any], str] = lambda _: "skip",
) -> pa.Table:
    """Parse whole rows; ``odd`` is asked about those with other numbers of values.

    Whitespace around a value is no part of it, and the texts for missing values are null.  Without
    ``types`` they are inferred.  Raises ArrowException.
    """
    table = pacsv.read_csv(
        io.BytesIO(data),
        pacsv.ReadOptions(
            use_threads=False, column_names=dialect.names, block_size=len(data) + 1
        ),
        pacsv.ParseOptions(
            delimiter=dialect.delimiter, quote_char='"' if dialect.quotes else False,
            newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=odd,
        ),
        pacsv.ConvertOptions(
            column_types=types, include_columns=wanted, null_values=list(NULLS),
            decimal_point=dialect.decimal,
        ),
    )  # fmt: skip
    for i, name in enumerate(table.column_names):
        if table[name].type == pa.string():
            texts = pc.utf8_trim_whitespace(table[name])
            missing = pc.is_in(texts, pa.array(NULLS))
            table = table.set_column(i, name, pc.if_else(missing, None, texts))
    return table


def _head(one: Input) -> bytes:
    """Complete lines of the file's beginning."""
    with failures(one.path), opened(one) as stream:
        head: bytes = stream.read(_HEAD_BYTES)
    end = head.rfind(b"\n") + 1
    return head[:end] if len(head) == _HEAD_BYTES and end else head


def kind_of(kind: pa.DataType) -> Kind | str:
    """Return the kind of a Parquet column; a type that no feature can have is given by its name."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    return str(kind)


def _csv_kind(values: pa.ChunkedArray, dialect: Dialect) -> Kind:
    """Kind of a CSV column; a few texts among numbers are invalid rows."""
    of = kind_of(values.type)
    if of in ("integer", "number", "bool"):
        return of  # type: ignore[return-value]
    if of == "null":
        return "number"
    texts = [text for text in values.cast(pa.string()).to_pylist() if text not in (None, *NULLS)]
    numbers = sum(dialect.is_number(text) for text in texts)
    return "number" if numbers > _MOSTLY * len(texts) else "text"


def _json_kinds(one: Input, head: bytes) -> dict[str, Kind | str]:
    out: dict[str, Kind | str] = {}
    for line in head.splitlines()[:_HEAD_LINES]:
        try:
            row = json_row(line, one.form)
        except (msgspec.DecodeError, NoChoice):
            continue  # an invalid row, which is reported when rows are read
        for name, value in row.items() if isinstance(row, dict) else ():
            if value is None:
                continue
            kind = "integer" if type(value) is int else json_kind(value)
            # A row with another type later on is invalid, but integers among numbers are numbers.
            if out.setdefault(name, kind) == "integer" and kind == "number":
                out[name] = kind
    if not out:
        raise InputRefused(one.path, "no line of JSON objects in its beginning", "Write it again")
    return out


def json_row(line: bytes, form: Form) -> Any:
    """Decode a line of JSON; raises DecodeError, or NoChoice for a line that is no choice."""
    try:
        row = msgspec.json.decode(line)
    except (RecursionError, UnicodeDecodeError) as error:
        raise msgspec.DecodeError(reason(error)) from None
    return row_of(row) if form == "dsjson" and isinstance(row, dict) else row


def json_kind(value: object) -> Kind | str:
    """Return the kind of a column with this JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else type(value).__name__


def layout(
    inputs: Sequence[Input],
    *,
    key: str | None,
    time: str | None,
    ignored: Collection[str],
    known: Collection[str],
    numeric_only: bool,
    missing_ok: bool,
    text_bytes_max: int,
    label: str | None = None,
    declared: Mapping[str, Column] | None = None,
    texts: Collection[str] = (),
    action: str | None = None,
) -> Layout:
    """Determine the columns, which must agree between all files and with the model.

    Parameters:
        known: Names that the model has learned or was built for; empty: any names.
        label: A column of labels, which is read like a feature.
        declared: Features that the model's settings declare: other columns are left out.
        texts: Names that may be texts even if all other features must be numbers.
        action: A column of names of actions, which is read as text.

    Raises InputRefused, naming file and column.
    """
    first: dict[str, Kind | str] | None = None
    if declared is not None and action is not None:  # it is no feature, whatever it is called
        declared = {name: column for name, column in declared.items() if name != action}
    for one in inputs:
        own = kinds(one)
        if action is not None and own.get(action) in ("number", "integer", "bool"):
            own[action] = "text"
        for name in (key, time, label):
            if name is not None and name not in own:
                raise _column(one, name, "it is missing", f"It has: {', '.join(own)[:300]}")
        left = (key, time, "", *ignored, *(ABOUT if one.form == "dsjson" else ()))  # "": no name
        taken = {n: k for n, k in own.items() if n not in left}
        if declared is not None:
            taken = _as_declared(one, taken, declared, (label, action))
        features = {n: k for n, k in taken.items() if n != label}
        _check_types(one, features, numeric_only=numeric_only, texts=texts)
        if first is None:
            first = taken
            expected = known
            if declared is not None and known:  # what it learned under other names is not asked
                expected = {*features, *(name for name in known if name in declared)}
            _check_known(one, features, expected, missing_ok=missing_ok)
        else:
            _check_alike(one, taken, first, inputs[0].path)
        if key is not None and own[key] not in ("integer", "text", "number"):
            raise _column(
                one, key, f"keys can't be of type {own[key]}", "Use whole numbers or text"
            )
        if key is not None and own[key] == "number" and one.form == "parquet":
            raise _column(one, key, "keys can't be floats", "Use whole numbers or text")
    columns = tuple(
        (declared or {}).get(name) or Column(name, kind)  # type: ignore[arg-type]
        for name, kind in (first or {}).items()
    )
    return Layout(columns, key, time, text_bytes_max, action)


def _column(one: Input, name: str, problem: str, remedy: str) -> InputRefused:
    return InputRefused(f"{one.path}, column {name}", problem, remedy)


def _check_types(
    one: Input, taken: dict[str, Kind | str], *, numeric_only: bool, texts: Collection[str]
) -> None:
    if not taken:
        raise InputRefused(one.path, "all columns are ignored", "Ignore fewer")
    for name, kind in taken.items():
        if kind not in PLAIN:
            raise _column(one, name, f"it is of type {kind}", f"Leave it out: --ignore {name}")
        if kind == "text" and numeric_only and name not in texts:
            remedy = f"This model takes numbers only: write numbers, or --ignore {name}"
            raise _column(one, name, "it holds text", remedy)


def _as_declared(
    one: Input,
    taken: dict[str, Kind | str],
    declared: Mapping[str, Column],
    as_read: Collection[str | None],
) -> dict[str, Kind | str]:
    """The declared columns with their declared kinds, those in ``as_read`` as in the file.

    Raises InputRefused.
    """
    for name, column in declared.items():
        if name not in taken and column.required:
            remedy = "Add it, or declare it without `required`"
            raise _column(one, name, "it is missing, and declared as required", remedy)
    out: dict[str, Kind | str] = {}
    for name, kind in taken.items():
        if name in as_read:
            out[name] = kind
        elif (known := declared.get(name)) is not None:
            floats = known.named and one.form == "parquet" and kind == "number"
            own = kind in _READ_AS[known.kind] or floats or (one.form == "csv" and kind != "text")
            if not own:
                problem = f"it holds {kind}, and is declared as {known.kind}"
                raise _column(one, name, problem, "Write it as declared, or declare it so")
            out[name] = known.kind
    return out


def _check_known(
    one: Input, taken: dict[str, Kind | str], known: Collection[str], *, missing_ok: bool
) -> None:
    if not known:
        return
    for name in taken:
        if name not in known:
            raise _column(one, name, "the model does not know it", f"Leave it out: --ignore {name}")
    for name in sorted(known):
        if name not in taken and not missing_ok:
            remedy = "Add it, or score without it: --missing-ok"
            raise _column(one, name, "it is missing, and the model has learned it", remedy)


def _check_alike(
    one: Input, taken: dict[str, Kind | str], first: dict[str, Kind | str], of: str
) -> None:
    for name in first:
        if name not in taken:
            raise _column(one, name, f"it is missing here, and {of} has it", "Add it")
    for name, kind in taken.items():
        if name not in first:
            raise _column(one, name, f"it is not in {of}", f"Leave it out: --ignore {name}")
        if (kind == "text") != (first[name] == "text"):
            raise _column(one, name, f"{kind}, and {first[name]} in {of}", "Give it one type")


# -- shards ----------------------------------------------------------------------------------


def cut(inputs: Sequence[Input], rng: np.random.Generator) -> tuple[list[Input], list[Shard]]:
    """Split the files into shards; also returns the files with their rows counted.

    ``rng`` draws the sampled rows.  Raises InputRefused if a file has no rows or is damaged, and
    LocationFailed.
    """
    counted: list[Input] = []
    shards: list[Shard] = []
    for i, one in enumerate(inputs):
        own = list(_cut_parquet(i, one) if one.form == "parquet" else _cut_text(i, one))
        rows = sum(shard.rows for shard in own)
        if not rows:
            raise InputRefused(one.path, "the file has no rows", "Leave it out, or write it again")
        counted.append(msgspec.structs.replace(one, rows=rows))
        shards += own
    total = sum(shard.rows for shard in shards)
    drawn = np.sort(rng.choice(total, size=min(SAMPLED, total), replace=False))
    out, before = [], 0
    for number, shard in enumerate(shards):
        mine = drawn[(drawn >= before) & (drawn < before + shard.rows)] - before
        out.append(msgspec.structs.replace(shard, number=number, sampled=tuple(mine.tolist())))
        before += shard.rows
    return counted, out


def _cut_parquet(place: int, one: Input) -> Iterator[Shard]:
    first = 0
    meta = parquet(one).metadata
    for group in range(meta.num_row_groups):
        rows = meta.row_group(group).num_rows
        pieces = -(-rows // ROWS_MAX)
        ends = [rows * (i + 1) // pieces for i in range(pieces)]
        for begin, end in zip([0, *ends], ends, strict=False):
            yield Shard(0, place, group, begin, end, first + begin, end - begin)
        first += rows


def _line_ends(one: Input) -> LineEnds:
    if one.dialect is None:
        return LineEnds(quoted=False)
    return LineEnds(quoted=one.dialect.quotes, delimiter=one.dialect.delimiter)


def _cut_text(place: int, one: Input) -> Iterator[Shard]:
    line_ends, above = _line_ends(one), 0 if one.dialect is None else one.dialect.above
    with failures(one.path), opened(one) as stream:
        begin, first, lines, at, last = 0, 0, 0, 0, b""
        while data := stream.read(TEXT_BYTES):
            ends = line_ends.within(data)
            if above:  # the header is no row
                if len(ends) < above:
                    raise InputRefused(one.path, "no line ends its header", "Write it again")
                begin, ends, above = at + int(ends[above - 1]) + 1, ends[above:], 0
            lines += len(ends)
            if len(ends):
                end = at + int(ends[-1]) + 1
                if lines:
                    yield Shard(0, place, 0, begin, end, first, lines)
                begin, first, lines = end, first + lines, 0
            at, last = at + len(data), data[-1:]
        if at > begin and last != b"\n":
            yield Shard(0, place, 0, begin, at, first, 1)


def newest(inputs: Iterable[Input]) -> float:
    """Time of the newest change of a file, in POSIX seconds."""
    return max((one.changed_at for one in inputs), default=0.0)
