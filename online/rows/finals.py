"""Labels that change: a provisional one is learned, and its final one replaces it, once.

A row never changes, so the final label is a row of its own.  Its key is derived from the event
alone, so only one final label can exist, however often it is sent.  Its name contains the row that
it corrects, and its content what that row has taught, so that whoever learns it takes that back.

An event whose first label is final has no second row: it is an ordinary event.
"""

from __future__ import annotations

import msgspec

from online.rows.prediction_ids import event_key
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import SENT_LABEL, Corrects, Example
from replay.journal.base import Half, NewRow, Only, Outcome, Row, Verdict

_FINAL, _LATE = "final", "label"


def final_key(first: bytes) -> bytes:
    """Key of the row that makes an event's label final; ``first``: the event's key."""
    return event_key(_FINAL, first.hex())


def late_key(first: bytes) -> bytes:
    """Key of the row with a label that came after its event was learned without one."""
    return event_key(_LATE, first.hex())


def corrected(row: Row) -> tuple[int, int] | None:
    """Partition and offset of the event's first row if this row makes its label final; or None.

    The row's name counts only if its key matches, because callers choose names.
    """
    if not row.event_id.startswith(_FINAL):
        return None
    parts = row.event_id.split(":", 4)
    if len(parts) != 5 or row.key != event_key(_FINAL, parts[3]):
        return None
    return int(parts[1]), int(parts[2])


def final_row(row: NewRow, label: Example, first: Row, lesson: Row | None, only: Only) -> NewRow:
    """Make the row that makes the label of an event final.

    Parameters:
        asked, label: The requested row with the final label, and its decoded content.
        first: The row with the provisional label; its features and its prediction are kept.
        lesson: The row that taught the event: the first one, or its standing copy; None: none did.
            Nothing is taken back for an undone one, unless a rollback restores it.
        only: The condition under which the store may write the row.
    """
    provisional = codec.decode(first.payload)
    asleep = first.verdict in (Verdict.FROZEN, Verdict.LOST)
    evidence = {} if asleep or provisional.judged is None else dict(provisional.judged.evidence)
    defaulted = provisional.late is not None
    corrects = Corrects(
        0, 0, b"", provisional.label, provisional.weight, first.source, evidence, defaulted
    )
    if lesson is not None:
        corrects = msgspec.structs.replace(
            corrects,
            partition=lesson.partition,
            offset=lesson.offset,
            key=lesson.key,
            weight=provisional.weight * lesson.factor,
        )
    raw = {
        name: value for name, value in (provisional.raw or {}).items() if name != SENT_LABEL
    } or None
    example = msgspec.structs.replace(
        provisional,
        raw=raw,
        label=label.label,
        weight=label.weight if lesson is None else label.weight * _lateness(provisional, label),
        event_time=label.event_time,
        judged=None,
        provisional=False,
        late=None,
        corrects=corrects,
    )
    name = f"{_FINAL}:{first.partition}:{first.offset}:{first.key.hex()}:{row.event_id}"
    verdict = Verdict.ACCEPTED if raw is None else Verdict.CLIPPED  # its values were bounded
    payload = codec.encode(example)
    return NewRow(final_key(first.key), name, row.source, verdict, payload, row.at, only=only)


def _lateness(provisional: Example, label: Example) -> float:
    """The factor on a final label's weight: below 1 for a positive one after a default."""
    return 1.0 if provisional.late is None or label.label is not True else provisional.late


def is_provisional(row: Row) -> bool:
    """Whether the row's label is provisional."""
    return not codec.is_erased(row.payload) and codec.decode(row.payload).provisional


def has_provisional(row: Row) -> bool:
    """Whether the row's label is provisional; False for a damaged row, reported when answered."""
    try:
        return is_provisional(row)
    except (PayloadFormat, PayloadInvalid):
        return False


def may_change(row: NewRow, outcome: Outcome) -> bool:
    """Whether the event was already in the journal with a provisional label."""
    if outcome.new or outcome.row is None or row.half is Half.PREDICTION:
        return False
    return has_provisional(outcome.row)
