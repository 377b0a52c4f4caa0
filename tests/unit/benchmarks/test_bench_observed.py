"""The verdict on what being looked at costs."""

from __future__ import annotations

import pytest

from benchmarks import observed

SUBJECT = observed.Subject("it", {}, "predict", 0.03)


def test_pairs_become_a_mean_and_an_interval() -> None:
    pairs = [(100.0, 101.0), (200.0, 204.0), (100.0, 103.0), (50.0, 51.0), (100.0, 102.0)]
    found = observed.cost_of(SUBJECT, 10, pairs)
    assert found.cost == pytest.approx(0.02)
    assert found.high - found.cost == pytest.approx(found.cost - found.low)
    assert found.high == pytest.approx(0.02 + 2.776 * 0.0070711 / 5**0.5, rel=1e-3)
    assert found.good


def test_a_cost_that_may_be_higher_than_asked_is_not_good() -> None:
    pairs = [(100.0, 90.0), (100.0, 115.0), (100.0, 100.0), (100.0, 104.0), (100.0, 95.0)]
    found = observed.cost_of(SUBJECT, 10, pairs)
    assert found.cost < 0.03
    assert not found.good
