"""Bounds the targets of regression before rows are judged, whichever way they arrived.

A label may be sent with its features, by a prediction's id, or as a stored half; here the row is
complete.  A row that is learned again was bounded when it was first written.  Rows written together
are processed in order: each is bounded by the range that the rows before it would leave.
"""

from __future__ import annotations

import msgspec

from online.learning.bounds import with_target
from online.replica.shared import ReplicaParts
from online.rows.history import is_again
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict


class Targets:
    """Bounds the targets of one model; does nothing for tasks whose labels are not bounded."""

    def __init__(self, shared: ReplicaParts) -> None:
        settings = shared.settings
        self._bounds, self._counts = shared.learner.bounds, shared.counts
        self._bounded = settings.purpose.bounded

    def bounded(self, rows: list[NewRow], examples: list[Example | None]) -> list[NewRow]:
        """Return the rows to be written; ``examples`` is updated in place to their content."""
        if not (self._bounded and self._bounds.on):
            return rows
        out, ahead = list(rows), self._bounds.ahead()
        for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
            if row.half is not None or is_again(row):
                continue
            sent = codec.decode(row.payload) if example is None else example
            taught = examples[i] = with_target(ahead, sent)
            raw = None if taught is sent else taught.raw
            ahead.add(Example({}, taught.label, raw=raw), row.source)
            if taught is not sent:
                self._counts["values_clipped"] += 1
                clipped = row.verdict is Verdict.ACCEPTED
                verdict = Verdict.CLIPPED if clipped else row.verdict
                payload = codec.encode(taught)
                out[i] = msgspec.structs.replace(row, verdict=verdict, payload=payload)
        return out
