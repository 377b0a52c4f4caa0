"""Training examples and their parts, as they are learned and stored in the journal."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Final

import msgspec

Value = float | int | bool | str | None
"""A feature's value.  Numbers are finite; requests with others are refused."""

Features = dict[str, Value]

Label = bool | int | float | str
"""A label in its canonical form, as the model's task declares it."""


UNLABELLED: Label = ""
"""Stands for a missing label in a binary task, none of whose labels is text."""

NOTES_BYTES_MAX = 4096
"""Greatest size of notes in bytes; longer ones are left out of rows."""

_dumps = lru_cache(maxsize=1024, typed=True)(json.dumps)  # typed: True, 1 and 1.0 differ
_loads = lru_cache(maxsize=1024)(json.loads)


def label_text(label: Label) -> str:
    """Return the label's JSON text, which serves as its key."""
    return _dumps(label)


def label_of(text: str) -> Label:
    """Return the label with this JSON text."""
    label: Label = _loads(text)
    return label


def is_unlabelled(task: str, label: Label) -> bool:
    """Return whether a row of the task has no label (it is learned nevertheless)."""
    return task == "binary" and type(label) is str


class Judged(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The filters' results for a row, stored with it so that a later replay need not filter again.

    Attributes:
        score: Statistic of the deciding filter, finite.
        reason: Why the row is clipped or not learned; empty if it is learned with full weight.
        evidence: By filter, nats for (> 0) or against (< 0) the row's source.
        more: Other changes to the statistics of sources: block → source → number.
    """

    score: float
    reason: str = ""
    evidence: dict[str, float] = {}
    more: dict[str, dict[str, float]] | None = None


class Tensor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An array: ``data`` holds int8 to be multiplied by ``scale``, or float32 if ``scale`` is 0.

    float32 is little-endian; the elements are in the order of the edge export's format.
    """

    scale: float
    data: bytes


class Moved(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A parameter delta from a device, the effect of rows that only the device has seen.

    Attributes:
        spec: Hash of the model spec of the parameters; models of other specs skip it.
        sequence: Edge release that the device started from.
        n: Number of rows that the device learned, at least 1.
        columns: Names of the features of the weights; empty: the last layer of a network.
        outputs: JSON texts of the labels of the outputs, ``""`` for a single output.
        weights, bias: Changes of the parameters.  The weights have the shape (columns, outputs) in
            a linear model, and (outputs, inputs) in a network's last layer.
    """

    spec: str
    sequence: int
    n: int
    columns: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Tensor
    bias: Tensor


class Corrects(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The provisional label of an event that a final label corrects.

    Attributes:
        partition, offset, key: Position and key of the row with the provisional label; 0, 0 and
            empty if none was learned, so that the final label is learned as an ordinary one.
        label, weight: The provisional label and its weight.
        source, evidence: Its source, and the filters' nats for or against that source.
        defaulted: The label was a default because none had come in time.  The event has then been
            counted in the scores already.
    """

    partition: int
    offset: int
    key: bytes
    label: Label
    weight: float
    source: str
    evidence: dict[str, float] = {}
    defaulted: bool = False


SENT_LABEL: Final = "\0label"
"""Name in :attr:`Example.raw` of the label as it was sent, if another number is learned.

No feature can have this name, because names contain no control characters.
"""


class Example(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Features and label of one event, with the prediction that was made for it.

    Attributes:
        features: Features as parsed from the request, before any transform.
        label: The true label in canonical form.
        weight: Importance of the event, finite and > 0; 1.0 is one ordinary row.
        score: The model's prediction: the probability of each label by the label's JSON text, or
            ``{"": value}`` in regression.  None if nothing was predicted.
        version: ``(epoch, count, own)`` of the model that made the prediction.
        predicted_at, event_time: POSIX seconds; None if unknown.
        no_change: Newest label that the replica knew when it predicted (the no-change baseline).
        notes: Opaque data of the model that made the prediction, returned to it with the label.
        judged: The filters' results; None if no filter ran.
        known: Last offset of each partition that the predicting model contained, so that a
            challenger can predict from the same rows.  None: not recorded; empty: there were too
            many partitions.
        moved: A device's delta.  Then there are no features, the label is the hash of the delta,
            and the weight is its factor.
        raw: Sent values of features that were far outside their range and therefore replaced in
            ``features``, and the sent label under :data:`SENT_LABEL`.  None: nothing was replaced.
        choice: Encoded choice (actions and propensities) whose reward the row is; only the code
            that chose reads it.  None: no choice.
        sure: Encoded confidence of the prediction, if the caller requested it; only the code that
            computed it reads it.  None: not requested.
        provisional: The label may still change: its effect is reverted when the final label comes,
            and it counts in no score.
        corrects: For a final label after a provisional one, the latter.
        taught: An earlier row has trained the model on these features; this row only supplies the
            label, to score the prediction.
        late: For a default label or reward (none came in time): the weight of a positive label that
            comes later, if one may.  None: the label was sent.
    """

    features: Features
    label: Label
    weight: float = 1.0
    score: dict[str, float] | None = None
    version: tuple[int, int, int] | None = None
    predicted_at: float | None = None
    event_time: float | None = None
    no_change: Label | None = None
    notes: bytes | None = None
    judged: Judged | None = None
    moved: Moved | None = None
    raw: Features | None = None
    known: dict[int, int] | None = None
    choice: bytes | None = None
    sure: bytes | None = None
    provisional: bool = False
    corrects: Corrects | None = None
    taught: bool = False
    late: float | None = None

    @property
    def scored(self) -> bool:
        """Whether the label counts in scores: it is final and has not been counted before.

        A default label counts, because no other may follow; a label that corrects it does not.
        """
        if self.moved is not None or (self.provisional and self.late is None):
            return False
        first = self.corrects
        return first is None or not first.defaulted or first.offset == 0

    @property
    def sent_label(self) -> Label:
        """The label as the caller sent it."""
        if self.raw is None:
            return self.label
        sent = self.raw.get(SENT_LABEL)
        return self.label if sent is None else sent

    @property
    def ordinary(self) -> bool:
        """Whether the row is a plain training row: no delta, correction or provisional label."""
        alone = self.corrects is None and not self.taught
        return self.moved is None and not self.provisional and alone


class PredictionHalf(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The part of a prediction that is stored to wait for a label; fields as in `Example`."""

    features: Features
    score: dict[str, float] | None = None
    version: tuple[int, int, int] | None = None
    predicted_at: float | None = None
    no_change: Label | None = None
    notes: bytes | None = None
    raw: Features | None = None
    known: dict[int, int] | None = None
    choice: bytes | None = None
    sure: bytes | None = None


class WaitingLabel(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A label that waits for its prediction; the first three fields as in :class:`Example`.

    Attributes:
        source, event_id: Source and event id of the future row.
        at: Time of receipt (POSIX seconds).
        keys: Keys of the predictions that it may label; it is stored under each of them.
    """

    label: Label
    weight: float
    event_time: float | None
    source: str
    event_id: str
    at: float
    keys: tuple[bytes, ...]


class LabelHalf(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A waiting label in the format of older journals; fields as in :class:`Example`."""

    label: Label
    weight: float = 1.0
    event_time: float | None = None
