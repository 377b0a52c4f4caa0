"""The forgetting table in small: digits of scikit-learn, in five tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from evaluation.benchmarks import forgetting as bench
from evaluation.benchmarks.continual import Point, remembered
from evaluation.benchmarks.digits import Digits, split
from evaluation.benchmarks.rehearser import ER, NONE, OURS


@pytest.fixture(scope="module")
def small() -> Digits:
    bunch = load_digits()
    x = torch.tensor(bunch.data, dtype=torch.float32) / 16
    y = torch.tensor(bunch.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    learned, asked = order[:1400], order[1400:]
    return Digits(x[learned], y[learned], x[asked], y[asked])


def test_rehearsal_remembers_what_is_forgotten_without(small: Digits) -> None:
    protocol = replace(bench.F1[0], hidden=(64,), capacity=100, asked=None)
    found = bench.table([protocol], small, methods=(NONE, ER, OURS), seeds=(1, 2))
    acc = {row.what.rpartition(" ")[2]: row.acc for row in found}
    worst = {row.what.rpartition(" ")[2]: row.worst for row in found}
    assert acc["none"] < 30
    assert acc["ours"] > max(acc["ER"], 85)
    assert worst["ours"] > worst["ER"] + 5


def test_tasks_have_two_digits_each(small: Digits) -> None:
    tasks = split(small, seed=3, rows=100)
    assert [sorted(set(task.y.tolist())) for task in tasks] == [
        [2 * i, 2 * i + 1] for i in range(5)
    ]
    assert all(len(task.y) == 100 for task in tasks)
    assert sum(len(task.asked_y) for task in tasks) == len(small.asked_y)


def test_figures_of_three_tasks() -> None:
    after = [[0.9], [0.5, 0.8], [0.7, 0.6, 1.0]]
    points = [Point(0, [0.9]), Point(1, [0.4, 0.8]), Point(2, [0.8, 0.2, 0.5])]
    found = remembered(after, points)
    assert found.acc == pytest.approx(76.67)
    assert found.forgetting == pytest.approx((20 + 20) / 2)
    assert found.bwt == pytest.approx((-20 - 20) / 2)
    assert found.any_time == pytest.approx((90 + 60 + 50) / 3, abs=0.01)
    assert found.worst == pytest.approx((40 + 20 + 100) / 3, abs=0.01)
