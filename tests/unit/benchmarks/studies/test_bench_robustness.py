"""The robustness table in small: ten blurred prototypes instead of digits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies.peers import PeerGone
from benchmarks.studies.pushes import filtercost
from benchmarks.studies.pushes import perceptron as net
from benchmarks.studies.pushes import robustness as bench
from benchmarks.studies.pushes.hostile import BATCH, HONEST, HOSTILE, KINDS, Images, patched, world
from benchmarks.studies.pushes.synchronous import Peer, peer, rules, spanned
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
    found = bench.part(
        small,
        "small",
        ("none", "-10 g"),
        ("none", "Zeno++", "ours"),
        narrow=False,
        honest=150,
        seeds=(0,),
        peer_seeds=(0,),
    )
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


def test_without_data_or_peer() -> None:
    with pytest.raises(StreamUnusable, match="ONLINE_DATA_DIR"):
        bench.images(None)
    with peer(Path(sys.executable)) as ask, pytest.raises(PeerGone, match="byzfl"):
        ask.ask(rules(1, 1.0)["byzfl TrMean"], np.zeros((3, 2), np.float32))


def test_few_dimensions_have_the_same_inner_products() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 400)).astype(np.float32)
    x = np.vstack([x, x[-1:], x[-1:]])  # hostile ones send the same
    small, back = spanned(x)
    assert small.shape == (7, 7)
    assert small @ small.T == pytest.approx(x @ x.T, abs=1e-2)
    mix = rng.random((2, 7)).astype(np.float32)
    assert back(mix @ small) == pytest.approx(mix @ x, abs=1e-3)


def test_only_rules_by_coordinate_see_the_whole_vectors() -> None:
    asked = []

    class Fake(Peer):
        def __init__(self) -> None:
            pass

        def ask(self, rule: object, x: object, *, double: bool = False) -> object:
            asked.append((rule, x.shape))  # type: ignore[attr-defined]
            return x, 0.0

    x = np.random.default_rng(4).standard_normal((4, 300)).astype(np.float32)
    for name in ("byzfl TrMean", "byzfl MultiKrum"):
        assert Fake().combine(rules(1, 1.0)[name], x) == pytest.approx(x[0], abs=1e-3)
    assert [(rule[-1][0], shape) for rule, shape in asked] == [  # type: ignore[index]
        ("NNM", (4, 4)), ("TrMean", (4, 300)), ("MultiKrum", (4, 4)),
    ]  # fmt: skip
