"""The process that owns a service asks it for its status now and then, and records it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from online.client.connection import Connection
from online.history.series import FOLDER, Series

log = logging.getLogger("online.history")

EVERY_S: Final = 15.0
_ASK_S: Final = 5.0
_STOP_S: Final = 2 * _ASK_S


Ask = Callable[[], list[Mapping[str, Any]]]
"""Status of each model, as ``GET /v1/models`` gives them; what it raises is logged."""


class Recording:
    """Records the models of a service on a thread of its own, once it is told to start.

    Parameters
    ----------
    state_dir
        The state folder; the histories stand in its folder ``history``.
    now_s
        The wall clock, in POSIX seconds.
    """

    def __init__(self, state_dir: Path, now_s: Callable[[], float] = time.time) -> None:
        self._folder, self._now_s = state_dir / FOLDER, now_s
        self._series: dict[str, Series] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def of(self, url: str, token: str | None) -> None:
        """Record what the service at ``url`` says; returns at once."""
        connection = Connection(url, _ASK_S, token)

        def ask() -> list[Mapping[str, Any]]:
            try:
                status, answer = connection.get("/v1/models")
            finally:
                connection.close()  # the next question is far away
            if status != 200:
                raise OSError(f"the service answers {status}: {str(answer)[:200]}")
            models: list[Mapping[str, Any]] = answer["models"]
            return models

        self.start(ask)

    def start(self, ask: Ask) -> None:
        """Begin to record what ``ask`` returns; returns at once."""
        self._stopped.clear()
        self._thread = threading.Thread(
            target=self._run, args=(ask,), name="online-history", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End, and release the files."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)
            self._thread = None

    def _run(self, ask: Ask) -> None:
        try:
            while True:
                self._record(ask)
                if self._stopped.wait(EVERY_S):
                    return
        finally:
            for series in self._series.values():
                series.close()
            self._series.clear()

    def _record(self, ask: Ask) -> None:
        """Nothing that goes wrong here may cost the service more than a gap in a chart."""
        try:
            for status in ask():
                name = str(status["model"])
                if name not in self._series:
                    self._series[name] = Series(self._folder, name)
                self._series[name].add(dict(status), self._now_s())
        except Exception as error:
            log.info("the history has a gap: %r", error)
