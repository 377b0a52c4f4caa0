"""The table about labels that come late, in small: a world whose true rates are known."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest

from benchmarks.fixtures.sources import Row
from benchmarks.quality import conversions as bench
from benchmarks.quality.defaults import built


def clicks(n: int) -> list[Row]:
    """Rows of a stationary world: the log odds of a purchase are −3 + 1.5 · x."""
    rng, rows = Random(4), list[Row]()
    for _ in range(n):
        x = rng.gauss(0.0, 1.0)
        rows.append(({"x": x}, rng.random() < 1.0 / (1.0 + math.exp(3.0 - 1.5 * x))))
    return rows


def loss(kind: Any, law: str = "exponential") -> float:
    return bench.loss(kind(built("logreg", "binary").model), clicks(4_000), law, 1)


def test_negatives_that_are_taken_back_cost_less_than_weighted_ones() -> None:
    oracle, at_once, weighted = map(loss, (bench.Oracle, bench.AtOnce, bench.Weighted))
    assert oracle < at_once < weighted
    assert (weighted - at_once) / (weighted - oracle) >= bench.CLOSED


def test_a_short_window_costs_what_negatives_at_once_do() -> None:
    at_once, short, long, weighted = (
        loss(kind)
        for kind in (
            bench.AtOnce,
            lambda m: bench.Windowed(m, 1.0),
            lambda m: bench.Windowed(m, 100.0),
            bench.Weighted,
        )
    )
    assert short == pytest.approx(at_once, abs=0.001)
    assert long == pytest.approx(loss(bench.Known), abs=0.02), "it waits for as long"
    assert short < weighted < long


@pytest.mark.parametrize("law", bench.LAWS)
def test_half_of_the_labels_have_come_after_the_delay(law: str) -> None:
    rng = Random(1)
    delays = sorted(bench.delay(law, rng) for _ in range(2_001))
    assert delays[0] >= 1.0
    assert delays[1_000] == pytest.approx(bench.DELAY, rel=0.4)


def test_a_drawn_delay_is_one_that_was_seen() -> None:
    seen = bench.Seen(Random(1))
    assert seen.draw() is None
    for rows in (3.0, 5.0):
        seen.note(rows)
    assert {seen.draw() for _ in range(50)} == {3.0, 5.0}
