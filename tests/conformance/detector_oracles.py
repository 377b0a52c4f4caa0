"""What our own detector computes, once more: slowly, over all rows, with the library's formulas.

The oracle takes the rows since the last alarm as they are and names the row of the next alarm and
how many rows the newer part has; it shares no code with the detector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from scipy.special import rel_entr


def glr(rows: Sequence[float]) -> tuple[int, int] | None:
    """Row, from 1, of the first alarm, and rows of its newer part; None without one.

    Splits are at all multiples of 8.
    """
    sums = np.concatenate([[0.0], np.cumsum(rows)])
    for n in range(32, len(rows) + 1, 8):
        n1 = np.arange(16, n - 15, 8)
        n0 = n - n1
        p, p0, p1 = sums[n] / n, sums[n0] / n0, (sums[n] - sums[n0]) / n1
        found = n0 * _kl(p0, p) + n1 * _kl(p1, p)
        if (found > 10.75 - np.minimum(np.log(n0 * n1 / n / 100), 3.0)).any():
            return n, int(n1[found.argmax()])
    return None


def _kl(q: np.ndarray, p: float) -> np.ndarray:
    found: np.ndarray = rel_entr(q, p) + rel_entr(1 - q, 1 - p)
    return found


def agrees(make: Callable[..., Any]) -> None:
    """The detector alarms at the oracle's rows, with its split and its means."""
    draw, most = Random("glr"), 1_000
    for i in range(12):
        cut, rates = draw.randrange(most if i % 2 else 150), (draw.random() ** 2, draw.random())
        rows = [float(draw.random() < rates[i >= cut]) for i in range(most)]
        expected = glr(rows)
        detector, first = make(width=1_000), None  # so wide that no blocks merge
        for row, x in enumerate(rows, 1):
            change = detector.update(x)
            if change is not None:
                first = (row, change.n_after, change.n_before, change.before, change.after)
                break
        if expected is None:
            assert first is None, f"{first}, expected no alarm"
            continue
        row, n1 = expected
        assert first is not None, f"no alarm, expected one at row {row}"
        assert first[:3] == (row, n1, row - n1), f"{first}, expected {expected}"
        means = (sum(rows[: row - n1]) / (row - n1), sum(rows[row - n1 : row]) / n1)
        assert np.allclose(first[3:], means), f"means {first[3:]}, expected {means}"


def merges(make: Callable[[], Any]) -> None:
    """With blocks that merge, the parts of a split are still all rows since the last alarm."""
    draw = Random(1)
    detector, kept = make(), 0
    for length, rate in ((4_000, 0.2), (1_000, 0.5), (4_000, 0.1), (1_000, 0.3)):
        for _ in range(length):
            kept += 1
            change = detector.update(float(draw.random() < rate))
            if change is not None:
                whole = change.n_before + change.n_after
                assert whole == kept, f"parts of {whole} rows of {kept}"
                kept = change.n_after
