"""Interprets a table's columns (task, labels, times) and yields rows for the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from evaluation.errors import TableUnusable
from evaluation.late import posix_seconds
from evaluation.metrics import Task
from evaluation.report.columns import Asked, Roles, assign
from evaluation.report.rows import Column, Floats, Origin, Rows
from evaluation.report.table import Table, numbers, open_table, texts
from evaluation.streams import MULTICLASS_MAX
from replay.example import Label

_VALUES_MAX: Final = 1000
_HALF: Final = 0.5
_MOSTLY: Final = 0.9  # a text column with this share of numbers is numeric
_EPOCH_MIN: Final = 1e8  # numbers are guessed to be times only from 1973 on
_UNITS: Final = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


class FileRows:
    """A table whose columns have been interpreted; :meth:`rows` reads it a second time.

    Parameters:
        place: ``.csv`` (also gzipped; separators ``, ; | tab``) or ``.parquet``; or a table in
            memory.
        asked: Columns requested by the caller.
        task, positive, delay: As in :class:`Origin`; None: guessed from labels and predictions.

    Raises:
        TableUnusable: The table cannot be used; with the file, the column and the remedy.
    """

    def __init__(
        self,
        place: Path | Table,
        asked: Asked,
        *,
        task: Task | None = None,
        positive: str | None = None,
        delay: int = 0,
    ) -> None:
        self._table: Table = open_table(place) if isinstance(place, Path) else place
        self._file = self._table.path.name
        self._roles: Roles = assign(self._file, self._table.names, asked)
        labels, answers = self._values()
        if self._take_score(labels, answers):
            answers = set()
        self._texts = _all_bool(labels)
        known = {self._value(text) for text in labels}
        self._task: Task = task or self._guess_task(known, answers)
        self._names: dict[bool, str] = {}
        self._binary: dict[Label, bool] = {}
        if self._task == "binary":
            self._name_classes(known, positive)
        self._kinds: dict[str, str] = {}
        self._left_out: dict[str, str] = dict.fromkeys(self._roles.left_out, "a row's name")
        if self._roles.time is not None and "time" in self._roles.guessed:
            self._check_guessed_time(self._roles.time)
        self._check_answers(known, answers)
        self.origin = Origin(
            "file",
            self._file,
            self._task,
            names=self._names,
            delay=delay,
            columns=self._roles.columns(),
            left_out=self._left_out,
        )

    # -- interpretation ----------------------------------------------------------------------

    def _values(self) -> tuple[set[str], set[str]]:
        """Return the distinct texts of labels and predictions, up to a bound."""
        roles = self._roles
        wanted = [name for name in (roles.label, roles.prediction) if name]
        values: dict[str, set[str]] = {name: set() for name in wanted}
        n = 0
        for batch in self._table.batches(wanted):
            n += len(batch[roles.label])
            for name in wanted:
                if len(values[name]) <= _VALUES_MAX:
                    values[name].update(t.strip() for t in texts(batch[name].unique()) if t)
        if n == 0:
            raise TableUnusable(self._file, None, "it has no rows", "Name a file with rows")
        return values[roles.label], values.get(roles.prediction or "", set())

    def _take_score(self, labels: set[str], answers: set[str]) -> bool:
        """Treat the predictions as scores if they are probabilities; return whether they are."""
        roles = self._roles
        values = [_finite(text) for text in answers]
        if roles.score or not answers or len(labels) > 2 or any(v is None for v in values):
            return False
        inside = all(0 <= v <= 1 for v in values if v is not None)
        if not inside or all(v in (0, 1) for v in values) or not _classes(labels):
            return False
        self._roles = replace(roles, score=roles.prediction, prediction=None)
        return True

    def _guess_task(self, known: set[Label], answers: set[str]) -> Task:
        if not known:
            return "regression" if not self._roles.score and _fractional(answers) else "binary"
        figures = [v for v in known if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(figures) == len(known):
            whole = all(float(v).is_integer() for v in figures)
            if not whole or len(known) > MULTICLASS_MAX or _fractional(answers):
                return "regression"
        elif len(known) > MULTICLASS_MAX:
            raise TableUnusable(
                self._file, self._roles.label, f"it has more than {MULTICLASS_MAX} labels",
                "Name the column with the labels: --label COLUMN",
            )  # fmt: skip
        return "multiclass" if len(known) > 2 else "binary"

    def _name_classes(self, known: set[Label], asked: str | None) -> None:
        """Decide which label is True: the greater number, or the text later in the alphabet."""
        label = self._roles.label
        if len(known) > 2:
            raise TableUnusable(
                self._file, label, f"{len(known)} labels, and a binary task has two",
                "Leave --task out, or give --task multiclass",
            )  # fmt: skip
        ordered = sorted(known, key=lambda v: (isinstance(v, str), v))
        positive: Label
        if asked is not None:
            positive = self._value(asked)
            if known and positive not in known and len(known) == 2:
                shown = ", ".join(map(str, ordered))
                raise TableUnusable(
                    self._file, label, f"no label is {asked!r}", f"Give --positive one of: {shown}"
                )
        elif len(known) == 2:
            positive = ordered[1]
        else:
            positive = 1 if known <= {0, 1} else ordered[0]
        others = [v for v in ordered if v != positive]
        negative = others[0] if others else 0 if positive != 0 else 1
        self._binary = {positive: True, negative: False}
        self._names = {True: self._label_text(positive), False: self._label_text(negative)}

    def _value(self, text: str) -> Label:
        """Return a label in the form in which labels are compared: truth values as 1 and 0."""
        if self._texts and text.lower() in ("true", "false"):
            return int(text.lower() == "true")
        number = _finite(text)
        if number is None:
            return text
        return int(number) if number.is_integer() else number

    def _label_text(self, label: Label) -> str:
        return ("false", "true")[label == 1] if self._texts else str(label)

    def _check_answers(self, known: set[Label], answers: set[str]) -> None:
        answer = self._roles.prediction or self._roles.score
        if self._task == "regression":
            wrong = next((t for t in sorted(answers) if _number(t) is None), None)
            if wrong is not None:
                raise TableUnusable(
                    self._file, answer, f"{wrong!r} is no number",
                    "Name the column with the model's numbers: --prediction COLUMN",
                )  # fmt: skip
            return
        given = {self._value(text) for text in answers}
        if known and given and not known & given and len(known) > 1:
            some = ", ".join(sorted(map(str, given))[:5])
            raise TableUnusable(
                self._file, answer, f"no prediction ({some}) is a label of {self._roles.label!r}",
                "Name the column with the predicted label: --prediction COLUMN",
            )  # fmt: skip
        if self._task == "multiclass" and self._roles.prediction is None:
            raise TableUnusable(
                self._file, answer,
                f"{len(known)} labels, and a score alone does not say which was predicted",
                "Name the column with the predicted label: --prediction COLUMN",
            )  # fmt: skip

    def _check_guessed_time(self, name: str) -> None:
        """Treat a column as a feature if only its name suggests a time."""
        first = next(iter(self._table.batches([name])))[name]
        if _looks_like_time(first):
            return
        roles = self._roles
        features = {*roles.features, name}
        self._roles = replace(
            roles, time=None, features=tuple(n for n in self._table.names if n in features)
        )

    # -- reading -----------------------------------------------------------------------------

    def rows(self) -> Iterator[Rows]:
        """Yield all rows in the file's order."""
        roles = self._roles
        wanted = [name for name in roles.columns().values() if name] + list(roles.features)
        for batch in self._table.batches(list(dict.fromkeys(wanted))):
            yield self._rows(batch)

    def _rows(self, batch: Mapping[str, Any]) -> Rows:
        roles = self._roles
        n = len(batch[roles.label])
        score = None if roles.score is None else _floats(numbers(batch[roles.score])[0])
        predicted: list[Label | None]
        if roles.prediction is not None:
            predicted = self._labels(batch[roles.prediction])
        elif self._task == "regression" and score is not None:
            predicted = [v if math.isfinite(v) else None for v in score.tolist()]
        else:  # threshold the probability
            predicted = [
                None if not 0.0 <= p <= 1.0 else p >= _HALF
                for p in score.tolist()  # type: ignore
            ]
        return Rows(
            label=self._labels(batch[roles.label]),
            predicted=predicted,
            probabilities=self._probabilities(score, n),
            time=self._times(batch, roles.time, n),
            label_time=self._times(batch, roles.label_time, n),
            features={
                name: self._feature(name, batch[name])
                for name in roles.features
                if name not in self._left_out
            },
            version=None if roles.version is None else texts(batch[roles.version]),
            source=None if roles.source is None else texts(batch[roles.source]),
        )

    def _labels(self, column: Any) -> list[Label | None]:
        if self._task == "regression":
            return [v if math.isfinite(v) else None for v in _floats(numbers(column)[0]).tolist()]
        cache: dict[str | None, Label | None] = {None: None}
        out = []
        for text in texts(column):
            if text not in cache:
                stripped = (text or "").strip()
                value = self._value(stripped) if stripped else None
                cache[text] = value if value is None else self._binary.get(value, value)
            out.append(cache[text])
        return out

    def _probabilities(self, score: Floats | None, n: int) -> Sequence[Mapping[str, float] | None]:
        if score is None or self._task != "binary":
            return [None] * n
        return [{"true": p, "false": 1.0 - p} if 0.0 <= p <= 1.0 else None for p in score.tolist()]

    def _times(self, batch: Mapping[str, Any], name: str | None, n: int) -> Floats:
        if name is None:
            return np.full(n, np.nan)
        return times(self._file, name, batch[name])

    def _feature(self, name: str, column: Any) -> Column:
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _kind(column)
        if kind == "number":
            values, _ = numbers(column)
            out = _floats(values)
            out[~np.isfinite(out)] = np.nan
            return out
        return texts(column)


def times(file: str, name: str, column: Any) -> Floats:
    """Return a column of dates, ISO 8601 texts, or numbers in s, ms, µs, ns as POSIX seconds."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        micros = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return _floats(micros.cast(pa.float64(), safe=False)) / 1e6
    values, bad = numbers(column)
    if not bad:
        seconds = _floats(values)
        biggest = float(np.nanmax(np.abs(seconds))) if np.isfinite(seconds).any() else 0.0
        unit = next((unit for least, unit in _UNITS if biggest >= least), 1.0)
        return seconds / unit
    out = np.full(len(column), np.nan)
    for i, text in enumerate(texts(column)):
        if text is None:
            continue
        try:
            out[i] = posix_seconds(datetime.fromisoformat(text.strip()))
        except ValueError:
            raise TableUnusable(
                file, name, f"{text!r} is no time",
                "Write times as 2024-05-31T08:00:00Z or in seconds, or leave it out: --time none",
            ) from None  # fmt: skip
    return out


def _looks_like_time(column: Any) -> bool:
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return True
    values, bad = numbers(column)
    figures = _floats(values)
    figures = figures[np.isfinite(figures)]
    if not bad:
        return bool(len(figures)) and float(figures.min()) >= _EPOCH_MIN
    first = next((t for t in texts(column) if t is not None), "")
    try:
        datetime.fromisoformat(first.strip())
    except ValueError:
        return False
    return True


def _kind(column: Any) -> str:
    if pa.types.is_boolean(column.type):
        return "category"
    _, bad = numbers(column)
    known = len(column) - column.null_count
    return "number" if bad <= (1 - _MOSTLY) * known else "category"


def _floats(values: Any) -> Floats:
    """Return a writeable copy; nulls become NaN."""
    return np.array(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _finite(text: str) -> float | None:
    number = _number(text)
    return number if number is not None and math.isfinite(number) else None


def _all_bool(labels: set[str]) -> bool:
    return bool(labels) and all(text.lower() in ("true", "false") for text in labels)


def _classes(labels: set[str]) -> bool:
    """Return whether the labels can be classes, that is, are not fractional numbers."""
    values = [_finite(text) for text in labels]
    return all(v is None or v.is_integer() for v in values)


def _fractional(answers: set[str]) -> bool:
    values = [_finite(text) for text in answers]
    return bool(values) and any(v is not None and not v.is_integer() for v in values)
