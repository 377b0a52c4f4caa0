"""The confidence sequence: its formula, its guarantee beside a rule that has none, its limits."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.studies import comparison as bench
from evaluation.comparison import Comparison, radius


def test_the_radius_as_the_paper_has_it() -> None:
    """Howard et al. 2021, equation 10, with eta 2, s 1.4, m 1, c 2, in logarithms of base 2."""
    zeta = sum(k**-1.4 for k in range(1, 200_000)) + (200_000**-0.4) / 0.4
    for v in (1.0, 7.5, 4_000.0):
        level = 1.4 * math.log(math.log(2 * v)) + math.log(zeta / (0.025 * math.log(2) ** 1.4))
        k1 = (2**0.25 + 2**-0.25) / 2**0.5
        k2 = (2**0.5 + 1) / 2
        expected = math.sqrt(k1**2 * v * level + k2**2 * 4 * level**2) + k2 * 2 * level
        assert radius(v, 0.05) == pytest.approx(expected, rel=1e-4)
    assert radius(0.0, 0.05) == radius(1.0, 0.05)


def test_false_decisions_and_coverage_in_small() -> None:
    lines = {(x.what, x.rule): x for x in bench.run(pairs=40, rows=1_500, seed=3)}
    ours, naive = lines["equal", "confidence sequence"], lines["equal", "naive 95 %"]
    assert ours.decided == ours.wrong <= 2
    assert naive.wrong >= 10  # the rule that is not made for looking at each row is found out
    assert lines["drifting", "confidence sequence"].covered >= 0.95
    assert lines["A 5 points better", "confidence sequence"].wrong <= 2


def test_a_difference_is_found() -> None:
    rng, comparison = random.Random(1), Comparison()
    for _ in range(4_000):
        comparison.add(rng.random() < 0.85, rng.random() < 0.75)
    found = comparison.now()
    assert found.better == "a"
    assert found.interval is not None
    assert found.interval.low < 0.1 < found.interval.high


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50), st.integers(0))
def test_counters_of_replicas_add_up(rows: list[tuple[bool, bool]], seed: int) -> None:
    """Whatever the order of the merges: n and sum exactly, squares as each replica centred."""
    rng = random.Random(seed)
    parts = [Comparison() for _ in range(3)]
    increments = [parts[rng.randrange(3)].add(a, b) for a, b in rows]
    rng.shuffle(increments)
    total, by_rows = Comparison(), Comparison()
    for part in parts:
        total.merge(part.counters)
    for more in increments:
        by_rows.merge(more)
    assert total.counters["pairs"] == len(rows)
    assert total.counters["sum"] == sum(a - b for a, b in rows)
    assert total.counters == pytest.approx(by_rows.counters)


def test_scores_within_another_bound() -> None:
    narrow, wide = Comparison(bound=1.0), Comparison(bound=4.0)
    for i in range(100):
        narrow.add(i % 2, 0)
        wide.add(4 * (i % 2), 0)
    a, b = narrow.now(), wide.now()
    assert a.interval is not None
    assert b.interval is not None
    assert (b.mean, b.interval.low) == (4 * (a.mean or 0), 4 * a.interval.low)


def test_too_little_to_say_and_input_that_is_none() -> None:
    comparison = Comparison()
    assert comparison.now().lacking == ("no row was compared",)
    comparison.add(1, 0)
    assert comparison.now().better is None
    assert comparison.now().lacking == ("1 rows, a comparison needs 30",)
    for a, b in ((2.5, 0.0), (math.nan, 0.0), (math.inf, 0.0)):
        with pytest.raises(ValueError, match="differ by more than"):
            comparison.add(a, b)
    assert comparison.counters["pairs"] == 1
    with pytest.raises(ValueError, match="alpha"):
        Comparison(alpha=1.0)
    with pytest.raises(ValueError, match="bound"):
        Comparison(bound=0.0)
