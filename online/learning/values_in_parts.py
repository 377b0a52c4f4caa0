"""This module holds what a replica has heard of the server beyond its own model's values.

A server that was restarted tells its epoch and clock at once: own deltas are pushed to it from
then on.  Its values may be many; they come in parts, a piece a turn, into a second copy of the
model, while the first one goes on answering and learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from online.learning.deltas import Pulled
from online.models.base import Forgetful, Model
from paramserver.core import blocks as algebra
from paramserver.core.wire import Place, SyncReply, Version, decode_piece

_DROPPED_KEYS = 1024  # in one turn of the loop


class Arriving:
    """Values on their way: those of version ``since`` up to where the next part begins.

    ``teller`` has told them: where a part begins is a place in an order that is its own.
    """

    def __init__(self, since: Version, model: Model | None, teller: str) -> None:
        self.since, self.teller = since, teller
        self.after: Place | None = None
        self.whole = False
        self.pulled, self.model = Pulled(), model
        if model is not None:
            model.reset({})

    def take(self, piece: bytes) -> None:
        """A piece of the next part."""
        blocks = algebra.from_wire(decode_piece(piece))
        self.pulled.put(blocks)
        if self.model is not None:
            self.model.rebase(blocks)

    def finish(self, changes: SyncReply) -> None:
        """Apply what has changed on the server since the version that what came is of."""
        touched = self.pulled.take(changes, ())
        if self.model is not None:
            self.model.rebase(algebra.select(self.pulled.blocks, touched))

    def bring_up(self, part: SyncReply) -> None:
        """Take what came with a part: all that came so far is of a newer version then."""
        if part.reached is not None:
            self.finish(part)
            self.since = part.reached


class Arrival:
    """The server as it was heard of last, and its values as far as they have come.

    Parameters:
        build: Makes the second copy; None: it is made when all values have come.

    Attributes:
        epoch: The newest one heard of.
        met, clock: The server that is pushed to: version of its first reply, and its clock as told
            last.
        values: Those on their way.
    """

    def __init__(self, build: Callable[[], Model] | None) -> None:
        self._build = build
        self.epoch = 0
        self.met: Version = (0, 0)
        self.clock: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self.values: Arriving | None = None
        self._left: list[tuple[Pulled, Model]] = []

    @property
    def after(self) -> Place | None:
        """Where the next part begins; None: the values of none are on their way, or all here."""
        return None if self.values is None else self.values.after

    def note(self, reply: SyncReply, clock: Mapping[int, int], *, taken: bool = False) -> None:
        """Push to this server from now on; ``taken``: its values have all come."""
        if reply.epoch != self.met[0]:
            self.met = (reply.epoch, reply.count)
            self._reached = {}
        self.clock = dict(clock)
        self._reached |= clock
        if taken:
            self.values = None

    def has(self, partition: int, offset: int) -> bool:
        """Whether the server has told that it has the row: of finished partitions it told once."""
        return self._reached.get(partition, 0) >= offset

    def take(self, part: SyncReply) -> Iterator[None]:
        """Take a part, a piece a step."""
        coming, since = self.values, part.since
        if coming is not None and coming.teller != part.peer:
            coming = self.values = None  # begin anew, be it of the same version
        if since is not None and part.start is None and (coming is None or coming.since != since):
            coming = Arriving(since, self._build and self._build(), part.peer)
        if coming is None or coming.since != since or coming.after != part.start or coming.whole:
            return  # it came twice, or late
        for piece in part.pieces:
            coming.take(piece)
            yield
        coming.bring_up(part)
        coming.after, coming.whole = part.after, part.after is None
        self.values = coming

    def complete(self, reply: SyncReply) -> Arriving | None:
        """The values, if the reply is what has changed since their first part, and all came."""
        coming = self.values
        if coming is None or not coming.whole or reply.kind != "changes":
            return None
        if reply.since != coming.since or reply.epoch != coming.since[0]:
            return None
        if (reply.epoch, reply.count) < coming.since:
            return None  # of a replica that was not as far: what came is newer than its clock
        coming.finish(reply)
        return coming

    def leave(self, values: Pulled, model: Model) -> None:
        """These answer no more, or soon: to be let go of by :meth:`drop`."""
        self._left.append((values, model))

    def drop(self) -> Iterator[None]:
        """Let go of what was left, a piece a step."""
        while self._left:
            values, model = self._left[-1]
            piece = values.give_up(_DROPPED_KEYS)
            if not piece:
                self._left.pop()
            elif isinstance(model, Forgetful):
                model.forget(piece)
            yield
