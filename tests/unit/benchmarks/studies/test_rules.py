"""Rules for untrusted pushes: against cases worked out by hand, and laws that no formula shares."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks.studies.pushes import rules_arriving as arriving
from benchmarks.studies.pushes import rules_stacked as stacked
from benchmarks.studies.pushes.rules_stacked import RuleRefused

X = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
FOUR = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [10.0, 10.0]])


def test_median_and_trimmed_mean() -> None:
    assert stacked.median(FOUR).tolist() == [0.5, 0.5]
    assert stacked.trimmed_mean(FOUR, 1).tolist() == [0.5, 0.5]
    assert stacked.trimmed_mean(X, 1).tolist() == [4.0, 5.0, 6.0]
    assert stacked.trimmed_mean(X, 0).tolist() == [4.0, 5.0, 6.0]


def test_krum_by_hand() -> None:
    # n − f − 1 = 2 nearest: of the first (1 + 1)/2, of the second and third (1 + 2)/2
    scores = stacked.krum_scores(FOUR, 1).tolist()
    assert scores == pytest.approx([1.0, 1.5, 1.5, (181 + 181) / 2])
    assert stacked.krum(FOUR, 1).tolist() == [0.0, 0.0]
    assert stacked.multi_krum(FOUR, 1).tolist() == pytest.approx([1 / 3, 1 / 3])


def test_the_documented_examples_of_byzfl() -> None:
    assert stacked.krum(X, 1).tolist() == [1.0, 2.0, 3.0]
    assert stacked.multi_krum(X, 1).tolist() == [2.5, 3.5, 4.5]
    found = stacked.geometric_median(X)
    assert found.tolist() == pytest.approx([3.78788764, 4.78788764, 5.78788764])
    assert stacked.nearest_mixed(X, 1).tolist() == [
        [2.5, 3.5, 4.5],
        [2.5, 3.5, 4.5],
        [5.5, 6.5, 7.5],
    ]
    assert stacked.adaptively_clipped(X, 1)[2].tolist() == pytest.approx(
        [4.41004009, 5.04004582, 5.67005155]
    )
    assert stacked.clipped(X, 2)[0].tolist() == pytest.approx([0.53452248, 1.06904497, 1.60356745])


def test_centred_clipping_by_hand() -> None:
    rows = [[3.0, 4.0], [0.0, 1.0]]  # lengths 5 and 1, tau 1: (.6, .8) and (0, 1)
    assert stacked.centred_clipping(rows, tau=1.0).tolist() == pytest.approx([0.3, 0.9])
    assert stacked.centred_clipping(rows, tau=100.0).tolist() == [1.5, 2.5]
    start = [3.0, 4.0]
    found = stacked.centred_clipping(rows, start=start, tau=100.0)
    assert found.tolist() == pytest.approx([1.5, 2.5])


def test_distances_far_from_zero() -> None:
    rows = 1000.0 + 1e-2 * np.random.default_rng(0).standard_normal((10, 400))
    as_float32 = rows.astype(np.float32)
    found = stacked.squared_distances(stacked.checked(as_float32, 0))
    near = stacked.squared_distances(stacked.checked(as_float32.astype(np.float64) - 1000.0, 0))
    assert (found >= 0).all()
    assert np.allclose(found, near, rtol=1e-6)
    assert (found.argmin(axis=1) == np.arange(10)).all()


RULES = {
    "median": lambda x: stacked.median(x),
    "trimmed mean": lambda x: stacked.trimmed_mean(x, 1),
    "krum": lambda x: stacked.krum(x, 1),
    "multi-krum": lambda x: stacked.multi_krum(x, 1),
}


@pytest.mark.parametrize("name", RULES)
@given(
    arrays.arrays(np.float64, (5, 3), elements=st.integers(-50, 50).map(float)),
    st.permutations(range(5)),
    st.integers(-100, 100),
    st.sampled_from([0.5, 2.0, 8.0]),
)
def test_moved_scaled_and_in_another_order(
    name: str, x: Any, order: list[int], by: int, times: float
) -> None:
    rule = RULES[name]
    found = rule(x)
    assert np.allclose(rule(x + by), found + by)
    assert np.allclose(rule(x * times), found * times)
    if name in ("median", "trimmed mean"):
        assert np.allclose(rule(x[order]), found)


@pytest.mark.parametrize("name", RULES)
def test_one_liar_can_do_nothing(name: str) -> None:
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((6, 20))
    for far in (1e3, 1e9, -1e9):
        found = RULES[name](np.vstack([honest, np.full((1, 20), far)]))
        assert np.linalg.norm(found - honest.mean(0)) <= 2 * np.linalg.norm(honest, axis=1).max()


@pytest.mark.parametrize(
    ("x", "f", "text"),
    [
        ([[1.0, float("nan")]], 0, "row 0 is not finite"),
        ([[1.0], [float("inf")]], 0, "row 1"),
        ([1.0, 2.0], 0, "shape"),
        ([], 0, "shape"),
        ([[1.0], [1.0, 2.0]], 0, "one shape"),
        ([["a"]], 0, "one shape"),
        ([[1.0], [2.0]], 1, "n > 2 f"),
        ([[1.0]], -1, "f = -1"),
    ],
)
def test_refused(x: Any, f: int, text: str) -> None:
    for rule in (stacked.trimmed_mean, stacked.krum, stacked.multi_krum, stacked.nearest_mixed):
        with pytest.raises(RuleRefused, match=text) as failure:
            rule(x, f)
        assert str(pickle.loads(pickle.dumps(failure.value))) == str(failure.value)


def vector(*numbers: float) -> Any:
    return np.array(numbers, np.float32)


def test_zeno_by_hand() -> None:
    v = vector(3.0, 4.0)
    scaled = arriving.zeno(vector(6.0, 8.0), v, rate=0.1)
    assert scaled is not None
    assert scaled.tolist() == [3.0, 4.0]
    assert arriving.zeno(-v, v, rate=0.1) is None
    assert arriving.zeno(vector(4.0, -3.0), v, rate=0.1) is None  # 0 − .001 · 25
    assert arriving.zeno(vector(4.0, -3.0), v, rate=0.1, slack=0.3) is not None
    assert arriving.zeno(vector(0.0, 0.0), v, rate=0.1) is None


def test_aflguard_by_hand() -> None:
    v = vector(3.0, 4.0)
    assert arriving.aflguard(vector(0.0, 0.0), v, reach=1.0)
    assert not arriving.aflguard(vector(-0.1, 0.0), v, reach=1.0)
    assert not arriving.aflguard(-v, v, reach=1.5)


def test_kardam_by_hand() -> None:
    value = arriving.lipschitz(vector(1, 1), vector(0, 1), vector(0, 2), vector(0, 0))
    assert value == pytest.approx(0.5)
    assert arriving.lipschitz(vector(1), vector(0), vector(1), vector(1)) == float("inf")
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert arriving.kardam(4.0, values, 1)
    assert not arriving.kardam(4.1, values, 1)
    assert arriving.kardam(9.0, [], 1)


def test_throttle_basgd_and_dampening() -> None:
    assert arriving.throttle_weight(0, 20) == pytest.approx(1 / 20)
    assert arriving.throttle_weight(2, 20, q=2.0) == pytest.approx(1 / 80)
    assert [arriving.basgd_buffer(i, 3) for i in range(4)] == [0, 1, 2, 0]
    assert [arriving.damped(i) for i in (0, 1, 3)] == [1.0, 0.5, 0.25]
