"""Checkpoints the journal's WAL for all processes, and looks after the processes of a service."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from online.service.state.children import Children
from online.service.state.stalled_process import Standstill, look
from online.settings.config import Settings
from online.settings.places import journal_opener
from replay.errors import JournalHeld, ReplayError
from replay.journal.base import Journal

log = logging.getLogger(__name__)

_WAIT_S = 0.5  # for the journal's lock, at a checkpoint


class JournalUpkeep:
    """Maintains the journal of a service in small steps, in one process for all.

    Parameters:
        progress: Is called with a line for each process that was ended.

    Attributes:
        journal: The journal, once a step has opened it.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._standstill = Standstill()
        self._progress, self._children = progress, Children(progress)
        self._held_by: str | None = None  # the lock's holder that was logged last
        self._refused: str | None = None  # the error that was logged last
        self.journal: Journal | None = None

    def once(self, settings: Settings, ports: Sequence[int] | None) -> bool:
        """Checkpoint a small part, and look at the service's processes.

        Returns whether a replica has gone, and fewer run than are wanted.  ``ports``: first and
        last HTTP port of running replicas.
        """
        self._move(settings, ports)
        bound_s = settings.limits.standstill_s
        return ports is not None and self._children.once(
            settings.state_dir, settings.replicas_min, bound_s
        )

    def _move(self, settings: Settings, ports: Sequence[int] | None) -> None:
        try:
            if self.journal is None:
                # A short wait: it is this process that notices a stalled holder.
                self.journal = journal_opener(settings, lock_wait_s=_WAIT_S)()
            self.journal.checkpoint()
        except JournalHeld as error:
            if error.holder != self._held_by:
                log.warning("%s", error)
            self._held_by = error.holder
            bound_s = settings.limits.standstill_s
            if bound_s is None:
                self._standstill.moved()
            elif ports is not None:
                seen = look(error.pid, range(ports[0], ports[1] + 1), settings.state_dir)
                if (line := self._standstill.end(seen, time.monotonic(), bound_s)) is not None:
                    self._progress(line)
        except ReplayError as error:
            if str(error) != self._refused:
                log.warning("journal: %s", error)
            self._refused = str(error)
        else:
            self._held_by = self._refused = None
            self._standstill.moved()

    def close(self) -> None:
        """Close the journal; the next step opens it again."""
        if self.journal is not None:
            self.journal.close()
            self.journal = None
