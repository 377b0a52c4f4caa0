"""How many parameter servers a model has, where that has changed since it began.

Each number of servers is a lineage of its own.  What an operator wishes is a control row; a second
one says that the lineage with that number has begun with what the one before had learned, and from
there on it serves, until a start whose settings file says another number than it said then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from paramserver.store import ControlInfo

RESHARD: Final = "reshard"


class Reshard(msgspec.Struct, frozen=True):
    """A model is to have another number of parameter servers, or has it from here on.

    Attributes:
        spec: Hash of the spec that the model has with one server.
        given: Number that the settings file said then.
        before: Number that served.
        shards: Number from here on.
        done: Whether it has begun; else it is a wish.
        why: ``operator``, ``settings``, or ``failed`` (it could not be done).
        was, serves: Hash of the spec with the number before, and with the one from here on; empty:
            not told.
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
    """Number and content of the newest such row; None: there is none.

    ``done``: of those that say what is; else of all, so that it may be a wish.
    """
    found = None
    for control in controls:
        if control.kind == RESHARD:
            note = msgspec.json.decode(control.payload, type=Reshard)
            if note.spec == spec and (note.done or not done):
                found = control.seq, note
    return found


def decided(controls: Iterable[ControlInfo], spec: str, given: int, *, running: bool) -> int:
    """How many servers a model has of which the settings say ``given``.

    ``running``: in a service that goes on, whose settings may be older than the newest row; else a
    settings file that says another number than when that row was written is obeyed.
    """
    found = newest(controls, spec, done=True)
    if found is None or not (running or given == found[1].given):
        return given
    return found[1].shards


def handed_on(controls: Sequence[ControlInfo], spec: str) -> bool:
    """Whether a lineage with another number of servers takes this one's place, or is about to.

    ``spec``: of this one, with its number of servers.
    """
    for control in reversed(controls):
        if control.kind == RESHARD:
            note = msgspec.json.decode(control.payload, type=Reshard)
            if spec in (note.was, note.serves):
                return note.was == spec != note.serves
    return False


def wished(control: ControlInfo) -> bool | None:
    """Whether a row is a wish; None: it is about something else."""
    if control.kind != RESHARD:
        return None
    return not msgspec.json.decode(control.payload, type=Reshard).done
