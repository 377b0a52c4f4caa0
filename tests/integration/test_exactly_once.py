"""Kills at random instants, with the negative control; the long form is `online bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from online.bench import exactly_once

WITHOUT_DEDUPE = """
import os
import online.tokens
online.tokens.event_key = lambda kind, *parts: os.urandom(16)
"""


@pytest.mark.ray
def test_every_acknowledged_event_is_learned_exactly_once() -> None:
    result = exactly_once.run(5, seed=7, progress=print)
    assert result.good, result
    assert result.acknowledged > 500
    assert result.in_flight_min >= 8
    assert result.rounds["all"] == 1
    assert result.statuses["duplicate"] > 0


@pytest.mark.ray
def test_the_harness_fails_without_dedupe(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_DEDUPE)
    result = exactly_once.run(1, seed=1, environment={"PYTHONPATH": str(tmp_path)})
    assert result.twice
    assert not result.good
