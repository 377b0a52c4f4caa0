"""Kills at random instants, with the negative control; the long form is `online bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from online.bench import exactly_once, redis_server
from online.bench.exactly_once import JournalKind
from online.config import environment

WITHOUT_DEDUPE = """
import os
import online.tokens
online.tokens.event_key = lambda kind, *parts: os.urandom(16)
"""


@pytest.mark.ray
@pytest.mark.parametrize("journal", ["sqlite", "redis"])
def test_every_acknowledged_event_is_learned_exactly_once(journal: JournalKind) -> None:
    if journal == "redis" and redis_server.find_binary(environment()) is None:
        pytest.skip("no valkey-server or redis-server")
    result = exactly_once.run(10, journal=journal, seed=7, progress=print)
    assert result.good, result
    assert result.acknowledged > 500
    assert result.in_flight_min >= 8
    whole = result.rounds.get("all", 0) + result.rounds.get("all and the store", 0)
    assert whole == 2
    assert result.rounds.get("all and the store", 0) == (journal == "redis")
    assert sum(result.rounds.values()) == 10
    assert result.statuses["duplicate"] > 0


@pytest.mark.ray
def test_the_harness_fails_without_dedupe(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_DEDUPE)
    result = exactly_once.run(1, seed=1, environment={"PYTHONPATH": str(tmp_path)})
    assert result.twice
    assert not result.good
