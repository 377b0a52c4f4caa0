"""The server's state as far as it has arrived, beyond the values of the replica's own model.

A restarted server reports its epoch and clock at once, and own deltas are pushed to it from then
on.  Large values arrive in parts, one piece per turn of the event loop, into a second copy of the
model, while the first one goes on answering and learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from online.learning.deltas import Pulled
from online.learning.ranges import BEYOND, RANGE, ROWS, UNTIL
from online.learning.vocabulary import NAMES
from online.models.base import Forgetful, Model
from paramserver.core import blocks as algebra
from paramserver.core.blocks import ADDITIVE, COUNT, EXTREMA, Block
from paramserver.core.names import Names
from paramserver.core.runs import Collected, read_run
from paramserver.core.tables.layered import LayeredRows
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import Place, SyncReply, Version, decode_piece

_VIEWS: Final = {RANGE: EXTREMA, UNTIL: EXTREMA, ROWS: COUNT, BEYOND: COUNT, NAMES: COUNT}
"""Blocks that no model reads."""

_DROPPED_KEYS = 1024  # in one turn of the loop


class PartialValues:
    """Values that are arriving in parts, at version ``since``.

    ``teller`` is their sender: where a part begins is a position in that sender's own order.
    """

    def __init__(self, since: Version, model: Model | None, teller: str) -> None:
        self.since, self.teller = since, teller
        self.after: Place | None = None
        self.whole = False
        self.pulled, self.model = Pulled(), model
        self._names, self._collected = Names(), Collected()
        if model is not None:
            model.reset({})

    def take(self, piece: bytes) -> None:
        """Take a piece of the next part."""
        wire = decode_piece(piece)
        runs = {name: block for name, block in wire.items() if isinstance(block.data, list)}
        by_name = {name: block for name, block in wire.items() if name not in runs}
        blocks = algebra.from_wire(by_name, names=self._names)
        self.pulled.put(blocks)
        for name, block in runs.items():
            if (made := self._take_run(name, block.kind, block.data)) is not None:
                blocks[name] = made
        if self.model is not None:
            self.model.rebase(blocks)

    def _take_run(self, name: str, kind: str, data: list[Any]) -> Block | None:
        """Take values that are in arrays; return them if they may be the model's."""
        run, view = read_run(name, kind, data), name in _VIEWS
        if kind == _VIEWS.get(name, ADDITIVE) and self._collected.take(name, run):
            return None if view else Block(kind, run.as_dict())
        block = Block(kind, run.as_dict())
        self.pulled.put({name: algebra.copy_block(block)})
        return block

    def settle(self) -> None:
        """Put what was collected among the values, when all parts are here."""
        for name, values in self._collected.maps().items():
            kind = _VIEWS.get(name, ADDITIVE)
            if (own := self.pulled.blocks.pop(name, None)) is not None:
                values.update(own.data)
            self.pulled.blocks[name] = Block(kind, values)

    def finish(self, changes: SyncReply) -> None:
        """Apply the server's changes since the version of the parts."""
        touched = self.pulled.take(changes, ())
        if self.model is not None:
            self.model.rebase(algebra.select(self.pulled.blocks, touched))

    def bring_up(self, part: SyncReply) -> None:
        """Apply changes sent with a part, which bring all parts so far to a newer version."""
        if part.reached is not None:
            self.finish(part)
            self.since = part.reached


class ServerView:
    """The server as last heard of, and its values as far as they have arrived.

    Parameters:
        build: Makes the second copy; None: it is made when all values have arrived.

    Attributes:
        epoch: The newest epoch known.
        met, clock: The server that is pushed to: version of its first reply, and its last reported
            clock.
        values: The values that are arriving; None: none are.
    """

    def __init__(self, build: Callable[[], Model] | None) -> None:
        self._build = build
        self.epoch = 0
        self.met: Version = (0, 0)
        self.clock: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self.values: PartialValues | None = None
        self._left: list[tuple[Pulled, Model]] = []

    @property
    def after(self) -> Place | None:
        """Where the next part begins; None: no values are arriving, or all have arrived."""
        return None if self.values is None else self.values.after

    def note(self, reply: SyncReply, clock: Mapping[int, int], *, taken: bool = False) -> None:
        """Push to this reply's server from now on; ``taken``: its values have all arrived."""
        if reply.epoch != self.met[0]:
            self.met = (reply.epoch, reply.count)
            self._reached = {}
        self.clock = dict(clock)
        self._reached |= clock
        if taken:
            self.values = None

    def has(self, partition: int, offset: int) -> bool:
        """Whether the server reported having the row (once only for a closed partition)."""
        return self._reached.get(partition, 0) >= offset

    def take(self, part: SyncReply) -> Iterator[None]:
        """Take a part, one piece per step."""
        coming, since = self.values, part.since
        if coming is not None and coming.teller != part.peer:
            coming = self.values = None  # another sender: begin again, even at the same version
        if since is not None and part.start is None and (coming is None or coming.since != since):
            coming = PartialValues(since, self._build and self._build(), part.peer)
        if coming is None or coming.since != since or coming.after != part.start or coming.whole:
            return  # a repeated or late part
        for piece in part.pieces:
            coming.take(piece)
            yield
        coming.bring_up(part)
        coming.after, coming.whole = part.after, part.after is None
        self.values = coming
        if coming.whole:
            coming.settle()

    def begin(
        self, since: Version, tables: Mapping[str, Rows], others: Iterable[bytes]
    ) -> Iterator[None]:
        """Take all values of one version: tables that are only read, then the others in pieces.

        The server's changes since that version are missing, as after a last part.
        """
        coming = PartialValues(since, self._build and self._build(), "")
        coming.pulled.put({n: Block(algebra.ROWS, LayeredRows(t)) for n, t in tables.items()})
        if coming.model is not None:
            coming.model.reset(coming.pulled.blocks)
        for piece in others:
            coming.take(piece)
            yield
        coming.settle()
        coming.whole = True
        self.values = coming

    def complete(self, reply: SyncReply) -> PartialValues | None:
        """Return the values if all parts are here and the reply has the changes since; or None."""
        coming = self.values
        if coming is None or not coming.whole or reply.kind != "changes":
            return None
        if reply.since != coming.since or reply.epoch != coming.since[0]:
            return None
        if (reply.epoch, reply.count) < coming.since:
            return None  # from a peer that is behind: the parts are newer than its clock
        coming.finish(reply)
        return coming

    def leave(self, values: Pulled, model: Model) -> None:
        """Hand over values and a model that are no longer needed, to be freed by :meth:`drop`."""
        self._left.append((values, model))

    def drop(self) -> Iterator[None]:
        """Free what :meth:`leave` was given, one piece per step."""
        while self._left:
            values, model = self._left[-1]
            piece = values.give_up(_DROPPED_KEYS)
            if not piece:
                self._left.pop()
            elif isinstance(model, Forgetful):
                model.forget(piece)
            yield
