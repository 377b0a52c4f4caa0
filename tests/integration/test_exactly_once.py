"""Kills at random instants, with the negative control; the long form is `python -m benchmarks`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.faults import exactly_once
from benchmarks.faults.exactly_once import JournalKind
from benchmarks.fixtures import redis_server
from online.settings.config import environment

WITHOUT_DEDUPE = """
import os
import online.rows.prediction_ids
online.rows.prediction_ids.event_key = lambda kind, *parts: os.urandom(16)
"""

NOTHING_BEFORE = """
import online.learning.base
online.learning.base.BaseLearner._before = lambda self, example: None
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("journal", "rounds", "changing"),
    [
        ("sqlite", 4, True),
        pytest.param("sqlite", 10, False, marks=pytest.mark.long),
        pytest.param("redis", 10, False, marks=pytest.mark.long),  # in short: one process, below
    ],
)
def test_every_acknowledged_event_is_learned_exactly_once(
    journal: JournalKind, rounds: int, changing: bool
) -> None:
    """Changing: by its final label, and no provisional lesson stays or counts twice."""
    if journal == "redis" and redis_server.find_binary(environment()) is None:
        pytest.skip("no valkey-server or redis-server")
    result = exactly_once.run(rounds, journal=journal, seed=8, changing=changing, progress=print)
    assert result.good, result
    assert result.acknowledged > 20 * rounds
    assert result.in_flight_min >= 8
    whole = result.rounds.get("all", 0) + result.rounds.get("all and the store", 0)
    assert whole == rounds // 4
    assert result.rounds.get("all and the store", 0) == (journal == "redis")
    assert sum(result.rounds.values()) == rounds
    assert len(result.rounds) >= (3 if rounds == 4 else 4), "kinds of kills"
    assert result.statuses["duplicate"] > 0


@pytest.mark.parametrize(
    ("journal", "rounds"), [("redis", 2), pytest.param("sqlite", 100, marks=pytest.mark.long)]
)
def test_so_it_is_in_one_process_without_ray(journal: JournalKind, rounds: int) -> None:
    """Redis is killed, too, every other time."""
    if journal == "redis" and redis_server.find_binary(environment()) is None:
        pytest.skip("no valkey-server or redis-server")
    result = exactly_once.run(rounds, journal=journal, seed=8, embedded=True, progress=print)
    assert result.good, result
    stores = (rounds + 1) // 2 if journal == "redis" else 0
    assert result.rounds == Counter({"all": rounds - stores, "all and the store": stores})
    assert result.in_flight_min >= 8
    assert result.acknowledged > 20 * rounds


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.long)])
def test_no_provisional_lesson_stays_or_counts_twice(rounds: int) -> None:
    result = exactly_once.run(rounds, seed=8, embedded=True, changing=True, progress=print)
    assert result.good, result
    assert result.rounds == {"all": rounds}
    assert result.in_flight_min >= 8
    assert result.acknowledged > 20 * rounds
    assert result.statuses["duplicate"] > 0


def test_the_harness_fails_if_nothing_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOTHING_BEFORE)
    environment = {"PYTHONPATH": str(tmp_path)}
    result = exactly_once.run(1, seed=1, changing=True, embedded=True, environment=environment)
    assert result.twice
    assert not result.good


def test_the_harness_fails_without_dedupe(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_DEDUPE)
    environment = {"PYTHONPATH": str(tmp_path)}
    result = exactly_once.run(1, seed=1, embedded=True, environment=environment)
    assert result.twice
    assert not result.good
