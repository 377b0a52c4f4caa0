"""The table of films' ratings, on made up ones."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import factors
from benchmarks.quality.factors import Rating
from evaluation.errors import StreamUnusable


def made_up(n: int) -> list[Rating]:
    draw = random.Random(1)
    numbers = [(draw.randrange(6), draw.randrange(9)) for _ in range(n)]
    return [Rating(f"{u}", f"{f}", (f"g{f % 3}",), 3.0 + (u + f) % 3) for u, f in numbers]


def test_every_learner_has_a_line_a_setting_and_one_that_is_the_best() -> None:
    lines = factors.run(made_up(40))
    assert len(lines) == sum(map(len, factors.LEARNERS.values()))
    found = factors.best(lines)
    assert [line.learner for line in found] == list(factors.LEARNERS)
    assert all(line.rows == 40 and line.rmse >= line.mae for line in found)
    rates = [line.rmse for line in lines if line.learner == "river FM"]
    assert min(rates) == next(line.rmse for line in found if line.learner == "river FM")


def test_a_setting_that_left_the_finite_numbers_is_the_worst() -> None:
    lines = [factors.Line("a", f"{i}", 9, x, x, 0.5, x) for i, x in enumerate((np.nan, 2.0, 1.0))]
    (found,) = factors.best(lines)
    assert (found.mae, found.rmse, found.log_loss) == (1.0, 1.0, 1.0)


def test_the_area_counts_pairs_in_the_right_order() -> None:
    scores, positive = np.array([0.1, 0.4, 0.35, 0.8, 0.4]), np.array([0, 1, 0, 1, 0]) > 0
    pairs = [(a, b) for a in scores[positive] for b in scores[~positive]]
    by_pair = sum(float(a > b) + float(a == b) / 2 for a, b in pairs) / len(pairs)
    assert factors.area(scores, positive) == pytest.approx(by_pair)


def test_parts_share_no_user_and_rows_are_in_order(tmp_path: Path) -> None:
    with pytest.raises(StreamUnusable, match="Set ONLINE_DATA_DIR"):
        factors.ratings(tmp_path, "proof")
    folder = tmp_path / "movielens_small"
    folder.mkdir()
    with gzip.open(folder / "movies.csv.gz", "wt") as file:
        file.write('movieId,title,genres\n7,"A, B",Drama|Sci-Fi\n')
    with gzip.open(folder / "ratings.csv.gz", "wt") as file:
        file.write("userId,movieId,rating,timestamp\n1,7,4.0,30\n2,7,3.5,20\n3,8,1.0,10\n")
    choice, proof = factors.ratings(tmp_path, "choice"), factors.ratings(tmp_path, "proof")
    assert [one.user for one in choice] == ["3", "1"]
    assert proof == [Rating("2", "7", ("Drama", "Sci-Fi"), 3.5)]
    assert len(factors.ratings(tmp_path, "whole")) == 3
