"""What commands read as a time, and how they write the files that options name."""

from __future__ import annotations

import os
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from online.commands import base
from online.commands.base import duration, moment, replacing
from online.errors import ConfigError

NOW = 1e9


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.time, "time", lambda: NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", NOW - 7 * 86_400),
        ("1.5h", NOW - 5400),
        ("90s", NOW - 90),
        ("2026-05-31", 1_780_185_600.0),
        ("20260531", 1_780_185_600.0),  # and not the 234th day of 1970
        ("2026-05-31T02:00:00+02:00", 1_780_185_600.0),
        ("1970-01-01T00:00:07+00:00", 7.0),
        ("1780185600", 1_780_185_600.0),
        (" 17.5 ", 17.5),
        ("0.000", 0.0),  # as the route to a report writes times
        ("-60000000000.000", -6e10),
    ],
)
def test_times_are_given_as_people_write_them(text: str, expected: float) -> None:
    assert moment("--since", text, UTC) == expected


@pytest.mark.parametrize(
    "text", ["soon", "", "2026", "nan", "inf", "-5", "nand", "infd", "-5d", "1e3d", "0d", "d"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--until: .* is (not a time|no length of time)"):
        moment("--until", text)


def test_a_time_without_a_zone_is_of_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    base.time.tzset()
    try:
        assert moment("--since", "2026-05-31") == 1_780_185_600.0 - 9 * 3600
        assert moment("--since", "2026-05-31", UTC) == 1_780_185_600.0
    finally:
        monkeypatch.undo()
        base.time.tzset()


def test_lengths_of_time() -> None:
    assert [duration("--ttl", text) for text in ("90s", "30m", "1h", "7d", "2w")] == [
        90.0, 1800.0, 3600.0, 604_800.0, 1_209_600.0,
    ]  # fmt: skip
    for text in ("0s", "7", "-1d", "nanw", "99999999999w"):
        with pytest.raises(ConfigError, match="no length of time"):
            duration("--ttl", text)


@pytest.mark.parametrize("ends_by", [KeyboardInterrupt, ValueError, OSError(28, "No space left")])
def test_what_is_cut_off_leaves_the_file_as_it_was(tmp_path: Path, ends_by: Any) -> None:
    out = tmp_path / "log.csv"
    out.write_text("the one before")
    expected = ConfigError if isinstance(ends_by, OSError) else ends_by

    def write() -> None:
        with replacing("--out", out) as part:
            part.write_text("half of")
            raise ends_by

    with pytest.raises(expected):
        write()
    assert out.read_text() == "the one before"
    assert os.listdir(tmp_path) == ["log.csv"]


def test_a_link_stays_one_and_a_device_is_written_itself(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "far" / "file.csv")
    with replacing("--out", link) as part:
        part.write_text("whole")
    assert link.is_symlink()
    assert (tmp_path / "far" / "file.csv").read_text() == "whole"
    with replacing("--out", Path(os.devnull)) as part:
        assert part == Path(os.devnull)
    assert not Path(os.devnull).is_file()


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    def write() -> None:
        with replacing("--out", tmp_path / "no" / "file") as part:
            part.write_text("")

    with pytest.raises(ConfigError, match=r"no/file: No such file"):
        write()
