"""Reads a model's journal for the report: answers, and the labels that arrived for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from evaluation.light_rows import weigh
from evaluation.metrics import Task, add
from evaluation.report.rows import Column, Floats, Origin, Rows
from online.errors import StartRefused
from online.rows.history import origin as origin_of
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal
from replay.codec import decode, is_erased
from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import Example, Label, Value, is_unlabelled, label_of, label_text
from replay.journal.base import Journal, Row, Verdict

Held: TypeAlias = Callable[[Task, Example], tuple[bool, float] | None]

PAGE_ROWS: Final = 2048
_SHOWN_CHARS: Final = 64  # characters of a value, as in the status


def open_for_report(settings: Settings) -> Journal:
    """Open the journal, which must exist.  Raises StartRefused with the remedy."""
    path = settings.state_dir / "journal.db"
    if settings.journal == "sqlite" and not path.exists():  # opening it would create it
        raise StartRefused(f"there is no journal {path}", "Name its folder with --state-dir")
    return open_journal(settings)


def origin(model: ModelSettings) -> Origin:
    """Describe the model's rows for the report."""
    names: dict[bool, str] = {}
    if model.task == "binary":
        classes = model.classes or {"negative": "false", "positive": "true"}
        names = {False: str(classes["negative"]), True: str(classes["positive"])}
    return Origin(
        "journal", model.name, model.task, names=names, slices=model.slices,
        slice_values=model.slice_values,
    )  # fmt: skip


class JournalRows:
    """Rows of a model in the order in which their labels were recorded; read-only.

    Rows that learn an event again are left out, so an event is reported once.  Quarantined rows are
    counted, but their labels are not used, nor are those of light rows that count in no score
    (:mod:`evaluation.light_rows`).  Provisional labels are left out: their events are
    reported with the final label.

    Parameters:
        since, until: Recording times in POSIX seconds: from ``since``, before ``until``.
        held: Returns whether an answer's label set or interval contained its label, and its size;
            None: it had none.  Without this function coverage is not reported.

    Attributes:
        version: Version of the model that gave the newest answer, as ``epoch.count``; None before
            the first.
        damaged: Number of rows that can't be decoded.
    """

    def __init__(
        self,
        journal: Journal,
        model: ModelSettings,
        *,
        since: float = -math.inf,
        until: float = math.inf,
        held: Held | None = None,
    ) -> None:
        self._journal, self._model, self._held = journal, model, held
        self._since, self._until = since, until
        self._kinds: dict[str, str] = {}
        self._weights: dict[str, float] = {}
        self._weighed = 0
        self.version: str | None = None
        self.damaged = 0

    def __iter__(self) -> Iterator[Rows]:
        """Yield pages of rows; the last may include rows recorded meanwhile."""
        after = 0
        while True:
            page = self._journal.follow(self._model.name, after, PAGE_ROWS)
            decoded = [
                (row, example)
                for row in page.rows
                if self._since <= row.at < self._until
                and row.verdict is not Verdict.LOST
                and not is_erased(row.payload)
                and origin_of(row).key == row.key
                and (example := self._example(row)) is not None
            ]
            if decoded:
                yield self._rows([row for row, _ in decoded], [example for _, example in decoded])
            if len(page.rows) < PAGE_ROWS:
                return
            after = page.upto

    def _example(self, row: Row) -> Example | None:
        try:
            example = decode(row.payload)
            return example if example.scored else None
        except (PayloadFormat, PayloadInvalid):
            self.damaged += 1
            return None

    def _rows(self, rows: Sequence[Row], examples: Sequence[Example]) -> Rows:
        regression = self._model.task == "regression"
        for example in reversed(examples):
            if example.version is not None:
                self.version = f"{example.version[0]}.{example.version[1]}"
                break
        return Rows(
            label=[
                _label(example, self._model.task) if self._counts(row, example) else None
                for row, example in zip(rows, examples, strict=True)
            ],
            predicted=[_predicted(example.score, regression=regression) for example in examples],
            probabilities=[None if regression else example.score for example in examples],
            time=np.array([row.at for row in rows]),
            label_time=np.full(len(rows), np.nan),
            delay=np.array(
                [
                    math.nan if e.predicted_at is None else row.at - e.predicted_at
                    for row, e in zip(rows, examples, strict=True)
                ]
            ),
            no_change=[example.no_change for example in examples],
            version=[None if e.version is None else f"epoch {e.version[0]}" for e in examples],
            source=[row.source or None for row in rows],
            verdict=[str(row.verdict) for row in rows],
            features=self._features([example.features for example in examples]),
            covered=self._covered(examples),
            declared={
                name: [_shown(example.features.get(name)) for example in examples]
                for name in self._model.slices
            },
        )

    def _counts(self, row: Row, example: Example) -> bool:
        """Return whether the label counts: as a learned one does in the service's scores."""
        if row.verdict is Verdict.QUARANTINED:
            return False
        counts, more = weigh(example, self._weights, self._weighed)
        self._weighed += 1
        add(self._weights, more)
        return counts

    def _covered(self, examples: Sequence[Example]) -> Floats | None:
        if (held := self._held) is None:
            return None
        held_sets = (held(self._model.task, example) for example in examples)
        return np.array([math.nan if one is None else float(one[0]) for one in held_sets])

    def _features(self, rows: Sequence[Mapping[str, Value]]) -> dict[str, Column]:
        """Columns by name; a feature is numeric if its first values are numbers."""
        names = dict.fromkeys(name for row in rows for name in row)
        out: dict[str, Column] = {}
        for name in (*self._kinds, *(n for n in names if n not in self._kinds)):
            values = [row.get(name) for row in rows]
            kind = self._kinds.get(name)
            if kind is None:
                kind = self._kinds[name] = (
                    "number" if all(_is_number(v) for v in values if v is not None) else "category"
                )
            if kind == "number":
                out[name] = np.array([_number(v) for v in values], dtype=np.float64)
            else:
                out[name] = [None if v is None else _text(v) for v in values]
        return out


def _label(example: Example, task: Task) -> Label | None:
    if is_unlabelled(task, example.label):
        return None
    return float(example.label) if task == "regression" else example.label


def _predicted(score: Mapping[str, float] | None, *, regression: bool) -> Label | None:
    """The answer as the service counts it: see :func:`online.learning.scores.increments_of`."""
    if not score or ("" in score) != regression:  # no answer, or one of another task
        return None
    if regression:
        return score[""]
    return label_of(max(score, key=score.__getitem__))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Value) -> float:
    return float(value) if _is_number(value) else math.nan  # type: ignore[arg-type]


def _shown(value: Value) -> str | None:
    """The value as the model's status names it; None: it is missing."""
    if value is None:
        return None
    return value[:_SHOWN_CHARS] if isinstance(value, str) else label_text(value)


def _text(value: Value) -> str:
    return value if isinstance(value, str) else str(value).lower()
