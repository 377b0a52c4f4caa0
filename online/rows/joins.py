"""Stored joins: joins a prediction and its label, whichever is written second.

The store keeps the first half, and returns it to the replica that writes the second.  That replica
makes the joined row, which is judged like any other, and appends it by a compare-and-set on the
first half.  If another replica was faster nothing is written, and the new state is processed.

The key of a prediction is derived from its id and the source that its access token stands for, so
nobody can take another source's id.  A label lists the predictions that its sender may label, and
waits under the key of each.  Labels of several sources wait side by side, and the prediction takes
the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from replay import codec
from replay.example import Example, PredictionHalf, WaitingLabel
from replay.journal.base import Half, NewRow, Outcome, Stored, Verdict

ROUNDS_MAX: Final = 64
"""Largest number of appends for an event; each further one means another replica was faster."""

NO_HALF: Final = b"?"
"""A payload that no half has: writing over it changes nothing and returns what is stored."""


def question(key: bytes, event_id: str, at: float) -> NewRow:
    """Make a half that is never written: its outcome is what is stored under the key."""
    empty = codec.encode_prediction(PredictionHalf({}))
    return NewRow(
        key, event_id, "", Verdict.ACCEPTED, empty, at, half=Half.PREDICTION, over=NO_HALF
    )


class Entry(Protocol):
    """One event on its way into the store.

    Attributes:
        rows: The rows to append next; empty once ``outcome`` is set.
        outcome: The final outcome; None: not known yet.
        after: Entries to append afterwards, for which no request waits.
    """

    rows: Sequence[NewRow]
    outcome: Outcome | None
    after: Sequence[Entry]

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Process the store's outcomes of ``rows``."""


class Whole:
    """An ordinary row that is not a half of a stored join."""

    after: Sequence[Entry] = ()

    def __init__(self, row: NewRow) -> None:
        self.rows: Sequence[NewRow] = (row,)
        self.outcome: Outcome | None = None

    def take(self, outcomes: Sequence[Outcome]) -> None:
        self.rows, self.outcome = (), outcomes[0]


class Predicted:
    """A prediction: it is stored, or joined with the first waiting label.

    A half that replaces another (``over``) only does that, and is not joined.
    """

    def __init__(self, half: NewRow) -> None:
        self._half = half
        self._label: WaitingLabel | None = None
        self.rows: Sequence[NewRow] = (half,)
        self.outcome: Outcome | None = None
        self.after: Sequence[Entry] = ()

    def take(self, outcomes: Sequence[Outcome]) -> None:
        outcome, half = outcomes[0], self._half
        if half.over is not None:  # it was written over that half, or not at all
            self.rows, self.outcome = (), outcome
            return
        if outcome.gone:
            self.rows = (half,)
            return
        if outcome.met is not None and outcome.met.half is Half.LABEL:
            self._label = labels_of(outcome.met)[0]
            made = codec.decode_prediction(half.payload)
            self.rows = (joined(half.key, made, self._label, half.at, outcome.met.payload),)
            return
        self.rows, self.outcome = (), outcome
        if outcome.new and self._label is not None:
            self.after = _elsewhere(half.key, self._label)


class Labelled:
    """A label: it is joined with the first matching prediction, or waits for each of them.

    Parameters:
        half: Its payload is one :class:`replay.example.WaitingLabel`.
        most: Largest number of labels that may wait under one key.
        since: Labels taken before this time (POSIX seconds) no longer wait.
    """

    def __init__(self, half: NewRow, most: int, since: float) -> None:
        self._half, self._most, self._since = half, most, since
        (self._label,) = codec.decode_labels(half.payload)
        self._waits: list[float] = []
        self.outcome: Outcome | None = None
        self.after: Sequence[Entry] = ()
        self.rows: Sequence[NewRow] = ()
        self._begin()

    def _begin(self) -> None:
        replace = msgspec.structs.replace
        self._waits = []
        self.rows = [replace(self._half, key=key) for key in self._label.keys]

    def take(self, outcomes: Sequence[Outcome]) -> None:
        pairs = list(zip(self.rows, outcomes, strict=True))
        if any(row.half is None and outcome.gone for row, outcome in pairs):
            self._begin()
            return
        for row, outcome in pairs:
            if outcome.row is not None or outcome.damaged is not None:
                self._end(outcome, row.key)
                return
            if outcome.met is not None and outcome.met.half is Half.PREDICTION:
                made = codec.decode_prediction(outcome.met.payload)
                over = outcome.met.payload
                self.rows = (joined(row.key, made, self._label, self._half.at, over),)
                return
        if pairs[0][0].half is None:  # the prediction is gone, and other labels wait there
            self._begin()
            return
        more = [again for row, o in pairs if (again := self._wait(row, o)) is not None]
        if more:
            self.rows = more
        else:
            self.rows = ()
            self.outcome = Outcome(False, None, min(self._waits, default=None))

    def _wait(self, row: NewRow, outcome: Outcome) -> NewRow | None:
        """Return the row to send so that the label waits under this key; None: nothing to do."""
        replace = msgspec.structs.replace
        if outcome.gone:
            return replace(self._half, key=row.key)
        if outcome.met is None:
            if outcome.since is not None:
                self._waits.append(outcome.since)
            return None
        others = [x for x in labels_of(outcome.met) if x.at >= self._since]
        mine = next((x for x in others if x.source == self._label.source), None)
        if mine is not None:  # the source's first label stands
            self._waits.append(mine.at)
            return None
        if len(others) >= self._most:
            return None
        payload = codec.encode_labels([*others, self._label])
        return replace(self._half, key=row.key, payload=payload, over=outcome.met.payload)

    def _end(self, outcome: Outcome, key: bytes) -> None:
        self.rows, self.outcome = (), outcome
        self.after = _elsewhere(key, self._label)


class Removed:
    """Removes a label that was joined from the other keys under which it waits."""

    after: Sequence[Entry] = ()

    def __init__(self, key: bytes, label: WaitingLabel) -> None:
        self._label = label
        alone = codec.encode_labels([label])
        self.rows: Sequence[NewRow] = (self._over(key, [], alone, label.at),)
        self.outcome: Outcome | None = None

    def _over(self, key: bytes, left: list[WaitingLabel], over: bytes, at: float) -> NewRow:
        label, payload = self._label, codec.encode_labels(left) if left else b""
        half, verdict = Half.LABEL, Verdict.ACCEPTED
        return NewRow(key, label.event_id, label.source, verdict, payload, at, 1.0, half, over)

    def take(self, outcomes: Sequence[Outcome]) -> None:
        met = outcomes[0].met
        if met is not None and met.half is Half.LABEL:
            labels = labels_of(met)
            if self._label in labels:
                left = [label for label in labels if label != self._label]
                self.rows = (self._over(self.rows[0].key, left, met.payload, met.at),)
                return
        self.rows, self.outcome = (), outcomes[0]


def entry_of(row: NewRow, most: int, since: float) -> Entry:
    """Make the entry of a row; ``most`` and ``since`` as in :class:`Labelled`."""
    if row.half is Half.LABEL:
        return Labelled(row, most, since)
    return Whole(row) if row.half is None else Predicted(row)


def labels_of(stored: Stored) -> list[WaitingLabel]:
    """Return the waiting labels in a stored half, the oldest first.  Raises ReplayError."""
    if stored.payload[:1] == bytes([codec.LABELS]):
        return codec.decode_labels(stored.payload)
    one = codec.decode_label(stored.payload)  # an older format, with a single label
    given = (one.label, one.weight, one.event_time)
    return [WaitingLabel(*given, stored.source, stored.event_id, stored.at, ())]


def _elsewhere(key: bytes, label: WaitingLabel) -> list[Entry]:
    return [Removed(other, label) for other in label.keys if other != key]


def joined(
    key: bytes,
    made: PredictionHalf,
    label: WaitingLabel,
    at: float,
    over: bytes,
    *,
    late: float | None = None,
    provisional: bool = False,
) -> NewRow:
    """Make the row of both halves, to be judged; ``at`` is when the second one arrived.

    ``late``: the label is a default, which no source sent, and this is the weight of a later one.
    """
    example = Example(
        made.features,
        label.label,
        label.weight,
        made.score,
        made.version,
        made.predicted_at,
        label.event_time,
        made.no_change,
        made.notes,
        raw=made.raw,
        known=made.known,
        choice=made.choice,
        sure=made.sure,
        provisional=provisional,
        late=late,
    )
    verdict = Verdict.ACCEPTED if made.raw is None else Verdict.CLIPPED  # its values were bounded
    payload = codec.encode(example)
    return NewRow(key, label.event_id, label.source, verdict, payload, at, over=over)


def join_outcome(half: NewRow, outcome: Outcome) -> str:
    """Return the outcome of a prediction that was written after it was answered."""
    if outcome.new:
        return "joined"  # its label was waiting
    if outcome.row is not None or (outcome.since is not None and outcome.since != half.at):
        return "reused"  # an earlier prediction with that id stands
    return "dropped" if outcome.since is None else "kept"
