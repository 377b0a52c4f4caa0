"""This module defines what the learner needs from a model.

A model holds its parameters and answers with them; it also knows what the rows since the last
cut did to them (its open delta).  It never sees the journal, the network or a clock.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, Protocol, TypeGuard, cast, runtime_checkable
from weakref import WeakKeyDictionary

import msgspec

from online.models.device_delta import Movable
from online.settings.model import Training
from paramserver.core.blocks import Blocks, Touched
from paramserver.core.wire import Curved
from replay.example import Example, Features, Label
from replay.memory import Lesson

_NOTES: Final[WeakKeyDictionary[type, bool]] = WeakKeyDictionary()


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """An answer: the label (or number) and, for classifiers, the probability of each label.

    ``notes`` are what a :class:`Noting` model wants to be told again when the label comes.
    """

    label: Label | None
    probabilities: dict[Label, float] | None
    notes: bytes | None = None


def by_logit(x: float) -> Prediction:
    """Answer of a binary task from the log odds of True."""
    if x >= 0:
        return by_probability(1.0 / (1.0 + math.exp(-x)))
    power = math.exp(x)  # NaN too
    return by_probability(power / (1.0 + power))


def by_probability(p: float) -> Prediction:
    """Answer of a binary task from the probability of True."""
    return Prediction(p > 0.5, {False: 1.0 - p, True: p})


def by_scores(scores: Mapping[Label, float]) -> Prediction:
    """Answer of a multiclass task: softmax; none if no label is known."""
    if not scores:
        return Prediction(None, {})
    most = max(scores.values())
    powers = {label: math.exp(score - most) for label, score in scores.items()}
    total = sum(powers.values())
    shares = {label: power / total for label, power in powers.items()}
    return Prediction(max(shares, key=shares.__getitem__), shares)


class Model(Protocol):
    """A model behind the learner.

    Attributes:
        mergeable: Whether deltas of several replicas can be merged.  If not, its state travels
            whole, as an ``opaque`` block, and every replica learns all rows in the same order, or
            one process learns them for all.
        learns: False for a class without ``learn_one``: it is served frozen.
        why_not_mergeable: The reason, for an operator; None if mergeable.
        numeric_only: True if every feature has to be a number.
        structure: Text that changes whenever old blocks stop fitting: estimator classes and
            parameters.
    """

    mergeable: bool
    learns: bool
    why_not_mergeable: str | None
    numeric_only: bool
    structure: str

    def predict(self, features: Features) -> Prediction:
        """Answer for one row.  Changes nothing, whatever the features are."""

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Answers for one row or more, each as :meth:`predict` gives it within 1e-12."""

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn one row.  May raise, and then leaves any state: the caller puts it back."""

    def cut(self) -> Blocks:
        """The open delta (what the rows since the last cut, reset or start did), and reset it."""

    def rebase(self, values: Blocks) -> None:
        """Take new values for the blocks and keys given, with the open delta on top."""

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values`` (all blocks; empty: as built), with an empty open delta."""


class Merging:
    """Says of a :class:`Model` that its deltas merge, and has it answer many rows one by one."""

    mergeable = True
    learns = True
    numeric_only = False
    why_not_mergeable: str | None = None

    def predict(self, features: Features) -> Prediction:
        """Answer for one row."""
        raise NotImplementedError

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Return the answer that :meth:`predict` gives to each row."""
        return [self.predict(x) for x in rows]


@runtime_checkable
class Forgetful(Protocol):
    """A model of which a copy can be let go of piece by piece.

    Python frees a million numbers in a tenth of a second, and nothing else runs meanwhile.
    """

    def forget(self, values: Blocks) -> None:
        """Drop the keys given.  This copy is asked nothing any more."""


@runtime_checkable
class Stepwise(Protocol):
    """A model of which a copy is made, and let go of, in steps, while another one answers."""

    def resetting(self, values: Blocks) -> Iterator[None]:
        """:meth:`Model.reset`, a step at a time; nothing else is asked of it meanwhile."""

    def dropping(self) -> Iterator[None]:
        """Let go of what it is made of; it is asked nothing any more."""


@runtime_checkable
class Mendable(Protocol):
    """A model that is put back after a row that it raised on, without being built as a whole."""

    def touched(self, names: Collection[str]) -> Touched:
        """All that learning rows of these features may have changed."""

    def mend(self, values: Blocks, names: Collection[str]) -> None:
        """Become what :meth:`Model.reset` would make of all values, given those touched.

        No row of other features was learned since the last cut.
        """


@runtime_checkable
class Noting(Protocol):
    """A model that learns of what it answered, too: its predictions have notes.

    They travel with the token into the row, at most :data:`replay.example.NOTES_BYTES_MAX`.
    """

    def learn_noted(self, example: Example, weight: float) -> None:
        """Learn as :meth:`Model.learn` does; notes that can't be the model's own count as none."""


@runtime_checkable
class Walking(Protocol):
    """A model that learns rows of the same names in one pass, faster than one by one."""

    def learn_alike(self, examples: Sequence[Example], weights: Sequence[float]) -> bool:
        """Learn rows that have the same names in the same order, with their notes.

        Afterwards every number is, bit for bit, what :meth:`Model.learn` row by row would have
        made.  False: nothing was changed, and the rows are to be learned one by one; then, and
        not here, a row that can't be learned raises.
        """


@runtime_checkable
class Repeating(Protocol):
    """A model that learns a kept row again, so that it counts in no number of rows or moment."""

    def learn_again(self, features: Features, label: Label, weight: float) -> None:
        """Learn as :meth:`Model.learn` does, but leave what describes the rows as it is."""


@runtime_checkable
class Rehearsing(Protocol):
    """A model that learns a fresh row and the drawn ones of a pass in one step."""

    def rehearse(self, example: Example, weight: float, lesson: Lesson) -> None:
        """Learn as :meth:`Model.learn` does, one step for each pass of the lesson, at least one."""


@runtime_checkable
class Trainable(Protocol):
    """A model that has an optimizer of its own."""

    def train(self, training: Training) -> None:
        """Learn with these settings; called once, before anything else."""

    @property
    def gap(self) -> float | None:
        """Relative distance of what answers from what learns; None if they are one."""


@runtime_checkable
class Revising(Protocol):
    """A model that can take a lesson back, whatever it has learned since.

    Attributes:
        why_not_revised: Why this one can't, for callers; None: it can.
    """

    @property
    def why_not_revised(self) -> str | None: ...

    def learn_provisional(self, example: Example, weight: float) -> None:
        """Learn as :meth:`Model.learn` does, but judge nothing by a label that may change."""

    def revise(self, example: Example, weight: float, before: Before) -> None:
        """Learn the example instead of what was learned before for the same features.

        The step is the difference of both gradients at the present parameters.
        """


Before = tuple[Label, float]
"""A label that was learned and is taken back, and its weight."""


def why_not_revised(model: Model) -> str | None:
    """Why the model can't take a lesson back; None: it can."""
    if isinstance(model, Revising):
        return model.why_not_revised
    return "its lessons are no sum of gradients"


def learn_example(
    model: Model,
    example: Example,
    factor: float = 1.0,
    lesson: Lesson = (),
    spec: str = "",
    before: Before | None = None,
) -> None:
    """Learn a row, its weight times ``factor``, with its notes if it has any for the model.

    ``lesson``: what is learned again with it, by a model that rehearses; the drawn rows of a pass
    weigh as much as one row together.  ``spec``: the model's; a delta of a device that began with
    the parameters of another spec says nothing to it, and is passed over.  ``before``: what the
    example is learned instead of.  A model that can't take a lesson back learns no provisional one.
    """
    weight = example.weight * factor
    if example.provisional or before is not None:
        able = isinstance(model, Revising) and model.why_not_revised is None
        if able and before is not None:
            cast(Revising, model).revise(example, weight, before)
            return
        if example.provisional:
            if able:
                cast(Revising, model).learn_provisional(example, weight)
            return
    if (moved := example.moved) is not None:
        if moved.spec == spec and isinstance(model, Movable):
            model.move(moved, weight)
        return
    if lesson and isinstance(model, Rehearsing):
        model.rehearse(example, weight, lesson)
        return
    if example.notes is not None and _notes(model):
        model.learn_noted(example, weight)
    else:
        model.learn(example.features, example.label, weight)
    if lesson and isinstance(model, Repeating):
        _learn_again(model, example, weight, lesson)


def _notes(model: Model) -> TypeGuard[Noting]:
    """Whether it learns notes, which is looked up once for each class: every row asks."""
    kind = type(model)
    if (known := _NOTES.get(kind)) is None:
        known = _NOTES[kind] = isinstance(model, Noting)
    return known


def _learn_again(model: Repeating, example: Example, weight: float, lesson: Lesson) -> None:
    for i, drawn in enumerate(lesson):
        if i:
            model.learn_again(example.features, example.label, weight)
        for item in drawn.items:
            model.learn_again(item.features, item.label, item.weight / len(drawn.items))


@runtime_checkable
class Compensable(Protocol):
    """A model whose late deltas can be corrected, see :mod:`paramserver.core.compensation`."""

    def compensate(self) -> None:
        """Measure the curvature of rows from now on."""

    def curved(self) -> Curved:
        """Start and curvature of the open delta; nothing if they are not measured."""
