"""The verdict on what being looked at costs."""

from __future__ import annotations

import math

import pytest

from benchmarks.speed import observed

SUBJECT = observed.Subject("it", {}, "predict", 0.03)


def test_pairs_become_a_median_and_an_interval_by_ranks() -> None:
    pairs = [(100.0, 100.0 + i) for i in range(20)]
    found = observed.cost_of(SUBJECT, 10, pairs[::-1])
    assert found.cost == pytest.approx(0.095)
    assert (found.low, found.high) == pytest.approx((0.05, 0.14)), "the sixth from either end"
    assert not found.good


def test_a_pair_that_was_disturbed_moves_little() -> None:
    pairs = [(100.0, 101.0)] * 9 + [(100.0, 900.0)]
    found = observed.cost_of(SUBJECT, 10, pairs)
    assert (found.cost, found.high) == pytest.approx((0.01, 0.01))
    assert found.good


def test_of_few_pairs_nothing_is_known() -> None:
    found = observed.cost_of(SUBJECT, 10, [(100.0, 100.0)] * 5)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert not found.good
