"""Learner and server keep each event counted once under every fault; with one rule less they don't.

The world is in ``protocol_world.py``.  Mutants are made of the real source with one text replaced,
and are given seeds that are known to be too much for them.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import protocol_world
import pytest

import online.learning.deltas
import online.learning.local_model
import online.learning.merged
import online.learning.values_in_parts
import paramserver.core.parts
import paramserver.core.rewrites
import paramserver.core.server
import paramserver.process.lineage
from online.learning.merged import Learner
from paramserver.core.server import Server
from paramserver.core.wire import FORMAT, SyncReply
from replay.journal.base import Row, Verdict
from replay.journal.sqlite.journal import SqliteJournal

World: Any = protocol_world.World

# -- the code as it is -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(tmp_path_factory.mktemp("machine") / "journal", synchronous="OFF")
    yield opened
    opened.close()


def run_all(journal: SqliteJournal, seeds: range, **how: bool) -> Counter[str]:
    """Run the seeds; the first failure tells its seed."""
    stats: Counter[str] = Counter()
    for seed in seeds:
        world = World(journal, seed, **how)
        try:
            world.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}, {how}: {error!r}") from error
        stats.update(world.stats)
    return stats


MET = {"adopted", "relearned", "failed", "epochs", "closed"}
DECIDED = {"rollbacks", "undone", "freezes", "frozen", "held", "skipped"}


LONG = pytest.mark.long


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 200), marks=LONG)])
def test_each_event_counts_once(journal: SqliteJournal, seeds: range) -> None:
    stats = run_all(journal, seeds)
    met = {"sealed alive", "old replies", *MET, *DECIDED}
    assert not {name for name in met if not stats[name]}, stats  # the dice reach every branch


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 40), marks=LONG)])
def test_each_event_counts_once_without_operators(journal: SqliteJournal, seeds: range) -> None:
    stats = run_all(journal, seeds, operators=False)
    assert not {name for name in DECIDED if stats[name]}, stats


@pytest.mark.parametrize("seeds", [range(16), pytest.param(range(16, 80), marks=LONG)])
def test_each_event_counts_once_in_a_state_that_travels_whole(
    journal: SqliteJournal, seeds: range
) -> None:
    stats = run_all(journal, seeds, whole=True)
    assert not {name for name in MET | DECIDED if not stats[name]}, stats


# -- and with one rule less ------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One text of a module's source, and what stands there instead."""

    module: ModuleType
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """Changes, and seeds that must not survive them."""

    changes: tuple[Change, ...]
    seeds: tuple[int, ...]
    whole: bool = False
    operators: bool = False
    parts: bool = False
    shells: tuple[tuple[str, Any], ...] = ()

    def world(self) -> Any:
        modules = {change.module for change in self.changes}.difference(_LEARNERS)
        names = {m: _changed(m, self.changes) for m in modules}
        parts: dict[str, Any] = dict(self.shells)
        for part, module in (
            ("replayed", paramserver.process.lineage),
            ("roll_back", paramserver.core.rewrites),
            ("undone", paramserver.core.rewrites),
        ):
            if module in names:
                parts[part] = staticmethod(names[module][part])
        learner = _changed_learner(self.changes)
        if paramserver.core.parts in names:  # the server has its names from there
            names.setdefault(paramserver.core.server, _changed(paramserver.core.server, ()))
            names[paramserver.core.server]["Parts"] = names[paramserver.core.parts]["Parts"]
        server = names.get(paramserver.core.server, {}).get("Server", Server)
        parts |= {"learner_class": learner, "server_class": server}
        return type("Mutated", (World,), parts)

    def run(self, journal: SqliteJournal, seed: int) -> None:
        how = {"whole": self.whole, "operators": self.operators, "parts": self.parts}
        self.world()(journal, seed, **how).run()


def _changed_learner(changes: tuple[Change, ...]) -> Any:
    """The learner, made of all its modules anew if one of them is changed."""
    if not {change.module for change in changes}.intersection(_LEARNERS):
        return Learner
    with pytest.MonkeyPatch.context() as patch:
        for module in _LEARNERS:  # each takes names from those before it
            changed = ModuleType(module.__name__)
            vars(changed).update(_changed(module, changes))
            patch.setitem(sys.modules, module.__name__, changed)
        return vars(changed)["Learner"]


def _changed(module: ModuleType, changes: tuple[Change, ...]) -> dict[str, Any]:
    source = inspect.getsource(module)
    for change in changes:
        if change.module is module:
            if source.count(change.old) != 1:  # no AssertionError: a mutant is noticed by one
                raise LookupError(f"not once in {module}: {change.old}")
            source = source.replace(change.old, change.new)
    names: dict[str, Any] = {"__name__": module.__name__}
    exec(compile(source, "<mutant>", "exec"), names)
    return names


_LEARNERS = (
    online.learning.deltas,
    online.learning.values_in_parts,
    online.learning.local_model,
    online.learning.merged,
)


def _learner(old: str, new: str) -> Change:
    """Of the learner or of what it is made of: wherever the text stands."""
    (standing,) = (
        m
        for m in (online.learning.local_model, online.learning.merged)
        if old in inspect.getsource(m)
    )
    return Change(standing, old, new)


def _deltas(old: str, new: str) -> Change:
    return Change(online.learning.deltas, old, new)


def _server(old: str, new: str) -> Change:
    return Change(paramserver.core.server, old, new)


def _rewrites(old: str, new: str) -> Change:
    return Change(paramserver.core.rewrites, old, new)


_NO_OVERLAP = "if push.first != clock + 1:"
_OLD = "if (reply.epoch, reply.count) < max(self.version, (self.server.epoch, 0)):"
_SOMEBODYS = _deltas(" for p in self._partitions if p in tracks}", " for p in self._partitions}")

MUTANTS = {
    "deltas over a broken chain are kept": Mutant(
        (_learner("lost = self._broken()\n", "lost: Collection[int] = []\n"),), (0, 1, 2)
    ),
    "only the pointer of a broken chain is put back": Mutant(
        (_learner("        self._deltas.drop(lost)\n", ""),), (0, 5, 6)
    ),
    "a chain may begin anywhere": Mutant(
        (_deltas("                if d.first != need:\n", "                if False:\n"),),
        (0, 5, 7),
    ),
    "an acknowledged delta stays on top": Mutant(
        (
            _deltas("if d.last > clock.get(d.partition, 0):", "if True:"),
            _learner("lost = self._broken()\n", "lost: Collection[int] = []\n"),
        ),
        (0, 1, 2),
    ),
    "the open delta is not cut at a merge": Mutant(
        (_learner("rebuild or clock.get(opened.partition, 0) >= opened.first", "False"),), (8, 1290)
    ),
    "closed is no clock": Mutant(
        (_learner("**dict.fromkeys(reply.closed, CLOSED)", "**{}"),), (8, 1019)
    ),
    "replies of an older epoch are taken": Mutant(
        (_learner(_OLD, "if reply.epoch == self.version[0] and reply.count < self.version[1]:"),),
        (5, 17, 18),
    ),
    "older replies of an epoch are taken": Mutant(
        (_learner(_OLD, "if reply.epoch < self.version[0]:"),), (2, 7, 8)
    ),
    "counts of two epochs are compared": Mutant(
        (
            _server("if since is None or since[0] != self.epoch:", "if since is None:"),
            _learner("self.want_all or reply.epoch != self.version[0]", "self.want_all"),
        ),
        (15, 21, 25),
    ),
    "what an abandoned partition did is kept": Mutant(
        (_learner("        self._deltas.drop([partition])\n", ""), _SOMEBODYS), (5, 17, 19)
    ),
    "the open rows are not put back": Mutant(
        (_learner("rows = self._open.rows if self._open else []", "rows: list[Any] = []"),),
        (0, 3, 4),
    ),
    "a row that failed is not taken back": Mutant(
        (_learner("self._restore(example, lesson)", "pass"),), (0, 3, 4)
    ),
    "the new copy answers at once": Mutant(
        (_learner("if all(map(self._caught_up, self._targets)):", "if True:"),), (0, 1, 2)
    ),
    "other rows are learned while some are learned again": Mutant(
        (
            _learner(
                "        if self._targets:\n            ready",
                "        if False:\n            ready",
            ),
        ),
        (2, 9, 12),
    ),
    "includes is told of the copy that does not answer": Mutant(
        (
            _learner(
                "        if self._targets:\n            return self._served.get",
                "        if False:\n            return self._served.get",
            ),
        ),
        (0, 1, 2),
    ),
    "the server takes an overlap": Mutant(
        (_server(_NO_OVERLAP, "if push.first > clock + 1:"),), (1, 3, 9)
    ),
    "the server takes a gap": Mutant(
        (_server(_NO_OVERLAP, "if push.first < clock + 1:"),), (3, 13, 18)
    ),
    "the server takes a repeat": Mutant(
        (
            _server("if push.last <= clock:", "if push.last < clock:"),
            _server(_NO_OVERLAP, "if push.first > clock + 1:"),
        ),
        (0, 1, 2),
    ),
    "a closed partition begins again": Mutant(
        (_server("            if partition in self.closed:\n", "            if False:\n"),),
        (0, 1, 8),
    ),
    "a snapshot shares what is pushed later": Mutant(
        (_server("        _unshare(self.values, self._shared, delta)\n", ""),), (9, 19, 24)
    ),
    "only what broke of a whole state is learned again": Mutant(
        (_learner("if lost and not self.mergeable:", "if False:"),), (25, 64, 93), whole=True
    ),
    "a whole state is taken from another epoch": Mutant(
        (_server("if push.epoch != self.epoch:", "if False:"),), (48,), whole=True
    ),
    "own rows are not moved into a whole state's values": Mutant(
        (
            _deltas(
                "                algebra.merge(self.blocks, delta.blocks, 1.0)\n",
                "                pass\n",
            ),
        ),
        (0, 1, 2),
        whole=True,
    ),
}

_MAX = "max(now.clock.get(p, 0), target.clock.get(p, 0))"

# the first seed of each is the first of all that notices
REWRITES = {
    "a rollback takes the clock back": Mutant(
        (_rewrites(_MAX, "target.clock.get(p, 0)"),), (2, 9, 13), operators=True
    ),
    "a rollback's clock is the server's": Mutant(
        (_rewrites(_MAX, "now.clock.get(p, 0)"),), (18, 28, 117), operators=True
    ),
    "what the server has closed is open after a rollback": Mutant(
        (_rewrites("closed = now.closed | target.closed", "closed = target.closed"),),
        (37, 69, 147),
        operators=True,
    ),
    "control rows are not replayed": Mutant(
        (), (0, 4, 5), operators=True, shells=(("replays", False),)
    ),
    "a start's own clock counts beside the row's": Mutant(
        (
            Change(
                paramserver.process.lineage,
                "            clock=note.clock,\n",
                "            clock={p: max(note.clock.get(p, 0), state.clock.get(p, 0))\n"
                "                   for p in {*note.clock, *state.clock} - {*note.closed}},\n",
            ),
        ),
        (222, 253),
        operators=True,
    ),
    "deltas are kept at a rewrite": Mutant(
        (_learner("if reply.rewrite != self.rewrite:", "if False:"),), (1, 2, 4), operators=True
    ),
    "a copy that was undone goes on answering": Mutant(
        (
            _learner(
                "        self._targets = {}\n        self.relearned +=", "        self.relearned +="
            ),
        ),
        (4, 14, 18),
        operators=True,
    ),
    "a delta from before a rewrite is taken after it": Mutant(
        (_server("if push.epoch != self.epoch:", "if False:"),),
        (1, 7, 18),
        whole=True,
        operators=True,
    ),
    "a decision is not fenced": Mutant(
        (), (16, 32, 38), operators=True, shells=(("fenced", False),)
    ),
    "retention does not hold what a rollback names": Mutant(
        (),
        (33, 107, 120),
        operators=True,
        shells=(("held", staticmethod(lambda needed, kept: set())),),
    ),
    "what a rollback brings back stays undone": Mutant(
        (
            _rewrites(
                "next(known for seq, known in reversed(after) if seq <= note.control)",
                "after[-1][1]",
            ),
        ),
        (18, 45, 82),
        operators=True,
    ),
    "a frozen model pushes": Mutant(
        (
            _learner("if self._open and not self._stays():", "if self._open:"),
            _deltas("        if not frozen:\n", "        if True:\n"),
        ),
        (0, 1, 2),
        operators=True,
    ),
}


class OwnIsRepeat(World):  # type: ignore[misc]
    """The shell takes an own row for a repeat if the answer to its append was lost."""

    own_is_repeat = True


@pytest.mark.parametrize("name", [*MUTANTS, *REWRITES])
def test_one_rule_less_is_noticed(journal: SqliteJournal, name: str) -> None:
    mutant = (MUTANTS | REWRITES)[name]
    assert mutant.seeds
    for seed in mutant.seeds:
        with pytest.raises(AssertionError):
            mutant.run(journal, seed)


@pytest.mark.parametrize("seed", [0, 2, 4])
def test_a_shell_that_takes_own_rows_for_repeats_is_noticed(
    journal: SqliteJournal, seed: int
) -> None:
    with pytest.raises(AssertionError):
        OwnIsRepeat(journal, seed, operators=False).run()


# -- what the dice meet too seldom -----------------------------------------------------------------

OWN, ADOPTED = 1, 2


def _make(learner: Any, model: Any = protocol_world.Ledger) -> Any:
    made = learner(model, task="binary", spec="", retain_bytes=10**6, rows_max=9)
    made.open_partition(OWN)
    made.adopt(ADOPTED, 3)
    made.on_reply(_reply((1, 0), "all", {}))
    return made


def _reply(version: tuple[int, int], kind: str, clock: dict[int, int], **more: Any) -> SyncReply:
    rest = {"acks": [], "blocks": {}, "closed": [], "durable": {}, "orphans": []} | more
    return SyncReply(
        FORMAT, spec="", epoch=version[0], count=version[1], kind=kind, clock=clock,
        confirmed_ms=0.0, **rest,
    )  # fmt: skip


def _row(partition: int, offset: int) -> Row:
    new = protocol_world.Event(f"{partition}:{offset}", Verdict.ACCEPTED, False).row()
    return Row(0, partition, offset, new.key, "", "", new.verdict, 1.0, new.payload, 1.0)


def check_rows_that_come_by_a_merge(learner: Any) -> None:
    """Rows to learn again come from another adopter, and their partition is done with."""
    made = _make(learner)
    for offset in (1, 2, 3):
        made.learn(_row(ADOPTED, offset))
    made.on_reply(_reply((1, 1), "changes", {ADOPTED: 2}))
    assert made.wanted() == [(ADOPTED, 3)], "the delta of rows 1 … 3 can't be kept"
    made.on_reply(_reply((1, 2), "changes", {ADOPTED: 3}, durable={ADOPTED: 3}))
    assert made.serving is made._training, "nothing is left to wait for"
    assert made.wanted() == [(OWN, 1)]


def check_a_closed_own_partition(learner: Any) -> None:
    """Somebody has learned all of it; how far it went is not told."""
    made = _make(learner)
    made.learn(_row(OWN, 1))
    made.on_reply(_reply((1, 4), "changes", {}, closed=[OWN, ADOPTED]))
    assert made.includes(OWN, 2), "closed is a clock"
    made.on_reply(_reply((2, 3), "all", {OWN: 2, ADOPTED: 3}))
    assert made.wanted() == []
    assert made.serving is made._training


def check_an_unexplained_clock(learner: Any) -> None:
    """Without values a clock that own deltas do not explain is of no use."""
    made = _make(learner, protocol_world.Whole)
    made.on_reply(_reply((1, 1), "none", {OWN: 1}))
    assert made.since is None
    made.on_reply(_reply((1, 2), "none", {OWN: 1}))
    assert made.wanted() == []


def check_a_whole_state_on_rows_that_are_lost(learner: Any) -> None:
    """The server restarts without rows of a third, which the state that was cut has in it."""
    made = _make(learner, protocol_world.Whole)
    third = 7
    made.on_reply(_reply((1, 5), "all", {third: 5}))
    made.learn(_row(OWN, 1))
    assert [push.last for push in made.pushes(9)] == [1]
    made.on_reply(_reply((2, 3), "all", {third: 3}))
    assert made.wanted() == [(OWN, 1)], "learned on what the server has"


DIRECTED = [
    (
        check_a_whole_state_on_rows_that_are_lost,
        _learner("if whole and others and", "if False and"),
    ),
    (
        check_rows_that_come_by_a_merge,
        _learner("            self._switch()\n        self.ready", "        self.ready"),
    ),
    (check_a_closed_own_partition, _deltas("if partition in closed or (track", "if (track")),
    (check_a_closed_own_partition, _learner("**dict.fromkeys(reply.closed, CLOSED)", "**{}")),
    (
        check_an_unexplained_clock,
        _deltas("return self._ends.issuperset(moved) and not lost", "return True"),
    ),
]


@pytest.mark.parametrize(("check", "change"), DIRECTED)
def test_what_the_dice_meet_too_seldom(check: Callable[[Any], None], change: Change) -> None:
    check(Learner)
    with pytest.raises(AssertionError):
        check(Mutant((change,), ()).world().learner_class)
