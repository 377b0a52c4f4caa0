"""A model of the expected reward of each action, for contextual bandits (task ``choose``).

It scores all actions of a choice at once (:meth:`RewardModel.score`) and learns from the reward of
the chosen one.  Rewards are numbers from ``low`` to ``high``, scaled to [0, 1].  The model mixes
experts of the kinds below: four each of ``own``, ``rival`` and ``shared``
(:mod:`online.models.experts.linear`), ``own`` and ``rival`` once on the numbers as they are and
once on knots (:class:`online.models.choices.interactions.Context`), and two of ``arm``:

========= ====================================== ==============================================
experts   output for an action                   learns
========= ====================================== ==============================================
own       logistic; weights of the action's id   of the chosen action
          on the context
rival     softmax over the allowed actions of    of all allowed actions: a reward is evidence
          such outputs                           against the others, a missing one for them (the
                                                 likelihood of "the chosen action is, or is not,
                                                 the rewarded one")
shared    logistic; weights on the action's      of the chosen action, and so of all similar
          features and their products with the   ones, including new ones
          context, and an offset of its id
arm       mean reward of the action's id, over   of the chosen action
          all time and discounted
========= ====================================== ==============================================

The answer is their mixture, weighted by the discounted loss of each expert
(:class:`online.models.choices.mixture.Mixture`).  The loss is that of the answer at the time of the
choice: the choice's notes have it, with the propensity and the hashes of the allowed actions.  For
a row without notes the loss is that of the present answers, and the rivals learn nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from evaluation.metrics import Task
from online.models.base import Prediction, by_probability
from online.models.choices.action_counts import Arms, Counted
from online.models.choices.expert_table import Table
from online.models.choices.interactions import (
    ACTION,
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
from online.models.choices.lessons import (
    HEADS,
    SALT_SHARED,
    Lessons,
    Rewarded,
    compete,
    ids_of,
    to_shares,
)
from online.models.choices.mixture import Mixture
from online.models.choices.scores import Scores, Served, served_of
from online.models.errors import LearnerUnusable, StateNotFinite
from online.models.experts.linear import EXPERTS, Floats
from online.models.features.hashed import Words, check_hashing
from online.models.state.composite import Composite
from paramserver.core.sums import Sums
from paramserver.core.tables.pages import Floats32
from replay.example import Example, Features, Label, Value

Action = tuple[str, Features]
"""An action's id and its features."""

Question = tuple[Features, Sequence[Action], Alike | None]
"""A context, its actions, and the actions' features in one array if they were converted already."""

ALL: Final = HEADS * EXPERTS + 2
_SHARED: Final = slice((HEADS - 1) * EXPERTS, HEADS * EXPERTS)
_AT_ONCE: Final = 8  # choices in one batch: bounds the size of the arrays
_PRIOR: Final = 0.3
"""Sum of squared gradients that corresponds to a standard logistic prior of a weight."""

_FREE: Final = {
    (context, described): np.repeat(
        [context, described, True], [_SHARED.start, EXPERTS, ALL - _SHARED.stop]
    )
    for context in (False, True)
    for described in (False, True)
}
"""The experts that are used, by whether the context and the actions have features."""


class _Held(NamedTuple):
    """The table's numbers for some choices.

    Attributes:
        places: Slots of ``formed``, ``crossed`` and ``offset``, one after the other.
        numbers: The numbers in these slots: shape (slots, 6).
        formed: Both forms of the context × ids and heads: (choices, features, columns, 6).
        crossed: Context × features of the actions: (choices, context's features, 1 or actions,
            action's features, 6); 1 if all actions have the same features.
        offset: The ids alone: (choices, ids, 6).
    """

    places: Places
    numbers: Floats32
    formed: Floats32
    crossed: Floats32
    offset: Floats32


@dataclass(frozen=True, slots=True)
class Rewards:
    """A recipe that a factory returns to serve a :class:`RewardModel`.

    Attributes:
        low, high: Least and greatest reward.
        text: Names of features that are bags of words: the context's, and the actions' with ``@``
            in front.
        bits: The table has 2^bits slots.
        seed: Seed of the hash of names, the same in all processes.
        clip: Bound on the importance weight 1 / propensity of a reward.  1: all rewards weigh the
            same.
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
        """Make the model.  Raises LearnerUnusable for a multiclass task."""
        if task == "multiclass":
            problem = "a reward is a number, or true or false, and the task is multiclass"
            raise LearnerUnusable("rewards", problem, "Take task: regression")
        return RewardModel(self, task)


class RewardModel(Composite):
    """The model that a :class:`Rewards` recipe describes."""

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
        self._cached_weights: tuple[Floats, dict[tuple[bool, bool], Floats]] = (np.zeros(0), {})
        self.words = _Words()
        self.structure = f"rewards 2, {task}, {recipe!r}"

    def __getstate__(self) -> dict[str, object]:
        """Return the state without cached weights, so that a query does not change it."""
        return {**self.__dict__, "_cached_weights": (np.zeros(0), {})}

    # -- answers ---------------------------------------------------------------------------------

    def score(
        self, context: Features, actions: Sequence[Action], table: Alike | None = None
    ) -> Scores:
        """Return the expected reward of each action and its uncertainty, without changing state.

        ``table`` has the actions' features in one array, if they were converted already.
        """
        return self.score_many([(context, actions, table)])[0]

    def score_many(self, asked: Sequence[Question]) -> list[Scores]:
        """Score several choices, each as :meth:`score` does within rounding.

        Choices whose contexts have the same shape, and which have the same number of actions with
        the same features, are computed in one batch.
        """
        groups: dict[object, list[int]] = {}
        taken: list[tuple[Taken, Alike | None]] = []
        for i, (context, actions, table) in enumerate(asked):
            x = self._crossing.context(context)
            if table is None:
                table = alike([features for _, features in actions])
            taken.append((x, table))
            alone = i if table is None else table.names
            shape = len(x.hashes), len(x.names), len(actions), bool(context), alone
            groups.setdefault(shape, []).append(i)
        scores_by_place: dict[int, Scores] = {}
        for places in groups.values():
            for begin in range(0, len(places), _AT_ONCE):
                some = places[begin : begin + _AT_ONCE]
                scores = self._scored([asked[i] for i in some], [taken[i] for i in some])
                scores_by_place |= zip(some, scores, strict=True)
        return [scores_by_place[i] for i in range(len(asked))]

    def _scored(
        self, asked: Sequence[Question], taken: Sequence[tuple[Taken, Alike | None]]
    ) -> list[Scores]:
        """Score a batch of choices of one shape."""
        ids = [hashes_of(tuple([name for name, _ in actions])) for _, actions, _ in asked]
        arms = [self._arms.of(some) for some in ids]
        if tables := [table for _, table in taken if table is not None]:
            described = self._crossing.alike(tables)
        else:
            described = self._crossing.actions([features for _, features in asked[0][1]])
        answers, variances = self._answers(laid_out([x for x, _ in taken]), ids, described, arms)
        context, tried = bool(asked[0][0]), dict(self._tried.now)
        by_features = bool(tables) or any(features for _, features in asked[0][1])
        votes = self._votes(context=context, described=by_features)
        shares = (votes @ answers.reshape(ALL, -1)).reshape(variances.shape)
        return [
            Scores(
                low=self._low,
                range=self._range,
                ids=ids[i],
                answers=answers[:, i],
                votes=votes,
                shares=shares[i],
                variances=variances[i],
                context=context,
                arms=arms[i],
                tried=tried,
            )
            for i in range(len(asked))
        ]

    def _votes(self, *, context: bool, described: bool) -> Floats:
        """Return each expert's weight, 0 for unused ones; cached, so callers must not change it."""
        losses = self._mixture.losses
        if self._cached_weights[0] is not losses:
            self._cached_weights = losses, {}
        cached, kind = self._cached_weights[1], (context, described)
        if (votes := cached.get(kind)) is None:
            votes = cached[kind] = self._mixture.votes(_FREE[kind])
        return votes

    def _answers(
        self, x: Context, ids: Sequence[tuple[int, ...]], described: Vector, arms: Sequence[Counted]
    ) -> tuple[Floats, Floats]:
        """Return each expert's expected rewards, and the variance of each action's.

        Expected rewards are in [0, 1], shape (ALL, choices, actions).  The variance is in logits,
        shape (choices, actions): 1 / (prior + sum of squared gradients of the slow expert) of each
        feature, averaged with the squares of the features' values as weights.  For a single feature
        it is the variance of a logistic regression.
        """
        k, n, sides = len(ids), len(ids[0]), [ids_of(some) for some in ids]
        heads = 1 if n == 1 else 2  # for a single action the softmax of a rival is always 1
        formed = np.array([side.formed[:, :heads].reshape(2, heads * n) for side in sides])
        held = self._held(x, formed, np.array([side.shared for side in sides]), described)
        # rows of eight experts: own and rival; own and rival on knots; shared and the rest
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
            variances = np.add.reduce(squares * unsure, axis=-1)
            variances /= np.add.reduce(squares, axis=-1)
        else:
            own[2], variances = own[0], np.full((k, n), np.inf)
        to_shares(own)
        if heads == 1:
            rivals[:] = own[:2]
        else:
            rivals[:] = sums[1]
            compete(rivals)
        for i, counted in enumerate(arms):
            by_eight[2, EXPERTS : EXPERTS + 2, i] = counted.means
        return by_eight.reshape(-1, k, n)[:ALL], variances

    def _held(self, x: Context, formed: Hashes, shared: Hashes, described: Vector) -> _Held:
        """Look up the table's numbers for all products of features in one access.

        ``formed`` has hashes by choice, form and column, ``shared`` by choice and id; the actions'
        features are the same for all choices.
        """
        (k, features), plain, columns = x.sides.shape, x.plain, formed.shape[2]
        crossing = plain if described.numbers.shape[-1] > 1 else 0
        crossed = right(described.hashes ^ SALT_SHARED)
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
        """Predict one row: the expected reward of one action in a context."""
        context, name, action = split(features)
        share = float(self.score(context, [(name, action)]).shares[0])
        if self._binary:
            return by_probability(share)
        return Prediction(self._low + self._range * share, None)

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Predict each row with :meth:`predict`."""
        return [self.predict(features) for features in rows]

    # -- learning --------------------------------------------------------------------------------

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn a reward that has no notes.  Raises StateNotFinite."""
        self._learn(features, label, weight, None)

    def learn_noted(self, example: Example, weight: float) -> None:
        """Learn a reward with the notes of its choice; raises as ``learn``."""
        served = None if example.notes is None else served_of(example.notes)
        self._learn(example.features, example.label, weight, served)

    def learn_alike(self, examples: Sequence[Example], weights: Sequence[float]) -> bool:
        """Learn rewards with the same names in the same order, as one by one, in one pass.

        Returns False if nothing was changed and they have to be learned one by one.
        """
        served = [None if x.notes is None else served_of(x.notes) for x in examples]
        rows = [(x.features, x.label) for x in examples]
        try:
            return self._teach(rows, weights, served)
        except ArithmeticError:  # raised again when the row is learned alone
            return False

    def _learn(
        self, features: Features, label: Label, weight: float, served: Served | None
    ) -> None:
        if not self._teach([(features, label)], [weight], [served]):
            raise StateNotFinite(math.nan)

    def _teach(
        self,
        rows: Sequence[tuple[Features, Label]],
        weights: Sequence[float],
        served: Sequence[Served | None],
    ) -> bool:
        """Learn rows; False: nothing was changed, as they differ in shape or one is not finite."""
        if (taught := self._crossing.taught([features for features, _ in rows])) is None:
            return False
        own = [hash_of(name) for name in taught.own]
        labels = [label for _, label in rows]
        said = [*map(self._rewarded, own, labels, weights, served)]
        if len({len(one.rivals) for one in said}) > 1:
            return False
        lessons = Lessons.of(said, taught.context, taught.action, self._recipe.bits)
        slots, held, at = self._table.opened(lessons.places)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            answers = lessons.teach(held, at)
        if not self._table.put(slots, held):
            return False
        self._crossing.put(taught.moments)
        judged = np.empty((len(said), ALL))
        for i, (action, one) in enumerate(zip(own, served, strict=True)):
            known = None if one is None else one.judged(ALL)
            if known is None:
                known = np.concatenate((answers[i], self._arms.means_of(action)))
            judged[i] = known
            self._arms.learn(action, said[i].y, weights[i])
        before = self._mixture.judge(judged, [one.y for one in said], weights)
        free = _FREE[_sides(rows[0][0])]
        expected = np.add.reduce(judged * self._mixture.votes(free, before), axis=1).tolist()
        for i, one in enumerate(served):
            if one is not None:
                for key, change in one.credits(said[i].y, expected[i]).items():
                    self._tried.count(key, change * weights[i])
        return True

    def _rewarded(self, own: int, label: Label, weight: float, served: Served | None) -> Rewarded:
        y = min(1.0, max(0.0, (float(label) - self._low) / self._range))
        rivals = (None if served is None else served.rivals(own)) or [own]
        weighs = 1.0 if served is None else served.weighs(self._recipe.clip)
        return Rewarded(tuple(rivals), rivals.index(own), y, weighs * weight, weight)


class _Words(Words):
    """The names in a row: those of its features, and one for each action, which has counts."""

    def __init__(self) -> None:
        pass

    def keys(self, name: str, value: Value) -> Sequence[str]:
        return (f"{ACTION}={hash_of(str(value))}",) if name == ACTION else (name,)

    def without(self, name: str, value: Value, absent: Collection[str]) -> Value | None:
        """Return None, because nothing is left of a value without its key."""
        return None


def _sides(features: Features) -> tuple[bool, bool]:
    """Return whether a row's context has features, and whether its action has."""
    of_action = sum([name.startswith(ACTION) for name in features])
    return len(features) > of_action, of_action > (ACTION in features)


def _sums(x: Context, held: _Held) -> Floats:
    """Sum over the features of each form: shape (choices, 2, columns * 6)."""
    sums: Floats = x.forms @ held.formed.reshape(*held.formed.shape[:2], -1)
    return sums
