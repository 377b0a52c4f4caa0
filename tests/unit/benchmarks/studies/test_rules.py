"""Rules for untrusted pushes, against cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.studies.pushes import rules_arriving as arriving


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


def test_throttle_and_dampening() -> None:
    assert arriving.throttle_weight(0, 20) == pytest.approx(1 / 20)
    assert arriving.throttle_weight(2, 20, q=2.0) == pytest.approx(1 / 80)
    assert [arriving.damped(i) for i in (0, 1, 3)] == [1.0, 0.5, 0.25]
