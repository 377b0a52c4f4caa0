"""This module defines the interface of a model, and optional interfaces for what some models can.

A model holds parameters and predicts with them.  It also keeps its *open delta*: what the rows
learned since the last :meth:`Model.cut` have changed.  A model has no access to the journal, the
network or a clock.
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
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import Curved
from replay.example import Example, Features, Label
from replay.memory import Lesson

_NOTES: Final[WeakKeyDictionary[type, bool]] = WeakKeyDictionary()


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """An answer: the label (or number) and, for classifiers, the probability of each label.

    ``notes`` are bytes that a :class:`Noting` model gets back when the row's label arrives.
    """

    label: Label | None
    probabilities: dict[Label, float] | None
    notes: bytes | None = None


def by_logit(x: float) -> Prediction:
    """Make the answer of a binary task from the log odds of True."""
    if x >= 0:
        return by_probability(1.0 / (1.0 + math.exp(-x)))
    power = math.exp(x)  # NaN too
    return by_probability(power / (1.0 + power))


def by_probability(p: float) -> Prediction:
    """Make the answer of a binary task from the probability of True."""
    return Prediction(p > 0.5, {False: 1.0 - p, True: p})


def by_scores(scores: Mapping[Label, float]) -> Prediction:
    """Make the answer of a multiclass task: the softmax of the scores by label.

    Without scores the answer's label is None.
    """
    if not scores:
        return Prediction(None, {})
    most = max(scores.values())
    powers = {label: math.exp(score - most) for label, score in scores.items()}
    total = sum(powers.values())
    shares = {label: power / total for label, power in powers.items()}
    return Prediction(max(shares, key=shares.__getitem__), shares)


class Model(Protocol):
    """The interface that every model has.

    Attributes:
        mergeable: Whether deltas of several replicas can be merged.  If not, the state is sent as
            a whole, as an ``opaque`` block, and every replica learns all rows in the same order,
            or one process learns them for all replicas.
        learns: False for a class without ``learn_one``: it is served frozen.
        why_not_mergeable: The reason, for an operator; None if mergeable.
        numeric_only: True if every feature has to be a number.
        structure: Text that changes whenever stored blocks no longer fit the model: estimator
            classes and parameters.
    """

    mergeable: bool
    learns: bool
    why_not_mergeable: str | None
    numeric_only: bool
    structure: str

    def predict(self, features: Features) -> Prediction:
        """Predict one row.  Changes no state, whatever the features are."""

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Predict one row or more, each as :meth:`predict` does, within 1e-12."""

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn one row, with its weight.

        If it raises, the state is undefined, and the caller restores it with :meth:`reset`.  A
        ``NothingLearned`` error leaves the state as it was.
        """

    def cut(self) -> Blocks:
        """Return the open delta (the change since the last cut, reset or start) and empty it."""

    def rebase(self, values: Blocks) -> None:
        """Set the given blocks and keys to new values, and apply the open delta to them."""

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta.

        ``values`` has all blocks; if it is empty, the state is that of the model as built.
        """


class Merging:
    """Base class of models whose deltas merge; it predicts many rows one by one."""

    mergeable = True
    learns = True
    numeric_only = False
    why_not_mergeable: str | None = None

    def predict(self, features: Features) -> Prediction:
        """Predict the label of one row."""
        raise NotImplementedError

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Predict each row with :meth:`predict`."""
        return [self.predict(x) for x in rows]


@runtime_checkable
class Forgetful(Protocol):
    """A model whose memory can be freed piece by piece.

    Python takes a tenth of a second to free a million numbers, and nothing else runs meanwhile.
    """

    def forget(self, values: Blocks) -> None:
        """Drop the given keys.  The model is not used after the first call."""


@runtime_checkable
class Stepwise(Protocol):
    """A model whose state is set and freed in steps, so that other work can run in between."""

    def resetting(self, values: Blocks) -> Iterator[None]:
        """Do :meth:`Model.reset` one step at a time; the model is not used until it is done."""

    def dropping(self) -> Iterator[None]:
        """Free the model's memory one step at a time; the model is not used afterwards."""


@runtime_checkable
class Mendable(Protocol):
    """A model that can undo a row that raised by restoring only the keys that the row touched."""

    def touched(self, names: Collection[str]) -> Touched:
        """Return all blocks and keys that learning rows with these features may change."""

    def mend(self, values: Blocks, names: Collection[str]) -> None:
        """Restore the state that :meth:`Model.reset` would set, given only the touched values.

        Requires that no row with other features was learned since the last cut.
        """


@runtime_checkable
class Sharing(Protocol):
    """A model whose tables can be read where the parameter server of this host publishes them."""

    def rest_on(self, tables: Mapping[str, Rows]) -> Iterator[None]:
        """Read these tables, by block, for rows that have no value of their own, from now on.

        Each row must be equal to that of the model or have a value of its own.  The steps that are
        returned drop own values that equal the tables'.
        """


@runtime_checkable
class Noting(Protocol):
    """A model that learns from its earlier answer, too: its predictions have notes.

    Notes travel with the prediction's token into the row of its label; they have at most
    :data:`replay.example.NOTES_BYTES_MAX` bytes.
    """

    def learn_noted(self, example: Example, weight: float) -> None:
        """Learn as :meth:`Model.learn` does; notes of another form are ignored."""


@runtime_checkable
class Walking(Protocol):
    """A model that learns a batch of rows with the same feature names faster than one by one."""

    def learn_alike(self, examples: Sequence[Example], weights: Sequence[float]) -> bool:
        """Learn rows that have the same names in the same order, with their notes.

        The resulting state is, bit for bit, that of :meth:`Model.learn` row by row.  Returns False
        if it changed nothing and the rows have to be learned one by one.  It never raises for a
        row that can't be learned: it returns False, and the row raises when it is learned alone.
        """


@runtime_checkable
class Repeating(Protocol):
    """A model that can learn a rehearsed row without counting it in row counts and moments."""

    def learn_again(self, features: Features, label: Label, weight: float) -> None:
        """Learn as :meth:`Model.learn` does, without updating row counts and moments."""


@runtime_checkable
class Rehearsing(Protocol):
    """A model that learns a fresh row and the rows drawn for rehearsal in one step."""

    def rehearse(self, example: Example, weight: float, lesson: Lesson) -> None:
        """Learn as :meth:`Model.learn` does, with one step for each pass of the lesson (≥ 1)."""


@runtime_checkable
class Trainable(Protocol):
    """A model that has an optimizer of its own."""

    def train(self, training: Training) -> None:
        """Set how the model learns; called once, before any other method."""

    @property
    def gap(self) -> float | None:
        """Return the relative distance of the averaged parameters from those that learn.

        None if predictions use the parameters that learn.
        """


@runtime_checkable
class Revising(Protocol):
    """A model that can replace the label of a learned row, whatever it has learned since.

    Attributes:
        why_not_revised: Why this model can't, for callers; None if it can.
    """

    @property
    def why_not_revised(self) -> str | None: ...

    def learn_provisional(self, example: Example, weight: float) -> None:
        """Learn as :meth:`Model.learn` does, but score no experts by a label that may change."""

    def revise(self, example: Example, weight: float, before: Before) -> None:
        """Learn the example's label in place of the one learned before for the same features.

        The step is the difference of both gradients at the present parameters.
        """


@runtime_checkable
class Rounding(Protocol):
    """A model that can round the numbers of a table in its deltas, so that they are smaller.

    What rounding leaves over stays in the open delta, and is sent with the next change of its row.
    """

    def round_deltas(self) -> None:
        """Start to round; called once, before any row is learned."""

    def drop_rest(self) -> None:
        """Drop what rounding has left over.  Call it only while no row is in the open delta."""


@runtime_checkable
class Tabled(Protocol):
    """A model with a table, of which a replica need not hold all rows.

    Attributes:
        table: Name of the table's block.
    """

    table: str

    def row_ids(self, features: Features) -> list[int]:
        """Return the ids of the rows that predicting or learning a row reads.  Changes nothing."""


Before = tuple[Label, float]
"""A learned label that is replaced, and its weight."""


def why_not_revised(model: Model) -> str | None:
    """Return why the model can't replace a learned label; None if it can."""
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
    """Have the model learn a row, with its notes if the model uses them.

    A model that can't replace learned labels skips provisional rows.

    Parameters:
        model: The model that learns.
        example: The row; one with ``moved`` is a device's delta.
        factor: Multiplies the row's weight.
        lesson: Rows that are rehearsed with it; those of one pass together weigh as much as one
            row.
        spec: The model's spec hash.  A device's delta from another spec is skipped.
        before: The label and weight that the example replaces.
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
    """Return whether the model uses notes.  Cached by class, since it is called for every row."""
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
    """A model whose late deltas can be compensated: :mod:`paramserver.core.compensation`."""

    def compensate(self) -> None:
        """Start to measure the curvature of the rows that are learned."""

    def curved(self) -> Curved:
        """Return start values and curvature of the open delta; empty if not measured."""
