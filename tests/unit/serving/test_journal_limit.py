"""The journal's room: its bound, its growth, and the alarm before feedback is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from online.serving.operating import journal_room as room
from online.serving.operating.journal_room import Room, describe
from online.settings import config
from replay.journal.base import Usage

_MB = 1 << 20
_DAY_S = 86_400.0


def at(
    seconds: float, size: int, *, rows: int = 0, size_max: int | None = None,
    free: int | None = None, reserve: int = 0,
) -> Room:  # fmt: skip
    return Room(seconds, Usage(size, size_max, rows, 3), free, reserve)


@pytest.mark.parametrize(
    ("size_max", "free", "bound"),
    [
        (None, None, None),
        (100, None, 100),
        (None, 40, 50),
        (100, 40, 50),
        (30, 40, 30),
        (None, -5, 10),  # the disk is below its low-water mark already
    ],
)
def test_bound(size_max: int | None, free: int | None, bound: int | None) -> None:
    assert at(0, 10, size_max=size_max, free=free).bound == bound


def test_growth_is_measured_first() -> None:
    first = at(0, 10 * _MB, rows=100, size_max=1000 * _MB)
    soon = describe(first, at(59.9, 20 * _MB, rows=500, size_max=1000 * _MB))
    assert (soon["rows_per_day"], soon["bytes_per_day"], soon["days_left"]) == (None, None, None)
    then = describe(first, at(_DAY_S / 2, 20 * _MB, rows=500, size_max=1000 * _MB))
    assert then["rows_per_day"] == pytest.approx(800)
    assert then["bytes_per_day"] == pytest.approx(20 * _MB)
    assert then["days_left"] == pytest.approx(49)
    assert then["alarm"] is None
    assert (then["capped"], then["waiting"], then["used_ratio"]) == (True, 3, pytest.approx(0.02))


def test_a_journal_that_does_not_grow_is_never_full() -> None:
    first = at(0, 20 * _MB, size_max=100 * _MB)
    for size in (20, 10):
        shown = describe(first, at(_DAY_S, size * _MB, size_max=100 * _MB))
        assert shown["days_left"] is None
        assert shown["alarm"] is None


def alarm(seconds: float, size: int, **room: Any) -> str | None:
    found: str | None = describe(at(0, _MB, **room), at(seconds, size, **room))["alarm"]
    return found


def check_alarm(alarm: Callable[..., str | None]) -> None:
    assert alarm(10, 79 * _MB, size_max=100 * _MB) is None
    full = alarm(10, 80 * _MB, size_max=100 * _MB)
    assert full
    assert "80%" in full
    assert "100 MB" in full
    assert "limits.journal_mb_max" in full
    # 10 MB a day: 6.9 days to go, and 7.1
    assert "6.9 days" in (alarm(_DAY_S, 11 * _MB, size_max=80 * _MB) or "")
    assert alarm(_DAY_S, 11 * _MB, size_max=82 * _MB) is None
    disk = alarm(_DAY_S, 11 * _MB, free=60 * _MB)
    assert disk
    assert "Free disk space" in disk
    assert alarm(599, 11 * _MB, size_max=1000 * _MB) is None, "a burst is no trend"
    assert "days" in (alarm(601, 11 * _MB, size_max=1000 * _MB) or "")
    assert alarm(_DAY_S, 11 * _MB) is None, "nothing bounds it"
    assert alarm(1, 10, free=-1), "feedback is refused already"
    # Something else fills the disk of a small journal, which has a bound of its own.
    low = {"size_max": 1000 * _MB, "reserve": 256 * _MB}
    assert alarm(1, _MB, free=256 * _MB, **low) is None
    left = alarm(1, _MB, free=255 * _MB, **low)
    assert left
    assert left.startswith("255 MB of the journal's disk are left until")
    assert "Free disk space" in left


def test_alarm() -> None:
    check_alarm(alarm)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALARM_RATIO", 0.9), ("ALARM_RATIO", 0.7), ("ALARM_DAYS", 1.0), ("ALARM_DAYS", 8.0),
     ("TREND_S", 0.0), ("TREND_S", 1e9)],
)  # fmt: skip
def test_mutants_are_found(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    monkeypatch.setattr(room, name, value)
    with pytest.raises(AssertionError):
        check_alarm(alarm)


def test_the_disk_of_the_journal(tmp_path: Any) -> None:
    settings = config.load(None, {"state_dir": tmp_path}, {})
    disk = room.journal_room(settings)
    assert disk is not None
    free, reserve = disk()
    assert 0 < free < 1 << 50
    assert reserve == settings.limits.disk_low_mb * _MB
    redis = config.load(None, {"state_dir": tmp_path, "journal": "redis://localhost:1/0"}, {})
    assert room.journal_room(redis) is None
