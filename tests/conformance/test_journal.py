"""SqliteJournal passes the journal's conformance suite; journals with one rule less do not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from replay.journal import sqlite as module
from replay.journal.base import Appended, Control, NewRow, Outcome
from replay.journal.checks import check_journal, yield_checks
from replay.journal.sqlite import SqliteJournal


@pytest.mark.parametrize(
    "run", [pytest.param(run, id=name) for name, run in yield_checks(SqliteJournal)]
)
def test_sqlite_journal(run: Callable[[], None]) -> None:
    run()


class OwnRowIsDuplicate(SqliteJournal):
    def append(self, partition: int, known: int, rows: Sequence[NewRow]) -> Appended:
        before = self.partition(partition)
        answer = super().append(partition, known, rows)
        assert before is not None
        outcomes = [replace(o, new=o.new and o.row.offset > before.end) for o in answer.outcomes]
        return replace(answer, outcomes=tuple(outcomes))


class OffsetsBeforeDedupe(SqliteJournal):
    def _insert(
        self,
        db: sqlite3.Connection,
        model: int,
        partition: int,
        known: int,
        end: int,
        rows: Sequence[NewRow],
    ) -> tuple[list[Outcome], int]:
        outcomes = []
        for position, row in enumerate(rows):
            outcomes += super()._insert(db, model, partition, known, end + position, [row])[0]
        return outcomes, end + len(rows)


class NoBehindCheck(SqliteJournal):
    def _admit(self, db: sqlite3.Connection, partition: int, known: int) -> tuple[int, int, int]:
        return super()._admit(db, partition, 0)


class HeadWithoutEpoch(SqliteJournal):
    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        super().move_head(model, spec, self.head(model, spec).epoch, snapshot)


class EpochWithoutCompare(SqliteJournal):
    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        return super().begin_epoch(model, spec, self.head(model, spec).epoch)


class AnyControlWins(SqliteJournal):
    def write_control(
        self, model: str, kind: str, key: str, payload: bytes
    ) -> tuple[Control, bool]:
        row, won = super().write_control(model, kind, key, payload)
        return (row if won else replace(row, kind=kind, payload=payload)), True


class DuplicateGetsItsOwnContent(SqliteJournal):
    def append(self, partition: int, known: int, rows: Sequence[NewRow]) -> Appended:
        answer = super().append(partition, known, rows)
        outcomes = [
            replace(o, row=replace(o.row, payload=bytes(row.payload), verdict=row.verdict))
            for o, row in zip(answer.outcomes, rows, strict=True)
        ]
        return replace(answer, outcomes=tuple(outcomes))


class SealOpensAgain(SqliteJournal):
    def seal(self, partition: int) -> int:
        end = super().seal(partition)
        with self._file.write() as db:
            db.execute("UPDATE partitions SET sealed = 1 - sealed WHERE id = ?", (partition,))
        return end


@pytest.mark.parametrize(
    "mutant",
    [
        OwnRowIsDuplicate,
        OffsetsBeforeDedupe,
        NoBehindCheck,
        HeadWithoutEpoch,
        EpochWithoutCompare,
        AnyControlWins,
        DuplicateGetsItsOwnContent,
        SealOpensAgain,
    ],
)
def test_the_suite_rejects_a_missing_rule(mutant: type[SqliteJournal]) -> None:
    with pytest.raises(AssertionError):
        check_journal(mutant)


@pytest.mark.parametrize(
    ("statement", "rule", "without"),
    [
        pytest.param("_ADMIT", "p.sealed", "0", id="no seal check"),
        pytest.param("_ADMIT", "max(epoch)", "0", id="no epoch in the answer"),
        pytest.param("_ADMIT", " WHERE h.model = p.model", "", id="epoch of another model"),
        pytest.param("_READ", ' ORDER BY "offset"', ' ORDER BY "offset" DESC', id="order"),
        pytest.param("_LINEAGES", "ORDER BY changed", "ORDER BY spec", id="lineages unordered"),
        pytest.param("_WRITE_CONTROL", "WHERE model = m", "", id="control rows count together"),
    ],
)
def test_the_suite_rejects_a_changed_statement(
    statement: str, rule: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(module, statement)
    assert rule in whole
    monkeypatch.setattr(module, statement, whole.replace(rule, without))
    with pytest.raises(AssertionError):
        check_journal(SqliteJournal)


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
    assert old in module._SCHEMA
    schema = module._SCHEMA.replace(old, old.replace("model, key", columns))
    by_key = module._BY_KEY.replace("model = ? AND", condition)
    monkeypatch.setattr(module, "_SCHEMA", schema)
    monkeypatch.setattr(module, "_BY_KEY", by_key)
    with pytest.raises(AssertionError):
        check_journal(SqliteJournal)


def test_the_unchanged_journal_passes_where_mutants_fail(tmp_path: Path) -> None:
    check_journal(SqliteJournal)
    with closing(SqliteJournal(tmp_path / "j" / "k" / "journal.db", batch_rows_max=7)) as journal:
        assert journal.batch_rows_max == 7
