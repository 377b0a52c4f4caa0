"""The peers of `python -m benchmarks bandits`: VowpalWabbit, and the bandits of river.

Their numbers are standardised as they come, as ours are: without that they earn much less.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from river import bandit, proba

from benchmarks.choices.bandits_streams import Chance
from online.models.limited import Limited
from replay.example import Features

SETTINGS = {
    "squarecb": "--squarecb",
    "squarecb, gamma 100": "--squarecb --gamma_scale 100",
    "regcbopt": "--regcbopt --mellowness 0.001",
    "bag 5": "--bag 5",
    "cover 5": "--cover 5",
    "epsilon .05": "--epsilon 0.05",
    "greedy": "--epsilon 0",
}
TUNED = [(rate, shift) for rate in (0.1, 0.5, 2.0) for shift in (0.0, 1.0)]
"""Learning rates, and the cost of no reward: 1 less what was earned, or 0 less it."""


def _line(features: Features, scaler: Limited) -> str:
    numbers = {n: v for n, v in features.items() if type(v) in (int, float)}
    words = [f"{n}={v}".replace(" ", "_") for n, v in features.items() if n not in numbers]
    return " ".join([*words, *(f"{n}:{v:.5g}" for n, v in scaler.learn(numbers).items())])


def run(
    chances: list[Chance], setting: str, rate: float, shift: float, seed: int, late: int = 0
) -> float:
    """Mean reward of the chosen action, learned ``late`` choices later.

    ImportError without the package.
    """
    import vowpalwabbit

    flags = f"--cb_explore_adf {SETTINGS[setting]} -q sa -l {rate} --random_seed {seed} --quiet"
    vw, rng, total = vowpalwabbit.Workspace(flags), np.random.default_rng(seed), 0.0
    contexts, of_actions = Limited("contexts"), Limited("actions")
    waiting: list[list[str]] = []
    for chance in chances:
        shared = f"shared |s {_line(chance.context, contexts)}"
        lines = [f"|a id={name} {_line(of, of_actions)}" for name, of in chance.actions]
        p = np.array(vw.predict([shared, *lines]))
        i = int(rng.choice(len(p), p=p / p.sum()))
        total += chance.rewards[i]
        lines[i] = f"0:{shift - chance.rewards[i]}:{p[i]} {lines[i]}"
        waiting.append([shared, *lines])
        if len(waiting) > late:
            vw.learn(waiting.pop(0))
    vw.finish()
    return total / len(chances)


NUMBERS_MAX: Final = 100
"""Features of a context that river's LinUCB is asked with: it takes their square for each arm."""


def lin_ucb(chances: list[Chance], seed: int) -> float:
    """Mean reward of river's LinUCB as it comes, told at once; texts are names with the number 1.

    ValueError where actions have features, or contexts too many.
    """
    if chances[0].label is None or max(len(one.context) for one in chances) > NUMBERS_MAX:
        raise ValueError("it takes no features of actions, and few of contexts")
    policy, scaler, total = bandit.LinUCBDisjoint(seed=seed), Limited("contexts"), 0.0
    for chance in chances:
        numbers = {n: v for n, v in chance.context.items() if type(v) in (int, float)}
        words = {f"{n}={v}": 1.0 for n, v in chance.context.items() if n not in numbers}
        context = {"bias": 1.0, **words, **scaler.learn(numbers)}
        i = policy.pull(range(len(chance.actions)), context=context)
        total += chance.rewards[i]
        policy.update(i, context, chance.rewards[i])
    return total / len(chances)


def thompson(chances: list[Chance], seed: int) -> float:
    """Mean reward of river's Thompson rule, by the actions' ids alone: it sees no context."""
    policy, total = bandit.ThompsonSampling(reward_obj=proba.Beta(), seed=seed), 0.0
    for chance in chances:
        places = {name: i for i, (name, _) in enumerate(chance.actions)}
        arm = policy.pull(list(places))
        total += chance.rewards[places[arm]]
        policy.update(arm, bool(chance.rewards[places[arm]]))
    return total / len(chances)
