"""Lets a replica read the tables of its host's parameter server in place of copies of its own.

The server publishes its values as views (:mod:`paramserver.snapshots.views`).  A replica that has
no values begins with the newest view, and asks the server only for the changes since.  Later it
takes newer views, so that few rows are its own.  Nothing depends on that: rows that changed since
its view are its own rows, and views only say what the server's messages said before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from online.learning.local_model import LocalModel
from paramserver.core.wire import Version
from paramserver.snapshots.views import Views

_LOOK_S: Final = 1.0  # between two searches for a newer view


class HostTables:
    """The views that one learner reads.

    Parameters:
        learner: The learner.
        views: Those of its lineage on this host.
        monotonic_s: A monotonic clock, in seconds.
    """

    def __init__(self, learner: LocalModel, views: Views, monotonic_s: Callable[[], float]) -> None:
        self._learner, self._views, self._monotonic_s = learner, views, monotonic_s
        self._read: Version = (0, 0)  # version of the view that is read
        self._due_s = 0.0

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
            self._read = view.version

    def rest(self) -> Iterator[None]:
        """Take a newer view in place of the one that is read, one step at a time."""
        learner, now_s = self._learner, self._monotonic_s()
        if now_s < self._due_s or learner.catching_up or not learner.ready:
            return
        self._due_s = now_s + _LOOK_S
        view = self._views.newest(max(self._read, (learner.version[0], -1)), learner.version)
        if view is not None:
            yield from view.resident()
            if learner.rest_on(view.version, view.tables):
                self._read = view.version
