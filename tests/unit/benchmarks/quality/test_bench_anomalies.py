"""The table of anomalies, in small."""

from __future__ import annotations

import gzip
import math
import random
from pathlib import Path

import pytest

from benchmarks.quality import anomalies as bench
from evaluation.errors import StreamUnusable


def connection(draw: random.Random, i: int) -> str:
    odd = i % 40 == 39
    numbers = [str(draw.randint(0, 9) + 9_000 * odd) for _ in range(41)]
    numbers[1:4] = "tcp", "smtp" if i % 3 else "http", "SF"
    return ",".join([*numbers, "satan." if odd else "normal."])


def test_both_are_judged_on_the_same_rows(tmp_path: Path) -> None:
    draw = random.Random(1)
    path = tmp_path.joinpath(*bench.FILE)
    path.parent.mkdir()
    path.write_bytes(gzip.compress("\n".join(connection(draw, i) for i in range(900)).encode()))
    found = bench.run(tmp_path, streams=["mail, logs"], rows=500)
    assert [line.order for line in found] == ["recorded", "shuffled"]
    for line in found:
        assert (line.rows, line.stream) == (500, "mail, logs")
        assert 0 < line.attacks < 30
        assert line.auc > 0.5, line
        assert line.auc == pytest.approx(line.river, abs=0.15), line
        assert line.told == pytest.approx(line.auc, abs=0.02)
    rows = list(bench.connections(tmp_path, "smtp", logs=True))
    assert len(rows) == 600
    assert set(rows[0][0]) == {"f0", "f4", "f5"}
    assert len(next(bench.connections(tmp_path, "smtp", logs=False))[0]) == 38


def test_equal_scores_are_half_sorted() -> None:
    assert bench.area([0.1, 0.5, 0.5, 0.9], [False, False, True, True]) == pytest.approx(0.875)
    assert math.isclose(bench.area([1.0, 1.0], [True, False]), 0.5)


def test_without_the_file_it_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(StreamUnusable, match="kdd99_10pct"):
        next(bench.connections(tmp_path, "smtp", logs=True))
