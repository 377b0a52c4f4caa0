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
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

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
    hashes_of,
    left,
    right,
    settled,
    split,
)
from online.models.errors import LearnerUnusable, StateNotFinite
from online.models.experts import EXPERTS, NORMALISED, Floats
from online.models.hashed import check_hashing
from online.models.mixture import Mixture
from online.models.parts import OfParts
from online.models.scored import Scores, Served, served_of
from online.models.tabled import Table
from paramserver.pages import Floats32
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
_BY_FORM: Final[Hashes] = _SALTS[: HEADS - 1].reshape(2, 2, 1)
"""Salts by form of the context (as it is, on knots), of the chosen action and of all."""

_SALT_SHARED: Final = _SALTS[HEADS - 1]
_ARMS: Final = slice(ALL - 2, ALL)
_NORMALISED: Final[Floats] = np.array(NORMALISED)
_PRIOR: Final = 0.3
_ORDER_KEPT: Final = 65_536  # places whose order is kept; a longer one is made each time
"""Squared slopes that stand for a standard logistic distribution of a weight before any row."""

_FREE: Final = {
    (context, described): np.repeat(
        [context, described, True], [_SHARED.start, EXPERTS, ALL - _SHARED.stop]
    )
    for context in (False, True)
    for described in (False, True)
}
"""Which experts have something to go by: with any context, and with features of the actions."""


class _Ids(NamedTuple):
    """The actions' ids as sides of products: by form and head, (2, 2, ids), and of ``shared``."""

    formed: Hashes
    shared: Hashes


@lru_cache(maxsize=64)
def _ids_of(hashes: tuple[int, ...]) -> _Ids:
    ids = np.array(hashes, np.uint64)
    return _Ids(right(ids ^ _BY_FORM), right(ids ^ _SALT_SHARED))


class _Held(NamedTuple):
    """Holds what the table has for a choice: the features first, and at each place six numbers.

    Attributes
    ----------
    places
        Those of all three, one after the other.
    numbers
        At these places.
    formed
        Both forms of the context by ids and heads: shape (features, columns, 6).
    crossed
        The context's features by those of the actions: (features, alike or actions, features, 6).
    offset
        The ids alone: (ids, 6).
    """

    places: Places
    numbers: Floats32
    formed: Floats32
    crossed: Floats32
    offset: Floats32


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
        ids = hashes_of(tuple([name for name, _ in actions]))
        arms = self._arms.of(ids)
        answers, met = self._answers(x, ids, self._crossing.actions(rows, table), arms)
        votes = self._votes(context=bool(context), described=table is not None or any(rows))
        return Scores(
            low=self._low,
            range=self._range,
            ids=ids,
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
        return self._mixture.votes(_FREE[context, described])

    def _answers(
        self, x: Context, ids: tuple[int, ...], described: Vector, arms: Counted
    ) -> tuple[Floats, Floats]:
        """Return what each expert expects of each action: shares of the range, (ALL, actions).

        And the variance of what is expected of each by its features, in logits: a mean over them,
        each by its number's square, by the squared slopes that the slow expert has met at each
        alone.  Were they all one feature, or all alike, it would be a logistic regression's.
        """
        n, sides = len(ids), _ids_of(ids)
        heads = 1 if n == 1 else 2  # asked of one alone, a rival would always say 1
        held = self._held(x, sides.formed[:, :heads].reshape(2, heads * n), sides.shared, described)
        by_eight = np.empty((3, 2 * EXPERTS, n))  # own, rivals; on knots the same; shared, the rest
        own, rivals = by_eight[:, :EXPERTS], by_eight[:2, EXPERTS:]
        sums = _sums(x, held).reshape(2, heads, n, -1)[..., :EXPERTS].swapaxes(2, 3)
        own[:2] = sums[:, 0]
        met = np.full(n, np.inf)
        if len(held.crossed):
            numbers, ones = described.numbers, x.told.numbers
            inner = (ones @ held.crossed.reshape(len(ones), -1)).reshape(held.crossed.shape[1:])
            each = numbers @ inner[0] if len(inner) == 1 else (numbers[:, None, :] @ inner)[:, 0]
            each += held.offset
            own[2] = each[:, :EXPERTS].T
            squares = numbers * numbers
            unsure = 1.0 / (_PRIOR + held.crossed[0, :, :, EXPERTS])  # the bias comes first
            met = (squares * unsure).sum(axis=1)
            met /= squares.sum(axis=1)
        else:
            own[2] = own[0]
        _to_shares(own)
        if heads == 1:
            rivals[:] = own[:2]
        else:
            rivals[:] = sums[:, 1]
            _compete(rivals)
        by_eight[2, EXPERTS : EXPERTS + 2] = arms.means()
        return by_eight.reshape(-1, n)[:ALL], met

    def _held(self, x: Context, formed: Hashes, shared: Hashes, described: Vector) -> _Held:
        """Look all up at once: ``formed`` by form and column, ``shared`` by id."""
        sides, plain = left(x.hashes), x.plain
        shape, at = (len(sides), formed.shape[1]), len(sides) * formed.shape[1]
        crossing = plain if described.numbers.shape[1] > 1 else 0
        offsets = len(shared) if crossing else 0
        crossed = right(described.hashes ^ _SALT_SHARED)
        until = at + crossing * crossed.size
        mixed = np.empty(until + offsets, np.uint64)
        by_id = mixed[:at].reshape(shape)
        np.bitwise_xor(sides[:plain, None], formed[0], out=by_id[:plain])
        np.bitwise_xor(sides[plain:, None], formed[1], out=by_id[plain:])
        if crossing:
            by_feature = mixed[at:until].reshape(plain, -1)
            np.bitwise_xor(sides[:plain, None], crossed.ravel(), out=by_feature)
            np.bitwise_xor(sides[0], shared, out=mixed[until:])
        places = settled(mixed, self._recipe.bits)
        numbers = self._table.take(places)
        return _Held(
            places,
            numbers,
            numbers[:at].reshape(*shape, -1),
            numbers[at:until].reshape(crossing, *crossed.shape, numbers.shape[1]),
            numbers[until:],
        )

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
        rivals = tuple((None if served is None else served.rivals(own)) or ())
        rivals = rivals if len(rivals) > 1 else ()
        weighs = 1.0 if served is None else served.weighs(self._recipe.clip)
        taught = self._taught(x, a, own, rivals, y, (weighs * weight, weight))
        now = taught.expected
        judged = now if served is None else served.judged(ALL, now)
        if served is not None:
            expected = float(judged @ self._votes(context=bool(context), described=bool(action)))
            for key, change in served.credits(y, expected).items():
                self._tried.add(key, change * weight)
        self._mixture.judge(judged, y, weight)
        total = self._table.step(taught.places, taught.held, taught.steps, taught.order)
        self._arms.learn(own, y, weight)
        if not math.isfinite(total):
            raise StateNotFinite(total)

    def _taught(
        self,
        x: Context,
        a: Vector,
        own: int,
        rivals: tuple[int, ...],
        y: float,
        weights: tuple[float, float],
    ) -> _Taught:
        """Return what each expert expects of the action, and what the table is to learn of it.

        ``weights``: for those of the action alone, by how seldom it was chosen, and for the rivals.
        """
        now, (weight, of_rivals) = np.zeros(ALL), weights
        chosen = rivals.index(own) if rivals else 0
        sides = _ids_of(rivals or (own,))
        formed, shared = sides.formed[:, 0, chosen : chosen + 1], sides.shared[chosen : chosen + 1]
        if rivals:
            formed = np.concatenate((formed, sides.formed[:, 1]), axis=1)
        held = self._held(x, formed, shared, a)
        columns = formed.shape[1]
        sums = _sums(x, held).reshape(2, columns, -1)[..., :EXPERTS].transpose(2, 0, 1)
        slopes = sums.copy()  # the experts, forms, and columns: its own, then the rivals
        expected = now[: _SHARED.start].reshape(2, 2, EXPERTS)
        mine = slopes[:, :, 0]
        _to_shares(mine)
        expected[:, 0] = expected[:, 1] = mine.T
        mine -= y
        mine *= weight
        if rivals:
            shares = slopes[:, :, 1:]
            _compete(shares)
            p = shares[:, :, chosen].copy()
            expected[:, 1] = p.T
            shares *= (of_rivals * (1.0 - (1.0 - y) / np.maximum(1.0 - p, 1e-9)))[:, :, None]
            shares[:, :, chosen] = of_rivals * (p - y)
        slopes[2:] *= (_NORMALISED[:, None] / (1.0 + (x.forms * x.forms).sum(axis=1)))[:, :, None]
        size, plain = len(x.hashes) * columns, x.plain
        steps = np.empty((EXPERTS, len(held.places)))
        by_form = steps[:, :size].reshape(EXPERTS, len(x.hashes), columns)
        np.multiply(x.forms[0, :plain, None], slopes[:, :1], out=by_form[:, :plain])
        np.multiply(x.forms[1, plain:, None], slopes[:, 1:], out=by_form[:, plain:])
        now[_SHARED] = now[_OWN]
        described = len(held.crossed) > 0
        if described:
            told = x.told.numbers
            numbers = np.empty(len(held.places) - size)
            np.multiply.outer(told, a.numbers[0], out=numbers[:-1].reshape(len(told), -1))
            numbers[-1] = told[0]
            now[_SHARED] = _shared(numbers, held.numbers[size:], y, weight, steps[:, size:])
        now[_ARMS] = self._arms.of([own]).means()[:, 0]
        order = _order(len(x.hashes), columns, a.numbers.shape[1], described * plain)
        return _Taught(now, held.places, held.numbers, steps, order)


def _shared(numbers: Floats, held: Floats32, y: float, weight: float, steps: Floats) -> Floats:
    """Return what products and offset together expect; their steps are put into ``steps``."""
    sums: Floats = (numbers @ held)[:EXPERTS]
    _to_shares(sums)
    slope = (sums - y) * weight
    slope[2:] *= _NORMALISED / (1.0 + numbers @ numbers)
    np.multiply.outer(slope, numbers, out=steps)
    return sums


class _Taught(NamedTuple):
    """Says what each expert expects of an action, and what its reward teaches the table."""

    expected: Floats
    places: Places
    held: Floats32
    steps: Floats
    order: Places


def _order(features: int, columns: int, of_action: int, plain: int) -> Places:
    """The order of places, kept for another time unless it is long: a context may be wide."""
    long = features * columns + plain * of_action > _ORDER_KEPT
    return (_order_of if long else _kept_order)(features, columns, of_action, plain)


def _order_of(features: int, columns: int, of_action: int, plain: int) -> Places:
    """In which order places are taught: of two that are one the later counts.

    Ids come one after the other, each with its features, then the action's features each with the
    context's, and then the offset.
    """
    size, more = features * columns, plain * of_action
    by_id = np.arange(size).reshape(features, columns).T.ravel()
    by_feature = size + np.arange(more).reshape(plain, of_action).T.ravel()
    return np.concatenate((by_id, by_feature, np.arange(size + more, size + more + bool(plain))))


_kept_order = lru_cache(maxsize=64)(_order_of)


def _sums(x: Context, held: _Held) -> Floats:
    """Sums over the features of each form: shape (2, columns * 6)."""
    sums: Floats = x.forms @ held.formed.reshape(len(held.formed), -1)
    return sums


def _to_shares(outputs: Floats) -> None:
    """Take the logistic function of each, in place; no number is too great for it."""
    outputs *= 0.5
    np.tanh(outputs, out=outputs)
    outputs *= 0.5
    outputs += 0.5


def _compete(outputs: Floats) -> None:
    """Make outputs shares over the last axis, in place."""
    outputs -= np.maximum.reduce(outputs, axis=-1, keepdims=True)
    np.exp(outputs, out=outputs)
    outputs /= np.add.reduce(outputs, axis=-1, keepdims=True)
