"""Any order of calls on one file, by two processes: the machine is in ``journal_machine.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import journal_machine as machine_module
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from replay.errors import JournalUnavailable
from replay.journal.batch import Bounds
from replay.journal.sqlite import append as sqliteappend
from replay.journal.sqlite import journal as sqlite_module
from replay.journal.sqlite import schema as sqliteschema
from replay.journal.sqlite import trim as sqlitetrim
from replay.journal.sqlite.journal import SqliteJournal

modest: Any = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
# A mutant ends its run, so only one that is missed takes so many.  Which examples are drawn follows
# the constants of whatever modules are loaded: as many as were enough one day may not be the next.
mutated: Any = settings(
    modest, max_examples=1_000, phases=[Phase.generate], report_multiple_bugs=False
)


def machine(journal_type: type[SqliteJournal]) -> Any:
    bounds = Bounds(halves=machine_module.HALVES)

    class SqliteMachine(machine_module.JournalMachine):  # type: ignore[misc]
        open_journal = staticmethod(
            lambda at: journal_type(at / "journal.db", synchronous="OFF", bounds=bounds)
        )

    return SqliteMachine


@pytest.mark.parametrize("examples", [50, pytest.param(100, marks=pytest.mark.long)])
def test_the_journal_keeps_its_promises(examples: int) -> None:
    run_state_machine_as_test(
        machine(SqliteJournal), settings=settings(modest, max_examples=examples)
    )


def notices(journal_type: type[SqliteJournal]) -> None:
    with pytest.raises((AssertionError, JournalUnavailable, pytest.fail.Exception)):
        run_state_machine_as_test(machine(journal_type), settings=mutated)


def test_the_machine_notices_an_own_row_that_is_called_a_duplicate() -> None:
    class Forgetful(SqliteJournal):
        def append(self, partition: int, known: int, rows: Any) -> Any:
            state = self.partition(partition)
            return super().append(partition, max(known, state.end if state else 0), rows)

    notices(Forgetful)


def test_the_machine_notices_a_trim_without_a_look_at_the_epoch() -> None:
    class Careless(SqliteJournal):
        def trim(self, model: str, spec: str, epoch: int, *rest: Any) -> int:
            return super().trim(model, spec, self.head(model, spec).epoch, *rest)

    notices(Careless)


def test_the_machine_notices_an_ignored_fence() -> None:
    class Open(SqliteJournal):
        def write_control(self, *words: Any) -> Any:
            return super().write_control(*words[:4])

    notices(Open)


_KEY = "CAST(substr(key, 2) || x'00' AS BLOB)"
ANOTHER_KEY = (
    f'UPDATE rows SET key = {_KEY}, checksum = checksum(seq, partition, "offset", {_KEY},'
    " event_id, source, verdict, factor, payload, at, model, half, since, ran)"
)

MUTANTS = [
    ("KEEP_HALF", "VALUES (?, ?,", "VALUES (?, x'00' || ?,", "half under another key"),
    ("COUNT_HALVES", "halves + ?", "max(halves, halves + ?)", "halves counted up only"),
    ("OLDEST", '"offset" <= ?', '"offset" <= ? + 9', "trim past the floor"),
    ("DROP_ROWS", "DELETE FROM rows", f"{ANOTHER_KEY[:11]}seq = seq", "trim leaves ids"),
    ("DROP_ROWS", "DELETE FROM rows", ANOTHER_KEY, "ids only"),
    ("CLAIM", "VALUES (?, ?, ?, ?)", "SELECT ?, ?, ?, ? WHERE 0", "claim not counted"),
    ("DROP_HALF", "AND key = ?", "AND key = ? AND 0", "half stays after its join"),
]


@pytest.mark.parametrize(
    ("statement", "rule", "without"), [pytest.param(*m[:3], id=m[3]) for m in MUTANTS]
)
def test_the_machine_notices_a_changed_statement(
    statement: str, rule: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(sqliteschema, statement)
    assert whole.count(rule) == 1
    monkeypatch.setattr(sqliteschema, statement, whole.replace(rule, without))
    notices(SqliteJournal)


@pytest.fixture
def ignores_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Changes trimming: rows go at whatever age."""
    whole, rule = Path(sqlitetrim.__file__).read_text(), "if not is_old("
    assert whole.count(rule) == 1
    changed: dict[str, Any] = {"__name__": "changed"}
    exec(whole.replace(rule, "if False and ("), changed)
    return lambda: monkeypatch.setattr(sqlite_module, "trim", changed["trim"])


@pytest.mark.long  # chance takes some hundred examples
def test_the_machine_notices_a_trim_that_ignores_before(ignores_before: Callable[[], None]) -> None:
    ignores_before()
    notices(SqliteJournal)


class OneRow:
    """Floors of a trim, in place of drawn ones."""

    def draw(self, floors: object) -> int:
        return 1


def young_row(made: Any) -> None:
    """A server trims up to a row that is not old enough."""
    try:
        p = made.first_writer("m")
        made.send(0, p, 0, [made.fresh(p, 1, at=5)], lost=False)
        made.trim(0, "m", "x", 0, before=3, n=9, data=OneRow())
    finally:
        made.teardown()


def test_a_young_row_that_goes_is_noticed(ignores_before: Callable[[], None]) -> None:
    young_row(machine(SqliteJournal)())
    ignores_before()
    with pytest.raises(AssertionError):
        young_row(machine(SqliteJournal)())


SOURCES = [
    ("        self._halves += 1\n", "        self._halves += 1\n        self.end += 1\n", "offset"),
    ("self._halves >= self._halves_max", "False", "no bound of halves"),
    ("replaced is not None and bytes(replaced) != stored.payload", "False", "over any half"),
    (
        "resent = (stored.half, stored.payload) == (row.half, given)",
        "resent = False",
        "another outcome after a lost one",
    ),
]


@pytest.mark.parametrize(("rule", "without"), [pytest.param(*m[:2], id=m[2]) for m in SOURCES])
def test_the_machine_notices_a_changed_append(
    rule: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(sqliteappend.__file__).read_text()
    assert whole.count(rule) == 1
    changed: dict[str, Any] = {"__name__": "changed"}
    exec(whole.replace(rule, without), changed)
    monkeypatch.setattr(sqlite_module, "Batch", changed["Batch"])
    notices(SqliteJournal)
