"""Sending alerts: each receiver has a bounded queue and a thread.

This runs in the main process of the service, not on the path of predictions or feedback, and a
receiver that does not answer delays no other one.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from online.edge.releases.folder import write
from online.monitoring.alerts import Alert
from online.monitoring.conditions import Conditions, Raised
from online.monitoring.receivers import NotSent, Receiver, receivers
from online.monitoring.recording import Look
from online.settings.alerts import Alerts

log = logging.getLogger(__name__)

ALERTS_FILE: Final = "alerts.json"
"""In the state folder: which conditions were reported and are not over."""
_RETRY_MAX_S = 600.0
_END_S = 0.5  # seconds to wait at the end for a thread without an attempt in progress


class Outbox:
    """Sends the alerts for one receiver in order, each with at most ``attempts`` attempts.

    An alert that finds the queue full is dropped, counted and logged.
    """

    def __init__(self, receiver: Receiver, settings: Alerts) -> None:
        self._receiver, self._settings = receiver, settings
        self._waiting: deque[Alert] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.sent = self.given_up = self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="online-alerts", daemon=True)
        self._thread.start()

    def put(self, alert: Alert) -> None:
        """Add an alert to the queue; returns at once."""
        if alert.kind not in self._receiver.on:
            return
        with self._changed:
            if len(self._waiting) >= self._settings.queue_max:
                self.dropped += 1
                log.warning(
                    "alerts: %s has %d messages waiting, one is left out: %s",
                    self._receiver.name, len(self._waiting), alert.summary,
                )  # fmt: skip
                return
            self._waiting.append(alert)
            self._changed.notify_all()

    def close(self) -> None:
        """Start no further attempt; one in progress ends within its time limit, on its thread."""
        with self._changed:
            self._closed = True
            left = len(self._waiting)
            self._changed.notify_all()
        self._thread.join(_END_S)
        if left:
            log.warning("alerts: %d messages were not sent to %s", left, self._receiver.name)

    def _run(self) -> None:
        while (alert := self._next()) is not None:
            self._send(alert)

    def _next(self) -> Alert | None:
        """Wait for the oldest alert and remove it from the queue; None if closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            return None if self._closed else self._waiting.popleft()

    def _send(self, alert: Alert) -> None:
        pause_s = self._settings.retry_s
        for left in reversed(range(self._settings.attempts)):
            try:
                self._receiver.send(alert)
                self.sent += 1
                return
            except NotSent as error:
                again, why = error.again and left > 0, str(error)
            except Exception as error:  # an unexpected error must not stop later alerts
                again, why = False, f"{self._receiver.name}: {error!r}"
            if not again:
                break
            log.info("alerts: %s; again in %.0f s", why, pause_s)
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, pause_s):
                    break
            pause_s = min(2 * pause_s, _RETRY_MAX_S)
        self.given_up += 1
        log.warning("alerts: given up: %s: %s", why, alert.summary)


def _read(file: Path | None) -> list[Raised]:
    """Read which conditions were reported; none if the file is missing or damaged."""
    try:
        return [] if file is None else msgspec.json.decode(file.read_bytes(), type=list[Raised])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        log.warning("alerts: %s can't be read: %s", file, error)
        return []


class Sending:
    """Derives alerts from each observation of the service, and queues them for the receivers.

    Parameters:
        wanted: Returns the present settings, which may change while the service runs.
        made: Makes the receivers of the settings.
        file: Stores which conditions were reported, over a restart; None: nothing does.
    """

    def __init__(
        self,
        wanted: Callable[[], Alerts],
        made: Callable[[Alerts], Sequence[Receiver]] = receivers,
        file: Path | None = None,
    ) -> None:
        self._wanted, self._made, self._file = wanted, made, file
        self._settings: Alerts | None = None
        self._written = _read(file)
        self._conditions = Conditions(self._written)
        self.boxes: list[Outbox] = []

    def __call__(self, look: Look | None) -> None:
        """Handle an observation; None: the recording has ended."""
        if look is None:
            self._close()
            return
        wanted = self._wanted()
        if wanted != self._settings:
            self._close()
            self._settings = wanted
            self.boxes = [Outbox(one, wanted) for one in self._made(wanted)]
        for alert in self._conditions.of(look, wanted.stale_s):
            for box in self.boxes:
                box.put(alert)
        self._keep()

    def _keep(self) -> None:
        """Store which conditions were reported, if that has changed and there is a receiver."""
        raised = self._conditions.raised
        if self._file is None or not self.boxes or raised == self._written:
            return
        self._written = raised
        try:
            write(self._file, msgspec.json.encode(raised), 0o600)
        except OSError as error:  # such as a full disk: the alerts matter more
            log.warning("alerts: %s can't be written: %s", self._file, error)

    def _close(self) -> None:
        for box in self.boxes:
            box.close()
        self.boxes, self._settings = [], None
