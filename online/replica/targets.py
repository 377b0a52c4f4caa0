"""Targets of regression are bounded before rows are judged, whichever way they came.

A label may stand beside its features, come by a prediction's id, or meet a stored half: here the
row is whole.  What is learned again was bounded when it was first written.
"""

from __future__ import annotations

import msgspec

from online.learning.bounds import with_target
from online.replica.shared import Shared
from online.rows.history import is_again
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict


class Targets:
    """Bounds the targets of one model; of other tasks, and of rewards with their range, nothing."""

    def __init__(self, shared: Shared) -> None:
        settings = shared.settings
        self._bounds, self._counts = shared.learner.bounds, shared.counts
        self._numbers = settings.task == "regression" and settings.choose is None

    def bounded(self, rows: list[NewRow], examples: list[Example | None]) -> list[NewRow]:
        """The rows as they are to be written; ``examples`` become what they say then."""
        if not (self._numbers and self._bounds.on):
            return rows
        out = list(rows)
        for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
            if row.half is not None or is_again(row):
                continue
            sent = codec.decode(row.payload) if example is None else example
            taught = examples[i] = with_target(self._bounds, sent)
            if taught is not sent:
                self._counts["values_clipped"] += 1
                clipped = row.verdict is Verdict.ACCEPTED
                verdict = Verdict.CLIPPED if clipped else row.verdict
                payload = codec.encode(taught)
                out[i] = msgspec.structs.replace(row, verdict=verdict, payload=payload)
        return out
