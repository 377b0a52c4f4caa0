"""Any order of pushes, pulls, views and walks: a table on views has the rows of a dict, always."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from online.replica import host_tables
from paramserver.core.tables import layered
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import Version

WIDTH = 2
IDS = 30
Numbers = dict[int, float]
ids = st.integers(0, IDS - 1)
numbers = st.sampled_from([0.0, 1.0, 2.0])  # few, so that rows often return to a value


def ids_of(some: Iterable[int]) -> Any:
    return np.array([*some], dtype=np.uint64)


def table(rows: Numbers) -> Rows:
    made = Rows.empty(WIDTH)
    made.put(ids_of(rows), np.repeat(np.array([*rows.values()], np.float32)[:, None], WIDTH, 1))
    return made


@dataclass
class View:
    version: Version
    tables: dict[str, Rows]
    passed: None = None

    def resident(self) -> Iterator[None]:
        yield


class Views(list[View]):
    def newest(self, after: Version, upto: Version) -> View | None:
        fitting = [one for one in self if after < one.version <= upto]
        return max(fitting, key=lambda one: one.version, default=None)


class Replica:
    """A learner that has pulled a version, on the view of the first one."""

    catching_up, ready = False, True

    def __init__(self, kind: Any, below: Rows) -> None:
        self.table, self.version = kind(below), (1, 0)

    def rest_on(self, version: Version, tables: dict[str, Rows]) -> Iterator[None] | None:
        steps: Iterator[None] = self.table.rest_on(tables["t"])
        return steps


class LayeredMachine(RuleBasedStateMachine):
    """A server, its views, which come late, and a replica that walks through its rows, too."""

    modules: ClassVar[tuple[Any, Any]] = (layered, host_tables)

    def __init__(self) -> None:
        super().__init__()
        self.history = [{i: 1.0 for i in range(8)}]
        self.server = table(self.history[0])
        one, other = self.modules
        self.replica = Replica(one.LayeredRows, self.server.copy())
        self.views, self.begun = Views(), list[View]()
        self.tables = other.HostTables(self.replica, self.views, lambda: 0.0)
        self.copies = list[tuple[Any, Numbers]]()
        self.place, self.met, self.moved = 0, Numbers(), set[int]()
        self.known = set(self.history[0])  # when the walk began

    @property
    def truth(self) -> Numbers:
        return self.history[self.replica.version[1]]

    @rule(rows=st.dictionaries(ids, numbers, min_size=1, max_size=6))
    def push(self, rows: Numbers) -> None:
        self.server.update(table(rows))
        self.history.append(self.history[-1] | rows)

    @rule()
    def begin_view(self) -> None:
        version = (1, len(self.history) - 1)
        self.begun.append(View(version, {"t": self.server.copy()}))

    @rule()
    def publish(self) -> None:
        if self.begun:
            self.views.append(self.begun.pop(0))

    @rule()
    def pull(self) -> None:
        since = self.replica.version[1]
        self.replica.version = (1, len(self.history) - 1)
        steps = zip(self.history[since:], self.history[since + 1 :], strict=False)
        touched = {i for old, new in steps for i in new if new[i] != old.get(i)}
        self.replica.table.update(table({i: self.truth[i] for i in touched}))
        self.moved |= touched

    @rule()
    def exchange(self) -> None:
        for _ in self.tables.rest():
            pass

    @rule(n=st.integers(1, 5))
    def walk(self, n: int) -> None:
        mine = self.replica.table
        part, self.place = mine.next_part(self.place, n)
        self.met |= dict(zip(part.ids.tolist(), part.numbers[:, 0].tolist(), strict=True))
        if self.place >= mine.end:
            for i in self.known - self.moved:
                assert self.met.get(i) == self.truth[i], "a row that did not change is met"
            self.place, self.met, self.moved = 0, Numbers(), set()
            self.known = set(self.truth)

    @rule()
    def copied(self) -> None:
        mine = self.replica.table
        self.copies.append((mine.copy(), self.truth))
        assert copy.deepcopy(mine) == mine == pickle.loads(pickle.dumps(mine))

    @invariant()
    def it_has_the_rows_of_a_dict(self) -> None:
        for one, rows in (*self.copies[-2:], (self.replica.table, self.truth)):
            assert sorted(one.ids.tolist()) == sorted(rows)
            assert len(one) == len(rows)
            found, known = one.get(ids_of(range(IDS)))
            assert dict(zip(rows, found[ids_of(rows)][:, 0].tolist(), strict=True)) == rows
            assert known.tolist() == one.has(ids_of(range(IDS))).tolist()
            same = table(rows)
            assert one == same
            assert same == one


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layered, "_COMPARED", 4)
    monkeypatch.setattr(host_tables, "_DROPS", 1)
    monkeypatch.setattr(host_tables, "_LOOK_S", 0.0)


def check(machine: type[LayeredMachine], examples: int) -> None:
    shown = (Phase.generate,) if machine is not LayeredMachine else tuple(Phase)
    given = settings(max_examples=examples, stateful_step_count=50, phases=shown)
    run_state_machine_as_test(machine, settings=given)


@pytest.mark.parametrize("examples", [50, pytest.param(150, marks=pytest.mark.long)])
def test_a_table_on_views_has_the_rows_of_a_dict(examples: int) -> None:
    check(LayeredMachine, examples)


def _changed(module: ModuleType, old: str, new: str) -> Any:
    source = inspect.getsource(module)
    assert source.count(old) == 1, old
    made = ModuleType(module.__name__)
    exec(compile(source.replace(old, new), "<mutant>", "exec"), vars(made))
    vars(made).update(_COMPARED=4, _DROPS=1, _LOOK_S=0.0)
    return made


NO_OWN_PARTS = ("self._own.next_part(begin, n)", "Rows.empty(2), begin + n")
"""By chance it takes hundreds of examples until somebody walks to the end of a new row."""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(*NO_OWN_PARTS, id="own rows are not among the parts", marks=pytest.mark.long),
        pytest.param("        return _BELOW + self._below.end", "        return _BELOW",
                     id="rows below are not among the parts"),
        pytest.param("return Rows, (self.ids", "return type(self), (self.ids",
                     id="a table on a view can't be copied deeply"),
    ],
)  # fmt: skip
def test_a_table_that_lacks_a_rule_is_noticed(old: str, new: str) -> None:
    class Mutant(LayeredMachine):
        modules = (_changed(layered, old, new), host_tables)

    with pytest.raises((AssertionError, AttributeError, TypeError)):
        check(Mutant, 1_000)


def walk_twice(machine: LayeredMachine) -> None:
    """A row that no view has is pulled, and is there when the second walk begins."""
    machine.push({9: 2.0})
    machine.pull()
    for _ in range(2):
        machine.walk(5)
        while machine.place:
            machine.walk(5)


def test_an_own_row_that_no_walk_meets_is_noticed() -> None:
    walk_twice(LayeredMachine())

    class Mutant(LayeredMachine):
        modules = (_changed(layered, *NO_OWN_PARTS), host_tables)

    with pytest.raises(AssertionError, match="is met"):
        walk_twice(Mutant())


def late_view(machine: LayeredMachine) -> None:
    """A row leaves a value and returns to it, and a view from between comes late."""
    for number in (2.0, 3.0):
        machine.push({1: number})
        machine.begin_view()
    machine.push({1: 2.0})
    machine.publish()
    machine.pull()
    for publish in (False, False, True, False):
        if publish:
            machine.publish()
        machine.exchange()
        machine.it_has_the_rows_of_a_dict()


def test_no_view_is_taken_that_is_older_than_a_row_that_was_dropped() -> None:
    machine = LayeredMachine()
    late_view(machine)
    machine.begin_view()
    machine.publish()
    machine.exchange()
    assert machine.tables._read == machine.replica.version, "what is published later is taken"

    class Mutant(LayeredMachine):
        modules = (layered, _changed(host_tables, "(epoch, count - 1), ", ""))

    with pytest.raises(AssertionError):
        late_view(Mutant())
