"""Guesses the roles of a table's columns from their names and the first rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Final, Literal

from evaluation.late import posix_seconds
from evaluation.metrics import Task
from online.errors import ConfigError
from online.tables.actions import action_of
from online.tables.first_look import Table, Value
from replay.example import Features, Label

Kind = Literal["label", "number", "category", "text", "bool", "event_id", "time", "left_out"]

FEATURES: Final = ("number", "category", "text", "bool")
"""Kinds of columns that are learned from."""

LOOK_ROWS: Final = 20_000
"""Rows that are examined."""
CLASSES_MAX: Final = 256
NUMBERS_MAX: Final = 100
"""More distinct integers than this in a label column count as a measured quantity."""

_LABELS: Final = re.compile(
    r"labels?|target|class|y|outcome|response|rating|stars|result|sentiment|churn(ed)?|is_?fraud"
    r"|fraud|is_?spam|spam|clicked|survived|default(ed)?",
    re.I,
)
_IDS: Final = re.compile(r"(.*[a-z0-9])?(_id|ID|Id|_uuid|_key)|id|uuid|guid", re.ASCII)
_ROWS: Final = re.compile(
    r"|Unnamed: \d+|__index_level_\d+__|index|row(_?(number|num|no|nr))?", re.I
)
_TIMES: Final = re.compile(r".*(time|date|datum|stamp|created|[_ ]at|_ts|ts|when)", re.I)
_ANSWERS: Final = re.compile(r"pred(ict(ion|ed).*)?|.*_pred|prob(a|ability).*|y_?hat|score", re.I)
_POSITIVE: Final = (
    "yes",
    "ja",
    "true",
    "1",
    "y",
    "positive",
    "up",
    "spam",
    "fraud",
    "bad",
    "churn",
)
_MANY: Final = 10  # rows with the same text: it identifies nobody
_OWN_MIN: Final = 100  # distinct values without repetition tell nothing about other rows
_SINGLE: Final = re.compile(r"[^\s]*\d[^\s]*")  # like order numbers
_DATE: Final = re.compile(
    r"(\d\d?[/-](\d\d?|[A-Za-z]{3,9})[/-](19|20)\d\d|(19|20)\d\d/\d\d?/\d\d?)([ T].*)?"
)
_GERMAN: Final = re.compile(r"\d{1,2}\.\d{1,2}\.\d{4}( \d{1,2}:\d{2}(:\d{2})?)?")
_GERMAN_FORM: Final = "%d.%m.%Y %H:%M:%S"
_ALMOST: Final = {
    "no signs, such as $ and %, and no commas": re.compile(
        r"[+-]?[$€£¥]? ?\d{1,3}(,?\d{3})*(\.\d+)? ?[%$€£¥]?"
    ),
    "a point for the comma": re.compile(r"[+-]?\d+,\d+"),  # as some countries write it
}
"""Forms of texts that mean numbers, by what such a text should have instead."""
_CODE: Final = re.compile(r"0\d+")  # as of a postal code: no number lacks anything
_EXACT: Final = 2**53
_WORDS_MIN: Final = 3  # average number of words in a column of texts
_EPOCH_S: Final = (3e8, 4e9)  # 1979 to 2096


@dataclass(frozen=True, slots=True)
class Column:
    """A column, its guessed role, and the reason."""

    name: str
    kind: Kind
    why: str


@dataclass(frozen=True, slots=True)
class Guess:
    """A table as a stream of labelled rows.

    Attributes:
        classes: Label values in order, except in regression; in a binary task the negative one
            comes first.
        examples: By name, a typical value of a feature that reveals no single row.
    """

    table: Table
    task: Task
    label: str
    columns: tuple[Column, ...]
    classes: tuple[Value, ...] = ()
    examples: Mapping[str, Value] = field(default_factory=dict)

    def named(self, *kinds: Kind) -> list[str]:
        """Names of the columns with one of these roles."""
        return [column.name for column in self.columns if column.kind in kinds]

    def rows(self) -> Iterator[Row]:
        """Yield all rows with a label, in order of time if there is a time column."""
        rows: Iterator[Row] = (
            row for cells in self.table.rows() if (row := self.row(cells)) is not None
        )
        yield from sorted(rows, key=lambda row: row.at) if self.named("time") else rows

    def row(self, cells: Mapping[str, Value]) -> Row | None:
        """Convert a row of the table to the service's form; None without a label."""
        label = cells[self.label]
        if label is None:
            return None
        if self.task == "regression":
            label = float(label)
        numbers, others = self.named("number"), self.named("category", "text")
        features: Features = {name: cells[name] for name in numbers}
        features |= {name: action_of(cells[name]) for name in others}
        features |= {name: cells[name] for name in self.named("bool")}
        present: Features = {name: value for name, value in features.items() if value is not None}
        at = max((seconds(cells[name]) or 0.0 for name in self.named("time")), default=0.0)
        ids = [action_of(cells[name]) for name in self.named("event_id")]
        return Row(present, label, at, ids[0] if ids else None)

    def canonical(self, label: Label) -> Label:
        """The label as a model learns it: True and False in a binary task."""
        return label == self.classes[1] if self.task == "binary" else label


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: ``at`` in POSIX seconds, 0 without a time."""

    features: Features
    label: Label
    at: float
    event_id: str | None


@dataclass(slots=True)
class _Seen:
    """The values of a column in the examined rows."""

    values: list[Value] = field(default_factory=list)

    @property
    def different(self) -> set[Value]:
        return {value for value in self.values if value is not None}

    @property
    def numeric(self) -> bool:
        return all(type(value) in (int, float) for value in self.different)

    @property
    def long(self) -> bool:
        """Whether there are integers that no float64 holds exactly: codes, not quantities."""
        return any(type(value) is int and abs(value) >= _EXACT for value in self.different)

    @property
    def almost(self) -> str | None:
        """Return what the texts should have to be numbers; None: they are none."""
        texts = [value for value in self.different if isinstance(value, str)]
        if not texts or any(map(_CODE.fullmatch, texts)):
            return None
        found = (want for want, form in _ALMOST.items() if all(map(form.fullmatch, texts)))
        return next(found, None)

    @property
    def without(self) -> str:
        """Return a note on rows without a value; "" if all have one."""
        n = self.values.count(None)
        return f"; {n:,} of {len(self.values):,} rows have none, and teach nothing" if n else ""

    @property
    def exception(self) -> str:
        """Return a note on the text that is no number, if most values are numbers; else ""."""
        texts = [value for value in self.values if isinstance(value, str)]
        odd = 0 < len(texts) < len(self.values) / 2
        return f"; numbers, but for {texts[0][:40]!r}" if odd else ""

    @property
    def texts(self) -> bool:
        """Whether the values are sentences: several words on average, and few repetitions."""
        texts = [value for value in self.values if isinstance(value, str)]
        words = sum(text.count(" ") + 1 for text in texts)
        often = words >= _WORDS_MIN * len(self.values)
        return bool(texts) and often and len(self.different) > len(self.values) / 4

    @property
    def all_differ(self) -> bool:
        return len(self.different) == len(self.values) >= 10

    @property
    def ascending(self) -> bool:
        """Whether the values are times in order."""
        times = [at for value in self.values if (at := seconds(value)) is not None]
        return times == sorted(times)

    @property
    def dates(self) -> bool:
        """Whether the values are dates in a form that is not read, such as 1/31/2026."""
        return all(isinstance(value, str) and _DATE.fullmatch(value) for value in self.different)

    @property
    def times(self) -> bool:
        return bool(self.different) and all(seconds(value) is not None for value in self.different)


def guess(table: Table, label: str | None = None, task: Task | None = None) -> Guess:
    """Guess the roles of a table's columns, except for those that are given.

    Raises ConfigError if there is no such column, or if it can't be the label of the task.
    """
    seen = {name: _Seen() for name in table.names}
    for row in islice(table.rows(), LOOK_ROWS):
        for name, value in row.items():
            seen[name].values.append(value)
    columns = {name: _column(name, one, table) for name, one in seen.items()}
    _take_id(columns, seen, table.others)
    chosen, why = (label, "as you say") if label else _label(table.names, columns, seen)
    if chosen not in columns:
        known = ", ".join(table.names)
        raise ConfigError("--label", f"there is no column {chosen!r}", f"Name one of: {known}")
    guessed_task, classes = _task(chosen, seen[chosen], task)
    columns[chosen] = Column(chosen, "label", why + seen[chosen].without + _spellings(classes))
    examples = {n: v for n, c in columns.items() if (v := _typical(c.kind, seen[n])) is not None}
    if not any(c.kind in FEATURES for c in columns.values()):
        others = (c for c in columns.values() if c.kind != "label")
        whys = "; ".join(f"{c.name[:40]} is {c.kind}: {c.why}" for c in islice(others, 5))
        problem = f"no column is left to learn from{whys and f' ({whys})'}"
        raise ConfigError(str(table.path), problem, "Add features, or write these otherwise")
    return Guess(table, guessed_task, chosen, tuple(columns.values()), classes, examples)


def _column(name: str, seen: _Seen, table: Table) -> Column:
    n = len(seen.different)
    if _ROWS.fullmatch(name) and (not name or seen.all_differ):
        return Column(name, "left_out", "it has no name, or that of a row's number")
    if name in table.others and not (_TIMES.fullmatch(name) and seen.times):
        return Column(name, "left_out", f"no feature can have its type, {table.others[name]}")
    if n == 0:
        return Column(name, "left_out", "it is empty in the rows that were looked at")
    if _ANSWERS.fullmatch(name):
        return Column(name, "left_out", "by its name it is another model's answer")
    if _TIMES.fullmatch(name) and seen.times:
        unsorted = "" if seen.ascending else ", but not that of the file: sort it for a backfill"
        why = f"its name, and its values are times: the order of the rows{unsorted}"
        return Column(name, "time", why)
    if _IDS.fullmatch(name) and seen.all_differ:
        return Column(name, "event_id", "its name, and no value comes twice")
    if _IDS.fullmatch(name) and n > 2:
        return Column(name, "category", f"its name: an id, {n:,} different ones")
    if seen.numeric and not seen.long:
        commas = table.dialect is not None and table.dialect.decimal == ","
        signs = ", with a comma before decimals" if commas else ""
        return Column(name, "number", f"{n:,} different numbers{signs}")
    if all(isinstance(value, bool) for value in seen.different):
        return Column(name, "bool", "true and false")
    if seen.texts:
        return Column(name, "text", "sentences: each word counts")
    if seen.dates:
        return Column(name, "left_out", "times, if they were written as 2026-01-31 or 31.1.2026")
    more = f"; numbers, if they had {seen.almost}" if seen.almost else seen.exception
    more += "; integers beyond 2^53 count as names" if seen.long else ""
    if seen.all_differ and n >= _OWN_MIN:
        return Column(name, "left_out", f"no value comes twice, {n:,} different ones{more}")
    return Column(name, "category", f"{n:,} different values{more}")


def _take_id(
    columns: dict[str, Column], seen: Mapping[str, _Seen], others: Collection[str]
) -> None:
    """If no id was found by name, use the first column of unique values as the id."""
    if any(column.kind == "event_id" for column in columns.values()):
        return
    for name, column in columns.items():
        own = (
            not _ROWS.fullmatch(name)
            and column.kind == "left_out"
            and seen[name].all_differ
            and not (seen[name].almost or seen[name].dates or seen[name].times or name in others)
        )
        if own and all(_SINGLE.fullmatch(str(value)) for value in seen[name].values):
            columns[name] = Column(name, "event_id", "each row has its own, with a number in it")
            return


def _typical(kind: Kind, seen: _Seen) -> Value:
    """The median to two digits, or a text that occurs in many rows; None without one."""
    values = [value for value in seen.values if value is not None]
    if kind == "number":
        numbers = sorted(float(value) for value in values)
        return float(f"{numbers[len(numbers) // 2]:.2g}")
    if kind == "category":
        value, n = Counter(map(action_of, values)).most_common(1)[0]
        return value if n >= _MANY else None
    return None


def _label(
    names: Sequence[str], columns: Mapping[str, Column], seen: Mapping[str, _Seen]
) -> tuple[str, str]:
    possible = [
        name
        for name in names
        if columns[name].kind in ("number", "category", "bool")
        and not _IDS.fullmatch(name)
        and not _TIMES.fullmatch(name)
        and not (columns[name].kind == "category" and len(seen[name].different) > CLASSES_MAX)
    ]
    if named := [name for name in possible if _LABELS.fullmatch(name)]:
        return named[-1], "its name"
    possible = [name for name in possible if name.lower() not in ("year", "month", "day", "hour")]
    if not possible:
        raise ConfigError("--label", "no column looks like a label", f"One of: {', '.join(names)}")
    return possible[-1], "the last column that can be one"


def _task(name: str, seen: _Seen, task: Task | None) -> tuple[Task, tuple[Value, ...]]:
    values = sorted(seen.different, key=lambda v: (isinstance(v, str), v))
    whole = all(not isinstance(v, str) and float(v).is_integer() for v in values)  # type: ignore[arg-type]
    measured = seen.numeric and (len(values) > NUMBERS_MAX or not whole)
    guessed: Task = "regression" if measured else "binary" if len(values) == 2 else "multiclass"
    chosen = task or guessed
    if chosen == "regression":
        if not seen.numeric:
            remedy = f"Write {seen.almost}" if seen.almost else "Say --task multiclass"
            raise ConfigError("--task", f"{name} has texts", f"{remedy}, or --label")
        return chosen, ()
    if len(values) < 2 or len(values) > CLASSES_MAX or (chosen == "binary" and len(values) != 2):
        problem = f"column {name} has {len(values):,} different values"
        raise ConfigError("--label", f"{problem}, no label of a {chosen} task", "Name another one")
    if chosen == "binary" and str(values[0]).lower() in _POSITIVE:
        values.reverse()
    return chosen, tuple(values)


def _spellings(classes: Sequence[Value]) -> str:
    """Return a note on classes that differ only in case, which may be one class; else ""."""
    first: dict[str, Value] = {}
    for value in classes:
        if (known := first.setdefault(str(value).casefold(), value)) != value:
            return f"; {known!r} and {value!r} are two classes: write them alike if they are one"
    return ""


def seconds(value: Value) -> float | None:
    """Parse a time to POSIX seconds: (milli)seconds, ISO 8601 or day.month.year; else None.

    A time without a zone is in UTC: local time has an hour twice each autumn, and would order rows
    differently on another machine.
    """
    low, high = _EPOCH_S
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        try:
            if (match := _GERMAN.fullmatch(value)) is None:
                return posix_seconds(datetime.fromisoformat(value))
            more = "" if match[2] else ":00" if match[1] else " 00:00:00"
            return posix_seconds(datetime.strptime(value + more, _GERMAN_FORM))
        except ValueError:
            return None
    for scale in (1.0, 1e3):
        if low * scale <= value <= high * scale:
            return value / scale
    return None
