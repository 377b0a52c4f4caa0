"""Alerts over a restart, and while the journal does not answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alert_receivers import WAIT_S

from online.monitoring.alerts import Alert
from online.monitoring.conditions import Conditions
from online.monitoring.recording import Look
from online.monitoring.sending import Sending
from online.monitoring.series import Series
from online.settings.alerts import Alerts, Kind


class _Taker:
    """A receiver that takes what comes."""

    name = "taker"
    on: tuple[Kind, ...] = ("alarm", "incident")

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.enough = threading.Semaphore(0)

    def send(self, alert: Alert) -> None:
        """Take the alert."""
        self.taken.append(f"{alert.state} {alert.text}")
        self.enough.release()


def _status(**more: Any) -> dict[str, Any]:
    return {"model": "m", "server": {"epoch": 1}, "replicas": {"r": {"age_ms": 20.0}}, **more}


def test_what_ends_during_a_restart_is_over_after_it(tmp_path: Path) -> None:
    kept = tmp_path / "alerts.json"
    text = "2 rows were given up: order 18 of shop"
    bad = _status(drift={"state": "act", "why": "since noon"}, incidents=[text])

    def told(looks: Sequence[Look], n: int, file: Path | None = kept) -> list[str]:
        taker = _Taker()
        sending = Sending(Alerts, lambda _: [taker], file)
        for look in looks:
            sending(look)
        for _ in range(n):
            assert taker.enough.acquire(timeout=WAIT_S)
        sending(None)
        return taker.taken

    here = "http://here"
    assert len(told([Look(0.0, here, [bad])], 2)) == 2
    assert b"shop" not in kept.read_bytes(), "forgetting a source does not look here"
    assert kept.stat().st_mode & 0o077 == 0
    down, up = Look(60.0, here, failed="gone"), Look(75.0, here, [_status(incidents=[text])])
    over = "over the error rose: since noon"
    assert told([down, up], 2) == [f"raised {text}", over]
    assert told([Look(90.0, here, [_status()])] * 2, 1) == ["over 2 rows were given up"]
    assert told([Look(105.0, here, [_status()])], 0) == []
    kept.write_bytes(b"{")
    assert told([Look(120.0, here, [bad])], 2) != [], "a damaged file hinders nothing"
    assert told([Look(135.0, here, [_status()])], 0, None) == [], "control: without the file"


def test_a_journal_that_does_not_answer_for_long_is_told_of() -> None:
    found = Conditions()
    away, back = _status(journal=None), _status(journal={"alarm": None})
    looks = [(0.0, away), (59.0, away), (60.0, away), (75.0, away), (90.0, back)]
    said = [found.of(Look(at, "http://here", [one]), 60.0) for at, one in looks]
    assert [[alert.state for alert in one] for one in said] == [[], [], ["raised"], [], ["over"]]
    assert "the journal does not answer" in said[2][0].text


def test_decisions_are_not_told_again_when_the_journal_answers_again(tmp_path: Path) -> None:
    known = {"frozen": False, "last": {"kind": "rollback"}, "banned": ["shop"]}
    first = {"quality": {"n": 0}, "learned": 0, "spec": "s", "learner": "logreg"}
    series = Series(tmp_path, "m")
    try:
        assert series.add(_status(**first, rewrites=known), 0.0) == ()
        for at in (15.0, 30.0):
            away = {**_status(**first), "rewrites": None, "server": None}
            assert series.add(away, at) == ()
        assert series.add(_status(**first, rewrites=known), 45.0) == ()
        later = {**known, "frozen": True, "last": {"kind": "freeze"}}
        assert [m.text for m in series.add(_status(**first, rewrites=later), 60.0)] == ["frozen"]
    finally:
        series.close()
