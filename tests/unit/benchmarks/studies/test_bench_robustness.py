"""The robustness table in small: ten blurred prototypes instead of digits."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.studies.pushes import filtercost
from benchmarks.studies.pushes import perceptron as net
from benchmarks.studies.pushes import robustness as bench
from benchmarks.studies.pushes.hostile import BATCH, HONEST, HOSTILE, KINDS, Images, patched, world
from evaluation.errors import StreamUnusable


@pytest.fixture(scope="module")
def small() -> Images:
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((10, 784)).astype(np.float32)
    y = rng.integers(10, size=3_000)
    x = (0.6 * kinds[y] + rng.standard_normal((3_000, 784))).astype(np.float32)
    return Images(x[:2_500], y[:2_500], x[2_500:], y[2_500:])


def test_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(1)
    flat = net.drawn(rng)
    x = rng.standard_normal((3, 784)).astype(np.float32)
    y = np.array([1, 5, 5])
    along = rng.standard_normal(net.SIZE).astype(np.float32)

    def loss(by: float) -> float:
        at = flat.astype(np.float64) + by * along
        parts = net.layers(at)  # type: ignore[arg-type]
        hidden = np.maximum(x @ parts.w1 + parts.b1, 0)
        logits = hidden @ parts.w2 + parts.b2
        return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(3), y]).mean())

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert float(net.gradient(flat, x, y) @ along) == pytest.approx(slope, rel=1e-2)


def test_ours_stands_where_none_falls(small: Images) -> None:
    found = bench.part(small, "small", ("none", "-10 g"), narrow=False, honest=150, seeds=(0,))
    accuracy = {(one.defence, one.attack): one.accuracy for one in found.cells}
    assert accuracy["none", "-10 g"] < 60
    assert accuracy["ours", "-10 g"] > 90
    rows = bench.matrix(found.cells)
    assert [row["what"] for row in rows] == ["none", "-10 g"]
    ours = found.summaries[-1]
    assert ours.worst_case == min(accuracy["ours", kind] for kind in ("none", "-10 g"))


def test_rows_of_the_root_set_are_nobodys(small: Images) -> None:
    for narrow in (False, True):
        dealt = world(small, 1, narrow=narrow)
        taken = np.unique(np.concatenate(dealt.rows))
        assert not set(taken.tolist()) & set(dealt.root.tolist())
        assert len(dealt.rows) == HONEST + HOSTILE
        assert min(len(rows) for rows in dealt.rows) >= BATCH
        classes = {len(set(small.y[rows].tolist())) for rows in dealt.rows}
        assert classes == ({3} if narrow else {10})


def test_the_trigger_is_in_the_corner(small: Images) -> None:
    image = patched(small.x[:2]).reshape(-1, 28, 28)
    assert (image[:, -4:, -4:] > 2).all()
    assert (image[:, :24] == small.x[:2].reshape(-1, 28, 28)[:, :24]).all()
    assert {"sleeper", "mimic", "min-max", "aware"} <= set(KINDS)


def test_cost_and_memory_in_small() -> None:
    assert filtercost.memory(300).good
    assert {line.what for line in filtercost.costs(500, rounds=11)} >= {"direction", "observe"}


def test_without_data() -> None:
    with pytest.raises(StreamUnusable, match="ONLINE_DATA_DIR"):
        bench.images(None)
