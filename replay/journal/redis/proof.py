"""Decodes values of the Redis journal, verifying each against its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from replay.errors import JournalDamaged
from replay.journal.base import Control, Line, Partition, Row, Verdict

Fields = dict[bytes, bytes]

_DIGITS: Final = 8  # 32 bits: all but one error in 4 * 10**9 are detected


def proof(place: str, words: Sequence[bytes]) -> bytes:
    """Return the checksum of words and their place, equal to that of the scripts' ``proof``."""
    text = b"\n".join((place.encode(errors="surrogateescape"), b"\n".join(words)))
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()[:_DIGITS].encode()


def proves(place: str, fields: Fields) -> bool:
    """Return whether the last field is the checksum of those before it.

    A row without checksum and running time (``ran``) is of a layout before 4 and is accepted.
    """
    words = [word for pair in fields.items() for word in pair]
    if words[-2:-1] != [b"sum"]:
        return b"ran" not in fields
    return words[-1] == proof(place, words[:-2])


def as_line(number: int, fields: Fields) -> Line:
    """Decode a line of the log of decisions.  Raises JournalDamaged."""
    words = (b"text", fields.get(b"text", b""))
    if fields.get(b"sum") != proof(f"line {number}", words):
        raise JournalDamaged(f"line {number} of the log of decisions")
    return Line(number, fields[b"text"])


def lines(entries: Sequence[tuple[bytes, Fields]]) -> tuple[Line, ...]:
    """Decode lines of the log of decisions from its stream.  Raises JournalDamaged."""
    return tuple(as_line(int(id_.split(b"-")[0]), fields) for id_, fields in entries)


def as_row(partition: int, offset: int, fields: Fields) -> Row:
    """Decode a row from its stream entry.  Raises JournalDamaged."""
    if not proves(f"row {partition} {offset}", fields):
        raise JournalDamaged(f"row {offset} of partition {partition}")
    try:
        return Row(
            seq=int(fields[b"seq"]),
            partition=partition,
            offset=offset,
            key=fields[b"key"],
            event_id=fields[b"event_id"].decode(),
            source=fields[b"source"].decode(),
            verdict=Verdict(fields[b"verdict"].decode()),
            factor=float(fields[b"factor"]),
            payload=fields[b"payload"],
            at=float(fields[b"at"]),
        )
    except (KeyError, ValueError) as error:  # possible in a layout without checksums
        raise JournalDamaged(f"row {offset} of partition {partition}", repr(error)) from error


def as_partition(reply: Sequence[bytes]) -> Partition:
    """Decode a partition from its script's reply.  Raises JournalDamaged."""
    number, model, replica, spec, end, sealed, trimmed, at, stored = reply
    place = f"partition {number.decode()}"
    words = (model or b"", replica or b"", spec or b"", at, sealed)
    if stored and stored != proof(place, words):
        raise JournalDamaged(place)
    name, writer, lineage = model.decode(), replica.decode(), spec.decode()
    state = (int(end), sealed == b"1", int(trimmed))
    return Partition(int(number), name, writer, lineage, *state)


def as_control(model: str, seq: int, fields: Fields) -> Control:
    """Decode a control row from its stream entry.  Raises JournalDamaged."""
    if b"sum" in fields and not proves(f"control {model} {seq}", fields):
        raise JournalDamaged(f"control row {seq} of model {model}")
    try:
        kind, key = fields[b"kind"].decode(), fields[b"key"].decode()
        return Control(seq, model, kind, key, fields[b"payload"])
    except (KeyError, ValueError) as error:
        raise JournalDamaged(f"control row {seq} of model {model}", repr(error)) from error
