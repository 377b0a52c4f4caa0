"""Several servers beside one: each by its own clock, and cutting belongs to who sends."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.speed.shards import compared


def test_with_a_clock_that_ticks_at_each_look_each_server_takes_as_long_as_one() -> None:
    ticks = itertools.count()
    found = compared(3, 20, table=200, pairs=2, clock=lambda: float(next(ticks)))
    assert (found.shards, found.rows) == (3, 20)
    assert found.one_rows == pytest.approx(20.0)
    assert found.speed == pytest.approx(1.0)
    assert found.total == pytest.approx(2.0), "three servers and one sender beside one and one"
