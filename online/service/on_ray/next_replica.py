"""Checks beside Ray Serve whether the next replica can start, and publishes the reason if not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from online.service.on_ray import rollout
from online.service.on_ray.would_load import why_not
from online.settings.config import Settings

log = logging.getLogger(__name__)

_AGAIN_S = 10.0  # before the second check whether a replica can start
_AGAIN_MAX_S = 60.0  # between later checks; the pause doubles, as each costs a start's imports

Served = tuple[Settings, Mapping[str, str]]
"""The settings that serve and, by the model's name, the hash of the spec."""


class NextReplica:
    """Checks whether the next replica can start, and publishes the reason to all processes if not.

    It runs on its own thread, until a replica can start or all requested replicas run.

    Parameters:
        served: Returns what is served now, because a reload may fix the cause.
    """

    def __init__(self, served: Callable[[], Served]) -> None:
        self._served, self._lock = served, threading.Lock()
        self._thread: threading.Thread | None = None
        self._again = threading.Event()

    def find_out(self) -> None:
        """Start checking, or check again at once, because a replica has gone."""
        with self._lock:
            self._again.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._publish, daemon=True)
                self._thread.start()

    def _publish(self) -> None:
        published: str | None = ""
        pause_s, gone = _AGAIN_S, True
        while True:
            self._again.clear()
            why = self._why(gone)
            if why != published:
                try:
                    rollout.note_absence(why)
                    published = why
                except Exception as error:  # whatever Ray raises: Serve will know it later
                    log.warning("why a replica does not start was not published: %r", error)
            with self._lock:
                if why is None and not self._again.is_set():
                    self._thread = None
                    return
            gone = self._again.wait(pause_s)
            pause_s = _AGAIN_S if gone else min(2 * pause_s, _AGAIN_MAX_S)

    def _why(self, gone: bool) -> str | None:
        """Return why another replica would not start; None: it would, or none is missing."""
        try:
            settings, specs = self._served()
            if gone or not rollout.complete(settings.replicas_min):
                return why_not(settings, specs)
        except Exception as error:
            log.warning("whether another replica can start is not known: %r", error)
        return None
