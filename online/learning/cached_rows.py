"""Which rows of a model's table a replica holds, if it does not hold all of them: those in use.

All other rows are at the parameter server.  A row that is missing is requested with the next
exchange, and comes with the values of one version; so it counts own deltas as any other row does.
Until then it counts as never learned.

If all values are requested anew, the rows that are held come in parts of bounded size, into a
second copy of the model, while the first one goes on answering.

A row is held until others are used more.  One that own deltas have changed stays until a published
snapshot has these deltas, because they may have to be applied to it again.  Uses and requests are
disposable: they decide what is in memory, never what is learned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import Any, Final, cast

import msgspec
import numpy as np
import numpy.typing as npt

from online.learning.values_in_parts import ServerView
from online.models.base import Model, Tabled
from paramserver.core.blocks import ROWS, Block, Blocks
from paramserver.core.tables.ids import IdArray
from paramserver.core.tables.row_message import ID
from paramserver.core.tables.rows import Rows, read_rows
from paramserver.core.wire import SyncReply, WireBlock
from replay.example import Features

ASKED_MAX: Final = 65_536
"""Greatest number of missing rows that wait to be requested; others are noted when used again."""

REQUESTED_MAX: Final = 1_024
"""Greatest number of missing rows in one request, first of events that are about to be learned."""

AGAIN_MAX: Final = 512
"""Greatest number of held rows in one request: to take these needs half a millisecond."""

LEFT_MAX: Final = 8_192
"""Greatest number of rows in one request that are reported as dropped."""

LOOKED_AT_MAX: Final = 2_048
"""Greatest number of rows that are looked at to find some to evict, between two exchanges."""

_LOOKED_AT: Final = 8  # for each row that is to be evicted
Place = tuple[int, int]
"""Partition and offset of an event."""


class CachedRows:
    """The rows of one table that a replica holds, by id, with how often they were used.

    Parameters:
        block: Name of the table's block.
        most: Number of rows; beyond it some are evicted.
        ids_of: Returns the ids of the rows that predicting or learning a row reads.

    Attributes:
        replies: Number of replies taken.
        soon: Rows that are about to be learned, which are not evicted.
        missed, fetched, evicted: Uses of missing rows, rows that were requested and came, and rows
            that were evicted.
        received: Rows in replies, changed ones and requested ones.
        learned_without: Events that were learned while rows were missing.
    """

    def __init__(self, block: str, most: int, ids_of: Callable[[Features], list[int]]) -> None:
        self.block, self.most, self.ids_of = block, most, ids_of
        self._uses: OrderedDict[int, int] = OrderedDict()
        self._changed: dict[int, Place] = {}  # by the newest event that was learned here
        self._asked: dict[int, None] = {}
        self._sent: frozenset[int] = frozenset()
        self._partial: set[int] = set()  # learned while missing
        self._apart: set[int] = set()  # came, and the copy that answers lacks them
        self._again: list[int] = []  # rows held here that the newest request was for
        self._left: dict[int, None] = {}  # requested before, not held, and not reported yet
        self._reported: list[int] = []  # of these, in the newest request
        self._serial = 0
        self._lacking = 0  # held rows that the arriving values lack: the first of _uses
        self.soon: Collection[int] = ()
        self.replies = self.missed = self.fetched = self.evicted = self.learned_without = 0
        self.received = 0

    def report(self) -> dict[str, float]:
        """Return the counters, and the number of rows that are held, by name."""
        return {
            "rows_held": len(self._uses),
            "rows_missed": self.missed,
            "rows_fetched": self.fetched,
            "rows_received": self.received,
            "rows_evicted": self.evicted,
            "learned_without_rows": self.learned_without,
        }

    def use(self, ids: Collection[int]) -> list[int]:
        """Count a use of each row by an answer, and request the missing ones; return them.

        While rows are learned again, an older copy answers: it lacks rows that have come since.
        """
        missing = self._use(ids)
        return [*missing, *(i for i in ids if i in self._apart)] if self._apart else missing

    def _use(self, ids: Collection[int]) -> list[int]:
        uses, missing = self._uses, self.ask(ids)
        for i in ids:
            if i in uses:
                uses[i] += 1
        self.missed += len(missing)
        return missing

    def joined(self) -> None:
        """Note that the copy that learns, to which all rows come, answers from now on."""
        self._apart.clear()

    def ask(self, ids: Iterable[int]) -> list[int]:
        """Request the rows that are not held; return them."""
        missing = [i for i in ids if i not in self._uses]
        for i in missing:
            if len(self._asked) < ASKED_MAX:
                self._asked[i] = None
        return missing

    def learned(self, features: Features, place: Place) -> None:
        """Count the uses by an event that was learned.

        Of rows that are missing only its changes are here, and they stay missing until they come.
        """
        ids = self.ids_of(features)
        missing = self._use(ids)
        self._changed.update(dict.fromkeys(ids, place))
        self._partial.update(missing)
        self.learned_without += bool(missing)

    def request(self, server: ServerView, catching_up: bool) -> dict[str, Any]:
        """Return the fields of a request: the ids to request, and those that are not held any more.

        With twice as many rows as the bound, only what is about to be learned is requested.

        Parameters:
            server: The values that have arrived.
            catching_up: Whether values are missing or arriving.  Then, as long as a further request
                is needed for rows that are held, nothing else is requested.
        """
        lacking = 0
        if catching_up:
            lacking = len(self._uses) if server.values is None else self._lacking
        self._leave(self._sent)  # there was no reply
        self._again = [*islice(self._uses, min(lacking, AGAIN_MAX))]
        missing = [] if lacking > AGAIN_MAX else self._missing()
        ids = [*missing, *self._again]
        self._sent = frozenset(ids)
        for i in ids:
            self._left.pop(i, None)
        self._reported = [*islice(self._left, LEFT_MAX)]
        self._serial += 1
        rows, left = {self.block: _bytes_of(ids)}, {self.block: _bytes_of(self._reported)}
        return {"rows": rows, "serial": self._serial, "left": left if self._reported else {}}

    def _leave(self, ids: Iterable[int]) -> None:
        """Report with the next request that these are not held, unless they are."""
        self._left.update(dict.fromkeys(i for i in ids if i not in self._uses))

    def _note_answered(self, reply: SyncReply) -> None:
        if (block := reply.rows.get(self.block)) is not None:
            self.received += len(block.data["ids"]) // ID.itemsize
        for i in self._reported:
            self._left.pop(i, None)
        self._reported = []

    def _missing(self) -> list[int]:
        asked = dict.fromkeys(i for i in self.soon if i not in self._uses)
        if len(self._uses) < 2 * self.most:
            asked |= dict.fromkeys(islice(self._asked, REQUESTED_MAX))
        return [*islice(asked, REQUESTED_MAX)]

    def is_part(self, reply: SyncReply, server: ServerView) -> bool:
        """Whether, after this reply, values are still arriving.  Changes no state."""
        return reply.kind == "part" or self._lacking_after(reply, server) > 0

    def _lacking_after(self, reply: SyncReply, server: ServerView) -> int:
        """Number of held rows that are missing when all else of the values is here, otherwise 0."""
        coming = server.values
        if reply.epoch < server.epoch:
            return 0  # of a server that was replaced: it is ignored
        if reply.kind == "all":
            return len(self._uses) - len(self._again)
        if reply.kind == "changes" and coming and coming.whole and reply.since == coming.since:
            return self._lacking - len(self._again)
        return 0

    def part_of(self, reply: SyncReply, server: ServerView) -> SyncReply:
        """Return a reply for which :meth:`is_part` holds, as the part that is taken now."""
        self._note_answered(reply)
        if reply.kind == "part":
            if reply.start is None:
                self._lacking = len(self._uses)
            return reply
        self._lacking, version = self._lacking_after(reply, server), (reply.epoch, reply.count)
        for i in self._again:
            self._uses.move_to_end(i)  # so those that are lacking stay the first ones
        self._leave(self._sent)
        self._sent = frozenset()  # rows that are not held are requested when these are complete
        since = version if reply.kind == "all" else reply.since
        if reply.kind == "changes" and server.values is not None:
            server.values.whole = False
        return msgspec.structs.replace(
            self.chosen(reply), kind="part", since=since, reached=version, start=None, pieces=[]
        )

    def chosen(self, reply: SyncReply) -> SyncReply:
        """Return the reply with the rows to hold among its blocks.  Changes no state."""
        rows = self._rows_of(reply)
        if rows is None:
            return reply
        ids, numbers = rows.ids, rows.numbers
        held = self._to_hold(ids)
        chosen = Rows(ids[held], numbers[held])
        chosen.gone = rows.gone[self._to_hold(rows.gone)]
        blocks = {**reply.blocks, self.block: WireBlock(ROWS, chosen.as_message())}
        return msgspec.structs.replace(reply, blocks=blocks)

    def took(self, reply: SyncReply) -> None:
        """Mark the requested rows, all of which are in this reply, as held."""
        if reply.kind == "none":
            return
        self.replies += 1
        self._note_answered(reply)
        if not self._sent:
            return  # however many changed rows the reply has
        rows = self._rows_of(reply)
        came: Collection[int] = self._sent  # if the server has no row of the table yet
        if rows is not None:
            came = {*rows.ids.tolist(), *rows.gone.tolist()}
        for i in (fetched := self._sent.intersection(came)):
            self._uses.setdefault(i, 1)
            self.fetched += self._asked.pop(i, 0) is None
        self._partial -= fetched
        self._apart |= fetched
        self._leave(self._sent)
        self._sent = frozenset()

    def _rows_of(self, reply: SyncReply) -> Rows | None:
        block = reply.rows.get(self.block)
        return None if block is None else read_rows(self.block, block.data)

    def _to_hold(self, ids: IdArray) -> npt.NDArray[np.bool_]:
        uses, sent = self._uses, self._sent
        return np.array([i in uses or i in sent for i in ids.tolist()], dtype=bool)

    def make_room(
        self, stays: Callable[[Place], bool], values: Blocks, rebase: Callable[[Blocks], None]
    ) -> None:
        """Drop rows that :meth:`evict` returns from the values and, by ``rebase``, the model."""
        gone = self.evict(stays)
        if len(gone) and (held := values.get(self.block)) is not None:
            held.data.drop(gone)
            rows = Rows.empty(held.data.width)
            rows.gone = gone
            rebase({self.block: Block(ROWS, rows)})

    def evict(self, stays: Callable[[Place], bool]) -> IdArray:
        """Return the ids of rows to drop, if there are too many.

        It goes around: a row that was used since the last round stays, and its uses count half.  So
        one call looks at a bounded number of rows.

        Parameters:
            stays: Returns whether a row must stay that was changed by the event at this place.
        """
        uses, changed = self._uses, self._changed
        over, gone = len(uses) - self.most, list[int]()
        for _ in range(min(len(uses), _LOOKED_AT * max(over, 0), LOOKED_AT_MAX)):
            if len(gone) == over:
                break
            i, n = uses.popitem(last=False)
            if n > 1 or i in self.soon or (i in changed and stays(changed[i])):
                uses[i] = max(n // 2, 1)
            else:
                gone.append(i)
        for i in [*islice(self._partial, LOOKED_AT_MAX)]:
            if i not in uses and i not in self.soon and not stays(changed[i]):
                self._partial.discard(i)
                gone.append(i)
        for i in gone:
            changed.pop(i, None)
        self._apart.difference_update(gone)
        self._sent -= {*gone}  # what was requested beside held rows does not come back
        self._leave(gone)
        self.evicted += len(gone)
        return np.array(gone, dtype=np.uint64)


def _bytes_of(ids: list[int]) -> bytes:
    return np.array(ids, dtype=ID).tobytes()


def cache_for(most: int | None, serving: Callable[[], Model]) -> CachedRows | None:
    """Make the record of a model's rows that are held; None: without a bound, or a table.

    ``serving`` returns the copy of the model that answers.
    """
    model = serving()
    if most is None or not isinstance(model, Tabled):
        return None
    return CachedRows(model.table, most, lambda row: cast(Tabled, serving()).row_ids(row))
