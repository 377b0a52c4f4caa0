"""Scores one shard, from its rows to its file, in any of a run's processes.

The file depends only on the plan and the model, not on a clock or a run's name, so repeated writes
give the same bytes.  It is written atomically, and its existence means that the shard is complete.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, Final

import mmh3
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from online.models.base import Model
from online.models.errors import NotAnswered
from online.rescore.plan import Plan
from online.rescore.scorer import Scorer, Scores
from online.rescore.sparse import touched, weights_of
from online.tables.columns import Floats, Index, Rows
from online.tables.layout import Shard
from online.tables.places import Folder, Location
from online.tables.readers import Bad, Piece, read
from replay.example import Label, label_text

SHARDS: Final = "shards"
QUARANTINE: Final = "quarantine"
_NOTE: Final = b"online"
_MASK: Final = 2**64 - 1
_FIRST: Final = itemgetter(0)
_HASH: Final = partial(mmh3.hash64, signed=False)

MakeModel = Callable[[], Model]
"""Makes the model of the snapshot, in any process."""


class Note(msgspec.Struct, frozen=True):
    """Metadata in the footer of a shard's file.

    Attributes:
        good, bad: Numbers of scored rows, and of rows in the quarantine file.
        keys: Sum of the hashes of the good rows' keys, modulo 2^64, as text; "" without keys.
        sampled: Rows scored one by one: position in the file, label, score.
        newest: Newest feature time, POSIX seconds.
    """

    good: int
    bad: int
    keys: str
    sampled: list[tuple[int, str | None, float | None]]
    newest: float | None


class Done(msgspec.Struct, frozen=True):
    """A scored shard; times are by the machine's monotonic clock, in seconds.

    ``skipped`` of the good rows have the scores of an earlier run.
    """

    shard: int
    good: int
    bad: int
    begun_s: float
    scored_s: float
    ended_s: float
    skipped: int = 0


class Worker:
    """Scores shards of one plan in one process."""

    def __init__(
        self, plan: Plan, output: str, make: MakeModel, monotonic_s: Callable[[], float]
    ) -> None:
        self._plan, self._monotonic_s = plan, monotonic_s
        self._folder = Folder(Location(output))
        model = make()
        self._scorer = Scorer(model, plan.task, plan.method)
        weights = weights_of(model) if plan.since else None
        self._scaled = weights is None or weights.scaled
        pa.set_cpu_count(1)
        pa.set_io_thread_count(2)

    def score(self, shard: Shard) -> Done:
        """Score a shard and write its files.  Raises InputRefused, LocationFailed."""
        begun_s = self._monotonic_s()
        one = self._plan.inputs[shard.input]
        results, before, skipped = _Results(self._plan, shard), self._before(shard), 0
        for sent in read(one, shard, self._plan.layout):
            piece = replace(sent, rows=sent.rows.within(self._plan.ends))
            old = None if before is None else before.at(piece.numbers)
            if old is None:
                piece, answers = self._answered(piece)
            else:
                answers, n = self._rescored_if_changed(piece.rows, old)
                skipped += n
            results.add(piece, answers, self._singles(piece, shard))
        scored_s = self._monotonic_s()
        base = f"runs/{self._plan.run}"
        if results.bad:
            self._folder.write(
                f"{base}/{QUARANTINE}/{shard.name}", quarantined(results.file, results.bad)
            )
        self._folder.write(f"{base}/{SHARDS}/{shard.name}", results.table())
        ended_s = self._monotonic_s()
        return Done(
            shard.number, results.good, len(results.bad), begun_s, scored_s, ended_s, skipped
        )

    def _answered(self, piece: Piece) -> tuple[Piece, Answers]:
        """Score a piece; rows for which the model raises are invalid then, as in the service."""
        try:
            return piece, self._answers(piece.rows)
        except NotAnswered:
            why = self._scorer.unanswered(piece.rows)
        kept = np.array([i for i in range(piece.rows.n) if i not in why], dtype=np.int64)
        keys = None if piece.keys is None else [piece.keys[i] for i in kept]
        bad = [Bad(int(piece.numbers[i]), "", reason) for i, reason in why.items()]
        piece = replace(
            piece, rows=piece.rows.take(kept), numbers=piece.numbers[kept], keys=keys,
            bad=[*piece.bad, *bad], times=None if piece.times is None else piece.times[kept],
        )  # fmt: skip
        return piece, self._answers(piece.rows)

    def _answers(self, rows: Rows) -> Answers:
        scores = self._scorer.score(rows)
        if self._plan.task == "regression":
            return Answers(None, scores.score)
        texts = [*(answer_key(label, self._plan.classes) for label in scores.labels), None]
        return Answers(np.array(texts, dtype=object)[scores.codes], scores.score)

    def _before(self, shard: Shard) -> _Before | None:
        """Return an earlier run's scores of the shard; None if there are none, or not any more."""
        if not self._plan.since:
            return None
        try:
            data = self._folder.read(f"runs/{self._plan.since}/{SHARDS}/{shard.name}")
        except FileNotFoundError:
            return None
        return _Before(pq.read_table(io.BytesIO(data), use_threads=False))

    def _rescored_if_changed(self, rows: Rows, old: Answers) -> tuple[Answers, int]:
        """Rescore only rows with changed features; returns answers and the number of others."""
        mask = touched(rows, self._plan.changed, scaled=self._scaled)
        at = np.flatnonzero(mask)
        if len(at):
            fresh = self._answers(rows.take(at))
            old.score[at] = fresh.score
            if old.texts is not None:
                old.texts[at] = fresh.texts
        return old, rows.n - len(at)

    def _singles(self, piece: Piece, shard: Shard) -> dict[int, tuple[Label | None, float]]:
        """Score the sampled rows of the piece one by one; answers by position in the piece."""
        wanted = np.array(shard.sampled, dtype=np.int64) + shard.first
        at = np.flatnonzero(np.isin(piece.numbers, wanted))
        if not len(at):
            return {}
        one: Scores = self._scorer.single(piece.rows.take(at))
        names = [*one.labels, None]
        answers = [(names[code], score) for code, score in zip(one.codes, one.score.tolist(),
                                                               strict=True)]  # fmt: skip
        return dict(zip(at.tolist(), answers, strict=True))


def alone(
    plan: Plan, output: str, make: MakeModel, monotonic_s: Callable[[], float]
) -> Callable[[Sequence[Shard]], Iterator[Done]]:
    """Return a function that scores shards of the plan one by one, in this process."""

    def dealt(shards: Sequence[Shard]) -> Iterator[Done]:
        worker = Worker(plan, output, make, monotonic_s)
        for shard in shards:
            yield worker.score(shard)

    return dealt


@dataclass(frozen=True, slots=True)
class Answers:
    """Labels as written to files (None: no label, or regression), and scores, of n rows."""

    texts: npt.NDArray[np.object_] | None
    score: Floats


class _Before:
    """The scores of a shard from an earlier run."""

    def __init__(self, table: pa.Table) -> None:
        self._numbers = table["row"].to_numpy()
        self._score = table["score"].to_numpy()
        self._texts = None
        if "prediction" in table.column_names:
            self._texts = np.array(table["prediction"].to_pylist(), dtype=object)

    def at(self, numbers: Index) -> Answers | None:
        """A copy of the answers to these rows; None if some of them are missing."""
        if not len(numbers) or not len(self._numbers):
            return None
        at = np.minimum(np.searchsorted(self._numbers, numbers), len(self._numbers) - 1)
        if (self._numbers[at] != numbers).any():
            return None
        return Answers(None if self._texts is None else self._texts[at], self._score[at])


class _Results:
    """Collects the results of a shard piece by piece."""

    def __init__(self, plan: Plan, shard: Shard) -> None:
        self._plan, self.file = plan, plan.file_of(shard)
        self._columns: list[list[pa.Array]] = []
        self._sampled: list[tuple[int, str | None, float | None]] = []
        self._keys, self._newest = 0, -np.inf
        self.good = 0
        self.bad: list[Bad] = []

    def add(
        self, piece: Piece, answers: Answers, singles: dict[int, tuple[Label | None, float]]
    ) -> None:
        """Add a piece's answers."""
        classes = self._plan.classes
        columns = [pa.array(piece.numbers)]
        if piece.keys is not None:
            columns.append(pa.array(piece.keys, pa.string()))
            self._keys = (self._keys + key_sum(piece.keys)) & _MASK
        if self._plan.task != "regression":
            columns.append(pa.array(answers.texts, pa.string()))
        columns.append(pa.array(answers.score))
        self._columns.append(columns)
        for at, (label, score) in singles.items():
            text = None if label is None else answer_key(label, classes)
            self._sampled.append((self.good + at, text, score if np.isfinite(score) else None))
        self.good += piece.rows.n
        self.bad += piece.bad
        if piece.newest is not None:
            self._newest = max(self._newest, piece.newest)

    def table(self) -> bytes:
        """Encode the shard's file: ``row``, ``key``, ``prediction`` (classifiers), ``score``."""
        plan = self._plan
        fields = [pa.field("row", pa.int64(), nullable=False)]
        if plan.layout.key is not None:
            fields.append(pa.field("key", pa.string(), nullable=False))
        if plan.task != "regression":
            fields.append(pa.field("prediction", pa.string()))
        fields.append(pa.field("score", pa.float64()))
        keys = "" if plan.layout.key is None else str(self._keys)
        newest = float(self._newest) if np.isfinite(self._newest) else None
        note = Note(self.good, len(self.bad), keys, self._sampled, newest)
        about = {"model": plan.model, "version": plan.version, "input": self.file}
        about["online"] = msgspec.json.encode(note).decode()
        schema = pa.schema(fields, metadata=about)
        arrays = [
            pa.chunked_array([piece[i] for piece in self._columns], field.type)
            for i, field in enumerate(schema)
        ]
        return _parquet(pa.table(arrays, schema=schema))


def quarantined(file: str, bad_rows: Sequence[Bad]) -> bytes:
    """Encode rows of one input that were not scored: ``file``, ``row``, ``column``, ``reason``."""
    rows = sorted(bad_rows, key=lambda bad: (bad.row, bad.column))
    return _parquet(
        pa.table({
            "file": pa.array([file] * len(rows), pa.string()),
            "row": pa.array([bad.row for bad in rows], pa.int64()),
            "column": pa.array([bad.column for bad in rows], pa.string()),
            "reason": pa.array([bad.reason for bad in rows], pa.string()),
        })
    )  # fmt: skip


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=max(table.num_rows, 1))
    return sink.getvalue()


def note_of(file: pq.ParquetFile) -> Note:
    """Return the metadata of a shard's file.

    Raises KeyError or msgspec.DecodeError if it is not such a file.
    """
    return msgspec.json.decode(file.schema_arrow.metadata[_NOTE], type=Note)


def key_sum(keys: Sequence[str]) -> int:
    """Sum of 64-bit hashes, independent of the keys' order."""
    return sum(hashes(keys)) & _MASK


def hashes(keys: Iterable[str]) -> Iterator[int]:
    """A 64-bit hash of each key, computed without Python code per key: there may be millions."""
    return map(_FIRST, map(_HASH, keys))


def answer_key(label: Label, classes: Sequence[str | int | bool]) -> str:
    """The label's text as used in ``probabilities`` of the service's answers."""
    named: Any = classes[int(label)] if classes and isinstance(label, bool) else label
    return named if isinstance(named, str) else label_text(named)
