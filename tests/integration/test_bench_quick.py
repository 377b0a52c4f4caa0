"""The short forms of the measurements: what they promise of any machine, not how fast it is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.faults import mishaps, recovery, reloads, soak
from benchmarks.fixtures.redis_server import find_binary
from benchmarks.speed import push, scores
from online.settings.config import environment

pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_contention() -> None:
    """Every request of both replicas is answered 200, beside the three that it is compared to."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "contention", "--seconds", "2", "--json"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["good"] is None for row in rows] == [True, True, True, False], done.stderr
    assert done.returncode == (0 if rows[-1]["good"] else 1)
    for row in rows:
        assert row["per_s"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["p999_ms"] <= row["max_ms"]


def test_push() -> None:
    """An event's push has the weights that it touched, however many the model has."""
    found = push.run(large=20_000, rounds=1)
    assert [cost.weights for cost in found.costs] == [1_000, 20_000]
    assert all(cost.push_bytes < push.BYTES_MAX for cost in found.costs)
    assert abs(found.costs[0].push_bytes - found.costs[1].push_bytes) < 50
    assert found.costs[0].ratio == 1.0
    assert found.costs[1].feedback_ms > 0


def test_recovery() -> None:
    """No prediction fails while the server is gone, and everything that was killed comes back."""
    found = recovery.run(runs=1, weights=20_000)
    assert found.predictions > 0
    assert found.failed == 0
    measured = {figure.what: figure.median for figure in found.figures}
    assert measured["own restore"] < measured["server killed → it serves"]
    assert measured["replica beside bare Ray Serve"] > 0
    assert measured["parameters"] == pytest.approx(20_000 * 51 / 2**20, rel=0.01)


def test_scores() -> None:
    """Both stores answer through a service, whatever the rates of this machine are."""
    if find_binary(environment()) is None:
        pytest.skip("no Redis or Valkey server is here")
    found = scores.run(runs=1, seconds=0.5, keys=2_000, judge=False)
    assert len(found) == 11
    assert all(line.median > 0 and line.good is None for line in found)


def test_reloads() -> None:
    """A replica comes and goes under load, and hardly a request is without a good answer."""
    found = reloads.run(rounds=1, seconds=4.0, rate=50.0, connections=4)
    assert [cost.what for cost in found] == list(reloads.PHASES)
    assert [cost.scaled_s is not None for cost in found] == [False, True, False, True]
    for cost in found:
        assert cost.requests >= 150
        assert 0 < cost.p50_ms <= cost.p99_ms <= cost.worst_ms
        assert set(cost.statuses) <= {"200", "no answer"}, "nothing is answered with an error"
        assert cost.failed <= 4, "each connection fails once at most"


def test_mishaps() -> None:
    """Nothing is lost or learned twice after snapshots were removed once."""
    found = mishaps.run("snapshots removed", "sqlite", 1, 0)
    assert found.good, found
    assert found.acknowledged > 0


def test_soak() -> None:
    """A minute of `python -m benchmarks soak`, with a kill every ten seconds."""
    result = soak.run(60, kill_s=10, clients=4)
    print(result)
    assert not result.lost
    assert not result.twice
    assert result.fsck_good
    assert result.flat, (result.memory_mb, result.files)
    assert sum(result.kills.values()) >= 4
    assert result.acknowledged > 200
    assert result.per_s < 0.75 * result.capacity_per_s
