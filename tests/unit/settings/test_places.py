"""What a command says when the journal can't be opened, and what to do about it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from online.errors import StartRefused
from online.settings import config
from online.settings.places import open_journal
from replay.errors import JournalHeld


def test_the_journal_of_a_newer_version_is_no_trouble_of_the_disk(tmp_path: Path) -> None:
    settings = config.load(None, {"state_dir": str(tmp_path)}, {})
    open_journal(settings).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as file, file:
        file.execute("UPDATE meta SET value = 1000 WHERE name = 'format'")
    with pytest.raises(StartRefused, match=r"format 1000.*start the newer version") as refused:
        open_journal(settings)
    assert "disk" not in str(refused.value)


def test_who_holds_the_journal_is_named_and_the_disk_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.load(None, {"state_dir": str(tmp_path)}, {})

    def held() -> None:
        raise JournalHeld("process 17 (backup)", 3.0)

    monkeypatch.setattr("online.settings.places.journal_opener", lambda _: held)
    with pytest.raises(StartRefused, match=r"held by process 17 \(backup\)\n.*end it") as refused:
        open_journal(settings)
    assert "disk" not in str(refused.value)


def test_a_link_in_place_of_the_journal_is_refused_and_a_linked_folder_is_not(
    tmp_path: Path,
) -> None:
    """SQLite would write its log beside the target, where upkeep, checks and copies do not look."""
    elsewhere, state = tmp_path / "large disk", tmp_path / "state"
    elsewhere.mkdir()
    state.mkdir()
    settings = config.load(None, {"state_dir": str(state)}, {})
    (state / "journal.db").symlink_to(elsewhere / "journal.db")
    with pytest.raises(StartRefused, match="is a link") as refused:
        open_journal(settings)
    assert "link the whole state folder" in str(refused.value)
    assert list(elsewhere.iterdir()) == []
    (state / "journal.db").unlink()
    state.rmdir()
    state.symlink_to(elsewhere)
    with contextlib.closing(open_journal(config.load(None, {"state_dir": str(state)}, {}))):
        assert (elsewhere / "journal.db").exists()
