"""Polls the status of a service at intervals, and records it; runs in the owner process."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from online.client.simple_client import SimpleClient
from online.edge.releases.folder import releases_in
from online.errors import OnlineError
from online.monitoring.samples import Mark
from online.monitoring.series import FOLDER, Series
from refusals import reason

log = logging.getLogger(__name__)

EVERY_S: Final = 15.0
_ASK_S: Final = 5.0
_STOP_S: Final = 2 * _ASK_S


Ask = Callable[[], list[Mapping[str, Any]]]
"""Returns the status of each model, as ``GET /v1/models`` does; exceptions are logged."""


@dataclass(frozen=True, slots=True)
class Look:
    """One poll of the service, for other consumers such as alerts.

    Attributes:
        at: POSIX seconds.
        service: URL of the service.
        statuses: One per model, as in ``GET /v1/models``.
        marks: Events since the previous poll, by model.
        failed: Why there is no status; None: there is one.
    """

    at: float
    service: str
    statuses: Sequence[Mapping[str, Any]] = ()
    marks: Mapping[str, Sequence[Mark]] = field(default_factory=dict)
    failed: str | None = None


class _NotAllowed(OnlineError):
    """The service refuses its status to this process."""

    status: int
    text = "the service answers {status}: it has tokens, and none is known"


def memory_of(replicas: Iterable[str]) -> float | None:
    """Resident memory in bytes of these replicas' processes on this machine; None: none is here.

    The name of a replica begins with its host and process id.
    """
    here, resident = socket.gethostname(), 0.0
    for name in replicas:
        host, _, rest = name.partition(":")
        pid = rest.partition(":")[0]
        if host == here and pid.isdecimal():
            with contextlib.suppress(psutil.Error):
                resident += psutil.Process(int(pid)).memory_info().rss
    return resident or None


class Recording:
    """Records the models of a service on its own thread, once started.

    Parameters:
        state_dir: The state folder; the time series are in its folder ``history``.
        heard: Called on that thread with each poll, and with None at the end.
        now_s: The wall clock, in POSIX seconds.
    """

    def __init__(
        self,
        state_dir: Path,
        heard: Callable[[Look | None], None] = lambda _: None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._consumer, self._now_s = state_dir / FOLDER, heard, now_s
        self._released = releases_in(state_dir)
        self._url = ""
        self._series: dict[str, Series] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def of(self, url: str, token: Callable[[], str | None]) -> None:
        """Record the status of the service at ``url``; returns at once.

        ``token`` returns the present token of its administrator, which may be replaced.
        """
        self._url = url

        def ask() -> list[Mapping[str, Any]]:
            answer = SimpleClient(url, token(), _ASK_S).get("/v1/models")
            if answer.status_code in (401, 403):
                raise _NotAllowed(answer.status_code)
            if answer.status_code != 200:
                raise OSError(f"the service answers {answer.status_code}: {answer.text[:200]}")
            models: list[Mapping[str, Any]] = answer.json()["models"]
            return models

        self.start(ask)

    def start(self, ask: Ask) -> None:
        """Begin to record the results of ``ask``; returns at once."""
        self._stopped.clear()
        self._thread = threading.Thread(
            target=self._run, args=(ask,), name="online-history", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop recording, and close the files."""
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
            self._publish(None)

    def _record(self, ask: Ask) -> None:
        """Record one poll; no failure here costs the service more than a gap in a chart."""
        try:
            statuses = ask()
        except _NotAllowed as error:  # it answers, so no alert is sent
            log.info("nothing is recorded: %s", error)
            return
        except Exception as error:
            log.info("the history has a gap: %r", error)
            self._publish(Look(self._now_s(), self._url, failed=reason(error.__cause__ or error)))
            return
        marks: dict[str, Sequence[Mark]] = {}
        for status in statuses:
            name = str(status["model"])
            try:
                if name not in self._series:
                    self._series[name] = Series(self._folder, name)
                memory = memory_of(status["replicas"])
                sample = {**status, "edge": self._releases(name), "memory_bytes": memory}
                marks[name] = self._series[name].add(sample, self._now_s())
            except Exception as error:  # such as a full disk: the alerts matter more
                log.info("the history has a gap: %r", error)
        self._publish(Look(self._now_s(), self._url, statuses, marks))

    def _releases(self, name: str) -> Mapping[str, Any]:
        try:
            return self._released(name)
        except Exception as error:  # they have no mark then
            log.info("the releases of %s can't be read: %r", name, error)
            return {}

    def _publish(self, look: Look | None) -> None:
        try:
            self._consumer(look)
        except Exception:
            log.exception("whoever wants to know of the service failed at a look at it")
