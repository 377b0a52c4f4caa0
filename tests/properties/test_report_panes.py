"""Panes are sums whatever their size, and a report does not depend on how rows are dealt out."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.report.panes import PANE_ROWS, PANES_MAX, Panes
from evaluation.report.rows import Origin, Rows
from evaluation.report.tally import Known, Tally


@given(st.lists(st.integers(1, 900), min_size=1, max_size=60))
def test_panes_hold_every_row_once_in_bounded_room(batches: list[int]) -> None:
    panes, row = Panes(), 1
    for n in batches:
        end = row + n
        while row < end:
            pane, room = panes.room(row)
            assert room >= 1
            step = min(room, end - row)
            pane.rows += step
            pane.counters["n"] = pane.counters.get("n", 0) + step
            pane.times(float(row), float(row + step - 1))
            row += step
    held = panes.all
    assert 1 <= len(held) <= PANES_MAX
    assert panes.size == PANE_ROWS * 2 ** int(math.log2(panes.size / PANE_ROWS))
    assert [p.rows for p in held[:-1]] == [panes.size] * (len(held) - 1)
    first = 1
    for pane in held:
        assert (pane.first_row, pane.first_time) == (first, first)
        assert pane.last_time == first + pane.rows - 1
        assert pane.counters["n"] == pane.rows
        first += pane.rows
    assert first == row


def dealt(n: int, cuts: list[int]) -> Iterator[Rows]:
    """The same ``n`` rows in parts that end at the cuts."""
    rng = random.Random(9)
    rows = [
        (rng.random() < 0.5, rng.randrange(5) / 4, rng.randrange(8) / 8, rng.choice("ab"))
        for _ in range(n)
    ]
    edges = sorted({0, n, *(c % n for c in cuts)})
    for begin, end in itertools.pairwise(edges):
        part = rows[begin:end]
        none = np.full(len(part), np.nan)
        yield Rows(
            label=[label if i % 7 else None for i, (label, *_) in enumerate(part, begin)],
            predicted=[p >= 0.5 for _, p, _, _ in part],
            probabilities=[{"true": p, "false": 1 - p} for _, p, _, _ in part],
            time=none,
            label_time=none,
            features={"x": np.array([x for *_, x, _ in part]), "c": [c for *_, c in part]},
        )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=6))
def test_counters_do_not_depend_on_how_rows_are_dealt_out(cuts: list[int]) -> None:
    """Values are dyadic, so that sums are exact in any order."""
    origin = Origin("file", "f", "binary", delay=3)
    whole, parts = Tally(origin), Tally(origin)
    for rows in dealt(800, []):
        whole.add(rows)
    for rows in dealt(800, cuts):
        parts.add(rows)
    assert parts.rows == whole.rows == 800
    assert len(parts.panes.all) == len(whole.panes.all)
    for a, b in zip(parts.panes.all, whole.panes.all, strict=True):
        exact = {k: v for k, v in a.counters.items() if k != "log_loss"}
        assert exact == {k: v for k, v in b.counters.items() if k != "log_loss"}
        assert math.isclose(a.counters["log_loss"], b.counters["log_loss"])
        assert (a.first_row, a.rows, a.labelled, a.positive) == (
            b.first_row, b.rows, b.labelled, b.positive,
        )  # fmt: skip
        assert a.features["x"] == b.features["x"]
    assert list(parts.watch.alarms) == list(whole.watch.alarms)
    for one, other in ((parts.then(300), whole.then(300)), (parts.now(300), whole.now(300))):
        assert one.first_row == other.first_row
        assert list(one.features["c"]) == list(other.features["c"])
        assert np.array_equal(one.score, other.score)
        assert np.array_equal(one.right, other.right, equal_nan=True)


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 3)), st.integers(0, 30)), max_size=80),
    st.integers(0, 9),
    st.booleans(),
)
def test_what_was_known_is_what_had_come(
    rows: list[tuple[int | None, int]], delay: int, timed: bool
) -> None:
    """Against a walk over all earlier rows, each time."""
    known = Known("multiclass", delay)
    for i, (label, wait) in enumerate(rows):
        found = known.at(float(i) if timed else math.nan)
        if timed:
            come = [j for j in range(i) if rows[j][0] is not None and j + rows[j][1] <= i]
        else:
            come = [j for j in range(i) if rows[j][0] is not None and j + max(delay, 1) <= i]
        assert found == (rows[max(come)][0] if come else None)
        counts = [(-sum(rows[j][0] == v for j in come), v) for v in range(4)]
        assert known.most() == (min(counts)[1] if come else None)
        known.add(label, float(i + wait) if timed else math.nan)
