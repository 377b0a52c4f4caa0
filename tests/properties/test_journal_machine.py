"""Any order of calls on one file, by two processes: the machine is in ``journal_machine.py``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from replay.journal.sqlite import SqliteJournal


def _beside(name: str) -> Any:
    """The module in a file beside this one (tests are no package)."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


JournalMachine: Any = _beside("journal_machine").JournalMachine

modest: Any = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def machine(journal_type: type[SqliteJournal]) -> Any:
    class SqliteMachine(JournalMachine):
        open_journal = staticmethod(lambda at: journal_type(at / "journal.db", synchronous="OFF"))

    return SqliteMachine


def test_the_journal_keeps_its_promises() -> None:
    run_state_machine_as_test(machine(SqliteJournal), settings=modest)


def test_the_machine_notices_an_own_row_that_is_called_a_duplicate() -> None:
    class Forgetful(SqliteJournal):
        def append(self, partition: int, known: int, rows: Any) -> Any:
            state = self.partition(partition)
            return super().append(partition, max(known, state.end if state else 0), rows)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            machine(Forgetful), settings=settings(modest, report_multiple_bugs=False)
        )
