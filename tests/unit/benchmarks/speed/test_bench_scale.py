"""The simulation of shards and relays: what follows from its costs by hand."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.speed import scale

FREE = (scale.Cost("push", 0.0, 0.0), scale.Cost("answer", 0.0, 0.0), scale.Cost("taken", 0.0, 0.0))
COSTS = (scale.Cost("push", 50.0, 1.0), scale.Cost("answer", 50.0, 1.0), scale.Cost("t", 0.0, 1.0))


def test_distinct_ids_are_no_more_than_are_drawn_or_there_are() -> None:
    assert scale.distinct(1.0) == pytest.approx(1.0, rel=0.1)
    assert scale.distinct(1e18, 1_000) == pytest.approx(1_000, rel=1e-3)
    few, many = scale.distinct(1e5), scale.distinct(1e6)
    assert few < 1e5
    assert few < many < 10 * few


def test_without_costs_an_event_waits_for_two_intervals_at_most() -> None:
    found = scale.simulated(scale.Setting(4, 0, 1.0), FREE)
    assert found.busy == 0.0
    assert found.visible_p50_s == pytest.approx(1.0, abs=0.1)
    assert found.visible_p99_s is not None
    assert 1.5 < found.visible_p99_s <= 2.0


def test_a_shard_that_is_asked_too_much_has_no_latency() -> None:
    found = scale.simulated(scale.Setting(1, 0, 0.02), COSTS)
    assert found.busy > 1.0
    assert found.visible_p50_s is None


def test_relays_and_shards_take_load_away() -> None:
    alone = scale.simulated(scale.Setting(64, 0, 1.0), COSTS)
    relayed = scale.simulated(scale.Setting(64, 100, 1.0), COSTS)
    sharded = scale.simulated(scale.Setting(256, 100, 1.0), COSTS)
    assert alone.busy > relayed.busy > sharded.busy
    assert relayed.receiver_in_mb_s == pytest.approx(sharded.receiver_in_mb_s)


def test_costs_are_measured_by_the_clock_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "_REPEATS", 2)
    monkeypatch.setattr(scale, "_TABLE", 5_000)
    ticks = itertools.count()
    costs = scale.unit_costs(lambda: float(next(ticks)))
    assert [cost.what for cost in costs] == ["push", "answer", "taken"]
    assert all(cost.each_us == pytest.approx(1e6) for cost in costs), costs
    assert all(cost.row_us == pytest.approx(0.0) for cost in costs), costs


def test_telling_all_rows_that_change_takes_more_the_sooner_it_is_done() -> None:
    found = list(scale.changed())
    assert [line.interval_s for line in found] == sorted(line.interval_s for line in found)
    bytes_s = [line.mb_s for line in found]
    assert bytes_s == sorted(bytes_s, reverse=True)
