"""A joined row is as old as its prediction: what room was promised to its names may be gone.

A label that comes with its features, or by a token, has its names looked at as it comes.  A stored
prediction waits for up to ``token_lifetime``, and a promise holds for a minute: so its names are
looked at once more when the row of both halves is written, whoever brought the second one.
"""

from __future__ import annotations

import msgspec

from online.replica.shared import Shared
from replay import codec
from replay.journal.base import NewRow, Verdict


def within_room(row: NewRow, shared: Shared) -> NewRow:
    """The row as it is to be written; one that is not made of two halves stays as it is."""
    if row.half is not None or row.over is None:
        return row
    example, hold_s = codec.decode(row.payload), shared.settings.label_wait
    now_s, vocabulary = shared.clocks.now_s(), shared.learner.vocabulary
    features, left = vocabulary.taught(example.features, row.source, now_s, hold_s)
    if left is None:
        return row
    shared.counts["names_left_out"] += len(left)
    sent = {**left, **(example.raw or {})}
    payload = codec.encode(msgspec.structs.replace(example, features=features, raw=sent))
    verdict = Verdict.CLIPPED if row.verdict is Verdict.ACCEPTED else row.verdict
    return msgspec.structs.replace(row, payload=payload, verdict=verdict)
