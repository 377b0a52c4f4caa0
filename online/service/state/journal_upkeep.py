"""One process moves the journal's log into its file for all, and ends who holds it and stands."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from online.service.state.stalled_process import Standstill, look
from online.settings.config import Settings
from online.settings.places import journal_opener
from replay.errors import JournalHeld, ReplayError
from replay.journal.base import Journal

log = logging.getLogger(__name__)

_WAIT_S = 0.5  # for the journal's lock, when a part of its log is moved


class Tending:
    """The journal of a service, tended in small steps.

    Parameters:
        bound_s: A replica that holds the journal for so long, and moves nothing, is ended; None:
            never.
        progress: Is given a line for each that was ended.

    Attributes:
        journal: The journal, from the first step on that could open it.
    """

    def __init__(self, bound_s: float | None, progress: Callable[[str], None]) -> None:
        self._standstill = None if bound_s is None else Standstill(bound_s)
        self._progress = progress
        self._held_by: str | None = None  # as was said
        self._refused: str | None = None  # as well
        self.journal: Journal | None = None

    def once(self, settings: Settings, ports: Sequence[int] | None) -> None:
        """Move a small part; ``ports``: the first and the last of the replicas, once they run."""
        try:
            if self.journal is None:
                # Others may wait longer: whoever stands still is noticed here.
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
