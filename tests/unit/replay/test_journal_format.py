"""The SQLite file's format: newer and foreign files are refused, older ones are upgraded."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from journal_rows import rows
from msgspec.structs import replace

from replay.errors import JournalDamaged, JournalFormat, JournalUnavailable
from replay.journal.base import Half
from replay.journal.sqlite import schema as sqliteschema
from replay.journal.sqlite.journal import SqliteJournal
from replay.journal.sqlite.schema import FORMAT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_a_newer_format_is_refused_and_left_alone(path: Path) -> None:
    SqliteJournal(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'format'", (FORMAT + 1,))
    with pytest.raises(JournalFormat) as refusal:
        SqliteJournal(path)
    assert (refusal.value.found, refusal.value.known) == (FORMAT + 1, FORMAT)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'format'", (FORMAT,))
    SqliteJournal(path).close()


FORMAT_1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, replica TEXT NOT NULL,
    spec TEXT NOT NULL, "end" INTEGER NOT NULL DEFAULT 0, sealed INTEGER NOT NULL DEFAULT 0,
    at REAL NOT NULL);
CREATE INDEX partitions_model ON partitions (model);
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, partition INTEGER NOT NULL,
    "offset" INTEGER NOT NULL, key BLOB NOT NULL, event_id TEXT NOT NULL, source TEXT NOT NULL,
    verdict TEXT NOT NULL, factor REAL NOT NULL, payload BLOB NOT NULL, at REAL NOT NULL,
    UNIQUE (partition, "offset"), UNIQUE (model, key));
CREATE TABLE control (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
    payload BLOB NOT NULL, PRIMARY KEY (model, seq), UNIQUE (model, key));
CREATE TABLE heads (
    model INTEGER NOT NULL, spec TEXT NOT NULL, epoch INTEGER NOT NULL, snapshot TEXT,
    changed INTEGER NOT NULL, PRIMARY KEY (model, spec)) WITHOUT ROWID;
INSERT INTO meta VALUES ('format', 1);
INSERT INTO models VALUES (1, 'm');
INSERT INTO partitions VALUES (7, 1, 'r', 'spec', 2, 1, 1.0);
INSERT INTO rows VALUES (1, 1, 7, 1,
    x'00000000000000000000000000000001', 'e1', 's', 'accepted', 1.0, x'01', 1.0);
INSERT INTO rows VALUES (2, 1, 7, 2,
    x'00000000000000000000000000000002', 'e2', 's', 'clipped', 0.5, x'02', 2.0);
INSERT INTO control VALUES (1, 1, 'freeze', 'k', x'');
INSERT INTO heads VALUES (1, 'spec', 3, 'snap', 1);
"""
"""The tables of the first version, as it made them, with some rows."""


def make_format_1(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(FORMAT_1)


def columns(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Name, type, need, default and key of every column, by table; and the indexes."""
    with closing(sqlite3.connect(path)) as db:
        tables = sorted(
            name
            for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            if not name.startswith("sqlite_")
        )
        found = {t: [c[1:] for c in db.execute(f"PRAGMA table_info({t})")] for t in tables}
        indexes = db.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'index' ORDER BY name"
        )
        return {**found, "": indexes.fetchall()}


def test_a_file_of_format_1_is_upgraded_in_place(path: Path) -> None:
    make_format_1(path)
    for _ in range(2):  # the second time it is one of this version
        with closing(SqliteJournal(path)) as journal:
            first = journal.read(7, 1, 9)
            assert [(r.offset, r.event_id, r.factor) for r in first] == [
                (1, "e1", 1.0),
                (2, "e2", 0.5),
            ]
            assert journal.head("m", "spec").epoch == 3
            (old, *_) = journal.partitions("m")
            assert (old.id, old.end, old.sealed, old.trimmed) == (7, 2, True, 0)
            assert journal.usage("m").rows == 2
            looked_at = journal.examine(lambda done, total: None)
            assert (looked_at.damage, looked_at.unchecked) == ((), 2)
    with closing(SqliteJournal(path)) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        assert p > 7
        label = replace(rows(3)[0], half=Half.LABEL)
        joined = replace(rows(3)[0], over=label.payload)
        answer = journal.append(p, 0, [rows(1)[0], label, joined])
        assert [o.new for o in answer.outcomes] == [False, False, True]
        assert journal.claim(7, 1) == 0
        assert journal.trim("m", "spec", 3, {7: 2}, 2.0, 9) == 1
        assert [r.offset for r in journal.read(7, 2, 9)] == [2]
    SqliteJournal(path.with_name("new.db")).close()
    assert columns(path) == columns(path.with_name("new.db"))


def test_a_journal_keeps_the_form_of_its_keys(path: Path) -> None:
    """A repeat is recognised by the key of the first time, so an older file gets no other form."""
    make_format_1(path)
    for _ in range(2):
        with closing(SqliteJournal(path)) as journal:
            assert not journal.near_keys
    new = path.with_name("new.db")
    for _ in range(2):
        with closing(SqliteJournal(new)) as journal:
            assert journal.near_keys
            assert journal.examine(lambda done, total: None).damage == ()


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM meta WHERE name = 'keys'",
        "UPDATE meta SET name = 'keyr' WHERE name = 'keys'",
        "UPDATE meta SET value = value + 1 WHERE name = 'keys'",
    ],
)
def test_a_journal_whose_form_of_keys_is_lost_is_refused(path: Path, change: str) -> None:
    SqliteJournal(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(change)
    with pytest.raises(JournalDamaged, match="form of its keys"):
        SqliteJournal(path)


def test_an_upgrade_that_fails_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_format_1(path)
    before = columns(path)
    with monkeypatch.context() as patch:
        patch.setitem(sqliteschema.UPGRADES, 1, sqliteschema.UPGRADES[1] + "SELECT no_such();")
        with pytest.raises(JournalUnavailable, match="no_such"):
            SqliteJournal(path)
    assert columns(path) == before
    SqliteJournal(path).close()
    assert columns(path) != before


def test_another_programs_file_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(JournalFormat, match="another program"):
        SqliteJournal(path)
    path.write_bytes(b"no database at all, but a text of some length" * 99)
    with pytest.raises(JournalDamaged, match="not a database"):
        SqliteJournal(path)
    assert before[:16] == b"SQLite format 3\x00"
