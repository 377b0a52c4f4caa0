"""Conversion of each observation of the service to alerts: pure logic without I/O.

A condition (an alarm, an incident, a disk that fills up, stale answers) gives an alert when it
begins and when it ends.  An event (a promotion, a decision, a quarantined source) gives one alert.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

from online.monitoring.alerts import Alert
from online.monitoring.recording import Look
from online.monitoring.samples import incidents
from online.settings.alerts import Kind

_OF_MARK: Final[Mapping[str, Kind]] = {
    "model": "promotion", "quarantine": "quarantine", "decision": "decision",
}  # fmt: skip
"""The kind of alert for each kind of mark in the time series."""


_Key: TypeAlias = tuple[Kind, str | None, str]
"""Kind and model of a condition, and a hash of its text with digits masked."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A condition that holds: since when (POSIX seconds), its text, and whether it was sent."""

    since: float
    text: str
    reported: bool


@dataclass(frozen=True, slots=True)
class _Seen:
    """A condition in one observation; it is sent once it has held for ``hold_s`` seconds."""

    kind: Kind
    model: str | None
    text: str
    hold_s: float = 0.0

    @property
    def key(self) -> _Key:
        """Return the condition's identity, which does not change with numbers in the text."""
        words = re.sub(r"\d[\d,.]*", "#", self.text) if self.kind == "incident" else ""
        return self.kind, self.model, hashlib.sha256(words.encode()).hexdigest()[:16]


class Raised(msgspec.Struct, frozen=True):
    """A condition that was reported and still holds; it is stored, so a restart does not repeat it.

    ``text`` omits what may name a row, which is not kept where ``online forget`` does not look.
    """

    key: _Key
    text: str


class Conditions:
    """Remembers the conditions that hold, and derives alerts from each observation.

    ``before``: what an earlier process has reported.  What of it still lasts is reported again, and
    the rest is over.
    """

    def __init__(self, before: Iterable[Raised] = ()) -> None:
        self._held: dict[_Key, _Held] = {}
        self._before = {one.key: one.text for one in before}

    @property
    def raised(self) -> list[Raised]:
        """The conditions that were reported and are not over yet."""
        reported = {
            key: held.text.partition(": ")[0] if key[0] == "incident" else held.text
            for key, held in self._held.items()
            if held.reported
        }
        return [Raised(key, text) for key, text in {**self._before, **reported}.items()]

    def of(self, look: Look, stale_s: float) -> list[Alert]:
        """Return the alerts that follow from an observation, in the order of time.

        ``stale_s`` is the age in seconds from which on answers, or their absence, count as stale.
        """
        out = [
            Alert(_OF_MARK[mark.kind], model, "happened", mark.text, mark.at, look.service)
            for model, marks in look.marks.items()
            for mark in marks
            if mark.kind in _OF_MARK
        ]
        seen = {one.key: one for one in _conditions(look, stale_s)}
        for key, one in seen.items():
            was = self._held.get(key)
            since = look.at if was is None else min(was.since, look.at)  # the clock may be set back
            sent = was is not None and was.reported
            if not sent and look.at - since >= one.hold_s:
                out.append(Alert(one.kind, one.model, "raised", one.text, look.at, look.service))
                sent = True
            self._held[key] = _Held(since, one.text, sent)
        for key in [key for key in self._held if key not in seen]:
            kind, model, _ = key
            if look.failed is not None and (kind, model) != ("stale", None):
                continue  # unknown while the service does not answer: it stays
            was = self._held.pop(key)
            if was.reported:
                out.append(Alert(kind, model, "over", was.text, look.at, look.service))
        for key, text in list(self._before.items()):
            if (held := self._held.get(key)) is not None:
                if held.reported:
                    del self._before[key]
            elif look.failed is None:
                del self._before[key]
                out.append(Alert(key[0], key[1], "over", text, look.at, look.service))
        return out


def _conditions(look: Look, stale_s: float) -> Iterator[_Seen]:
    if look.failed is not None:
        yield _Seen("stale", None, f"it does not answer: {look.failed}", stale_s)
        return
    for status in look.statuses:
        model = str(status["model"])
        drift, journal = status.get("drift") or {}, status.get("journal") or {}
        if drift.get("state") == "act":
            yield _Seen("alarm", model, f"the error rose: {drift.get('why', 'see the page')}")
        room = journal.get("alarm")
        if room is not None:
            yield _Seen("disk", model, str(room))
        for incident in incidents(status):
            if incident != room:
                yield _Seen("incident", model, str(incident))
        yield from _stale(model, status, stale_s)


def _stale(model: str, status: Mapping[str, Any], stale_s: float) -> Iterator[_Seen]:
    if status.get("journal", {}) is None:
        text = "the journal does not answer, and feedback is refused with 503 until it does"
        yield _Seen("stale", model, text, stale_s)
        return
    if status.get("server") is None:
        yield _Seen("stale", model, "the parameter server does not answer", stale_s)
        return
    for replica, report in status["replicas"].items():
        age_s = max(report.get("age_ms", 0.0) / 1000, report.get("unserved_s", 0.0))
        if age_s > stale_s:
            yield _Seen("stale", model, f"replica {replica} answers from a model {age_s:.0f} s old")
            return
