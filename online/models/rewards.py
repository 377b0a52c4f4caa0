"""A model of the reward that each action would bring, for choices.

It is asked for all actions of a choice at once (:meth:`RewardModel.score`), and learns the reward
of the one that was chosen.  Rewards are numbers from ``low`` to ``high``, learned as shares of that
range.  Experts learn side by side, four of each kind as in
:mod:`online.models.experts`, own and rivals once on the numbers as they are and once on knots
(:class:`online.models.crossed.Context`), and two that only count:

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
arm       mean reward of the action's id, of     of the chosen action
          all its rewards, and of those of late
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

import numpy as np
import numpy.typing as npt

from evaluation.metrics import Task
from online.models.arms import Arms, Counted, Sums
from online.models.base import Prediction, by_probability
from online.models.crossed import (
    Alike,
    Context,
    Crossing,
    Hashes,
    Places,
    Vector,
    alike,
    hash_of,
    mix,
    split,
)
from online.models.errors import LearnerUnusable, StateNotFinite
from online.models.experts import EXPERTS, Floats
from online.models.hashed import check_hashing
from online.models.mixture import Mixture
from online.models.parts import OfParts
from online.models.scored import Scores, Served, served_of
from online.models.tabled import Part, Table, steps_of
from replay.example import Example, Features, Label

Action = tuple[str, Features]
"""An action's id and its features."""

HEADS: Final = 5
ALL: Final = HEADS * EXPERTS + 2
_OWN: Final = slice(0, EXPERTS)
_SHARED: Final = slice((HEADS - 1) * EXPERTS, HEADS * EXPERTS)
_SALTS: Final[Hashes] = np.array(
    [0xD6E8FEB86659FD93 * i % 2**64 for i in range(HEADS)], dtype=np.uint64
)
_BY_FORM: Final = 2, 2, EXPERTS
"""Experts by form of the context (as it is, on knots), of the chosen action and of all."""

_FORMED: Final = slice(0, _SHARED.start)
_SALT_SHARED: Final = _SALTS[HEADS - 1]
_ARMS: Final = slice(ALL - 2, ALL)


@dataclass(frozen=True, slots=True)
class Rewards:
    """Expected rewards of actions between ``low`` and ``high``, for choices.

    Attributes:
        low, high: Least and greatest reward.
        text: Names of the context's and (behind ``@``) of the actions' features that are bags of
            words.
        bits: Tables have 2^bits places.
        seed: Seed of the names' hash: the same in all processes.
        clip: The most that a reward weighs for an action that was seldom chosen: 1 / propensity,
            cut here.  1: all weigh alike.
    """

    low: float = 0.0
    high: float = 1.0
    text: Sequence[str] = ()
    bits: int = 18
    seed: int = 0
    clip: float = 1.0

    def __post_init__(self) -> None:
        check_hashing("rewards", self.text, self.bits)
        if not -1e12 < self.low < self.high < 1e12:
            problem = f"low {self.low!r} and high {self.high!r} are no range"
            raise LearnerUnusable("rewards", problem, "Give the least and the greatest reward")
        if not 1.0 <= self.clip <= 1e6:
            raise LearnerUnusable("rewards", f"clip is {self.clip!r}", "Give 1 to 1000000")

    def model_for(self, task: Task) -> RewardModel:
        """The model behind the learner."""
        if task == "multiclass":
            problem = "a reward is a number, or true or false, and the task is multiclass"
            raise LearnerUnusable("rewards", problem, "Take task: regression")
        return RewardModel(self, task)


class RewardModel(OfParts):
    """Adapter of a :class:`Rewards`."""

    mergeable = True
    learns = True
    numeric_only = False
    why_not_mergeable: str | None = None

    def __init__(self, recipe: Rewards, task: Task) -> None:
        self._recipe, self._binary = recipe, task == "binary"
        self._low, self._range = recipe.low, recipe.high - recipe.low
        self._crossing = Crossing(recipe.text, recipe.seed)
        self._table, self._mixture = Table("experts", recipe.bits), Mixture(ALL)
        self._arms, self._tried = Arms(), Sums("tried")
        self._parts = (self._crossing, self._table, self._mixture, self._arms, self._tried)
        self.structure = f"rewards 2, {task}, {recipe!r}"

    # -- answers ---------------------------------------------------------------------------------

    def score(
        self, context: Features, actions: Sequence[Action], table: Alike | None = None
    ) -> Scores:
        """Say what each action is expected to bring, and how sure that is; changes nothing.

        ``table`` has the actions' features, if these are alike and it is known already.
        """
        rows = [features for _, features in actions]
        table = alike(rows) if table is None else table
        x = self._crossing.context(context, learns=False)
        ids = np.array([hash_of(name) for name, _ in actions], dtype=np.uint64)
        arms = self._arms.of(ids.tolist())
        answers, met = self._answers(x, ids, self._crossing.actions(rows, table), arms)
        votes = self._votes(context=bool(context), described=table is not None or any(rows))
        return Scores(
            low=self._low,
            range=self._range,
            ids=tuple(ids.tolist()),
            answers=answers,
            votes=votes,
            shares=votes @ answers,
            met=met,
            context=bool(context),
            arms=arms,
            tried=dict(self._tried.now),
        )

    def _votes(self, *, context: bool, described: bool) -> Floats:
        """Each expert's vote; those that have nothing to go by have none."""
        free = np.ones(ALL, dtype=bool)
        free[_SHARED] = described
        if not context:
            free[: _SHARED.start] = False
        return self._mixture.votes(free)

    def _answers(
        self, x: Context, ids: Hashes, described: Vector, arms: Counted
    ) -> tuple[Floats, Floats]:
        """Return what each expert expects of each action: shares of the range, (ALL, actions).

        And the variance of what is expected of each by its features, in logits.
        """
        n = len(ids)
        out, met = np.zeros((ALL, n)), np.full(n, np.inf)
        formed = out[_FORMED].reshape(*_BY_FORM, n)
        sums = self._table.outputs(self._formed(x, ids, 1 if n == 1 else 2), x.forms)
        formed[:, 0] = _logistic(sums[0].transpose(1, 2, 0))
        if n == 1:  # asked of one alone, a rival would always say 1
            formed[:, 1] = formed[:, 0]
        else:
            formed[:, 1] = _softmax(sums[1].transpose(1, 2, 0))
        if described.numbers.shape[1] > 1:
            # the context's bias comes first: how sure they are is of the actions' by themselves
            told = x.told
            places = self._crossed(told, described)
            sums, met = self._table.crossed(places, described.numbers, told.numbers)
            offsets = self._table.outputs(self._offset(told, ids), told.numbers[None, :1])[:, 0]
            out[_SHARED] = _logistic(sums + offsets).T
        else:
            out[_SHARED] = out[_OWN]
        out[_ARMS] = arms.means()
        return out, met

    def _formed(self, x: Context, ids: Hashes, heads: int) -> Places:
        """Places of both forms of the context by the ids: shape (heads, ids, features)."""
        salts = np.empty((heads, 1, len(x.hashes)), np.uint64)
        salts[:, :, : x.plain] = _SALTS[:heads, None, None]
        salts[:, :, x.plain :] = _SALTS[2 : 2 + heads, None, None]
        return mix(x.hashes, ids[:, None] ^ salts, self._recipe.bits)

    def _crossed(self, told: Vector, described: Vector) -> Places:
        """Places of the actions' features by the context's."""
        salted = described.hashes[:, :, None] ^ _SALT_SHARED
        return mix(told.hashes, salted, self._recipe.bits)

    def _offset(self, told: Vector, ids: Hashes) -> Places:
        """Place of what is shared by all choices of an id."""
        return mix(told.hashes[:1], ids[:, None] ^ _SALT_SHARED, self._recipe.bits)

    def predict(self, features: Features) -> Prediction:
        """Answer for one row: a context with one action."""
        context, name, action = split(features)
        share = float(self.score(context, [(name, action)]).shares[0])
        if self._binary:
            return by_probability(share)
        return Prediction(self._low + self._range * share, None)

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Return the answer that :meth:`predict` gives to each row."""
        return [self.predict(features) for features in rows]

    # -- learning --------------------------------------------------------------------------------

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn a reward that has no notes.  Raises StateNotFinite."""
        self._learn(features, label, weight, None)

    def learn_noted(self, example: Example, weight: float) -> None:
        """Learn a reward with the notes of its choice; raises as ``learn``."""
        served = None if example.notes is None else served_of(example.notes)
        self._learn(example.features, example.label, weight, served)

    def _learn(
        self, features: Features, label: Label, weight: float, served: Served | None
    ) -> None:
        context, name, action = split(features)
        y = min(1.0, max(0.0, (float(label) - self._low) / self._range))
        x = self._crossing.context(context, learns=True)
        a = self._crossing.action(action, learns=True)
        a = Vector(a.hashes[None, :], a.numbers[None, :])
        own = hash_of(name)
        rivals = (None if served is None else served.rivals(own)) or []
        weighs = 1.0 if served is None else served.weighs(self._recipe.clip)
        rivals = rivals if len(rivals) > 1 else []
        now, parts = self._taught(x, a, own, rivals, y, weighs, weight)
        judged = now if served is None else served.judged(ALL, now)
        if served is not None:
            expected = float(judged @ self._votes(context=bool(context), described=bool(action)))
            for key, change in served.credits(y, expected).items():
                self._tried.add(key, change * weight)
        self._mixture.judge(judged, y, weight)
        total = self._table.step(parts)
        self._arms.learn(own, y, weight)
        if not math.isfinite(total):
            raise StateNotFinite(total)

    def _taught(
        self,
        x: Context,
        a: Vector,
        own: int,
        rivals: Sequence[int],
        y: float,
        weighs: float,
        weight: float,
    ) -> tuple[Floats, list[Part]]:
        """Return what each expert expects of the action, and what the table is to learn of it."""
        now = np.zeros(ALL)
        formed = now[_FORMED].reshape(_BY_FORM)
        ids = np.array(rivals or [own], dtype=np.uint64)
        chosen = rivals.index(own) if rivals else 0
        places = self._formed(x, ids, 2 if rivals else 1)
        places = np.concatenate([places[0, chosen : chosen + 1], *places[1:]])
        sums = self._table.outputs(places, x.forms)
        expected = formed[:, 0] = formed[:, 1] = _logistic(sums[0])
        slopes = np.empty((len(places), *expected.shape))
        slopes[0] = (expected - y) * weighs
        if rivals:
            shares = _softmax(sums[1:].transpose(1, 2, 0))
            p = formed[:, 1] = shares[:, :, chosen].copy()
            wanted = (1.0 - y) * shares / np.maximum(1.0 - p, 1e-9)[:, :, None]
            wanted[:, :, chosen] = y
            slopes[1:] = (shares - wanted).transpose(2, 0, 1)
        slopes *= weight
        square = 1.0 + (x.forms * x.forms).sum(axis=1)
        at = _form_of(x)
        by_feature = slopes.transpose(2, 0, 1)[:, :, at]
        parts = [Part(places, steps_of(x.forms.sum(axis=0), by_feature, square[at]))]
        now[_SHARED] = now[_OWN]
        if a.numbers.shape[1] > 1:
            told = x.told
            products = a.numbers[0, :, None] * told.numbers
            numbers = np.concatenate((products.ravel(), told.numbers[:1]))
            crossed, offset = self._crossed(told, a), self._offset(told, ids[chosen : chosen + 1])
            places = np.concatenate((crossed.ravel(), offset.ravel()))
            sums = self._table.outputs(places, numbers[None, :])[0]
            now[_SHARED] = shared = _logistic(sums)
            slope = ((shared - y) * (weighs * weight))[:, None, None]
            parts.append(Part(places, steps_of(numbers, slope, 1.0 + numbers @ numbers)))
        now[_ARMS] = self._arms.of([own]).means()[:, 0]
        return now, parts


def _form_of(x: Context) -> npt.NDArray[np.intp]:
    """Return which form each feature is of."""
    return (np.arange(len(x.hashes)) >= x.plain).astype(np.intp)


def _logistic(x: Floats) -> Floats:
    out: Floats = 0.5 + 0.5 * np.tanh(0.5 * x)  # without a number that is too great
    return out


def _softmax(outputs: Floats) -> Floats:
    """Shares over the last axis."""
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares
