"""Are actions chosen as often as the logged probabilities say?  Chi-square over many choices.

A model of rewards learns while it chooses, so probabilities of all sizes come; they are packed as
a token has them, and what is compared is what comes out again.  Cells are sizes of
probability, and places of actions: Σ (chosen − p) of a cell, squared, over Σ p (1 − p).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from online.decide import Policy, draw, row, uniform
from online.decide.policy import Kind
from online.decide.record import Choice, pack, unpack
from online.models.rewards import Action, Rewards
from replay.example import Example, Features

POLICIES: Final[tuple[Kind, ...]] = ("auto", "softmax", "epsilon", "squarecb", "thompson")
ACTIONS: Final = 6
_EDGES: Final = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.97, 0.99)
_LEAST: Final = 10.0
"""Expected choices of a cell, and of all others, that count: of fewer no square is normal."""

_EACH: Final = 50
"""Draws from one distribution, each by a nonce of its own."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Chi-square of one policy; ``sharper``: were the draws from squared probabilities."""

    policy: str
    choices: int
    cells: int
    chi_square: float
    p: float
    sharper: float
    good: bool


def run(
    choices: int, policies: Sequence[Kind] = POLICIES, floor: float = 0.005, seed: int = 0
) -> list[Cells]:
    """Divide the choices among the policies; one in fifty is rewarded and learned."""
    return [_policy(kind, choices // len(policies), floor, seed) for kind in policies]


def _policy(kind: Kind, n: int, floor: float, seed: int) -> Cells:
    rng, key = np.random.default_rng(seed), b"%s %d" % (kind.encode(), seed)
    model, policy = Rewards(bits=14).model_for("regression"), Policy(kind=kind, floor=floor)
    actions: list[Action] = [(str(i), {}) for i in range(ACTIONS)]
    logged = np.zeros((n, ACTIONS))
    chosen, wrong = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for t in range(n):
        if t % _EACH == 0:
            place = int(rng.integers(3))
            context: Features = {"x": float(rng.normal()), "place": "abc"[place]}
            scores = model.score(context, actions)
            decision = policy.decide(scores)
            shares, means = decision.probabilities.tolist(), scores.means.tolist()
            told = Choice(context, tuple(actions), (), 0, tuple(shares), tuple(means), kind)
            kept = np.array(unpack(pack(told)).probabilities)
            squares = decision.probabilities**2
        nonce = b"%d" % t
        i = draw(decision.probabilities, uniform(key, nonce))
        logged[t], chosen[t] = kept, i
        wrong[t] = draw(squares, uniform(key, nonce, 1))
        if t % _EACH == 0:
            reward = float(rng.random() < (0.3 if i != 2 * place else 0.6))
            notes = decision.notes(scores, i)
            model.learn_noted(Example(row(context, *actions[i]), reward, notes=notes), 1.0)
    square, cells = chi_square(logged, chosen)
    p = above(square, cells)
    sharper = above(*chi_square(logged, wrong))
    return Cells(kind, n, cells, square, p, sharper, p >= 0.001 > sharper)


def chi_square(logged: npt.NDArray[np.float64], chosen: npt.NDArray[np.int64]) -> tuple[float, int]:
    """Sum over cells, and their number; cells of too few choices are left out."""
    hit = np.zeros_like(logged)
    hit[np.arange(len(chosen)), chosen] = 1.0
    sizes = np.searchsorted(_EDGES, logged)
    square, cells = 0.0, 0
    for size in range(len(_EDGES) + 1):
        for place in range(logged.shape[1]):
            at = sizes[:, place] == size
            p = logged[at, place]
            variance = float((p * (1.0 - p)).sum())
            if min(p.sum(), (1.0 - p).sum()) < _LEAST:
                continue
            square += float(hit[at, place].sum() - p.sum()) ** 2 / variance
            cells += 1
    return square, cells


def above(square: float, cells: int) -> float:
    """The probability of a greater chi-square (Wilson and Hilferty 1931)."""
    z = ((square / cells) ** (1 / 3) - 1.0 + 2.0 / (9.0 * cells)) / math.sqrt(2.0 / (9.0 * cells))
    return 0.5 * math.erfc(z / math.sqrt(2.0))
