"""SqliteJournal passes the journal's conformance suite; journals with one rule less do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from journal_checks import check_journal, yield_checks
from msgspec import structs

from replay.errors import JournalUnavailable
from replay.journal.base import Appended, Control, Followed, Line, NewRow, Predicted, Row
from replay.journal.batch import Bounds
from replay.journal.sqlite import append as sqliteappend
from replay.journal.sqlite import journal as module
from replay.journal.sqlite import schema as sqliteschema
from replay.journal.sqlite import trim as sqlitetrim
from replay.journal.sqlite.journal import SqliteJournal


@pytest.mark.parametrize(
    "run", [pytest.param(run, id=name) for name, run in yield_checks(SqliteJournal)]
)
def test_sqlite_journal(run: Callable[[], None]) -> None:
    run()


def hasty(path: Path) -> SqliteJournal:
    """Without syncs, as the mutants are many."""
    return SqliteJournal(path, synchronous="OFF")


class OwnRowIsDuplicate(SqliteJournal):
    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        before = self.partition(partition)
        answer = super().append(partition, known, rows, epoch)
        assert before is not None
        outcomes = [
            structs.replace(o, new=o.new and o.row is not None and o.row.offset > before.end)
            for o in answer.outcomes
        ]
        return replace(answer, outcomes=tuple(outcomes))


class HeadWithoutEpoch(SqliteJournal):
    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        super().move_head(model, spec, self.head(model, spec).epoch, snapshot)


class EpochWithoutCompare(SqliteJournal):
    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        return super().begin_epoch(model, spec, self.head(model, spec).epoch)


class LabelsAreTheEnd(SqliteJournal):
    def predicted(self, model: str, after: float, before: float, n: int) -> Predicted:
        found = super().predicted(model, after, before, n)
        return found if found.waiting else Predicted((), None)


class AnyControlWins(SqliteJournal):
    def write_control(
        self, model: str, kind: str, key: str, payload: bytes, fence: tuple[str, int] | None = None
    ) -> tuple[Control, bool]:
        row, won = super().write_control(model, kind, key, payload, fence)
        return (row if won else replace(row, kind=kind, payload=payload)), True


class FenceIgnored(SqliteJournal):
    def write_control(
        self, model: str, kind: str, key: str, payload: bytes, fence: tuple[str, int] | None = None
    ) -> tuple[Control, bool]:
        return super().write_control(model, kind, key, payload)


class TrimWithoutEpoch(SqliteJournal):
    def trim(self, model: str, spec: str, epoch: int, *rest: Any, **bounds: Any) -> int:
        return super().trim(model, spec, self.head(model, spec).epoch, *rest, **bounds)


class TrimForAnyLineage(SqliteJournal):
    def trim(self, model: str, spec: str, epoch: int, *rest: Any, **bounds: Any) -> int:
        if self.head(model, spec).epoch == epoch:
            spec = (self.lineages(model) or (spec,))[-1]
            epoch = self.head(model, spec).epoch
        return super().trim(model, spec, epoch, *rest, **bounds)


class ReadSkipsAHole(SqliteJournal):
    def read(self, partition: int, first: int, n: int) -> tuple[Row, ...]:
        state = self.partition(partition)
        return super().read(partition, max(first, state.trimmed + 1 if state else 0), n)


class DuplicateGetsItsOwnContent(SqliteJournal):
    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        answer = super().append(partition, known, rows, epoch)
        outcomes = [
            structs.replace(o, row=o.row and structs.replace(o.row, payload=bytes(row.payload)))
            for o, row in zip(answer.outcomes, rows, strict=True)
        ]
        return replace(answer, outcomes=tuple(outcomes))


class FollowsPartitionByPartition(SqliteJournal):
    def follow(self, model: str, after: int, n: int) -> Followed:
        answer = super().follow(model, after, n)
        return replace(answer, rows=tuple(sorted(answer.rows, key=lambda r: r.partition)))


class FollowsToItsOwnNewest(SqliteJournal):
    def follow(self, model: str, after: int, n: int) -> Followed:
        answer = super().follow(model, after, n)
        return replace(answer, upto=max([after, *(row.seq for row in answer.rows)]))


class EpochSeenIsNothing(SqliteJournal):
    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        return super().append(partition, known, rows)


class WritesWhateverHasCome(SqliteJournal):
    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        rows = [structs.replace(row, only=None) for row in rows]
        return super().append(partition, known, rows, epoch)


class SealOpensAgain(SqliteJournal):
    def seal(self, partition: int) -> int:
        end = super().seal(partition)
        with self._file.write() as db:
            db.execute("UPDATE partitions SET sealed = 1 - sealed WHERE id = ?", (partition,))
            db.execute(sqliteschema.PROVE_PARTITION, (partition,))
        return end


class ClaimCountsItself(SqliteJournal):
    def claim(self, partition: int, offset: int) -> int:
        return super().claim(partition, offset) + 1


class AnyLineIsTheNext(SqliteJournal):
    def write_line(self, line: Line) -> None:
        newest = self.newest_line()
        super().write_line(structs.replace(line, number=1 + (newest.number if newest else 0)))


class RowBeforeItsLine(SqliteJournal):
    def write_control(self, *words: Any, line: Line | None = None, **more: Any) -> Any:
        if len(words) > 5:
            *words, line = words
        known = len(self.controls(words[0], 0))
        row, won = super().write_control(*words, **more)
        if line is not None and row.seq > known:
            self.write_line(line)
        return row, won


class LineOfARepeat(SqliteJournal):
    def write_control(self, *words: Any, line: Line | None = None, **more: Any) -> Any:
        if len(words) > 5:
            *words, line = words
        row, won = super().write_control(*words, line=line, **more)
        if not won and line is not None and line.number < 7:
            self.write_line(line)
        return row, won


class TrimsWithoutAnAnchor(SqliteJournal):
    def trim_lines(self, anchor: Line) -> None:
        super().trim_lines(anchor)
        with self._file.write() as db:
            db.execute("DELETE FROM lines WHERE number = ?", (anchor.number,))


@pytest.mark.parametrize(
    "mutant",
    [
        OwnRowIsDuplicate,
        HeadWithoutEpoch,
        EpochWithoutCompare,
        LabelsAreTheEnd,
        AnyControlWins,
        FenceIgnored,
        TrimWithoutEpoch,
        TrimForAnyLineage,
        ReadSkipsAHole,
        DuplicateGetsItsOwnContent,
        FollowsPartitionByPartition,
        FollowsToItsOwnNewest,
        EpochSeenIsNothing,
        WritesWhateverHasCome,
        SealOpensAgain,
        ClaimCountsItself,
        AnyLineIsTheNext,
        RowBeforeItsLine,
        LineOfARepeat,
        TrimsWithoutAnAnchor,
    ],
)
def test_the_suite_rejects_a_missing_rule(mutant: type[SqliteJournal]) -> None:
    with pytest.raises(AssertionError):
        check_journal(lambda path: mutant(path, synchronous="OFF"))


_KEY = "CAST(substr(key, 2) || x'00' AS BLOB)"
ANOTHER_KEY = (
    f'UPDATE rows SET key = {_KEY}, checksum = checksum(seq, partition, "offset", {_KEY},'
    " event_id, source, verdict, factor, payload, at, model, half, since, ran)"
)
"""What leaves a row in its place under a key that nobody asks for."""

STATEMENTS = [
    ("HEADS_OF", "model = ?", "? IS NOT NULL", "epoch of another model"),
    ("ADMIT", " ON m.id = p.model", "", "halves of another model"),
    ("READ", ' ORDER BY "offset"', ' ORDER BY "offset" DESC', "order"),
    ("HEADS", "ORDER BY changed", "ORDER BY spec", "lineages unordered"),
    ("NEXT_CONTROL", "model = ?", "? IS NOT NULL", "control rows count together"),
    ("KEPT_HALF", "model = ? AND", "? IS NOT NULL AND", "halves unique in the whole store"),
    ("DROP_HALF", "AND key = ?", "AND key = ? AND 0", "half stays after its join"),
    ("EXPIRE", "at < ?", "at < ? + 1e9", "young halves expire"),
    ("EXPIRE", "coalesce(ran, 0) < ?", "? IS NOT NULL", "halves expire by the wall clock alone"),
    ("EXPIRE", " OR at > ?", " AND ? IS NOT NULL", "halves of a wrong future stay"),
    ("RUN", "running + ?", "max(running, ?)", "running time not summed"),
    ("EXPIRE", "model = ? AND", "? IS NOT NULL AND", "halves of all models expire"),
    ("EXPIRE", " LIMIT ?", " LIMIT 99 + ?", "more halves expire than asked for"),
    ("COUNT_HALVES", "halves + ?", "max(halves, halves + ?)", "halves counted up only"),
    ("CLAIM", "OR REPLACE", "OR IGNORE", "claim not counted"),
    ("OLDEST", '"offset" <= ?', '"offset" <= ? + 9', "trim past the floor"),
    ("OLDEST", "LIMIT ?", "LIMIT 99 + ?", "trim of more than asked for"),
    ("DROP_ROWS", "DELETE FROM rows", "UPDATE rows SET payload = x''", "trim leaves ids"),
    ("DROP_ROWS", "DELETE FROM rows", ANOTHER_KEY, "ids only"),
    ("DROP_ROWS", '"offset" > ?', '"offset" > ? + 1', "trim leaves the oldest"),
    ("DROP_CLAIMS", "DELETE", "SELECT * ", "claims stay"),
    ("DROP_CLAIMS", '"offset" > ?', '"offset" >= ?', "claim of the adoption goes"),
    ("SET_TRIMMED", "trimmed = ?", "trimmed = 0 * ?", "nobody knows what was trimmed"),
    ("ROWS_AND_HALVES", '"end" - p.trimmed', '"end"', "trimmed rows count"),
]


@pytest.mark.parametrize(
    ("statement", "rule", "without"), [pytest.param(*m[:3], id=m[3]) for m in STATEMENTS]
)
def test_the_suite_rejects_a_changed_statement(
    statement: str, rule: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(sqliteschema, statement)
    assert rule in whole
    monkeypatch.setattr(sqliteschema, statement, whole.replace(rule, without))
    with pytest.raises((AssertionError, JournalUnavailable)) as failure:
        check_journal(hasty)
    assert "syntax" not in str(failure.value)
    assert "no such" not in str(failure.value)


SOURCES = [
    ("self.end += 1", "self.end += 1 + (self.end > 1)", "holes"),
    ("if self.end < known:", "if False:", "nobody asks what is known"),
    ("if state.sealed:", "if False:", "no seal check"),
    ("self.epoch = max(", "self.epoch = 0 * max(", "no epoch in the answer"),
    ("if key in self._answered or row.half", "if row.half", "key twice in a batch"),
    ("self._answered or row.half is not None:", "self._answered:", "a half is its row's writer"),
    ("stored.offset <= self._known", "False", "old row is an own row"),
    ("resent = (stored.half, stored.payload) == (row.half, given)", "resent = False",
     "a half is told of itself"),
    ("resent = (stored.half, stored.payload) == (row.half, given)",
     "resent = stored.half == row.half", "a half is told of none of its own side"),
    ("replaced is not None and bytes(replaced) != stored.payload", "False", "over any half"),
    ("if row.half is None or row.over is not None else b\"\"", "",
     "a half takes the place of any other"),
    ("if stored is None and row.over is not None and given:", "if False:",
     "over one that has gone"),
    ("if not row.payload:", "if False:", "an empty half is kept"),
    ("        self._halves += 1\n", "        self._halves += 1\n        self.end += 1\n",
     "offset taken by a half that is kept"),
    ("in self._by_keys(sql.HALVES_OF, rows)} if self._halves", "in ()} if True",
     "half left by many rows"),
    (" or key in halves or", " or", "half left by a stretch"),
    (".rowcount < len(rows):", ".rowcount < 0:", "what was left out counts as written"),
    ("            self.end, self._seq, self.wrote = before\n", "",
     "numbers of rows that were taken out again"),
    ("self._db.execute(sql.DROP_AFTER, (self._seq,))", "pass", "rows that were to be taken out"),
    ("self._answered.update(row.key for row in made)", "pass", "key twice, far apart"),
    ("        if stored is not None:\n            self._db.execute(sql.DROP",
     "        if stored is None:\n            self._db.execute(sql.DROP", "half stays"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "without"), [pytest.param(*m[:2], id=m[2]) for m in SOURCES])
def test_the_suite_rejects_a_changed_append(
    rule: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(sqliteappend.__file__).read_text()
    assert whole.count(rule) == 1
    changed = {"__name__": "changed"}
    exec(whole.replace(rule, without), changed)
    monkeypatch.setattr(module, "Batch", changed["Batch"])
    with pytest.raises((AssertionError, JournalUnavailable)) as failure:
        check_journal(hasty)
    assert "syntax" not in str(failure.value)
    assert "no such" not in str(failure.value)


TRIMS = [
    (" or columns[1] != model:", ":", "trim of other models"),
    ("if not is_old(row, int(record[sql.RAN] or 0)):", "if False:", "trim ignores both clocks"),
    ("int(record[sql.RAN] or 0)", "0", "trim ignores the running time"),
    (
        "is_old(row,",
        "is_old(__import__('msgspec').structs.replace(row, at=-9e9),",
        "the wall clock",
    ),
]


@pytest.mark.parametrize(("rule", "without"), [pytest.param(*m[:2], id=m[2]) for m in TRIMS])
def test_the_suite_rejects_a_changed_trim(
    rule: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(sqlitetrim.__file__).read_text()
    assert whole.count(rule) == 1
    changed = {"__name__": "changed"}
    exec(whole.replace(rule, without), changed)
    monkeypatch.setattr(module, "trim", changed["trim"])
    with pytest.raises(AssertionError):
        check_journal(hasty)


@pytest.mark.parametrize(
    ("columns", "condition"),
    [
        pytest.param("partition, key", "model = ? AND 0 AND", id="nobody looks"),
        pytest.param("key", "? IS NOT NULL AND", id="unique in the whole store"),
    ],
)
def test_the_suite_rejects_keys_that_are_not_unique_within_the_model(
    columns: str, condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = '"offset"), UNIQUE (model, key)'
    assert old in sqliteschema.SCHEMA
    schema = sqliteschema.SCHEMA.replace(old, old.replace("model, key", columns))
    by_key = sqliteschema.BY_KEY.replace("model = ? AND", condition)
    monkeypatch.setattr(sqliteschema, "SCHEMA", schema)
    monkeypatch.setattr(sqliteschema, "BY_KEY", by_key)
    with pytest.raises(AssertionError):
        check_journal(hasty)


def test_the_unchanged_journal_passes_where_mutants_fail(tmp_path: Path) -> None:
    check_journal(SqliteJournal)
    with closing(SqliteJournal(tmp_path / "j" / "k" / "journal.db", bounds=Bounds(7))) as journal:
        assert journal.batch_rows_max == 7
