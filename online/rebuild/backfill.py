"""Teaches a model from historical tables, row by row in their order.

The rows are not written to the journal.  The taught state becomes a snapshot, and one control row
names the files (see :mod:`paramserver.process.backfill`).  Each row is validated like feedback; a
row that is not learned is written to a quarantine file with the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from online.errors import OnlineError, RequestError
from online.learning.bounds import Bounds, free_names, with_target
from online.learning.counters import NEWEST
from online.learning.ranges import UNTIL
from online.learning.vocabulary import BROUGHT, Vocabulary, words_of
from online.models.adapters.linear import Linear
from online.models.base import Model, learn_example
from online.models.choices.interactions import ACTION
from online.models.errors import NothingLearned
from online.rescore.run import known_names
from online.rescore.work import quarantined
from online.rows.validator import Validator
from online.tables import inputs, readers
from online.tables.columns import Rows
from online.tables.errors import InputRefused
from online.tables.inputs import opened
from online.tables.layout import Column, Input, Layout, Shard
from online.tables.places import Folder, failures, without_keys
from online.tables.readers import Bad, Piece
from paramserver.core import blocks as algebra
from paramserver.core.blocks import Block, Blocks
from paramserver.process.bases import Taught
from replay.example import Example, Label, label_text

_CUT_ROWS: Final = 1_024  # most rows that are relearned if the model raises at a later one
_HASHED: Final = 1 << 20
_REASON_CHARS: Final = 300


class TaughtAlready(OnlineError):
    """A file's content has been learned before; learning it again must be requested."""

    file: str
    snapshot: str
    text = (
        "{file}: the model has learned these very bytes (base snapshot {snapshot}). Nothing was "
        "learned; leave the file out, or learn it twice with --again"
    )


@dataclass(frozen=True, slots=True)
class Tables:
    """The files to learn from, and the roles of their columns.

    Attributes:
        files: Paths or URIs of files and folders, in the order in which they are learned.
        label: Column of the labels; every row needs one.
        event_id: Column of the ids that the events have, or would have, at the service; None: no
            such column.
        time: Column of the event times, which must not decrease from row to row.
        ignored, missing_ok, text_bytes_max, declared: As in :class:`online.rescore.run.Request`.
        features_max: Most features of a row.
        action: Column of the action whose reward the label is; None: the model does not choose.
    """

    files: tuple[str, ...]
    label: str
    event_id: str | None = None
    time: str | None = None
    ignored: frozenset[str] = frozenset()
    missing_ok: bool = False
    text_bytes_max: int = 1_024
    features_max: int = 10_000
    declared: Mapping[str, Column] | None = None
    action: str | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Inspected tables: their files, the layout of their columns, and shards in order."""

    files: tuple[Input, ...]
    layout: Layout
    shards: tuple[Shard, ...]
    hashes: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Number of rows of all files, invalid ones included."""
        return sum(one.rows for one in self.files)

    @property
    def id(self) -> str:
        """Identifier that is equal for files of equal content."""
        return hashlib.sha256("".join(self.hashes).encode()).hexdigest()[:16]

    def taught(self) -> list[Taught]:
        """The files in the form of the control row."""
        names = [without_keys(one.path).rpartition("/")[2] for one in self.files]
        return [
            Taught(name, one.size, digest, one.rows)
            for name, one, digest in zip(names, self.files, self.hashes, strict=True)
        ]


@dataclass(slots=True)
class Learned:
    """Numbers of rows that were learned, quarantined, or skipped as known to the service.

    ``clipped`` counts learned rows with a number that was bounded.
    """

    learned: int = 0
    quarantined: int = 0
    known: int = 0
    clipped: int = 0


def look(tables: Tables, model: Model) -> Cut:
    """Find the files, check their columns, count their rows and hash them.

    Raises:
        InputRefused: Naming file and column.
        LocationFailed: The storage failed.
    """
    asked = (tables.label, tables.event_id, tables.time, tables.action, *tables.ignored)
    known = () if isinstance(model, Linear) else known_names(model)
    files = inputs.files_of(tables.files, (*asked, *(tables.declared or ()), *known))
    if tables.label in (tables.event_id, tables.time, tables.action):
        place = f"{files[0].path}, column {tables.label}"
        raise InputRefused(place, "it is the label, and more", "Name another column")
    layout = inputs.layout(
        files, key=tables.event_id, time=tables.time, ignored=tables.ignored,
        known=known, numeric_only=model.numeric_only, missing_ok=tables.missing_ok,
        text_bytes_max=tables.text_bytes_max, label=tables.label, declared=tables.declared,
        texts=getattr(model, "entities", ()), action=tables.action,
    )  # fmt: skip
    if tables.action is not None and tables.action not in {c.name for c in layout.features}:
        names = ", ".join(c.name for c in layout.features if c.name != tables.label)
        problem = f"no column {tables.action!r} says which action was taken"
        raise InputRefused(files[0].path, problem, f"Name it, --action COLUMN: {names[:300]}")
    features = len(layout.features) - 1
    if not features or features > tables.features_max:
        problem = f"{features} columns to learn from, at most {tables.features_max}"
        raise InputRefused(files[0].path, problem, "Leave some out: --ignore COLUMN")
    counted, shards = inputs.cut(files, np.random.default_rng(0))
    return Cut(tuple(counted), layout, tuple(shards), tuple(map(_sha256, counted)))


def _sha256(one: Input) -> str:
    digest = hashlib.sha256()
    plain = msgspec.structs.replace(one, compressed=False)
    with failures(one.path), opened(plain) as file:
        while data := file.read(_HASHED):
            digest.update(data)
    return digest.hexdigest()


class Teacher:
    """A model that learns, and its values up to the last cut.

    Parameters:
        values: The values to begin with; not changed.
        bounded: Whether numbers far beyond all earlier ones are bounded
            (:mod:`online.learning.bounds`).
        targets: Whether labels are numbers, too.

    Attributes:
        clipped: Number of rows with a bounded number.
    """

    def __init__(
        self, model: Model, values: Blocks, *, bounded: bool = True, targets: bool = False
    ) -> None:
        self._model, self._values = model, algebra.copy(values)
        self._open: list[Example] = []
        self._bounds = Bounds(free_names(model), targets=targets)
        self._bounds.on = bounded
        self._vocabulary = Vocabulary(words_of(model))
        self.clipped = 0
        self._reset()

    def learn(self, example: Example) -> str | None:
        """Learn a row and return None; else return the reason, with the model unchanged."""
        features, sent = self._bounds.taught(example.features)
        if sent is not None:
            example = msgspec.structs.replace(example, features=features, raw=sent)
        example = with_target(self._bounds, example)
        try:
            learn_example(self._model, example)
        except Exception as error:  # whatever a user's model raises
            if not isinstance(error, NothingLearned):
                self._put_back()
            return f"{type(error).__name__}: {error}"[:_REASON_CHARS]
        self._count(example)
        self.clipped += example.raw is not None
        self._open.append(example)
        if len(self._open) >= _CUT_ROWS:
            self._cut()
        return None

    def _count(self, example: Example) -> None:
        self._bounds.add(example)
        self._vocabulary.add(example, "")
        if type(example.label) in (int, str):
            self._classes[label_text(example.label)] = (0.0, 0.0)  # older than any label

    def _reset(self) -> None:
        self._model.reset(algebra.copy(self._values))
        self._bounds.reset(self._values)
        self._vocabulary.reset(self._values)
        self._classes: dict[str, tuple[float, float]] = {}

    def _put_back(self) -> None:
        self._reset()
        for example in self._open:
            learn_example(self._model, example)
            self._count(example)
        self._cut()  # so that each row is relearned at most once, however many rows raise

    def _cut(self) -> None:
        done = {**self._model.cut(), **self._bounds.cut(), **self._vocabulary.cut()}
        done.pop(UNTIL, None)  # counted in rows of the service, which these are not
        done.pop(BROUGHT, None)  # no source has brought these names
        if self._classes:
            done[NEWEST] = Block(algebra.EXTREMA, self._classes)
            self._classes = {}
        algebra.merge(self._values, done)
        self._open.clear()

    def values(self) -> Blocks:
        """All values learned so far."""
        self._cut()
        return self._values


def teach(
    cut: Cut,
    tables: Tables,
    teacher: Teacher,
    validator: Validator,
    *,
    aside: Folder,
    known: Callable[[str], bool],
    progress: Callable[[int, int], None],
) -> Learned:
    """Learn all rows, in order.

    Parameters:
        aside: Folder for rows that are not learned: ``ID/NNNNNN.parquet`` per shard.
        known: Whether the service has an event of this id.
        progress: Called with the number of rows done and of all rows.

    Raises:
        InputRefused: A file is damaged, was changed meanwhile or is not in order of time, or no row
            could be learned.
        LocationFailed: The storage failed.
    """
    teaching = _Teaching(cut, tables, teacher, validator, known)
    counts, done = Learned(), 0
    progress(0, cut.rows)
    aside.remove(cut.id)
    for shard in cut.shards:
        bad = teaching.shard(shard, counts)
        if bad:
            file = cut.files[shard.input].path
            aside.write(f"{cut.id}/{shard.number:06d}.parquet", quarantined(file, bad))
        counts.quarantined += len(bad)
        done += shard.rows
        progress(done, cut.rows)
    now = [(one.path, one.size, one.changed_at) for one in inputs.files_of(tables.files)]
    if now != [(one.path, one.size, one.changed_at) for one in cut.files]:
        raise InputRefused(cut.files[0].path, "it was changed meanwhile", "Begin again")
    counts.clipped = teacher.clipped
    if not counts.learned and not counts.known:
        where = aside.path(cut.id)
        raise InputRefused(cut.files[0].path, "no row could be learned", f"See why in {where}")
    return counts


class _Teaching:
    """One pass over the tables."""

    def __init__(
        self,
        cut: Cut,
        tables: Tables,
        teacher: Teacher,
        validator: Validator,
        known: Callable[[str], bool],
    ) -> None:
        self._cut, self._tables, self._teacher, self._validator = cut, tables, teacher, validator
        self._known = known
        self._latest = -np.inf
        self._ids: set[int] = set()

    def shard(self, shard: Shard, counts: Learned) -> list[Bad]:
        """Learn the rows of a shard; returns those that were not learned."""
        one, bad = self._cut.files[shard.input], list[Bad]()
        for piece in readers.read(one, shard, self._cut.layout):
            bad += piece.bad
            self._check_order(one, piece)
            columns = dict(piece.rows.columns)
            labels = columns.pop(self._tables.label)
            present = labels.present
            values = labels.items()
            for i, features in enumerate(Rows(piece.rows.n, columns).dicts()):
                value = values[i] if present is None or present[i] else None
                refused = self._row(piece, i, features, value, counts)
                if refused is not None:
                    bad.append(Bad(int(piece.numbers[i]), *refused))
        return bad

    def _check_order(self, one: Input, piece: Piece) -> None:
        if piece.times is None or not len(piece.times):
            return
        before = np.concatenate([[self._latest], piece.times[:-1]])
        if (back := np.flatnonzero(piece.times < before)).size:
            row = int(piece.numbers[back[0]])
            raise InputRefused(
                f"{one.path}, row {row}, column {self._tables.time}",
                "it is older than the row before it, and rows are learned in order",
                "Sort the table by time, or leave --time out to learn it as it is",
            )
        self._latest = float(piece.times[-1])

    def _row(
        self, piece: Piece, i: int, features: dict[str, Any], value: Any, counts: Learned
    ) -> tuple[str, str] | None:
        """Learn one row; returns column and reason if it is refused."""
        column = self._tables.label
        if value is None:
            return column, "no label"
        if not features:
            return "", "no features"
        if (action := self._tables.action) is not None:
            if (taken := features.pop(action, None)) is None:
                return action, "no action"
            features[ACTION] = taken
        try:
            label = self._label(value)
        except RequestError as error:
            return column, error.message
        if piece.keys is not None:
            key = piece.keys[i]
            mark = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
            if mark in self._ids:
                return str(self._tables.event_id), "an earlier row has the same event id"
            self._ids.add(mark)
            if self._known(key):
                counts.known += 1
                return None
        at = None if piece.times is None else float(piece.times[i])
        reason = self._teacher.learn(Example(features, label, event_time=at))
        if reason is not None:
            return "", reason
        counts.learned += 1
        return None

    def _label(self, value: Any) -> Label:
        """Parse a label; a whole number is also tried as an int, as text files have only floats."""
        whole = isinstance(value, float) and value.is_integer()
        try:
            return self._validator.label(value, self._tables.label)
        except RequestError:
            if not whole:
                raise
            return self._validator.label(int(value), self._tables.label)


def refuse_repeats(cut: Cut, taught: Sequence[tuple[str, str]]) -> None:
    """Refuse a file that has been learned before.

    Parameters:
        taught: Pairs of SHA-256 and base snapshot of the learned files.

    Raises:
        TaughtAlready: Naming the file.
    """
    known = dict(taught)
    for file in cut.taught():
        if (snapshot := known.get(file.sha256)) is not None:
            raise TaughtAlready(file.name, snapshot)
