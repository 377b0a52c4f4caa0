"""Lets a replica read the tables of its host's parameter server in place of copies of its own.

The server publishes its values as views (:mod:`paramserver.snapshots.views`).  A replica that has
no values begins with the newest view, and asks the server only for the changes since.  Later it
takes newer views, so that few rows are its own.  Nothing depends on that: rows that changed since
its view are its own rows, and views only say what the server's messages said before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from msgspec import structs

from online.learning.local_model import LocalModel
from paramserver.core.tables.memory import Array
from paramserver.core.wire import SyncReply, Version
from paramserver.snapshots.passed_rows import read_passed
from paramserver.snapshots.views import View, Views

log = logging.getLogger(__name__)

_LOOK_S: Final = 1.0  # between two searches for a newer view
_DROPS: Final = 16  # steps after one exchange


class HostTables:
    """The views that one learner reads.

    Parameters:
        learner: The learner.
        views: Those of its lineage on this host.
        monotonic_s: A monotonic clock, in seconds.

    Attributes:
        host: Name of the folder of a server that may pass changed rows; empty: none may.
    """

    host = ""

    def __init__(self, learner: LocalModel, views: Views, monotonic_s: Callable[[], float]) -> None:
        self._learner, self._views, self._monotonic_s = learner, views, monotonic_s
        self._read: Version = (0, 0)  # version of the view that is read
        self._dropping: Iterator[None] = iter(())
        self._dropped: Version = (0, 0)  # the local version when an own row was last dropped
        self._due_s = 0.0
        self._ring: Array | None = None

    def with_passed(self, reply: SyncReply) -> SyncReply | None:
        """Return the reply with the rows that were passed; None: they are overwritten."""
        if not reply.passed or self._ring is None:
            return None if reply.passed else reply
        try:
            rows = read_passed(self._ring, reply.passed)
        except ValueError as error:
            log.info("%s", error)
            self.host = ""
            return None
        return structs.replace(reply, blocks={**reply.blocks, **rows})

    def _note_read(self, view: View) -> None:
        self._read, self._ring = view.version, view.passed
        self.host = "" if view.passed is None else view.host

    def begin(self, epoch: int) -> Iterator[None]:
        """Take the newest view of this epoch or a later one, if its values are not coming already.

        Each step takes less than some milliseconds.
        """
        learner = self._learner
        if (coming := learner.server.values) is not None and coming.since[0] >= epoch:
            return
        if (view := self._views.newest((epoch, -1))) is not None:
            yield from view.resident()
            yield from learner.server.begin(view.version, view.tables, view.others)
            self._note_read(view)

    def rest(self) -> Iterator[None]:
        """Drop own rows that equal the view's, and take a newer view, one step at a time.

        A row that was dropped may have had another value at versions before that.  So no view of an
        older version is taken.  Nor is any before all own rows were looked at: each begins anew,
        so that after a burst the last ones would never have their turn.
        """
        learner, now_s = self._learner, self._monotonic_s()
        left = _DROPS
        for _ in islice(self._dropping, _DROPS):
            self._dropped, left = learner.version, left - 1
            yield
        if left == 0 or now_s < self._due_s or learner.catching_up or not learner.ready:
            return
        self._due_s = now_s + _LOOK_S
        epoch, count = self._dropped
        after = max(self._read, (epoch, count - 1), (learner.version[0], -1))
        view = self._views.newest(after, learner.version)
        if view is not None:
            yield from view.resident()
            if (steps := learner.rest_on(view.version, view.tables)) is not None:
                self._dropping = steps
                self._note_read(view)
