"""Whether the next replica can start is found out beside Ray Serve, and told to all processes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from online.service.on_ray import rollout
from online.service.on_ray.would_load import why_not
from online.settings.config import Settings

log = logging.getLogger(__name__)

_AGAIN_S = 10.0  # between two looks whether a replica can start


class NextReplica:
    """Finds out whether the next replica can start, and tells all processes why it can not.

    It does so on a thread of its own, until it can.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._again = threading.Event()
        self._served: tuple[Settings, Mapping[str, str]] | None = None

    def find_out(self, settings: Settings, specs: Mapping[str, str]) -> None:
        """Begin, or look again at once: a replica has gone.

        ``specs``: by the model's name, the hash of the spec that serves.
        """
        self._served = settings, specs
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
