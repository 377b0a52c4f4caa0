"""Alerts over a restart: what still lasts is reported again, and what has ended is over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alert_receivers import WAIT_S
from test_alerts import Taker, alerts, status

from online.monitoring.recording import Look
from online.monitoring.sending import Sending


def test_what_ends_during_a_restart_is_over_after_it(tmp_path: Path) -> None:
    kept = tmp_path / "alerts.json"
    text = "2 rows were given up: order 18 of shop"
    bad = status(drift={"state": "act", "why": "since noon"}, incidents=[text])

    def told(looks: Sequence[Look], n: int, file: Path | None = kept) -> list[str]:
        taker = Taker()
        sending = Sending(alerts, lambda _: [taker], file)
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
    down, up = Look(60.0, here, failed="gone"), Look(75.0, here, [status(incidents=[text])])
    assert told([down, up], 2) == [text, "the error rose: since noon"]
    assert told([Look(90.0, here, [status()])] * 2, 1) == ["2 rows were given up"]
    assert told([Look(105.0, here, [status()])], 0) == []
    kept.write_bytes(b"{")
    assert told([Look(120.0, here, [bad])], 2) != [], "a damaged file hinders nothing"
    assert told([Look(135.0, here, [status()])], 0, None) == [], "control: without the file"
