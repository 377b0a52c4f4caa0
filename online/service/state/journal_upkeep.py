"""Checkpoints the journal's WAL for all processes, and looks after the processes of a service."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from online.service.children import Children
from online.service.on_ray import rollout
from online.service.state.stalled_process import Standstill, look
from online.service.would_load import why_not
from online.settings.config import Settings
from online.settings.places import journal_opener
from replay.errors import JournalHeld, ReplayError
from replay.journal.base import Journal

log = logging.getLogger(__name__)

_AGAIN_S = 10.0  # between two looks whether a replica can start
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
        self._next = _Next()
        self._held_by: str | None = None  # the lock's holder that was logged last
        self._refused: str | None = None  # the error that was logged last
        self.journal: Journal | None = None

    def once(
        self, settings: Settings, ports: Sequence[int] | None, specs: Mapping[str, str]
    ) -> None:
        """Checkpoint a small part, and look at the service's processes.

        Parameters:
            ports: The first and the last of the replicas, once they run.
            specs: By the model's name: hash of the spec that serves.
        """
        self._move(settings, ports)
        self._next.serves(settings, specs)
        if ports is not None and self._children.once(settings.state_dir, settings.replicas_min):
            self._next.find_out()

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


class _Next:
    """Finds out whether the next replica can start, and tells all processes why it can not.

    It does so on a thread of its own, until it can.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._again = threading.Event()
        self._served: tuple[Settings, Mapping[str, str]] | None = None

    def serves(self, settings: Settings, specs: Mapping[str, str]) -> None:
        """Take what a replica that starts now would have to load."""
        self._served = settings, specs

    def find_out(self) -> None:
        """Begin, or look again at once: a replica has gone."""
        self._again.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._tell, daemon=True)
            self._thread.start()

    def _tell(self) -> None:
        told: str | None = ""
        while self._served is not None:
            self._again.clear()
            why = why_not(*self._served)
            if why != told:
                try:
                    rollout.note_absence(why)
                    told = why
                except Exception as error:  # whatever Ray raises: Serve will know it later
                    log.warning("why a replica does not start is not told: %r", error)
            if why is None and not self._again.is_set():
                return
            self._again.wait(_AGAIN_S)
