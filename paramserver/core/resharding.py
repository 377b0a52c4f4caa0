"""Control rows that change how many parameter servers (shards) a model has.

Each number of servers is a lineage of its own.  An operator's request is one control row.  A second
one records that the lineage with the new number has taken over what the previous one had learned.
That lineage then serves, until a start whose settings file has another number than it had then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from paramserver.store import ControlInfo

RESHARD: Final = "reshard"


class Reshard(msgspec.Struct, frozen=True):
    """A request to change a model's number of parameter servers, or the record that it was done.

    Attributes:
        spec: Hash of the spec that the model has with one server.
        given: Number in the settings file at that time.
        before: Number of servers before.
        shards: New number of servers.
        done: True if the change was done, false if it is a request.
        why: ``operator``, ``settings``, or ``failed`` (the change was given up).
        was, serves: Hash of the spec with the number before, and with the new one; empty if an
            older release wrote the row.
    """

    spec: str
    given: int
    before: int
    shards: int
    done: bool
    why: str
    was: str = ""
    serves: str = ""


def newest(controls: Iterable[ControlInfo], spec: str, *, done: bool) -> tuple[int, Reshard] | None:
    """Return the sequence number and content of the newest such row, or None.

    Parameters:
        done: Consider only changes that were done; otherwise requests, too.
    """
    newest_row = None
    for control in controls:
        if control.kind == RESHARD:
            note = msgspec.json.decode(control.payload, type=Reshard)
            if note.spec == spec and (note.done or not done):
                newest_row = control.seq, note
    return newest_row


def decided(controls: Iterable[ControlInfo], spec: str, given: int, *, running: bool) -> int:
    """Return how many servers a model has whose settings say ``given``.

    Parameters:
        running: True in a running service, whose settings may be older than the newest row.  At a
            start (false), a settings file that was changed since that row takes precedence.
    """
    row = newest(controls, spec, done=True)
    if row is None or not (running or given == row[1].given):
        return given
    return row[1].shards


def handed_on(controls: Sequence[ControlInfo], spec: str) -> bool:
    """Return whether a lineage with another number of servers replaces this one, or is about to.

    Parameters:
        spec: Hash of this lineage's spec, with its number of servers.
    """
    for control in reversed(controls):
        if control.kind == RESHARD:
            note = msgspec.json.decode(control.payload, type=Reshard)
            if spec in (note.was, note.serves):
                return note.was == spec != note.serves
    return False


def is_request(control: ControlInfo) -> bool | None:
    """Return whether a row requests a resharding; None if it is of another kind."""
    if control.kind != RESHARD:
        return None
    return not msgspec.json.decode(control.payload, type=Reshard).done
