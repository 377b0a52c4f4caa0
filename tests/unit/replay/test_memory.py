"""What a memory keeps, and the lessons that it gives."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial

import pytest
from buffer_checks import state_of

from replay.buffers.balanced import ClassBalanced
from replay.buffers.compartments import TwoCompartments
from replay.buffers.reservoir import Reservoir
from replay.buffers.ring import Ring
from replay.codec import encode
from replay.example import Example, Label
from replay.journal.base import Row, Verdict
from replay.memory import SHARE_DECAY, Memory, logits_of
from replay.rehearsal import Rehearsal

FIXED = Rehearsal(rows_short=3, rows_long=3, passes_short=2, passes_long=2)


def row(offset: int, label: Label, *, partition: int = 1, source: str = "a") -> Row:
    example = Example({"x": float(offset)}, label)
    key = bytes([partition]) + offset.to_bytes(15, "big")
    return Row(
        offset, partition, offset, key, f"e{offset}", source, Verdict.ACCEPTED, 1.0,
        encode(example), 0.0,
    )  # fmt: skip


def offer(memory: Memory, given: Row, label: Label, score: dict[str, float] | None = None) -> None:
    memory.keep(given, Example({"x": float(given.offset)}, label), score)


def memory(**settings: object) -> Memory:
    options: dict[str, object] = {"rule": FIXED, "seed": 1, **settings}
    return Memory(partial(ClassBalanced, 20, 1), **options)  # type: ignore[arg-type]


def test_nothing_is_drawn_from_nothing_and_then_what_the_rule_says() -> None:
    kept = memory()
    assert kept.lesson(True) == ()
    for i in range(1, 41):
        offer(kept, row(i, i % 2 == 0), i % 2 == 0)
    lesson = kept.lesson(True)
    assert [len(drawn.items) for drawn in lesson] == [3, 3]
    assert kept.replayed == 6
    for drawn in lesson:
        assert len({item.key for item in drawn.items}) == 3
        assert [age for age in drawn.ages] == [40 - item.at for item in drawn.items]


def test_a_row_is_offered_once_however_often_it_is_learned() -> None:
    kept = memory()
    for _ in range(3):
        for i in range(1, 6):
            offer(kept, row(i, True), True)
            offer(kept, row(i, True, partition=2), True)
    assert len(kept.buffer) == kept.seen == 10


def test_shares_are_half_of_fresh_rows_and_half_of_drawn_ones() -> None:
    kept = memory()
    for i in range(1, 11):
        offer(kept, row(i, False), False)
    first, second = kept.lesson(True)
    part = (1 - SHARE_DECAY) / 2
    assert first.shares == pytest.approx({True: part, False: part})
    assert second.shares == pytest.approx({True: part * 1.9, False: part * 1.9})
    for _ in range(300):
        kept.lesson(True)
    assert kept.lesson(True)[-1].shares == pytest.approx({True: 0.5, False: 0.5})


def test_shares_of_classes_that_have_gone_are_let_go_of() -> None:
    kept = memory()
    offer(kept, row(1, 0), 0)
    for i in range(2_000):
        kept.lesson(f"class {i}")
    assert len(kept.lesson(0)[0].shares) < 250


def test_in_regression_nothing_is_counted_by_label() -> None:
    kept = Memory(partial(Reservoir, 20, 1), rule=FIXED, seed=1, balanced=False, classes=False)
    for i in range(1, 30):
        offer(kept, row(i, float(i)), float(i))
    assert kept.lesson(1.5)[0].shares == {}
    assert kept.shares()["classes"] == {}


def test_an_alarm_draws_recent_rows_and_distils_nothing_for_a_while() -> None:
    rule = Rehearsal(
        rows_short=10, rows_long=10, passes_short=1, passes_long=1, recent=0.0, recent_alarm=1.0,
        alarm_rows=50,
    )  # fmt: skip
    kept = Memory(
        lambda: TwoCompartments(Reservoir(30, 1), Ring(10)), rule=rule, seed=1, distil=0.5
    )
    for i in range(1, 201):
        offer(kept, row(i, True), True)

    def recent() -> int:
        return sum(item.at >= 190 for item in kept.lesson(True)[0].items)

    assert recent() == 0
    assert kept.lesson(True)[0].distil == 0.5
    kept.alarm()
    assert recent() == 10
    assert kept.lesson(True)[0].distil == 0.0
    for i in range(201, 251):
        offer(kept, row(i, True), True)
    assert sum(item.at >= 240 for item in kept.lesson(True)[0].items) == 0
    assert kept.lesson(True)[0].distil == 0.5


def test_an_alarm_for_a_new_class_changes_nothing() -> None:
    rule = Rehearsal(rows_short=3, rows_long=3, alarm_rows=50)
    kept = memory(rule=rule, distil=0.5)
    for i in range(1, 101):
        offer(kept, row(i, i % 2), i % 2)
    offer(kept, row(101, 2), 2)
    kept.alarm()
    assert kept.lesson(0)[0].distil == 0.5
    for i in range(102, 152):
        offer(kept, row(i, i % 3), i % 3)
    kept.alarm()
    assert kept.lesson(0)[0].distil == 0.0


def test_drawing_changes_nothing_that_is_kept() -> None:
    kept = memory()
    for i in range(1, 100):
        offer(kept, row(i, i % 3), i % 3)
    before = deepcopy(state_of(kept.buffer))
    for _ in range(50):
        kept.lesson(1)
    assert state_of(kept.buffer) == before


def test_the_same_rows_give_the_same_memory_and_the_same_lessons() -> None:
    one, other = memory(), memory().emptied()
    for kept in (one, other):
        for i in range(1, 100):
            offer(kept, row(i, i % 3), i % 3)
    assert state_of(one.buffer) == state_of(other.buffer)
    assert one.lesson(2) == other.lesson(2)


def test_what_was_answered_is_kept_only_where_it_is_distilled() -> None:
    score = {"true": 0.75, "false": 0.25}
    for distil, expected in ((0.0, None), (0.1, logits_of(score))):
        kept = memory(distil=distil)
        offer(kept, row(1, True), True, score)
        (item,) = kept.buffer
        assert item.logits == expected


def test_outputs_are_known_up_to_a_constant() -> None:
    logits = logits_of({"0": 0.7, "1": 0.2, "2": 0.1})
    assert sum(logits.values()) == pytest.approx(0.0)
    powers = {label: math.exp(value) for label, value in logits.items()}
    total = sum(powers.values())
    assert {label: p / total for label, p in powers.items()} == pytest.approx(
        {"0": 0.7, "1": 0.2, "2": 0.1}
    )
    assert all(map(math.isfinite, logits_of({"0": 1.0, "1": 0.0}).values()))
    assert logits_of({"": 2.5}) == {"": 2.5}


def test_shares_and_purge_of_a_source() -> None:
    kept = memory()
    for i in range(1, 11):
        offer(kept, row(i, i % 2 == 0, source="ab"[i % 5 == 0]), i % 2 == 0)
    assert kept.shares() == {
        "classes": {"false": 0.5, "true": 0.5},
        "sources": {"a": 0.8, "b": 0.2},
    }
    assert kept.purge("a") == 8
    assert kept.shares()["sources"] == {"b": 1.0}
