"""What `online serve` does before it starts anything, on a journal that is older than snapshots."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from online.errors import StartRefused
from online.learning.counters import DIGEST, event_hash
from online.models.loading.from_settings import load_model
from online.rebuild import fsck
from online.rows.prediction_ids import event_key
from online.service.state import check_state
from online.service.state.check_state import Models, counted
from online.settings import config
from online.settings.places import open_journal, snapshots_path
from paramserver import errors
from paramserver.core import wire
from paramserver.process.actor import ParameterServer
from paramserver.process.lineage import Lineage
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal


def test_one_event_is_not_called_events() -> None:
    assert (counted(1), counted(1250)) == ("1 event", "1,250 events")


class Folder:
    """A state folder of the default model, with a server that learns digests."""

    def __init__(self, path: Path) -> None:
        self.settings = config.load(None, {"state_dir": str(path / "state")}, {})
        (self.model,) = self.settings.models
        self.settings.state_dir.mkdir()
        self.journal_path = self.settings.state_dir / "journal.db"
        self.copy = path / "copy.db"
        self.said: list[str] = []
        loaded = load_model(self.model, self.settings, b"\0" * 32)
        self.lineage = Lineage(self.model.name, loaded.spec_hash, loaded.spec_text, "sum")
        self.sent = 0

    def feed(self, n: int) -> None:
        """A writer's rows, all of them learned and in a snapshot."""
        server = ParameterServer(
            self.lineage, lambda: open_journal(self.settings), snapshots_path(self.settings),
            background=False,
        )  # fmt: skip
        assert server.restore(), server.status()["reason"]
        with closing(open_journal(self.settings)) as journal:
            p = journal.register(self.model.name, "r", self.lineage.spec, 0.0).id
            rows = []
            for _ in range(n):
                self.sent += 1
                key = event_key("event", "s", str(self.sent))
                payload = codec.encode(Example({}, True))
                rows.append(NewRow(key, str(self.sent), "s", Verdict.ACCEPTED, payload, 4e9))
            journal.append(p, 0, rows)
        total = sum(event_hash(row.key) for row in rows) % 2**64
        digest = wire.WireBlock("digest", {"count": n, "sum": total})
        epoch = server.status()["epoch"]
        spec = self.lineage.spec
        push = wire.Push(epoch, spec, p, 1, n, n, (epoch, 0), {DIGEST: digest})
        request = wire.SyncRequest(wire.FORMAT, "r", p, [push], None, True, [])
        assert wire.decode_reply(server.sync(wire.encode(request))).acks[0].status == "applied"
        server.snapshot()

    def keep(self) -> None:
        with closing(sqlite3.connect(self.journal_path)) as now:
            copy = sqlite3.connect(self.copy)
            now.backup(copy)
            copy.close()

    def put_back(self) -> None:
        for file in self.settings.state_dir.glob("journal.db*"):
            file.unlink()
        shutil.copy(self.copy, self.journal_path)

    def check(self, **how: bool) -> None:
        """As a start does, before it starts anything."""
        given = {"fresh": False, "relearn": False, **how}
        Models(self.settings, self.said.append).check(**given)


def test_what_is_left_behind_is_told_by_a_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost ids are restored by a step of its own, which is told apart."""
    made = Folder(tmp_path)
    made.feed(3)
    made.check()
    restored: list[str] = []

    def restore(self: object, model: str) -> int:
        restored.append(model)
        return 3

    monkeypatch.setattr(SqliteJournal, "restore_ids", restore)
    with closing(open_journal(made.settings)) as journal:
        (line,) = check_state._unreachable_state(made.settings, journal, keyless=True)
        assert "was missing, so a new one was created" in line
        assert not restored
        (line,) = check_state.restore_ids(made.settings, journal)
    assert "3 ids were gone" in line
    assert restored == [made.model.name]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.feed(5)
    made.keep()
    made.feed(7)
    made.check()
    made.put_back()
    return made


def test_it_is_refused_whatever_else_is_asked_for(folder: Folder) -> None:
    before = folder.journal_path.read_bytes()
    for how in ({}, {"relearn": True}, {"fresh": True}):
        with pytest.raises(errors.StartRefused, match=r"lacks 7 events .*--accept-loss") as raised:
            folder.check(**how)
        assert "\n" not in str(raised.value)
    found = fsck.check(folder.settings, folder.model.name)
    assert (found.lacks, found.good) == (7, False)
    folder.journal_path.with_name("journal.db-wal").unlink(missing_ok=True)
    assert folder.journal_path.read_bytes() == before, "nothing was changed"


def test_rows_that_no_snapshot_has_are_missed_and_counted(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.feed(5)
    folder.check()
    folder.keep()
    with closing(open_journal(folder.settings)) as journal:  # answered, and in no snapshot yet
        p = journal.register(folder.model.name, "r", folder.lineage.spec, 0.0).id
        payload = codec.encode(Example({}, True))
        for i in range(3):
            key = event_key("event", "s", f"late-{i}")
            journal.append(p, i, [NewRow(key, f"late-{i}", "s", Verdict.ACCEPTED, payload, 4e9)])
    for end in ("", "-wal", "-shm"):
        Path(f"{folder.journal_path}{end}").unlink(missing_ok=True)
    shutil.copy(folder.copy, folder.journal_path)
    for how in ({}, {"relearn": True}, {"fresh": True}):
        with pytest.raises(StartRefused, match=r"lacks its newest 3 rows(.|\n)*--accept-loss"):
            folder.check(**how)
    found = fsck.check(folder.settings, folder.model.name)
    assert not found.good
    assert "lacks its newest 3 rows" in str(found)
    folder.said.clear()
    folder.check(accept_loss=True)
    assert any("newest 3 rows" in line for line in folder.said), folder.said
    folder.check()
    assert fsck.check(folder.settings, folder.model.name).good


def test_it_goes_on_without(folder: Folder) -> None:
    folder.check(accept_loss=True)
    assert any("without 7 events that the journal has lost" in line for line in folder.said)
    folder.check()
    folder.check(accept_loss=True)
    assert sum("events that the journal has lost" in line for line in folder.said) == 1, (
        "nothing is missing any more"
    )
    found = fsck.check(folder.settings, folder.model.name)
    assert (found.good, found.digest_equal) == (True, True)
    folder.feed(3)
    found = fsck.check(folder.settings, folder.model.name)
    assert (found.good, found.digest_equal) == (True, True)
    with pytest.raises(StartRefused, match="--relearn --accept-loss"):
        folder.check(relearn=True)


@pytest.mark.parametrize("how", ["relearn", "fresh"])
def test_it_begins_anew_without(folder: Folder, how: str) -> None:
    folder.check(accept_loss=True, **{how: True})
    folder.check()
    folder.check(relearn=True)
    assert fsck.check(folder.settings, folder.model.name).good
    folder.feed(2)
    assert fsck.check(folder.settings, folder.model.name).good


def test_no_snapshot_that_can_be_read_is_said(folder: Folder) -> None:
    for file in Path(snapshots_path(folder.settings)).rglob("*.snapshot"):
        data = bytearray(file.read_bytes())
        data[-40] ^= 1  # behind the manifest
        file.write_bytes(data)
    with pytest.raises(StartRefused, match="no snapshot of 'phishing' can be used"):
        folder.check(accept_loss=True)
