"""Choices on labelled streams: mean reward of each policy, beside peers and what is possible.

The settings of ours were chosen on seeds 100 to 104 (ImageSegments, digits, the first 6,000 rows of
INSECTS), VowpalWabbit's rate and cost on seed 100 of each (4,000 rows); seeds 1 to 5 prove.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import numpy as np

from benchmarks.choices.bandits_streams import Chance, chances
from online.decide import Policy, draw, row, uniform
from online.decide.policy import Kind
from online.models.base import Prediction
from online.models.rewards import Rewards
from online.models.selfrate import SelfRate
from replay.example import Example

TUNED_ON: Final = 100
TUNING_ROWS: Final = 4_000
SEEDS: Final = (1, 2, 3, 4, 5)
POLICIES: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Line:
    """Mean reward over seeds, and the standard error of that."""

    stream: str
    what: str
    rows: int
    seeds: int
    reward: float
    error: float


def kinds(names: Sequence[str] | None) -> list[Kind]:
    """Policies by name, all if none is named.  ValueError for a name that is none."""
    if wrong := next((name for name in names or () if name not in POLICIES), None):
        raise ValueError(f"no policy {wrong!r}; known are {', '.join(POLICIES)}")
    return [kind for kind in POLICIES if names is None or kind in names]


def play(told: Sequence[Chance], policy: Policy, seed: int, late: int = 0) -> float:
    """Mean reward of a policy with the model of rewards, which are told ``late`` choices later."""
    model, key, total = Rewards().model_for("regression"), b"%d" % seed, 0.0
    waiting: list[Example] = []
    for t, chance in enumerate(told):
        scores = model.score(chance.context, chance.actions)
        decision = policy.decide(scores)
        i = draw(decision.probabilities, uniform(key, b"%d" % t))
        total += chance.rewards[i]
        features = row(chance.context, *chance.actions[i])
        notes = decision.notes(scores, i)
        waiting.append(Example(features, chance.rewards[i], notes=notes))
        if len(waiting) > late:
            model.learn_noted(waiting.pop(0), 1.0)
    return total / len(told)


def full_information(told: Sequence[Chance]) -> float:
    """Mean reward of `linear`, which is told the right class of every row; NaN without classes."""
    model, total = SelfRate().model_for("multiclass"), 0.0
    for chance in told:
        if chance.label is None:
            return math.nan
        answer: Prediction = model.predict(chance.context)
        total += answer.label == chance.label
        model.learn(chance.context, chance.label, 1.0)
    return total / len(told)


def best_constant(told: Sequence[Chance]) -> float:
    """Mean reward of the best action in hindsight; of any one of them if they change."""
    if any(chance.label is None for chance in told):
        return float(np.mean([np.mean(chance.rewards) for chance in told]))
    return float(np.mean([chance.rewards for chance in told], axis=0).max())


def run(
    name: str,
    data: Path | None,
    seeds: Sequence[int] = SEEDS,
    rows: int | None = None,
    late: int = 0,
    policies: Sequence[Kind] = POLICIES,
    beside: bool = True,
) -> Iterator[Line]:
    """One stream: each policy, what is possible, and the peer at its best rate on another seed."""
    told = {seed: chances(name, data, seed, rows) for seed in seeds}
    for kind in policies:
        found = [play(told[seed], Policy(kind=kind), seed, late) for seed in seeds]
        yield _line(name, kind, told, found)
    if not beside:
        return
    yield _line(name, "full information", told, [full_information(told[s]) for s in seeds])
    yield _line(name, "best constant", told, [best_constant(told[s]) for s in seeds])
    if late == 0:
        yield from _of_river(name, told)
    try:
        yield from _peer(name, chances(name, data, TUNED_ON, rows), told, late)
    except ImportError as missing:
        yield Line(name, f"VW skipped: {missing}", 0, 0, math.nan, math.nan)


def _of_river(name: str, told: dict[int, list[Chance]]) -> Iterator[Line]:
    from benchmarks.choices import bandits_peer as peer

    for what, played in (("LinUCB", peer.lin_ucb), ("Thompson", peer.thompson)):
        try:
            found = [played(told[seed], seed) for seed in told]
        except ValueError as why:
            yield Line(name, f"river {what} skipped: {why}", 0, 0, math.nan, math.nan)
        else:
            yield _line(name, f"river {what}", told, found)


def _peer(
    name: str, tuning: list[Chance], told: dict[int, list[Chance]], late: int
) -> Iterator[Line]:
    from benchmarks.choices import bandits_peer as peer

    short = tuning[:TUNING_ROWS]
    for setting in peer.SETTINGS:
        best = max(
            peer.TUNED,
            key=lambda given: peer.run(short, setting, given[0], given[1], TUNED_ON, late),
        )
        found = [peer.run(told[seed], setting, best[0], best[1], seed, late) for seed in told]
        yield _line(name, f"VW {setting}, rate {best[0]:g}, cost {best[1]:g} − r", told, found)


def _line(name: str, what: str, told: dict[int, list[Chance]], found: Sequence[float]) -> Line:
    n = len(next(iter(told.values())))
    error = float(np.std(found, ddof=1) / len(found) ** 0.5) if len(found) > 1 else math.nan
    return Line(name, what, n, len(found), float(np.mean(found)), error)
