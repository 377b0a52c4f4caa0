"""What a learner does about rollback and freeze, step by step; with one line less it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_learner_machine as machine
from msgspec.structs import replace

from online.learning.merged import Learner
from paramserver.core.rewrites import Undone
from replay.journal.base import Verdict

OWN, ADOPTED, _make, _reply, _row = (
    machine.OWN, machine.ADOPTED, machine._make, machine._reply, machine._row,
)  # fmt: skip


def _frozen(offset: int, partition: int = OWN) -> Any:
    return replace(_row(partition, offset), verdict=Verdict.FROZEN)


def _sent(made: Any) -> list[tuple[int, int, int]]:
    return [(push.partition, push.first, push.last) for push in made.pushes(9)]


def check_a_rewrite_is_answered_from_at_once(learner: Any) -> None:
    """Own rows above the clock are learned again; what was undone answers nothing meanwhile."""
    made = _make(learner)
    for offset in (1, 2, 3):
        made.learn(_row(OWN, offset))
    made.pushes(9)
    made.learn(_row(OWN, 4))
    made.on_reply(_reply((2, 1), "all", {OWN: 2}, rewrite=5, control=6))
    assert (made.rewrite, made.control, made.own) == (5, 6, 0)
    assert made.serving is made._training
    assert made.serving.counts == {}, "rows 1 and 2 are in no values"
    assert made.wanted()[0] == (OWN, 3)
    assert made.relearned == 2
    assert _sent(made) == []


def check_an_undone_row_is_passed_over(learner: Any) -> None:
    made = _make(learner)
    made.undone = Undone({OWN: ((0, 2),)})
    for offset in (1, 2, 3):
        assert made.learn(_row(OWN, offset), give_up="it kills" if offset == 1 else None) is None
    assert made.serving.counts == {f"{OWN}:3": 1}
    assert [(push.last, push.n) for push in made.pushes(9)] == [(3, 1)]
    assert not made.includes(OWN, 2), "its effect is in no answer"
    assert made.includes(OWN, 3)


def check_a_frozen_version_stands(learner: Any) -> None:
    made = _make(learner)
    made.learn(_row(OWN, 1))
    made.on_reply(_reply((1, 0), "changes", {}, control=3, frozen=True))
    made.learn(_frozen(2))
    assert made.open_rows == 2
    assert _sent(made) == [(OWN, 1, 2)], "what was accepted before is pushed"
    made.on_reply(_reply((1, 1), "changes", {OWN: 2}, control=3, frozen=True))
    made.learn(_frozen(3))
    assert (_sent(made), made.open_rows) == ([], 0)
    made.on_reply(_reply((2, 1), "all", {OWN: 2}, control=3, frozen=True))  # cuts what is open
    for offset in (4, 5):
        made.learn(_frozen(offset))
        assert _sent(made) == []
    made.on_reply(_reply((2, 1), "changes", {OWN: 2}, control=4))
    assert _sent(made) == [(OWN, 3, 3), (OWN, 4, 5)], "few, however long it was frozen"


def check_an_empty_delta_before_a_learned_one_is_pushed(learner: Any) -> None:
    made = _make(learner)
    made.learn(_frozen(1))  # quarantined, say
    assert _sent(made) == [(OWN, 1, 1)]
    made.learn(_row(OWN, 2))
    made.on_reply(_reply((1, 0), "changes", {}, control=3, frozen=True))
    assert _sent(made) == [(OWN, 1, 1), (OWN, 2, 2)]


def check_an_adopted_partition_is_pushed_to_its_end(learner: Any) -> None:
    made = _make(learner)
    made.on_reply(_reply((1, 0), "changes", {}, control=3, frozen=True))
    for offset in (1, 2, 3):
        made.learn(_frozen(offset, ADOPTED))
    assert _sent(made) == [(ADOPTED, 1, 3)]


def check_a_late_reply_does_not_unfreeze(learner: Any) -> None:
    made = _make(learner)
    made.on_reply(_reply((1, 0), "changes", {}, control=3, frozen=True))
    made.on_reply(_reply((1, 0), "changes", {}, control=2))
    assert (made.frozen, made.control) == (True, 3)
    made.on_reply(_reply((1, 0), "changes", {}, control=4))
    assert (made.frozen, made.control) == (False, 4)


_learner, _deltas = machine._learner, machine._deltas

DIRECTED = [
    (
        check_a_rewrite_is_answered_from_at_once,
        _learner("if reply.rewrite != self.rewrite:", "if False:"),
    ),
    (
        check_a_rewrite_is_answered_from_at_once,
        _deltas("        track.next = first\n    return again", "    return again"),
    ),
    (
        check_an_undone_row_is_passed_over,
        _learner(" and not self.undone.has(row.partition, row.offset)", ""),
    ),
    (
        check_an_undone_row_is_passed_over,
        _learner("        if self.undone.has(partition, offset):\n            return False\n", ""),
    ),
    (check_a_frozen_version_stands, _deltas("return delta.n == 0 and", "return False and")),
    (check_a_frozen_version_stands, _deltas("        if not frozen:\n", "        if True:\n")),
    (
        check_a_frozen_version_stands,
        _learner("if self._open and not self._stays():", "if self._open:"),
    ),
    (
        check_a_frozen_version_stands,
        _learner("if self._open is None or self._stays():", "if self._open is None:"),
    ),
    (
        check_an_empty_delta_before_a_learned_one_is_pushed,
        _deltas("if i <= last.get(d.partition, -1)]", "if not stays(d, tracks)]"),
    ),
    (
        check_an_adopted_partition_is_pushed_to_its_end,
        _deltas(" and (track is None or track.end is None)", ""),
    ),
    (
        check_a_late_reply_does_not_unfreeze,
        _learner(
            "taken=whole)\n        self.decide(reply.control, reply.frozen)",
            "taken=whole)\n        self.control, self.frozen = reply.control, reply.frozen",
        ),
    ),
]


@pytest.mark.parametrize(("check", "change"), DIRECTED)
def test_decisions(check: Callable[[Any], None], change: Any) -> None:
    check(Learner)
    mutant = machine.Mutant((change,), ())
    with pytest.raises(AssertionError):
        check(mutant.world().learner_class)
