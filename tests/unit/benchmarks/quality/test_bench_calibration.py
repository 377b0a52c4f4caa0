"""The table of corrected probabilities, on the first rows of a bundled stream."""

from __future__ import annotations

from pathlib import Path

from benchmarks.quality import calibration


def test_each_learner_stands_with_each_delay_before_and_after(tmp_path: Path) -> None:
    lines = calibration.run(
        ["phishing"], tmp_path, learners=("linear", "forest"), delays=(0, 48), most=300
    )
    found = [(line.delay, line.learner) for line in lines]
    assert found == [(0, "linear"), (0, "forest"), (48, "linear"), (48, "forest")]
    for line in lines:
        assert line.gain > -0.03, "on so few rows the free part of the budget is .01 a row"
        assert 0.0 <= line.ece_corrected <= 1.0
    assert any(line.share for line in lines if line.learner == "forest"), "it is too modest"
