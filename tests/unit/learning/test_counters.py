"""The tally: digest, counters and newest labels are exact however they travel."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from evaluation.metrics import COUNTERS_MAX
from online.learning.counters import DIGEST, METRICS, NEWEST, Tally, event_hash
from online.learning.scores import increments_of
from online.rows.journal_rows import _predicted
from paramserver.core import blocks as algebra
from paramserver.core.blocks import Blocks
from replay.example import Example

Rows = list[tuple[bytes, dict[str, float], str | None, float]]


def some_rows(n: int = 40) -> Rows:
    r = random.Random(5)
    labels = ["true", "false", '"a"']
    out: Rows = []
    for _ in range(n):
        label = r.choice(labels)
        counted: dict[str, float] = {"n": 1, "label/" + label: 1}
        out.append((r.randbytes(16), counted, label, float(r.randint(0, 99))))
    return out


def feed(tally: Tally, rows: Rows) -> None:
    for row in rows:
        tally.add(*row)


def shown(tally: Tally) -> tuple[object, ...]:
    return tally.counters, tally.digest, tally.seen


def test_one_row() -> None:
    tally = Tally()
    assert tally.newest() is None
    assert tally.cut() == {}, "nothing was learned"
    tally.add(bytes(range(16)), {"n": 1}, '"spam"', 7.0)
    assert tally.digest == (1, 0x0001020304050607)
    assert tally.newest() == "spam"
    blocks = tally.cut()
    assert blocks[DIGEST].data == {"count": 1, "sum": 0x0001020304050607}
    assert blocks[METRICS].data == {"n": 1}
    assert blocks[NEWEST].data == {'"spam"': (7.0, 7.0)}
    assert tally.cut() == {}, "each row is in one delta"
    assert tally.digest[0] == 1, "what is cut still counts"


def test_the_digest_wraps() -> None:
    tally = Tally()
    feed(tally, [(b"\xff" * 16, {}, None, 0.0), (bytes(7) + b"\x02" + bytes(8), {}, None, 0.0)])
    assert tally.digest == (2, 1)
    assert tally.newest() is None, "regression keeps no labels"
    state: Blocks = {}
    algebra.merge(state, tally.cut())
    assert state[DIGEST].data == {"count": 2, "sum": 1}


@pytest.mark.parametrize("cuts", [(0,), (13,), (1, 2, 3, 30), (40,)])
def test_deltas_add_up_in_any_order(cuts: tuple[int, ...]) -> None:
    rows, whole = some_rows(), Tally()
    feed(whole, rows)
    bounds = [0, *cuts, len(rows)]
    deltas = []
    for first, last in itertools.pairwise(bounds):
        tally = Tally()
        feed(tally, rows[first:last])
        deltas.append(tally.cut())
    for order in (deltas, deltas[::-1]):
        state: Blocks = {}
        for delta in order:
            algebra.merge(state, delta)
        pulled = Tally()
        pulled.reset(state)
        assert shown(pulled) == shown(whole)
        assert pulled.newest() == whole.newest()


def test_the_open_delta_stays_on_top() -> None:
    rows = some_rows()
    theirs, ours, all_rows = Tally(), Tally(), Tally()
    feed(theirs, rows[:25])
    feed(ours, rows[25:])
    feed(all_rows, rows)
    values = theirs.cut()
    ours.rebase(values)
    assert shown(ours) == shown(all_rows)
    ours.rebase(values)
    assert shown(ours) == shown(all_rows), "values are taken, not added"
    algebra.merge(values, ours.cut())
    ours.rebase(values)
    assert shown(ours) == shown(all_rows), "cut and merged: once"
    ours.reset({})
    assert shown(ours) == shown(Tally())
    assert ours.cut() == {}, "a reset drops the open delta"


def test_the_newest_label_is_the_one_with_the_latest_time() -> None:
    tally = Tally()
    feed(tally, [(bytes(16), {}, "1", 5.0), (bytes(16), {}, "2", 9.0), (bytes(16), {}, "3", 7.0)])
    assert tally.newest() == 2
    feed(tally, [(bytes(16), {}, "2", 1.0)])
    assert tally.seen["2"] == (1.0, 9.0)
    assert tally.newest() == 2, "an old row that comes late changes nothing"


def test_the_hash_is_of_the_key() -> None:
    assert event_hash(b"\x80" + bytes(15)) == 2**63
    assert event_hash(bytes(8) + b"\xff" * 8) == 0


@pytest.mark.parametrize(
    ("task", "label", "score"),
    [
        ("multiclass", "x", {"": 2.5}),
        ("binary", True, {"": 2.5}),
        ("regression", 1.0, {'"x"': 0.75, "true": 0.25}),
    ],
)
def test_an_answer_of_a_model_of_another_task_is_none(
    task: Any, label: Any, score: dict[str, float]
) -> None:
    """The task has changed since, and the journal is learned again."""
    row = Example({}, label, score=score)
    plain = Example({}, label)
    assert increments_of(task, row, Tally()) == increments_of(task, plain, Tally())
    assert _predicted(score, regression=task == "regression") is None


def test_of_many_counters_only_pairs_of_labels_are_folded() -> None:
    """Else a model of a hundred classes, full of pairs, could never be compared again."""
    tally = Tally()
    tally.reset({METRICS: algebra.Block("count", {f"pair/{i}": 1 for i in range(COUNTERS_MAX)})})
    counted = {"versus/new/pairs": 1.0, "another/n": 1.0, "unusable": 1.0, "pair/more": 1.0}
    tally.add(bytes(16), counted, None, 1.0)
    assert tally.cut()[METRICS].data == {
        "versus/new/pairs": 1.0, "another/n": 1.0, "unusable": 1.0, "folded": 1
    }  # fmt: skip
