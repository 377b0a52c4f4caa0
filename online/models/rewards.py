"""A model of the reward that each action would bring, for choices.

It is asked for all actions of a choice at once (:meth:`RewardModel.score`), and learns the reward
of the one that was chosen.  Rewards are numbers from ``low`` to ``high``, learned as shares of that
range.  Experts of three kinds learn side by side, four of each kind as in
:mod:`online.models.experts`, and one that only counts:

========= ====================================== ==============================================
experts   output for an action                   learns
========= ====================================== ==============================================
own       logistic; weights of the action's id   of the chosen action
          on the context
rival     softmax over the allowed actions of    of all: a reward speaks against the others, and
          such outputs                           its lack for them (the likelihood of "it was, or
                                                 was not, the one that is rewarded")
shared    logistic; weights on the action's      of the chosen action, and so of all that are
          features and their products with the   like it, new ones among them
          context, and an offset of its id
arm       mean reward of the action's id         of the chosen action
========= ====================================== ==============================================

The answer is their mixture, weighted by how each did of late on the rewards that came
(:class:`online.models.mixture.Mixture`), judged by what it answered when it was asked: the notes of
a choice hold that, with the propensity and the hashes of the allowed actions.  A row without notes
is judged by what they answer now, and teaches the rivals nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from evaluation.metrics import Task
from online.models.base import Prediction, by_probability
from online.models.crossed import Crossing, Hashes, Places, Vector, hash_of, mix, split
from online.models.errors import LearnerUnusable, StateNotFinite
from online.models.experts import EXPERTS, Floats
from online.models.hashed import check_hashing
from online.models.mixture import Mixture
from online.models.scored import NOTES, Scores, Served
from online.models.tabled import Table
from paramserver.blocks import COUNT, Block, Blocks
from replay.example import Example, Features, Label

Action = tuple[str, Features]
"""An action's id and its features."""

HEADS: Final = 3
ALL: Final = HEADS * EXPERTS + 1
_OWN, _RIVAL, _SHARED = (slice(i * EXPERTS, (i + 1) * EXPERTS) for i in range(HEADS))
_ARM: Final = ALL - 1
_ARMS: Final = "arms"
_TRIED: Final = "tried"
_EVERY: Final = ""
_PRIOR: Final = 2.0
"""Rewards of the mean over all actions that an action begins with."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """A recipe that a factory returns to serve a model of actions' rewards.

    Attributes
    ----------
    low, high
        Least and greatest reward.
    text
        Names of the context's and (behind ``@``) of the actions' features that are bags of words.
    bits
        Tables have 2^bits places.
    seed
        Seed of the names' hash: the same in all processes.
    """

    low: float = 0.0
    high: float = 1.0
    text: Sequence[str] = ()
    bits: int = 17
    seed: int = 0

    def __post_init__(self) -> None:
        check_hashing("rewards", self.text, self.bits)
        if not -1e12 < self.low < self.high < 1e12:
            problem = f"low {self.low!r} and high {self.high!r} are no range"
            raise LearnerUnusable("rewards", problem, "Give the least and the greatest reward")

    def model_for(self, task: Task) -> RewardModel:
        """The model behind the learner."""
        if task == "multiclass":
            problem = "a reward is a number, or true or false, and the task is multiclass"
            raise LearnerUnusable("rewards", problem, "Take task: regression")
        return RewardModel(self, task)


class RewardModel:
    """Adapter of a :class:`Rewards`."""

    mergeable = True
    learns = True
    numeric_only = False
    why_not_mergeable: str | None = None

    def __init__(self, recipe: Rewards, task: Task) -> None:
        self._recipe, self._binary = recipe, task == "binary"
        self._low, self._range = recipe.low, recipe.high - recipe.low
        self._crossing = Crossing(recipe.text, recipe.seed)
        self._own, self._rival = Table("own", recipe.bits), Table("rival", recipe.bits)
        self._shared = Table("shared", recipe.bits)
        self._mixture = Mixture(ALL)
        self._arms, self._tried = Counts(_ARMS), Counts(_TRIED)
        self._parts = (self._crossing, self._own, self._rival, self._shared, self._mixture,
                       self._arms, self._tried)  # fmt: skip
        self.structure = f"rewards 1, {task}, {recipe!r}"

    # -- answers ---------------------------------------------------------------------------------

    def score(self, context: Features, actions: Sequence[Action]) -> Scores:
        """Say what each action is expected to bring, and how sure that is; changes nothing."""
        x = self._crossing.context(context, learns=False)
        ids = np.array([hash_of(name) for name, _ in actions], dtype=np.uint64)
        described = [self._crossing.action(features, learns=False) for _, features in actions]
        answers = self._answers(x, ids, described)
        return self._scores(x, ids, answers)

    def _answers(self, x: Vector, ids: Hashes, described: Sequence[Vector]) -> Floats:
        """Return what each expert expects of each action: shares of the range, (ALL, actions)."""
        out = np.zeros((ALL, len(ids)))
        places, numbers = self._places(x, ids)
        out[_OWN] = _logistic(self._own.outputs(places, numbers))
        out[_RIVAL] = _softmax(self._rival.outputs(places, numbers))
        out[_SHARED] = _logistic(self._shared.outputs(*self._products(x, ids, described)))
        n, total = self._counted(ids)
        prior = self._prior()
        out[_ARM] = (total + _PRIOR * prior) / (n + _PRIOR)
        return out

    def _places(self, x: Vector, ids: Hashes) -> tuple[Places, Floats]:
        places = mix(x.hashes[None, :], ids[:, None], self._recipe.bits)
        return places, np.broadcast_to(x.numbers, places.shape)

    def _products(
        self, x: Vector, ids: Hashes, described: Sequence[Vector]
    ) -> tuple[Places, Floats]:
        """Places and numbers of each action's features by the context's; the id's offset last."""
        widest = max(len(a.numbers) for a in described)
        hashes = np.zeros((len(ids), widest), dtype=np.uint64)
        by = np.zeros((len(ids), widest))
        for i, a in enumerate(described):
            hashes[i, : len(a.numbers)], by[i, : len(a.numbers)] = a
        places = mix(x.hashes[None, None, :], hashes[:, :, None], self._recipe.bits)
        offset = mix(x.hashes[None, :1], ids[:, None], self._recipe.bits)
        numbers = (by[:, :, None] * x.numbers).reshape(len(ids), -1)
        return (
            np.concatenate([places.reshape(len(ids), -1), offset], axis=1),
            np.concatenate([numbers, np.ones((len(ids), 1))], axis=1),
        )

    def _counted(self, ids: Hashes) -> tuple[Floats, Floats]:
        """Rewards of each action so far, and their sum as shares of the range."""
        get = self._arms.now.get
        names = ids.tolist()
        n = np.array([get(f"n:{name}", 0.0) for name in names])
        return n, np.array([get(f"r:{name}", 0.0) for name in names])

    def _prior(self) -> float:
        get = self._arms.now.get
        return (get(f"r:{_EVERY}", 0.0) + 1.0) / (get(f"n:{_EVERY}", 0.0) + 2.0)

    def _scores(self, x: Vector, ids: Hashes, answers: Floats) -> Scores:
        votes = np.array(self._mixture.votes())
        n, total = self._counted(ids)
        return Scores(
            low=self._low,
            range=self._range,
            ids=tuple(ids.tolist()),
            answers=answers,
            votes=votes,
            shares=votes @ answers,
            counted=n,
            rewarded=total,
            prior=self._prior(),
            tried=dict(self._tried.now),
        )

    def predict(self, features: Features) -> Prediction:
        """Answer for one row: a context with one action."""
        context, name, action = split(features)
        share = float(self.score(context, [(name, action)]).shares[0])
        return (
            by_probability(share)
            if self._binary
            else Prediction(self._low + self._range * share, None)
        )

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Return the answer that :meth:`predict` gives to each row."""
        return [self.predict(features) for features in rows]

    # -- learning --------------------------------------------------------------------------------

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn a reward that has no notes.  Raises StateNotFinite."""
        self._learn(features, label, weight, None)

    def learn_noted(self, example: Example, weight: float) -> None:
        """Learn a reward with the notes of its choice; raises as ``learn``."""
        served = None
        if example.notes is not None:
            try:
                served = NOTES.decode(example.notes)
            except msgspec.MsgspecError:
                served = None
        self._learn(example.features, example.label, weight, served)

    def _learn(
        self, features: Features, label: Label, weight: float, served: Served | None
    ) -> None:
        context, name, action = split(features)
        y = min(1.0, max(0.0, (float(label) - self._low) / self._range))
        x = self._crossing.context(context, learns=True)
        a = self._crossing.action(action, learns=True)
        own = hash_of(name)
        ids = np.array([own], dtype=np.uint64)
        now = self._answers(x, ids, [a])[:, 0]
        rivals = None if served is None else served.rivals(own)
        total = 0.0
        if rivals is not None:
            total += self._teach_rivals(x, np.array(rivals, dtype=np.uint64), own, y, weight, now)
        else:
            now[_RIVAL] = now[_OWN]
        judged = now if served is None else served.judged(ALL, now)
        self._mixture.judge(np.asarray(judged), y, weight)
        slopes = (now - y) * weight
        total += self._own.step(*self._places(x, ids), slopes[_OWN, None])
        total += self._shared.step(*self._products(x, ids, [a]), slopes[_SHARED, None])
        for key in (str(own), _EVERY):
            self._arms.add(f"n:{key}", weight)
            self._arms.add(f"r:{key}", weight * y)
        if served is not None:
            for key, change in served.credits(y, float(judged @ self._mixture.shares())).items():
                self._tried.add(key, change * weight)
        if not math.isfinite(total):
            raise StateNotFinite(total)

    def _teach_rivals(
        self, x: Vector, ids: Hashes, own: int, y: float, weight: float, now: Floats
    ) -> float:
        places, numbers = self._places(x, ids)
        shares = _softmax(self._rival.outputs(places, numbers))
        chosen = ids.tolist().index(own)
        p = shares[:, chosen].copy()
        now[_RIVAL] = p
        rest = shares / np.maximum(1.0 - p, 1e-9)[:, None]
        wanted = (1.0 - y) * rest
        wanted[:, chosen] = y
        return self._rival.step(places, numbers, (shares - wanted) * weight)

    # -- blocks ----------------------------------------------------------------------------------

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        return {name: block for part in self._parts for name, block in part.cut().items()}

    def rebase(self, values: Blocks) -> None:
        """Take new values with the open delta on top."""
        for part in self._parts:
            part.rebase(values)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        for part in self._parts:
            part.reset(values)


class Counts:
    """Sums by name, which add up over replicas, and what the rows since the cut added to them."""

    def __init__(self, block: str) -> None:
        self._block = block
        self.now: dict[str, float] = {}
        self._open: dict[str, float] = {}

    def add(self, name: str, change: float) -> None:
        """Add to one of them."""
        self.now[name] = self.now.get(name, 0.0) + change
        self._open[name] = self._open.get(name, 0.0) + change

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        delta, self._open = self._open, {}
        return {self._block: Block(COUNT, delta)} if delta else {}

    def rebase(self, values: Blocks) -> None:
        """Take new values with the open delta on top."""
        if (block := values.get(self._block)) is not None:
            for name, value in block.data.items():
                self.now[name] = float(value) + self._open.get(name, 0.0)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self.now, self._open = {}, {}
        self.rebase(values)


def _logistic(x: Floats) -> Floats:
    out: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -500.0, 500.0)))
    return out


def _softmax(outputs: Floats) -> Floats:
    """Shares over the last axis."""
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares
