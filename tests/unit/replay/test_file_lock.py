"""Processes that wait for the journal's lock take turns, and none waits behind one that stands."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from replay.errors import JournalHeld
from replay.journal import filelock
from replay.journal.filelock import FairLock

LONG_S = 1e9


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[FairLock]:
    one = FairLock(tmp_path / "journal.db", 0.05)
    yield one
    one.close()


@pytest.fixture
def elder(tmp_path: Path) -> Iterator[None]:
    """Another process has waited for long."""
    with (tmp_path / "journal.db.elder").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("elder")
def test_who_has_just_come_lets_the_elder_be_next(
    lock: FairLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelock, "_BRISK_S", LONG_S)
    with pytest.raises(JournalHeld):
        lock.take()


@pytest.mark.usefixtures("elder")
def test_an_elder_that_stands_still_stops_nobody_for_long(lock: FairLock) -> None:
    lock.take()
    lock.release()


def test_without_an_elder_who_has_just_come_is_next(
    lock: FairLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelock, "_BRISK_S", LONG_S)
    lock.take()
    lock.release()


def test_who_gives_up_is_no_elder_and_not_next_any_more(lock: FairLock, tmp_path: Path) -> None:
    with (tmp_path / "journal.db.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(JournalHeld, match="process"):
            lock.take()
    other = FairLock(tmp_path / "journal.db", 0.05)
    other.take()
    other.release()
    other.close()


def test_who_has_waited_long_is_the_elder_until_it_is_next(
    lock: FairLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelock, "_BRISK_S", 0.0)
    seen = []
    asked = filelock._taken

    def ask(fd: int) -> bool:
        with (tmp_path / "journal.db.elder").open("w") as other:
            seen.append(not asked(other.fileno()))
        return asked(fd) if len(seen) != 2 else False  # somebody is next already

    monkeypatch.setattr(filelock, "_taken", ask)
    lock.take()
    lock.release()
    assert seen == [False, True, True, False], "elder free, ours twice for the queue, given up"
