"""Records which rows of tables replicas hold that do not hold all of them.

Such a replica holds only rows that it has requested, and says which ones it has dropped.  So the
changes of all other rows need not be sent to it.  A record may have more rows than its replica
holds, because a reply was lost or a report of dropped rows was; it never has fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from paramserver.core.tables.flags import Flags
from paramserver.core.tables.ids import IdArray, distinct
from paramserver.core.tables.row_message import ID
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import SyncRequest

HELD_MAX: Final = 1_000_000
"""Number of ids that all records have together, and of replicas that are remembered."""

SILENT_MAX: Final = 4_096
"""Requests of others after which the record of a silent replica may be removed."""


@dataclass(slots=True)
class Held:
    """The rows that one replica may hold.

    Attributes:
        newest: Partition and serial number of its newest request.
        at: Number of requests of all replicas before that one.
        tables: By block, a table that has a row for each of these ids.
    """

    newest: tuple[int, int] = (0, 0)
    at: int = 0
    tables: dict[str, Rows] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    def of(self, block: str, ids: IdArray) -> Flags:
        """Return for each id whether the replica may hold its row."""
        table = self.tables.get(block)
        return np.zeros(len(ids), dtype=np.bool_) if table is None else table.has(ids)

    def note(self, request: SyncRequest) -> None:
        """Record what the replica has dropped and what it requests."""
        for block, ids in request.left.items():
            if (table := self.tables.get(block)) is not None:
                table.drop(read_ids(ids))
        for block, ids in (request.rows or {}).items():
            if not ids:
                continue
            asked = read_ids(ids)
            table = self.tables.setdefault(block, Rows.empty(1))
            table.put(asked, np.zeros((len(asked), 1), dtype=np.float32))


class Holdings:
    """The records of one server under one epoch.

    Each row that a replica holds of this epoch's values was requested from this server.  So a
    record begins with a replica's first request, and one that is removed never begins again: its
    replica receives all changed rows from then on.

    Parameters:
        most: Greatest number of ids in all records, and of replicas.
    """

    def __init__(self, most: int = HELD_MAX) -> None:
        self.most = most
        self._held: dict[str, Held] = {}
        self._unknown: set[str] = set()  # replicas whose records were removed
        self._requests = 0

    def counts(self) -> dict[str, int]:
        """Return the number of recorded ids, and of replicas that receive all changed rows."""
        if not self._held and not self._unknown:
            return {}
        return {"held": self._size(), "unrecorded": len(self._unknown)}

    def _size(self) -> int:
        return sum(map(len, self._held.values()))

    def note(self, request: SyncRequest) -> Held | None:
        """Record a request; return which rows its sender may hold, or None if that is not known.

        The request has ``rows``.
        """
        name, place = request.replica, (request.partition, request.serial)
        self._requests += 1
        if not request.serial:
            self._remove([name])  # it does not report what it drops
        if name in self._unknown:
            return None
        if name not in self._held and len(self._held) + len(self._unknown) >= self.most:
            return None  # it may have been forgotten
        held = self._held.setdefault(name, Held())
        if place < held.newest:
            return None  # nobody awaits the reply to a late request, whose reports may be wrong now
        held.newest, held.at = place, self._requests
        held.note(request)
        if self._size() > self.most:
            old = self._requests - SILENT_MAX
            silent = [other for other, held in self._held.items() if held.at < old]
            self._remove(silent or [name])
        return self._held.get(name)

    def _remove(self, names: list[str]) -> None:
        for name in names:
            self._held.pop(name, None)
            self._unknown.add(name)


def read_ids(data: bytes) -> IdArray:
    """Return the ids of a message, each once."""
    return distinct(np.frombuffer(data, dtype=ID).astype(np.uint64))


def select_held(touched: Mapping[str, object], block: str, held: Held | None) -> list[IdArray]:
    """Return the touched ids of a table whose rows the replica may hold; all without a record."""
    ids = touched.get(block)
    if not isinstance(ids, list):
        return []
    if held is None:
        return ids
    some = distinct(np.concatenate(ids)) if len(ids) > 1 else ids[0]
    return [some[held.of(block, some)]]
