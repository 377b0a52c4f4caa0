"""A model of the reward that each action would bring, for choices.

It is asked for all actions of a choice at once (:meth:`RewardModel.score`), and learns the reward
of the one that was chosen.  Rewards are numbers from ``low`` to ``high``, learned as shares of that
range.  Experts learn side by side, four of each kind as in :mod:`online.models.experts.linear`, own
and rivals once on the numbers as they are and once on knots
(:class:`online.models.choices.interactions.Context`), and two that only count:

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
(:class:`online.models.choices.mixture.Mixture`), judged by what it answered when it was asked: the
notes of a choice hold that, with the propensity and the hashes of the allowed actions.  A row
without notes is judged by what they answer now, and teaches the rivals nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from evaluation.metrics import Task
from online.models.base import Prediction, by_probability
from online.models.choices.action_counts import Arms, Counted
from online.models.choices.expert_table import Table, order_of
from online.models.choices.interactions import (
    Alike,
    Context,
    Crossing,
    Hashes,
    Places,
    Taken,
    Vector,
    alike,
    hash_of,
    hashes_of,
    laid_out,
    right,
    settled,
    split,
)
from online.models.choices.mixture import Mixture
from online.models.choices.scores import Scores, Served, served_of
from online.models.errors import LearnerUnusable, StateNotFinite
from online.models.experts.linear import EXPERTS, NORMALISED, Floats
from online.models.features.hashed import check_hashing
from online.models.state.composite import OfParts
from paramserver.core.pages import Floats32
from paramserver.core.sums import Sums
from replay.example import Example, Features, Label

Action = tuple[str, Features]
"""An action's id and its features."""

Question = tuple[Features, Sequence[Action], Alike | None]
"""A context with its actions, and with their features in one array, if it is known to be that."""

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
_AT_ONCE: Final = 8  # choices in the same arrays, which more of them would be too large for
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
    """Holds what the table has for choices: the features first, and at each place six numbers.

    Attributes
    ----------
    places
        Those of all three, one after the other.
    numbers
        At these places.
    formed
        Both forms of the context by ids and heads: shape (choices, features, columns, 6).
    crossed
        The context's features by those of the actions: (choices, features, alike or actions,
        features, 6).
    offset
        The ids alone: (choices, ids, 6).
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
        self._cast: tuple[Floats, dict[tuple[bool, bool], Floats]] = (np.zeros(0), {})
        self.structure = f"rewards 2, {task}, {recipe!r}"

    def __getstate__(self) -> dict[str, object]:
        """The state without votes, which are worked out again: a question leaves nothing in it."""
        return {**self.__dict__, "_cast": (np.zeros(0), {})}

    # -- answers ---------------------------------------------------------------------------------

    def score(
        self, context: Features, actions: Sequence[Action], table: Alike | None = None
    ) -> Scores:
        """Say what each action is expected to bring, and how sure that is; changes nothing.

        ``table`` has the actions' features, if these are alike and it is known already.
        """
        return self.score_many([(context, actions, table)])[0]

    def score_many(self, asked: Sequence[Question]) -> list[Scores]:
        """Say of several choices what :meth:`score` says of each, up to the last bits.

        Those whose contexts have the same shape, and whose actions are as many and alike, are
        worked out in the same arrays.
        """
        groups: dict[object, list[int]] = {}
        taken: list[tuple[Taken, Alike | None]] = []
        for i, (context, actions, table) in enumerate(asked):
            x = self._crossing.context(context, learns=False)
            if table is None:
                table = alike([features for _, features in actions])
            taken.append((x, table))
            alone = i if table is None else table.names
            shape = len(x.hashes), len(x.names), len(actions), bool(context), alone
            groups.setdefault(shape, []).append(i)
        found: dict[int, Scores] = {}
        for places in groups.values():
            for begin in range(0, len(places), _AT_ONCE):
                some = places[begin : begin + _AT_ONCE]
                scores = self._scored([asked[i] for i in some], [taken[i] for i in some])
                found |= zip(some, scores, strict=True)
        return [found[i] for i in range(len(asked))]

    def _scored(
        self, asked: Sequence[Question], taken: Sequence[tuple[Taken, Alike | None]]
    ) -> list[Scores]:
        """Score choices of one shape."""
        ids = [hashes_of(tuple([name for name, _ in actions])) for _, actions, _ in asked]
        arms = [self._arms.of(some) for some in ids]
        if tables := [table for _, table in taken if table is not None]:
            described = self._crossing.alike(tables)
        else:
            described = self._crossing.actions([features for _, features in asked[0][1]])
        answers, met = self._answers(laid_out([x for x, _ in taken]), ids, described, arms)
        context, tried = bool(asked[0][0]), dict(self._tried.now)
        by_features = bool(tables) or any(features for _, features in asked[0][1])
        votes = self._votes(context=context, described=by_features)
        shares = (votes @ answers.reshape(ALL, -1)).reshape(met.shape)
        return [
            Scores(
                low=self._low,
                range=self._range,
                ids=ids[i],
                answers=answers[:, i],
                votes=votes,
                shares=shares[i],
                met=met[i],
                context=context,
                arms=arms[i],
                tried=tried,
            )
            for i in range(len(asked))
        ]

    def _votes(self, *, context: bool, described: bool) -> Floats:
        """Each expert's vote; those that have nothing to go by have none.  Not to be changed."""
        losses = self._mixture.losses
        if self._cast[0] is not losses:
            self._cast = losses, {}
        kept, kind = self._cast[1], (context, described)
        if (votes := kept.get(kind)) is None:
            votes = kept[kind] = self._mixture.votes(_FREE[kind])
        return votes

    def _answers(
        self,
        x: Context,
        ids: Sequence[tuple[int, ...]],
        described: Vector,
        arms: Sequence[Counted],
    ) -> tuple[Floats, Floats]:
        """Return what each expert expects of each action: shares of the range.

        Their shape is (ALL, choices, actions).  And the variance of what is expected of each by its
        features, in logits: a mean over them, each by its number's square, by the squared slopes
        that the slow expert has met at each alone.  Were they all one feature, or all alike, it
        would be a logistic regression's.
        """
        k, n, sides = len(ids), len(ids[0]), [_ids_of(some) for some in ids]
        heads = 1 if n == 1 else 2  # asked of one alone, a rival would always say 1
        formed = np.array([side.formed[:, :heads].reshape(2, heads * n) for side in sides])
        held = self._held(x, formed, np.array([side.shared for side in sides]), described)
        # own, rivals; on knots the same; shared, the rest
        by_eight = np.empty((3, 2 * EXPERTS, k, n))
        own, rivals = by_eight[:, :EXPERTS], by_eight[:2, EXPERTS:]
        sums = _sums(x, held).reshape(k, 2, heads, n, -1)[..., :EXPERTS].transpose(2, 1, 4, 0, 3)
        own[:2] = sums[0]
        if held.crossed.size:
            numbers, ones, crossed = described.numbers, x.plain_numbers[:, None], held.crossed
            inner = (ones @ crossed.reshape(k, x.plain, -1)).reshape(k, *crossed.shape[2:])
            if inner.shape[1] == 1:
                each = numbers @ inner[:, 0]
            else:
                each = (numbers[:, :, None] @ inner)[:, :, 0]
            each += held.offset
            own[2] = each[..., :EXPERTS].transpose(2, 0, 1)
            squares = numbers * numbers
            unsure = 1.0 / (_PRIOR + crossed[:, 0, :, :, EXPERTS])  # the bias comes first
            met = np.add.reduce(squares * unsure, axis=-1)
            met /= np.add.reduce(squares, axis=-1)
        else:
            own[2], met = own[0], np.full((k, n), np.inf)
        _to_shares(own)
        if heads == 1:
            rivals[:] = own[:2]
        else:
            rivals[:] = sums[1]
            _compete(rivals)
        for i, counted in enumerate(arms):
            by_eight[2, EXPERTS : EXPERTS + 2, i] = counted.means
        return by_eight.reshape(-1, k, n)[:ALL], met

    def _held(self, x: Context, formed: Hashes, shared: Hashes, described: Vector) -> _Held:
        """Look all up at once.

        ``formed`` by choice, form and column, ``shared`` by choice and id; the actions' features
        are the same for all choices.
        """
        (k, features), plain, columns = x.sides.shape, x.plain, formed.shape[2]
        crossing = plain if described.numbers.shape[-1] > 1 else 0
        crossed = right(described.hashes ^ _SALT_SHARED)
        at = k * features * columns
        until = at + k * crossing * crossed.size
        mixed = np.empty(until + (shared.size if crossing else 0), np.uint64)
        by_id, sides = mixed[:at].reshape(k, features, columns), x.sides[:, :, None]
        np.bitwise_xor(sides[:, :plain], formed[:, :1], out=by_id[:, :plain])
        np.bitwise_xor(sides[:, plain:], formed[:, 1:], out=by_id[:, plain:])
        if crossing:
            by_feature = mixed[at:until].reshape(k, plain, -1)
            np.bitwise_xor(sides[:, :plain], crossed.ravel(), out=by_feature)
            np.bitwise_xor(sides[:, 0], shared, out=mixed[until:].reshape(shared.shape))
        places = settled(mixed, self._recipe.bits)
        numbers = self._table.take(places)
        return _Held(
            places,
            numbers,
            numbers[:at].reshape(k, features, columns, -1),
            numbers[at:until].reshape(k, crossing, *crossed.shape, numbers.shape[1]),
            numbers[until:].reshape(k, -1, numbers.shape[1]),
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
        x = laid_out([self._crossing.context(context, learns=True)])
        a = self._crossing.action(action, learns=True)
        a = Vector(a.hashes[None, :], a.numbers[None, None, :])
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
                self._tried.count(key, change * weight)
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
        held = self._held(x, formed[None], shared[None], a)
        forms = x.forms[0]
        features, columns, plain = forms.shape[1], formed.shape[1], x.plain
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
        slopes[2:] *= (_NORMALISED[:, None] / (1.0 + np.add.reduce(forms * forms, axis=1)))[
            :, :, None
        ]
        size = features * columns
        steps = np.empty((EXPERTS, len(held.places)))
        by_form = steps[:, :size].reshape(EXPERTS, features, columns)
        np.multiply(forms[0, :plain, None], slopes[:, :1], out=by_form[:, :plain])
        np.multiply(forms[1, plain:, None], slopes[:, 1:], out=by_form[:, plain:])
        now[_SHARED] = now[_OWN]
        described = held.crossed.size > 0
        if described:
            ones = x.plain_numbers[0]
            numbers = np.empty(len(held.places) - size)
            np.multiply.outer(ones, a.numbers[0, 0], out=numbers[:-1].reshape(len(ones), -1))
            numbers[-1] = ones[0]
            now[_SHARED] = _shared(numbers, held.numbers[size:], y, weight, steps[:, size:])
        now[_ARMS] = self._arms.of((own,)).means[:, 0]
        order = order_of(features, columns, a.numbers.shape[2], described * plain)
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


def _sums(x: Context, held: _Held) -> Floats:
    """Sums over the features of each form: shape (choices, 2, columns * 6)."""
    sums: Floats = x.forms @ held.formed.reshape(*held.formed.shape[:2], -1)
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
