"""Converts rows to arguments of the Redis scripts, and the scripts' replies to outcomes."""

from __future__ import annotations

from typing import Any

from replay.errors import (
    EpochBehind,
    JournalBehind,
    JournalDamaged,
    PartitionSealed,
    PartitionUnknown,
    ReplayError,
)
from replay.journal.base import Half, NewRow, Outcome, Row, Stored, Verdict
from replay.journal.redis import proof
from replay.journal.redis.proof import Fields


def words_of(row: NewRow) -> tuple[str | bytes, ...]:
    """Return the row as the script's arguments, in its order."""
    numbers = repr(float(row.factor)), repr(float(row.at))  # repr round-trips exactly
    text = (row.event_id, row.source, row.verdict.value)
    half = "" if row.half is None else row.half.value
    over = b"" if row.over is None else bytes(row.over)
    since, absent = "", b""
    if (only := row.only) is not None:
        since, absent = f"{only.control} {' '.join(only.kinds)} ", only.absent
    words = (bytes(row.key), *text, numbers[0], bytes(row.payload), numbers[1], half, over)
    return (*words, since, absent)


def refusal_of(answer: list[Any], partition: int, known: int, epoch: int) -> ReplayError | None:
    """Return why the append script wrote nothing, or None if it returned an outcome per row."""
    match answer:
        case [b"unknown", *_]:
            return JournalBehind(partition, 0, known) if known else PartitionUnknown(partition)
        case [b"sealed", end]:
            return PartitionSealed(partition, int(end))
        case [b"older", model, newest]:
            return EpochBehind(model.decode(), int(newest), epoch)
        case [b"behind", *numbers]:
            return JournalBehind(*map(int, numbers))
        case [b"damaged", *_]:
            return JournalDamaged(f"partition {partition}")
    return None


def outcome_of(partition: int, given: NewRow, reply: list[Any], before: list[Outcome]) -> Outcome:
    kind = reply[0]
    if kind == b"twice":
        return Outcome(False, before[int(reply[1]) - 1].row)
    if kind == b"half":
        return Outcome(False, None, float(reply[1]) if reply[1] else None)
    if kind == b"damaged":
        what = f"what stands under the id {given.event_id!a}"
        return Outcome(False, None, damaged=JournalDamaged(what))
    if kind == b"gone":
        return Outcome(False, None, gone=True)
    if kind == b"met":
        half, event_id, source, payload, at = reply[1:]
        met = Stored(Half(half.decode()), event_id.decode(), source.decode(), payload, float(at))
        return Outcome(False, None, met.at, met)
    if kind != b"written":
        where, offset = int(reply[1]), int(reply[2])
        try:
            return Outcome(kind == b"own", proof.as_row(where, offset, fields_of(reply[3])))
        except JournalDamaged as error:
            return Outcome(False, None, damaged=error)
    # A written row equals the given one, so the script does not return it.
    row = Row(
        int(reply[2]), partition, int(reply[1]), bytes(given.key), given.event_id, given.source,
        Verdict(given.verdict), float(given.factor), bytes(given.payload), float(given.at),
    )  # fmt: skip
    return Outcome(True, row)


def fields_of(flat: list[bytes]) -> Fields:
    return dict(zip(flat[::2], flat[1::2], strict=True))
