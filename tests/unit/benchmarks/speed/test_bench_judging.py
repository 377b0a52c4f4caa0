"""The tables about judging count what they say: looks above ok, and a frozen model that breaks."""

from __future__ import annotations

from random import Random

import pytest

from benchmarks.quality import settled
from benchmarks.studies.drift.broken import LOOK, judged, verdicts
from replay.example import Features, Label


def rows(n: int, turns: int | None = None) -> list[tuple[Features, Label]]:
    """A label that the first feature tells, and from row ``turns`` on the other one."""
    draw, out = Random(3), list[tuple[Features, Label]]()
    for i in range(n):
        x = draw.gauss(0.0, 1.0)
        label = (x > 0) == (turns is None or i < turns)
        out.append(({"x": x}, label if draw.random() < 0.9 else not label))
    return out


def test_a_steady_stream_has_no_look_above_ok() -> None:
    line = settled.judged("made", "logreg", "binary", rows(3_000))
    assert (line.looks, line.above, line.rises, line.good) == (60, 0.0, 0, True)
    assert line.error == pytest.approx(10.0, abs=2.0)


def test_a_turn_is_seen_in_the_looks_after_it() -> None:
    line = settled.judged("made", "logreg", "binary", rows(3_000, turns=2_000))
    assert line.rises >= 1
    assert 0.0 < line.above < 50.0


def test_a_frozen_model_that_breaks_is_judged_by_its_looks() -> None:
    draw = Random(1)
    wrong = [draw.random() < (0.1 if i < 10_000 else 0.6) for i in range(20_000)]
    labels = [draw.random() < 0.5 for _ in wrong]
    line = judged("made", "frozen", wrong, list(verdicts(wrong, labels)))
    assert (line.costly, line.missed, line.early, line.good) == (10_000, 0, 0, True)
    assert line.delay is not None
    assert line.delay <= 1_000
    silent = judged("made", "frozen", wrong, ["ok"] * (len(wrong) // LOOK))
    assert not silent.good
    loud = judged("made", "frozen", wrong, ["act"] * (len(wrong) // LOOK))
    assert not loud.good
