"""The table of a frozen model that breaks counts the looks that see it."""

from __future__ import annotations

from random import Random

from benchmarks.studies.drift.broken import LOOK, judged, verdicts


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
