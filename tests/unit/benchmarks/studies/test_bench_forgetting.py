"""The forgetting table in small: digits of scikit-learn, in five tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from benchmarks.studies.memory import drifting
from benchmarks.studies.memory import forgetting as bench
from benchmarks.studies.memory.continual import Point, remembered
from benchmarks.studies.memory.digits import Digits, mnist, permuted, split, turned, turning
from benchmarks.studies.memory.drifting import Table
from benchmarks.studies.memory.rehearser import ER, NONE, OURS, TWICE, Scaler
from evaluation.errors import StreamUnusable


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
    found = bench.table([protocol], small, methods=(NONE, ER, OURS), seeds=(1,))
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


def test_images_are_turned_and_permuted(small: Digits) -> None:
    image = torch.zeros(1, 64)
    image[0, 1] = 1  # first row, second column
    quarter = turned(image, torch.tensor([90.0])).view(8, 8)
    assert quarter.argmax() in (6 * 8, 8 + 7)  # a corner's neighbour again, on another side
    assert float(quarter.max()) == pytest.approx(1, abs=1e-4)
    assert torch.allclose(turned(image, torch.tensor([360.0])), image, atol=1e-4)
    task, other = permuted(small, seed=1, tasks=2)
    assert not torch.equal(task.view(small.x), other.view(small.x))
    assert torch.equal(task.view(small.x).sort(1).values, small.x.sort(1).values)
    (whole,) = turning(small, seed=1, rows=270)
    assert [sorted(set(whole.y[i : i + 10].tolist())) for i in (0, 10)] == [[0, 1], [1, 2]]


def moving(n: int) -> Table:
    """Two classes apart along a direction that turns once."""
    draw = torch.Generator().manual_seed(1)
    y = torch.randint(2, (n,), generator=draw)
    angle = torch.linspace(0, 6.28, n)
    side = (2.0 * y - 1)[:, None]
    x = side * torch.stack((angle.cos(), angle.sin()), 1)
    return Table(x + 0.3 * torch.randn(n, 2, generator=draw), y, torch.arange(n) * 4 // n)


def test_a_table_is_predicted_before_it_is_learned() -> None:
    setting = drifting.Setting("turning", lambda _: moving(1_600), 8, 0.1, asked=(85.0, 0.0))
    (found,) = drifting.table([setting], None, methods=(TWICE,), seeds=(1,))
    assert found.prequential > 85
    assert found.good
    strict = replace(setting, asked=(100.1, 0.0))
    (missed,) = drifting.table([strict], None, methods=(TWICE,), seeds=(1,))
    assert not missed.good


def test_rows_are_scaled_by_those_so_far() -> None:
    scaler, x = Scaler(3), torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, 8.0], [8.0, 5.0, -1.0]])
    for rows in (x[:1], x[1:]):
        scaler.learn(rows)
    found = scaler(x)
    assert torch.allclose(found.mean(0), torch.zeros(3), atol=1e-6)
    assert found.std(0, correction=0).tolist() == pytest.approx([1, 0, 1], abs=1e-6)


def test_one_row_a_step(small: Digits) -> None:
    protocol = replace(
        bench.F1[0], hidden=(64,), capacity=100, batch=1, rates={"": 0.05}, asked=None
    )
    (found,) = bench.table([protocol], small, methods=(OURS,), seeds=(1,))
    assert found.acc > 85


def test_without_the_data() -> None:
    with pytest.raises(StreamUnusable, match="ONLINE_DATA_DIR"):
        mnist(None)
    with pytest.raises(StreamUnusable, match="ONLINE_DATA_DIR"):
        drifting.gas(None)


def test_the_cost_of_a_step(small: Digits) -> None:
    found = bench.cost(small, 10, rounds=2, steps=5)
    times = (found.torch_us, found.none_us, found.step_us, found.ratio, found.own_ratio)
    assert min(times) > 0  # what they are beside each other is for the table to say
    assert bench.Found([], [], [replace(found, good=True)]).good
    assert not bench.Found([], [], [replace(found, good=False)]).good
