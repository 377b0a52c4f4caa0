"""Simulated worlds where exploring pays: regret of each policy, beside Thompson's and KL-UCB's.

========= ======================================================================================
arms      ten actions of which each is rewarded as often as a draw from [0, 1] says
close     one action of ten at .6, the others at .5
rare      ten actions, rewarded in 2 to 5 % of cases
late      the best of ten actions comes at half-time
changing  the chances of the ten move on by one action at each quarter
context   five actions, each a logistic function of five numbers
lying     the same, and of the first hundred rewards each is turned round
========= ======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.choices.bandits import POLICIES
from online.decide import Policy, draw, row, uniform
from online.decide.policy import Kind
from online.models.rewards import Action, Rewards
from replay.example import Example, Features

WORLDS: Final = ("arms", "close", "rare", "late", "changing", "context", "lying")
PEERS: Final = ("Thompson", "KL-UCB")
_LIES: Final = 100

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class World:
    """Chances of each action at each time, the contexts, and which actions there are."""

    contexts: list[Features]
    means: Floats
    there: npt.NDArray[np.bool_]
    u: Floats
    lies: int = 0

    def reward(self, t: int, action: int) -> float:
        """Whether the action would be rewarded; the same whoever asks."""
        return float((self.u[t, action] < self.means[t, action]) != (t < self.lies))

    def regret(self, t: int, action: int) -> float:
        """How much better the best one would be expected to be."""
        return float(self.means[t][self.there[t]].max() - self.means[t, action])


@dataclass(frozen=True, slots=True)
class Regret:
    """Regret over a world's whole time: mean over worlds, and its standard error."""

    world: str
    what: str
    rows: int
    worlds: int
    regret: float
    error: float


def make(name: str, seed: int, n: int) -> World:
    """A world of its seed."""
    rng = np.random.default_rng(seed)
    contexts: list[Features] = [{} for _ in range(n)]
    k = 5 if name in ("context", "lying") else 10
    there = np.ones((n, k), dtype=bool)
    if k == 5:
        x = rng.normal(size=(n, 5))
        contexts = [{f"x{j}": float(v) for j, v in enumerate(one)} for one in x]
        means = 1.0 / (1.0 + np.exp(-(x @ rng.normal(size=(5, k)) + rng.normal(size=k) - 1.0)))
    elif name == "close":
        means = np.tile(rng.permutation([0.6] + [0.5] * 9), (n, 1))
    elif name == "rare":
        means = np.tile(rng.uniform(0.02, 0.05, k), (n, 1))
    else:
        means = np.tile(rng.uniform(0.0, 1.0, k), (n, 1))
    if name == "late":
        means[:, -1] = means[0].max()
        means[:, :-1] *= 0.8
        there[: n // 2, -1] = False
    if name == "changing":
        for quarter in range(1, 4):
            means[quarter * n // 4 :] = np.roll(means[0], quarter)
    return World(contexts, means, there, rng.random((n, k)), _LIES if name == "lying" else 0)


def ours(world: World, policy: Policy, seed: int) -> float:
    """Regret of a policy with the model of rewards."""
    k, key, regret = world.means.shape[1], b"%d" % seed, 0.0
    actions: list[Action] = [(str(i), {}) for i in range(k)]
    model = Rewards(bits=14).model_for("regression")
    for t, context in enumerate(world.contexts):
        scores = model.score(context, actions)
        decision = policy.decide(scores, world.there[t].tolist())
        i = draw(decision.probabilities, uniform(key, b"%d" % t))
        features, notes = row(context, str(i), {}), decision.notes(scores, i)
        model.learn_noted(Example(features, world.reward(t, i), notes=notes), 1.0)
        regret += world.regret(t, i)
    return regret


def peer(world: World, name: str, seed: int) -> float:
    """Regret of Thompson's rule with flat beliefs, or of KL-UCB, which see no context."""
    rng, k, regret = np.random.default_rng(seed), world.means.shape[1], 0.0
    n, total = np.zeros(k), np.zeros(k)
    for t in range(len(world.means)):
        if name == "Thompson":
            index = rng.beta(1.0 + total, 1.0 + n - total)
        else:
            index = _upper(total, n, t)
        i = int(np.where(world.there[t], index, -1.0).argmax())
        n[i] += 1.0
        total[i] += world.reward(t, i)
        regret += world.regret(t, i)
    return regret


def _upper(total: Floats, n: Floats, t: int) -> Floats:
    """Garivier and Cappé 2011: the greatest mean that log(t) / n nats do not rule out."""
    p = np.clip(total / np.maximum(n, 1.0), 1e-9, 1.0 - 1e-9)
    low, high = p.copy(), np.ones_like(p)
    for _ in range(20):
        middle = np.clip((low + high) / 2.0, 1e-9, 1.0 - 1e-9)
        apart = p * np.log(p / middle) + (1.0 - p) * np.log((1.0 - p) / (1.0 - middle))
        fine = n * apart <= np.log(t + 1.0)
        low, high = np.where(fine, middle, low), np.where(fine, high, middle)
    upper: Floats = np.where(n > 0.0, high, 2.0)
    return upper


def run(
    name: str, seeds: Sequence[int], rows: int, policies: Sequence[Kind] = POLICIES
) -> Iterator[Regret]:
    """One kind of world: each policy in the same worlds, and the peers."""
    for what in (*PEERS, *policies):
        found = []
        for seed in seeds:
            world = make(name, seed, rows)
            if what in PEERS:
                found.append(peer(world, what, seed))
            else:
                found.append(ours(world, Policy(kind=what), seed))  # type: ignore[arg-type]
        error = float(np.std(found, ddof=1) / len(found) ** 0.5) if len(found) > 1 else 0.0
        yield Regret(name, what, rows, len(found), float(np.mean(found)), error)
