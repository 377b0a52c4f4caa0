"""Values that come in parts: each event counts once, and a restarted server is pushed to at once.

The world, its faults and how mutants are made are those of ``test_learner_machine.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import test_learner_machine as machine

import online.learning.values_in_parts
import paramserver.core.parts
from online.learning.merged import Learner
from paramserver.core.wire import WireBlock, encode_piece
from replay.journal.sqlite.journal import SqliteJournal

Change, Mutant, run_all = machine.Change, machine.Mutant, machine.run_all
OWN, MET, DECIDED = machine.OWN, machine.MET, machine.DECIDED
_learner, _make, _reply, _row = machine._learner, machine._make, machine._reply, machine._row


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(tmp_path_factory.mktemp("machine") / "journal", synchronous="OFF")
    yield opened
    opened.close()


@pytest.mark.parametrize("seeds", [range(16), pytest.param(range(16, 120), marks=machine.LONG)])
def test_each_event_counts_once_of_values_that_come_in_parts(
    journal: SqliteJournal, seeds: range
) -> None:
    stats = run_all(journal, seeds, parts=True)
    assert not {name for name in {"parts", *MET, *DECIDED} if not stats[name]}, stats


@pytest.mark.parametrize("seeds", [range(10), pytest.param(range(10, 60), marks=machine.LONG)])
def test_each_event_counts_once_of_a_whole_state_among_parts(
    journal: SqliteJournal, seeds: range
) -> None:
    stats = run_all(journal, seeds, parts=True, whole=True)
    assert stats["parts"], stats


# -- and with one rule less ------------------------------------------------------------------------


def _arrival(old: str, new: str) -> Any:
    return Change(online.learning.values_in_parts, old, new)


def _parts(old: str, new: str) -> Any:
    return Change(paramserver.core.parts, old, new)


PARTS = {
    "what has changed since the first part is left out": Mutant(
        (_arrival("touched = self.pulled.take(changes, ())", "touched: Touched = {}"),),
        (2, 5, 6),
        parts=True,
    ),
    "what has changed of earlier parts is left out of a later one": Mutant(
        (_arrival("            self.finish(part)\n", ""),), (1, 5, 6), parts=True
    ),
    "own deltas are not put on top of what came in parts": Mutant(
        (_learner("copy.rebase(self._pulled.with_deltas(pending, touched_by(pending)))", "pass"),),
        (27, 30, 37),
        parts=True,
    ),
    "the tally stays behind what came in parts": Mutant(
        (
            _learner(
                "self.tally.reset(self._pulled.with_deltas(pending, self.tally.tallied))", "pass"
            ),
        ),
        (0, 1, 2),
        parts=True,
    ),
    "a piece that was not the last one ends its part": Mutant(
        (
            _arrival("part.after is None\n        self.values = coming\n", "part.after is None\n"),
            _arrival(
                "            coming = PartialValues(",
                "            coming = self.values = PartialValues(",
            ),
        ),
        (14, 26, 33),
        parts=True,
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_one_rule_less_is_noticed(journal: SqliteJournal, name: str) -> None:
    for seed in PARTS[name].seeds:
        with pytest.raises(AssertionError):
            PARTS[name].run(journal, seed)


# -- step by step ----------------------------------------------------------------------------------

NEW = (2, 5)
"""Version of a new server's first reply."""


def _take(made: Any, clock: dict[int, int], *events: str, **more: Any) -> None:
    """One part with these events."""
    data = {"w": WireBlock("additive", dict.fromkeys(events, 1.0))}
    part = {"since": NEW, "pieces": [encode_piece(data)]} | more
    for _ in made.take_part(_reply(NEW, "part", clock, **part)):
        pass


def _sent(made: Any) -> list[tuple[int, int, int]]:
    return [(push.epoch, push.first, push.last) for push in made.pushes(9)]


def _learned(learner: Any, model: Any = None) -> Any:
    """A learner that has two deltas of its own rows, of which one is with the server."""
    made = _make(learner) if model is None else _make(learner, model)
    for offset in (1, 2):
        made.learn(_row(OWN, offset))
        made.pushes(9)
    return made


def check_a_new_server_is_pushed_to_at_once(learner: Any) -> None:
    """What its clock lacks, before its values are here; the copy at hand answers and learns."""
    made = _learned(learner)
    before = made.serving
    _take(made, {OWN: 1}, "1:1", after=("w", 1))
    assert _sent(made) == [(2, 2, 2)], "row 1 is in what it started from"
    assert (made.since, made.server.after) == (NEW, ("w", 1))
    made.learn(_row(OWN, 3))
    assert (made.serving, made.version, made.own) == (before, (1, 0), 3)
    _take(made, {OWN: 2}, "other", start=("w", 1))
    assert (made.since, made.server.after) == (NEW, None)
    made.on_reply(_reply((2, 6), "changes", {OWN: 2}, since=NEW,
                         blocks={"w": WireBlock("additive", {"1:2": 1.0})}))  # fmt: skip
    assert made.serving is not before
    assert made.serving.counts == {"1:1": 1, "1:2": 1, "1:3": 1, "other": 1}
    assert (made.version, made.own, made.catching_up) == ((2, 6), 1, False)
    assert _sent(made) == [(2, 3, 3)]


def check_a_rolled_back_server_is_not_pushed_to(learner: Any) -> None:
    """What was learned on other values is dropped when its values are here, and not sent before."""
    made = _learned(learner)
    _take(made, {}, "x", rewrite=7)
    assert {epoch for epoch, _, _ in _sent(made)} == {1}
    assert made.wanted() == [], "nothing is learned on values that were taken back"
    made.on_reply(_reply(NEW, "changes", {}, since=NEW, rewrite=7))
    assert made.serving.counts == {"x": 1}
    assert made.wanted()[0] == (OWN, 1)


def check_a_whole_state_is_not_pushed_on_values_that_are_not_here(learner: Any) -> None:
    made = _learned(learner, machine.protocol_world.Whole)
    _take(made, {OWN: 1})
    assert {epoch for epoch, _, _ in _sent(made)} == {1}


def check_changes_of_other_values_are_not_taken(learner: Any) -> None:
    made = _learned(learner)
    made.on_reply(_reply((1, 9), "changes", {OWN: 2}, since=(1, 5)))
    assert made.version == (1, 0)
    _take(made, {OWN: 1})
    made.on_reply(_reply((2, 9), "changes", {OWN: 2}, since=(2, 3)))
    assert made.version == (1, 0), "since a first part that is not here"


def check_an_older_server_is_not_heard_any_more(learner: Any) -> None:
    made = _learned(learner)
    _take(made, {OWN: 1}, after=("w", 0))
    made.on_reply(_reply((1, 3), "changes", {OWN: 2}, since=(1, 0)))
    assert made.version == (1, 0)


DIRECTED = [
    (
        check_a_new_server_is_pushed_to_at_once,
        _learner("for d in ready[:limit]]", "for d in due[:limit] if self.server.values is None]"),
    ),
    (check_a_new_server_is_pushed_to_at_once, _arrival("        self.clock = dict(clock)\n", "")),
    (
        check_a_rolled_back_server_is_not_pushed_to,
        _learner("if self.mergeable and reply.rewrite == self.rewrite:", "if self.mergeable:"),
    ),
    (
        check_a_whole_state_is_not_pushed_on_values_that_are_not_here,
        _learner("if self.mergeable and reply.rewrite", "if reply.rewrite"),
    ),
    (
        check_changes_of_other_values_are_not_taken,
        _learner("reply.since is not None and reply.since > self.version", "False"),
    ),
    (
        check_changes_of_other_values_are_not_taken,
        _arrival("if reply.since != coming.since or", "if"),
    ),
    (
        check_an_older_server_is_not_heard_any_more,
        _learner("max(self.version, (self.server.epoch, 0))", "self.version"),
    ),
]


@pytest.mark.parametrize(("check", "change"), DIRECTED)
def test_decisions(check: Callable[[Any], None], change: Any) -> None:
    check(Learner)
    with pytest.raises(AssertionError):
        check(Mutant((change,), ()).world().learner_class)
