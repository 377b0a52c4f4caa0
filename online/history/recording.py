"""The process that owns a service asks it for its status now and then, and records it."""

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

from online.client.connection import Connection
from online.edge.releases.folder import releases_in
from online.errors import OnlineError
from online.history.samples import Mark
from online.history.series import FOLDER, Series
from refusals import reason

log = logging.getLogger(__name__)

EVERY_S: Final = 15.0
_ASK_S: Final = 5.0
_STOP_S: Final = 2 * _ASK_S


Ask = Callable[[], list[Mapping[str, Any]]]
"""Status of each model, as ``GET /v1/models`` gives them; what it raises is logged."""


@dataclass(frozen=True, slots=True)
class Look:
    """The service as it was at one moment, for whoever else wants to know.

    Attributes:
        at: POSIX seconds.
        service: Its address.
        statuses: One of each model, as ``GET /v1/models`` gives them.
        marks: By model, what has happened since the look before.
        failed: Why there is no status; None: there is.
    """

    at: float
    service: str
    statuses: Sequence[Mapping[str, Any]] = ()
    marks: Mapping[str, Sequence[Mark]] = field(default_factory=dict)
    failed: str | None = None


class _NotAllowed(OnlineError):
    """The service does not tell this process how it is."""

    status: int
    text = "the service answers {status}: it has tokens, and none is known"


def memory_of(replicas: Iterable[str]) -> float | None:
    """Bytes that the processes of these replicas hold, of those on this machine; None: of none.

    The name of a replica begins with its host and process.
    """
    here, found = socket.gethostname(), 0.0
    for name in replicas:
        host, _, rest = name.partition(":")
        pid = rest.partition(":")[0]
        if host == here and pid.isdecimal():
            with contextlib.suppress(psutil.Error):
                found += psutil.Process(int(pid)).memory_info().rss
    return found or None


class Recording:
    """Records the models of a service on a thread of its own, once it is told to start.

    Parameters:
        state_dir: The state folder; the histories stand in its folder ``history``.
        heard: Is given each look on that thread, and None when there are no more.
        now_s: The wall clock, in POSIX seconds.
    """

    def __init__(
        self,
        state_dir: Path,
        heard: Callable[[Look | None], None] = lambda _: None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._heard, self._now_s = state_dir / FOLDER, heard, now_s
        self._released = releases_in(state_dir)
        self._url = ""
        self._series: dict[str, Series] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def of(self, url: str, token: str | None) -> None:
        """Record what the service at ``url`` says; returns at once."""
        connection = Connection(url, _ASK_S, token)
        self._url = url

        def ask() -> list[Mapping[str, Any]]:
            try:
                status, answer = connection.get("/v1/models")
            finally:
                connection.close()  # the next question is far away
            if status in (401, 403):
                raise _NotAllowed(status)
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
            self._tell(None)

    def _record(self, ask: Ask) -> None:
        """Nothing that goes wrong here may cost the service more than a gap in a chart."""
        try:
            statuses = ask()
        except _NotAllowed as error:  # it answers: nobody is told that it does not
            log.info("nothing is recorded: %s", error)
            return
        except Exception as error:
            log.info("the history has a gap: %r", error)
            self._tell(Look(self._now_s(), self._url, failed=reason(error)))
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
            except Exception as error:  # a full disk: the look is worth all the more
                log.info("the history has a gap: %r", error)
        self._tell(Look(self._now_s(), self._url, statuses, marks))

    def _releases(self, name: str) -> Mapping[str, Any]:
        try:
            return self._released(name)
        except Exception as error:  # they have no mark then
            log.info("the releases of %s can't be read: %r", name, error)
            return {}

    def _tell(self, look: Look | None) -> None:
        try:
            self._heard(look)
        except Exception:
            log.exception("whoever wants to know of the service failed at a look at it")
