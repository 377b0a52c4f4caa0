"""A damaged row that an operator gives up: what is behind it is learned, and it is counted."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from loss_world import LossWorld, SqliteStore, checked, history_of, live, send, settled
from replica_world import SPEC, row, until

from online.commands.cli import main
from online.errors import StartRefused
from online.rebuild import acceptance
from replay.errors import JournalDamaged
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

COLUMNS = (
    "payload",
    "key",
    *(
        pytest.param(name, marks=pytest.mark.long)
        for name in ("event_id", "source", "verdict", "factor", "at", "ran")
    ),
)


def damage(world: LossWorld, event: str, column: str) -> tuple[int, int]:
    """Change a column of an event's row behind the journal's back; where the row stands."""
    with closing(world.journal()) as journal:
        found = journal.find("m", row(event).key)
    if isinstance(world.store, SqliteStore):
        flip_on_disk(world.folder / "journal.db", found.seq, column)
    else:
        flip_in_stream(world.store, found.partition, found.offset, column.encode())
    return found.partition, found.offset


def flip_on_disk(file: Path, seq: int, column: str) -> None:
    """As a disk does it: no index hears of it."""
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (value,) = db.execute(f"SELECT {column} FROM rows WHERE seq = ?", (seq,)).fetchone()
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'rows'").fetchone()
        indexes = [n for (n,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'index' "
                                            "AND tbl_name = 'rows'")]  # fmt: skip
        assert root
        assert indexes
        # A table of the same pages without its indexes: what is written there they do not hear.
        db.execute("PRAGMA writable_schema = ON")
        saved = db.execute("SELECT rowid, type, name, tbl_name, rootpage, sql FROM sqlite_schema "
                           "WHERE tbl_name = 'rows'").fetchall()  # fmt: skip
        bare = saved[0][5].split("UNIQUE (partition")[0].rstrip(", \n") + ")"
        db.execute("DELETE FROM sqlite_schema WHERE tbl_name = 'rows' AND type = 'index'")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'rows'", (bare,))
        db.commit()
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"UPDATE rows SET {column} = ? WHERE seq = ?", (flipped(value), seq))
        db.commit()
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'rows'", (saved[0][5],))
        for one in saved:
            if one[1] == "index":
                db.execute("INSERT INTO sqlite_schema (rowid, type, name, tbl_name, rootpage, sql) "
                           "VALUES (?, ?, ?, ?, ?, ?)", one)  # fmt: skip
        db.commit()


def flip_in_stream(store: Any, partition: int, offset: int, field: bytes) -> None:
    with closing(store._server.client()) as client:
        key = f"{{{store._prefix}}}:rows:{partition}"
        entries = client.xrange(key)
        client.delete(key)
        for id_, fields in entries:
            if id_ == f"{offset}-0".encode():
                fields[field] = flipped(fields[field])
            client.xadd(key, fields, id=id_)


def flipped(value: Any) -> Any:
    """The value with one bit changed, of the same type."""
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    if isinstance(value, str):
        return value[:-1] + chr(ord(value[-1]) ^ 1)
    return value + 1


def given_up(world: LossWorld, *places: tuple[int, int]) -> list[Any]:
    with closing(world.journal()) as journal:
        histories = {SPEC: history_of(world.folder)}
        return acceptance.give_up(journal, "m", histories, places, 100.0)


def lived(world: LossWorld) -> None:
    """Six events that a snapshot has learned, and four more, of one partition."""

    async def life(replicas: list[Any]) -> None:
        await send(replicas[0], [f"a{i}" for i in range(6)])
        await settled(world, replicas)
        world.server.snapshot()
        await send(replicas[0], [f"b{i}" for i in range(4)])

    live(world, life, n=1)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("event", ["a2", "b1"])
def test_what_is_behind_it_is_learned(world: LossWorld, event: str, column: str) -> None:
    lived(world)
    place = damage(world, event, column)
    with closing(world.journal()) as journal:
        with pytest.raises(JournalDamaged):
            journal.read(*place, 1)
        assert journal.examine(lambda done, total: None).damage
    (note,) = given_up(world, place)
    assert (note.events, note.difference[0]) == (1, int(event == "a2"))
    with closing(world.journal()) as journal:
        assert journal.examine(lambda done, total: None).damage == ()
        assert [r.offset for r in journal.follow("m", 0, 99).rows] == list(range(1, 11))
    found = checked(world)
    assert found.good, str(found)
    assert (found.lost, found.digest_equal) == (1, True)
    world.begin()
    names = [f"a{i}" for i in range(6)] + [f"b{i}" for i in range(4)]

    async def go_on(replicas: list[Any]) -> None:
        weights = {name: 1.0 for name in names} | {event: float(event == "a2")}
        for name, wanted in weights.items():
            await until(lambda n=name, w=wanted: world.weight(replicas[0], n) == w, 240.0)
        again = await send(replicas[0], names)
        assert again == {"repeat": 9, "learned": 1}, "a repeat of what was given up is new"
        weights[event] += 1.0
        await settled(world, replicas)
        world.server.snapshot()
        for name, wanted in weights.items():
            await until(lambda n=name, w=wanted: world.weight(replicas[0], n) == w, 240.0)

    live(world, go_on, n=1)
    found = checked(world)
    assert found.good, str(found)
    assert found.digest_equal


def test_without_giving_up_what_is_behind_it_waits(world: LossWorld) -> None:
    """The negative control: nothing is learned past a damaged row."""
    lived(world)
    damage(world, "b1", "payload")
    world.begin()

    async def life(replicas: list[Any]) -> None:
        await until(lambda: replicas[0].incidents, 240.0)
        await until(lambda: world.weight(replicas[0], "b0") == 1.0, 240.0)
        assert world.weight(replicas[0], "b2") == 0.0

    live(world, life, n=1)


def test_only_what_is_damaged_is_given_up(world: LossWorld) -> None:
    lived(world)
    p, offset = damage(world, "a2", "payload")
    with closing(world.journal()) as journal:
        before = journal.controls("m", 0)
    for place, why in (((p, 1), "as it was written"), ((p, 11), "has no row"),
                       ((p + 7, 1), "has no row")):  # fmt: skip
        with pytest.raises(StartRefused, match=why):
            given_up(world, (p, offset), place)
    with closing(world.journal()) as journal:
        assert journal.controls("m", 0) == before, "nothing was changed"


def test_all_that_is_damaged_has_to_be_named_and_it_can_be_given_again(world: LossWorld) -> None:
    """Interrupted by another damaged row, no start takes place; with both named it ends well."""
    lived(world)
    first, second = damage(world, "a2", "payload"), damage(world, "b1", "payload")
    with pytest.raises(JournalDamaged):
        given_up(world, first)
    with pytest.raises(AssertionError):
        world.begin()
    assert "interrupted" in str(world.server.status()["reason"])
    (note,) = given_up(world, first, second)
    assert (note.events, note.difference[0]) == (2, 1)
    found = checked(world)
    assert found.good, str(found)
    assert found.lost == 2
    third = damage(world, "b2", "payload")
    (note,) = given_up(world, third)
    assert note.events == 3, "counted with those before"
    assert checked(world).good
    world.begin()


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("ONLINE_")]:
        monkeypatch.delenv(name)
    import test_fsck_damage as damaged

    state = damaged.left(tmp_path)
    damaged.DAMAGE["a row"](state)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["online", "fsck", "--state-dir", str(state), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    assert run()[0] == 1
    code, said = run("--give-up", "row 30")
    assert (code, "PARTITION:OFFSET" in said) == (1, True)
    assert run("--give-up", "1:29")[0] == 1
    code, said = run("--give-up", "1:30")
    assert code == 0, said
    assert "given up: 1:30" in said
    assert "1 lost or given up" in said
    with closing(SqliteJournal(state / "journal.db")) as journal:
        assert [r.offset for r in journal.read(1, 29, 3)] == [29, 30, 31]
        assert journal.read(1, 30, 1)[0].verdict is Verdict.LOST
        lost = NewRow(bytes([30]) * 16, "e30", "s", Verdict.ACCEPTED, damaged.payload(30), 1.0)
        assert journal.append(1, 59, [lost]).outcomes[0].new
    assert run()[0] == 0
