"""One piece of feedback, as it is learned and as it is kept."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Final

import msgspec

Value = float | int | bool | str | None
"""A feature's value.  Numbers are finite; the service refuses others."""

Features = dict[str, Value]

Label = bool | int | float | str
"""A label in its canonical form, as the model's task declares it."""


UNLABELLED: Label = ""
"""The label of a row that came without one, of a binary task: no label of such a task is a text."""

NOTES_BYTES_MAX = 4096
"""Longer notes are left out of rows."""

_dumps = lru_cache(maxsize=1024, typed=True)(json.dumps)  # typed: True, 1 and 1.0 are three
_loads = lru_cache(maxsize=1024)(json.loads)


def label_text(label: Label) -> str:
    """The label's JSON text: how a label is written as a key."""
    return _dumps(label)


def label_of(text: str) -> Label:
    """The label with this JSON text."""
    label: Label = _loads(text)
    return label


def is_unlabelled(task: str, label: Label) -> bool:
    """Whether a row of the task came without a label, and is learned all the same."""
    return task == "binary" and type(label) is str


class Judged(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The filters' findings are written with the row: whoever learns it later asks no filter.

    Attributes:
        score: What the deciding test measured, finite.
        reason: Why the row is not learned whole; empty if it is.
        evidence: Nats by test for (> 0) or against (< 0) the row's source.
        more: What else the row did to what is known of sources: by block, a number by source.
    """

    score: float
    reason: str = ""
    evidence: dict[str, float] = {}
    more: dict[str, dict[str, float]] | None = None


class Tensor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Numbers of one kind: ``data`` are int8 to be multiplied by ``scale``, or float32 if it is 0.

    float32 is little-endian; the order of the numbers is that of the edgepack.
    """

    scale: float
    data: bytes


class Moved(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A delta instead of rows: what a device's own rows did to the parameters that it had.

    Attributes:
        spec: Hash of the spec that the parameters are of; another model passes it over.
        sequence: Edge release that the device began with.
        n: Rows that it learned, at least 1.
        columns: Names of the features that the weights belong to; empty: the last layer of a
            network.
        outputs: JSON texts of the labels that the outputs belong to, ``""`` of a single one.
        weights, bias: Linear: weights (columns, outputs).  A network's last layer: weights
            (outputs, inputs).
    """

    spec: str
    sequence: int
    n: int
    columns: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Tensor
    bias: Tensor


class Corrects(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Names what a final label takes back: the first label of its event, which was provisional.

    Attributes:
        partition, offset, key: Of the row that taught it; 0, 0 and none if nothing did, and the
            final is a first lesson.
        label, weight: What it taught, and how much it weighed.
        source, evidence: Who sent it, and the nats that its filters found for or against that
            source, by test.
        defaulted: Nobody sent it: no label had come in time, and the event counts in scores as it
            did then.
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
"""The name in :attr:`Example.raw` under which the label stands that was sent, if the row teaches
another number.  No feature can be called so: names hold no control characters."""


class Example(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Features and label of one event, with what was predicted for it.

    Attributes:
        features: As parsed by the service, before any transform.
        label: The true label, canonical.
        weight: Importance of the event, finite and > 0.  1.0 is one ordinary row.
        score: What the model answered when it was asked: the probability of each label by the
            label's JSON text, or ``{"": value}`` in regression.  None if nothing was predicted.
        version: ``(epoch, count, own)`` of the model that gave ``score``.
        predicted_at, event_time: POSIX seconds; None if unknown.
        no_change: The newest label that the replica knew when it predicted: the no-change baseline.
        notes: What the model that gave ``score`` wants to be told again; nobody else knows what it
            means.
        judged: What the filters found; None if none was asked.
        known: The last offset of each partition, of the rows in the model that gave ``score``: kept
            for a challenger, which is asked as of that.  None: it was not kept; empty: too many
            partitions.
        moved: A delta of a device: then there are no features, the label is the hash of its
            content, and the weight is what it is multiplied by.
        raw: What was sent under names whose number in ``features`` is another one, because it was
            far beyond all before it, and under :data:`SENT_LABEL` the label; None: nothing was.
        choice: The choice that the row is the reward of: among which actions, and how likely each
            was.  Whoever chose knows what it means, nobody else reads it.  None: nothing was
            chosen.
        sure: How sure an answer was to be when this one was given, for whoever asked for it; nobody
            else knows what it means.  None: nobody did.
        provisional: The label may change: the lesson is taken back when the final one comes, and
            counts in no score.
        corrects: Of a final label that comes after a provisional one: what it takes back.
        taught: Another row has taught the features before: this one brings the label, to judge the
            answer.
        late: Of a label that nobody sent, because none came in time: what a positive one weighs
            that comes later.  None: somebody has sent the label.
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
        """Whether the label counts in scores: it is not to change, and has not counted before.

        A label by default counts, for its event may have no other; what corrects it does not.
        """
        if self.moved is not None or (self.provisional and self.late is None):
            return False
        first = self.corrects
        return first is None or not first.defaulted or first.offset == 0

    @property
    def sent_label(self) -> Label:
        """The label as it was sent."""
        if self.raw is None:
            return self.label
        sent = self.raw.get(SENT_LABEL)
        return self.label if sent is None else sent

    @property
    def ordinary(self) -> bool:
        """Whether the row is a lesson of its own, for good, and no delta."""
        alone = self.corrects is None and not self.taught
        return self.moved is None and not self.provisional and alone


class PredictionHalf(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The part of a prediction that a stored join keeps; fields as in :class:`Example`."""

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
    """A label that waits for its prediction; the first fields as in :class:`Example`.

    Attributes:
        source, event_id, at: Of the row that it will be; when it was taken (POSIX seconds).
        keys: Those under which it waits, one of each prediction that it may label.
    """

    label: Label
    weight: float
    event_time: float | None
    source: str
    event_id: str
    at: float
    keys: tuple[bytes, ...]


class LabelHalf(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A label that waits alone, as older journals hold it; fields as in :class:`Example`."""

    label: Label
    weight: float = 1.0
    event_time: float | None = None
