"""The tables of offsets by key, on a few rows."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks.quality import offsets
from evaluation.errors import StreamUnusable


def test_each_side_has_a_line_a_stream() -> None:
    lines = offsets.others(None, 60)
    assert [line.learner for line in lines] == list(offsets.SIDES) * 3
    assert {line.stream for line in lines} == {"usual", "none", "turning"}
    assert all(line.rows == 60 and line.rmse is not None and line.rmse > 0.0 for line in lines)


def test_visits_follow_from_seed_and_kind_and_keys_mean_nothing_where_that_is_said() -> None:
    assert offsets.visits(1, "usual", 50) == offsets.visits(1, "usual", 50)
    assert offsets.visits(1, "usual", 50) != offsets.visits(2, "usual", 50)
    for kind, least, most in (("usual", 0.5, 2.0), ("none", 0.0, 0.25)):
        numbers, _ = offsets.visits(3, kind, 4_000, keys=20)
        left: dict[object, list[float]] = {}
        for x, y in numbers:
            left.setdefault(x["key"], []).append(float(y) - 1.0 - x["a"] + 0.5 * x["b"])  # type: ignore[operator]
        means = [sum(one) / len(one) for one in left.values()]
        assert least <= statistics.stdev(means) <= most, kind


def test_what_keys_cost_is_told_of_both_sides() -> None:
    lines = offsets.costs(keys=300, asked=40)
    assert [line.learner for line in lines] == ["linear"] * 2 + ["logreg"] * 2
    for line in lines:
        assert 0.0 < line.p50 <= line.p99
        assert 100 < line.bytes_model + line.bytes_values < 2_000


def test_questions_need_their_file(tmp_path: Path) -> None:
    with pytest.raises(StreamUnusable, match="Set ONLINE_DATA_DIR"):
        offsets.questions(tmp_path, 1)
