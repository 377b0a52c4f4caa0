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


class Recording:
    """Records the models of a running service, on a thread of its own.

    Parameters
    ----------
    folder
        Of the histories.
    ask
        Status of each model, as ``GET /v1/models`` gives them; what it raises is logged.
    now_s
        The wall clock, in POSIX seconds.
    """

    def __init__(
        self,
        folder: Path,
        ask: Callable[[], list[Mapping[str, Any]]],
        now_s: Callable[[], float],
    ) -> None:
        self._folder, self._ask, self._now_s = folder, ask, now_s
        self._series: dict[str, Series] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="online-history", daemon=True)

    @classmethod
    def of(cls, state_dir: Path, url: str, token: str | None) -> Recording:
        """Record what the service at ``url`` says, in its state folder."""
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

        return cls(state_dir / FOLDER, ask, time.time)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, and release the files."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            while True:
                self._record()
                if self._stopped.wait(EVERY_S):
                    return
        finally:
            for series in self._series.values():
                series.close()

    def _record(self) -> None:
        """Nothing that goes wrong here may cost the service more than a gap in a chart."""
        try:
            for status in self._ask():
                name = str(status["model"])
                if name not in self._series:
                    self._series[name] = Series(self._folder, name)
                self._series[name].add(dict(status), self._now_s())
        except Exception as error:
            log.info("the history has a gap: %r", error)
