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
        bound_s: A process that holds the journal's lock this long without progress, or is stopped,
            is ended; None: never.
        progress: Is called with a line for each process that was ended.

    Attributes:
        journal: The journal, once a step has opened it.
    """

    def __init__(self, bound_s: float | None, progress: Callable[[str], None]) -> None:
        self._standstill = None if bound_s is None else Standstill(bound_s)
        self._progress, self._children = progress, Children(bound_s, progress)
        self._held_by: str | None = None  # the lock's holder that was logged last
        self._refused: str | None = None  # the error that was logged last
        self.journal: Journal | None = None

    def once(self, settings: Settings, ports: Sequence[int] | None) -> bool:
        """Checkpoint a small part, and look at the service's processes.

        Returns whether a replica has gone, and fewer run than are wanted.  ``ports``: first and
        last HTTP port of running replicas.
        """
        self._move(settings, ports)
        return ports is not None and self._children.once(settings.state_dir, settings.replicas_min)

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
            if self._standstill is not None and ports is not None:
                seen = look(error.pid, range(ports[0], ports[1] + 1), settings.state_dir)
                if (line := self._standstill.end(seen, time.monotonic())) is not None:
                    self._progress(line)
        except ReplayError as error:
            if str(error) != self._refused:
                log.warning("journal: %s", error)
            self._refused = str(error)
        else:
            self._held_by = self._refused = None
            if self._standstill is not None:
                self._standstill.moved()

    def close(self) -> None:
        """Close the journal; the next step opens it again."""
        if self.journal is not None:
            self.journal.close()
            self.journal = None
