"""Off-policy estimates on logs whose truth is known: coverage at every row, errors, widths.

A log is made of contexts with two numbers and four actions; the served policy is a softmax of its
own wrong idea of the rewards, the judged one a softmax of another one.  The truth is the mean, so
far, of what the judged policy was expected to earn in the contexts that came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.studies import obp_peer
from evaluation.offpolicy import OffPolicy

ACTIONS = 4
FROM = 10
"""Rows before the simple interval is looked at, to whose favour that is."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A line says what became of all logs of one kind.

    ``missed`` and ``missed_simple`` are logs in which the interval, and mean ± 1.96 standard
    errors of the IPS estimate, missed the truth at some row; the errors are root mean squares
    after the last row, as the width is.
    """

    what: str
    logs: int
    rows: int
    missed: int
    missed_simple: int
    ips_error: float
    snips_error: float
    dr_error: float
    obp_snips_error: float
    obp_dr_error: float
    width: float
    effective: float

    @property
    def good(self) -> bool:
        """Whether at most one interval in twenty has missed."""
        return self.missed <= self.logs / 20


def run(seeds: Sequence[int], rows: int, peer: Path | None = None) -> list[Judged]:
    """Logs without a model of the rewards, and with one that is right up to noise.

    ``peer``: the folder of :mod:`benchmarks.studies.obp_peer`; None: its errors are NaN.
    """
    peers = None if peer is None else obp_peer.estimators(peer)
    kinds = ("no model", "a model", "rare rewards, a model")
    return [_judged(what, seeds, rows, peers) for what in kinds]


def _judged(what: str, seeds: Sequence[int], rows: int, peers: tuple[Any, Any] | None) -> Judged:
    found = [_log(what, seed, rows, peers) for seed in seeds]
    told = np.array(found, dtype=np.float64)
    rms = np.sqrt((told[:, 2:7] ** 2).mean(axis=0))
    missed, simple = (int(told[:, i].sum()) for i in (0, 1))
    return Judged(
        what, len(found), rows, missed, simple, *rms.tolist(), *told[:, 7:].mean(axis=0).tolist()
    )


def _log(what: str, seed: int, rows: int, peers: tuple[Any, Any] | None) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)
    truth, served, target = (rng.normal(size=(3, ACTIONS)) for _ in range(3))
    shift = 3.0 if what.startswith("rare") else 0.0
    judge, worth, squares, missed, simple = OffPolicy(), 0.0, 0.0, False, False
    log: list[tuple[Any, ...]] = []
    for t in range(1, rows + 1):
        x = np.array([1.0, *rng.normal(size=2)])
        means = 1.0 / (1.0 + np.exp(shift - x @ truth))
        logged, wanted = _softmax(x @ served), _softmax(2.0 * (x @ target))
        chosen = int(rng.choice(ACTIONS, p=logged))
        reward = float(rng.random() < means[chosen])
        expected = np.clip(means + rng.normal(scale=0.05, size=ACTIONS), 0.0, 1.0)
        model = None if what == "no model" else expected.tolist()
        judge.add(reward, chosen, logged.tolist(), wanted.tolist(), model)
        log.append((reward, chosen, logged[chosen], wanted, expected if model else 0.0 * means))
        worth += float(wanted @ means)
        squares += (wanted[chosen] / logged[chosen] * reward) ** 2
        now, true = judge.now(), worth / t
        assert now.interval is not None
        assert now.ips is not None
        missed |= not now.interval.low <= true <= now.interval.high
        half = 1.96 * (max(squares / t - now.ips**2, 0.0) / t) ** 0.5
        simple |= t >= FROM and not abs(now.ips - true) <= half
    theirs = (math.nan, math.nan) if peers is None else obp_peer.judge(peers, log)
    all_errors = (now.ips, now.snips, now.dr, *theirs)
    errors = [(e if e is not None else 0.0) - true for e in all_errors]
    width = 0.0 if now.interval is None else now.interval.high - now.interval.low
    return (float(missed), float(simple), *errors, width, now.effective)


def _softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(x - x.max())
    shares: npt.NDArray[np.float64] = powers / powers.sum()
    return shares
