"""No byte of what was erased is left in a store's files; with one step less there is."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import journal_erase_checks
import pytest
import redis_server
from journal_words import new
from msgspec.structs import replace

from replay.errors import JournalDamaged, JournalUnavailable
from replay.journal.base import Half, Journal, NewRow, Verdict
from replay.journal.redis import erase as rediserase
from replay.journal.redis import scripts as redisscripts
from replay.journal.redis.journal import RedisJournal
from replay.journal.sqlite import erase as sqliteerase
from replay.journal.sqlite import file as sqlitefile
from replay.journal.sqlite import schema as sqliteschema
from replay.journal.sqlite.journal import SqliteJournal
from replay.journal.sqlite.rinse import Pages

MARK = b"\xa7MARKED\xa7"
GONE = b"\x01erased"


def marks(folder: Path) -> dict[str, int]:
    """In which files marked bytes are, and how often."""
    found = {str(f): f.read_bytes().count(MARK) for f in folder.rglob("*") if f.is_file()}
    return {name: n for name, n in found.items() if n}


def row(i: int, size: int, *, marked: bool) -> NewRow:
    body = (MARK if marked else b"another.") * (size // 8 + 1)
    return replace(new(f"r{i}", body), source="bot" if marked else "good")


@contextmanager
def opened(folder: Path) -> Iterator[SqliteJournal]:
    """A journal of a SQLite that overwrites nothing of what it deletes."""
    with closing(SqliteJournal(folder / "journal.db", synchronous="OFF", disk_low_mb=0)) as made:
        made._file._writer.execute("PRAGMA secure_delete = OFF")
        yield made


def live(journal: Journal, rng: random.Random, partitions: list[int], n: int = 60) -> None:
    """A life in which marked rows and halves come, are joined and are trimmed, among others."""
    known = dict.fromkeys(partitions, 0)
    journal.begin_epoch("m", "spec", 0)
    for i in range(n):
        p = rng.choice(partitions)
        size = rng.choice([8, 100, 900, 5_000, 30_000])
        batch = [row(10 * i + k, size, marked=rng.random() < 0.5) for k in range(6)]
        halves = [
            replace(b, half=Half.LABEL, key=rng.randbytes(16), at=float(i)) for b in batch[:3]
        ]
        known[p] = journal.append(p, known[p], [*batch, *halves]).end
        if i % 7 == 3:
            for half in halves:
                over = replace(half, half=None, over=half.payload, payload=half.payload + b".")
                known[p] = journal.append(p, known[p], [over]).end
        if i % 9 == 5:
            journal.trim("m", "spec", 1, {p: known[p] // 3 for p in partitions}, 1e9, 40)
            journal.expire("m", i - 4.0, 9)
        if i % 11 == 0:
            journal.checkpoint()


def erase(journal: Journal, *, settled: bool = True, between: Callable[[], object] = dict) -> None:
    erasing = journal.erasing()
    for p in journal.partitions("m"):
        stale = [r.offset for r in journal.read(p.id, p.trimmed + 1, p.end) if r.source == "bot"]
        erasing.rows(p.id, stale, GONE)
    for key, stored in list(erasing.halves("m")):
        if stored.source == "bot":
            assert erasing.replace_half("m", key, stored, None)
    if settled:
        for _ in erasing.settle():
            between()


def others(journal: Journal) -> list[tuple[bytes, bytes]]:
    found = [r for p in journal.partitions("m") for r in journal.read(p.id, p.trimmed + 1, p.end)]
    return [(r.key, GONE if r.source == "bot" else r.payload) for r in found]


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_left_in_sqlites_files(tmp_path: Path, seed: int) -> None:
    with opened(tmp_path) as journal:
        live(journal, random.Random(seed), [journal.register("m", "r", "s", 1.0).id] * 2)
        assert marks(tmp_path), "what is to be erased"
        before = others(journal)
        erase(journal)
        assert marks(tmp_path) == {}
        assert others(journal) == before
        assert journal.examine(lambda done, total: None).damage == ()
    assert marks(tmp_path) == {}, "after the journal was closed"


def test_the_rest_of_a_row_is_found_if_the_log_is_not_cut(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        live(journal, random.Random(1), [journal.register("m", "r", "s", 1.0).id])
        erase(journal, settled=False)
        assert set(marks(tmp_path)) == {f"{tmp_path}/journal.db", f"{tmp_path}/journal.db-wal"}


@pytest.mark.parametrize("name", ["_freelist", "_blocks"])
def test_each_kind_of_unused_byte_has_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with opened(tmp_path) as journal:
        live(journal, random.Random(0), [journal.register("m", "r", "s", 1.0).id])
        monkeypatch.setattr(Pages, name, lambda *given: iter(()))
        erase(journal)
        assert marks(tmp_path)


@pytest.mark.parametrize("tails", [True, False])
def test_the_end_of_a_long_row_may_hold_what_another_one_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tails: bool
) -> None:
    if not tails:
        monkeypatch.setattr(Pages, "_tail", lambda *given: None)
    with opened(tmp_path) as journal:
        p = journal.register("m", "r", "s", 1.0).id
        journal.append(p, 0, [row(1, 30_000, marked=True)])
        erase(journal, settled=False)
        journal.append(p, 1, [row(i, 4_100, marked=False) for i in range(2, 9)])
        erase(journal)
        assert bool(marks(tmp_path)) is not tails


@pytest.mark.parametrize("told", [True, False])
def test_another_process_brings_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """It has pages of before in its cache, and writes whole pages."""
    if not told:
        monkeypatch.setattr(sqlitefile, "_SAY_NEW", "SELECT 1")
    with opened(tmp_path) as journal, opened(tmp_path) as other:
        live(journal, random.Random(3), [journal.register("m", "r", "s", 1.0).id])
        erase(journal, settled=False)
        with monkeypatch.context() as patch:
            rinse = Pages.rinse

            def read_first(self: Pages, number: int) -> None:
                if number == 1:
                    reader = other._file._writer
                    for table in ("rows", "halves"):
                        reader.execute(f"SELECT sum(length(payload)) FROM {table}").fetchall()
                rinse(self, number)

            patch.setattr(Pages, "rinse", read_first)
            assert list(journal.erasing().settle()) == [], "one step"
        assert marks(tmp_path) == {}
        other.expire("m", 1e9, 3)
        assert bool(marks(tmp_path)) is not told


def test_a_page_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        live(journal, random.Random(1), [journal.register("m", "r", "s", 1.0).id])
        for _ in journal.erasing().settle():
            pass
        file = (tmp_path / "journal.db").open("r+b")
        with file:
            pages, when = file.read(), os.stat(file.name).st_mtime_ns
            leaf = next(i for i in range(4096, len(pages), 4096) if pages[i] == 13)
            file.seek(leaf + 5)
            file.write(b"\x00\x01")
        os.utime(file.name, ns=(when, when))  # a disk that loses bits says nothing of it
        with pytest.raises(JournalDamaged, match=f"page {leaf // 4096 + 1}: its cells begin"):
            list(journal.erasing().settle())


def test_a_reader_of_the_log_is_waited_for_by_who_erases(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        p = journal.register("m", "r", "s", 1.0).id
        journal.append(p, 0, [row(1, 8, marked=True)])
        reader = journal._file._reader
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM rows").fetchall()
        erase(journal, settled=False)
        steps = journal.erasing().settle()
        assert [next(steps) for _ in range(2)] == [0, 0], "it is in the way"
        assert journal.append(p, 1, [row(2, 8, marked=False)]).end == 2, "nobody else waits"
        reader.execute("COMMIT")
        assert next(steps, None) is None
        assert marks(tmp_path) == {}


def test_a_kill_in_the_middle_of_a_page_leaves_a_good_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as journal:
        live(journal, random.Random(2), [journal.register("m", "r", "s", 1.0).id])
        before = others(journal)
        left = 7

        def torn(descriptor: int, data: bytes, at: int) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                original(descriptor, data[:1111], at)
                raise KeyboardInterrupt
            return original(descriptor, data, at)

        original = sqlitefile.os.pwrite
        monkeypatch.setattr("replay.journal.sqlite.rinse.os.pwrite", torn)
        with pytest.raises(KeyboardInterrupt):
            erase(journal)
        monkeypatch.setattr("replay.journal.sqlite.rinse.os.pwrite", original)
        assert others(journal) == before
        assert journal.examine(lambda done, total: None).damage == ()
        erase(journal)
        assert (marks(tmp_path), others(journal)) == ({}, before)


@pytest.mark.parametrize(
    ("name", "statement", "check"),
    [
        ("_REWRITE", "UPDATE rows SET event_id = '', payload = ?1 WHERE seq = ?3 + 0 * ?2", 0),
        ("_REWRITE", "UPDATE rows SET payload = ?1, checksum = ?2 WHERE seq = ?3", 0),
        ("_HALVES", "SELECT * FROM halves WHERE model > 0 * ?1 AND key > ?2 LIMIT ?3", 1),
        ("_RETELL", "UPDATE control SET payload = ?1 WHERE model = ?3 AND seq = ?4 + 0 * ?2", 2),
        ("_DECISION", f"{sqliteschema.CONTROL} AND c.key >= ? ORDER BY c.key", 2),
    ],
)
def test_a_statement_that_does_less_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, statement: str, check: int
) -> None:
    monkeypatch.setattr(sqliteerase, name, statement)
    path = tmp_path / "journal.db"
    with pytest.raises((AssertionError, JournalDamaged, ValueError)):
        journal_erase_checks.CHECKS[check](lambda: closing(SqliteJournal(path, synchronous="OFF")))


@pytest.fixture(scope="module")
def plain_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server whose files are not compressed: what is in them can be found."""
    if redis_server.find_binary() is None:
        pytest.skip(redis_server.NO_SERVER)
    plain = {"aof-use-rdb-preamble": "no", "rdbcompression": "no", "save": "3600 1"}
    with redis_server.running(tmp_path_factory.mktemp("redis"), **plain) as node:
        yield node


def lived(node: Any, name: str) -> RedisJournal:
    journal = RedisJournal(node.url, prefix=name)
    live(journal, random.Random(4), [journal.register("m", "r", "s", 1.0).id], 20)
    return journal


def test_nothing_is_left_in_redis_files(plain_node: Any) -> None:
    with closing(lived(plain_node, "one")) as journal:
        plain_node.client().bgsave()
        redis_server.wait_for(lambda: plain_node.client().info()["rdb_bgsave_in_progress"] == 0)
        before = others(journal)
        assert any(name.endswith(".rdb") for name in marks(plain_node.folder))
        erase(journal)
        redis_server.wait_for(lambda: marks(plain_node.folder) == {})
        assert others(journal) == before
        assert journal.examine(lambda done, total: None).damage == ()


def test_what_a_server_appended_is_found_if_its_file_is_not_written_anew(plain_node: Any) -> None:
    with closing(lived(plain_node, "two")) as journal:
        erase(journal, settled=False)
        assert any("incr" in name for name in marks(plain_node.folder))
        for _ in journal.erasing().settle():
            pass


def test_a_copy_that_was_not_ended_is_begun_anew_or_removed(
    plain_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(lived(plain_node, "three")) as journal:
        (p,) = journal.partitions("m")
        offsets = list(range(p.trimmed + 1, p.end + 1))
        monkeypatch.setattr("replay.journal.redis.erase._PAGE", 16)
        erasing, n = journal.erasing(), 0
        run = erasing._run

        def killed(*words: Any) -> Any:
            nonlocal n
            n += 1
            if n == 3:
                raise KeyboardInterrupt
            return run(*words)

        monkeypatch.setattr(erasing, "_run", killed)
        with pytest.raises(KeyboardInterrupt):
            erasing.rows(p.id, offsets, GONE)
        client = plain_node.client()
        assert client.exists(f"{{three}}:erasing:rows:{p.id}")
        assert journal.append(p.id, p.end, [row(99_999, 8, marked=True)]).end == p.end + 1
        assert erasing.rows(p.id, [*offsets, p.end + 1], GONE) == len(offsets) + 1
        assert {r.payload for r in journal.read(p.id, p.trimmed + 1, p.end)} == {GONE}
        assert not client.exists(f"{{three}}:erasing:rows:{p.id}")
        client.xadd("{three}:erasing:rows:1", {"a": MARK})
        for _ in journal.erasing().settle():
            pass
        assert not client.exists("{three}:erasing:rows:1")


def test_two_that_erase_the_same_do_it_once(
    plain_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(lived(plain_node, "four")) as journal:
        (p,) = journal.partitions("m")
        offsets = list(range(p.trimmed + 1, p.end + 1))
        monkeypatch.setattr("replay.journal.redis.erase._PAGE", 16)
        one, two = journal.erasing(), journal.erasing()
        run, between = one._run, [3]

        def other_first(*words: Any) -> Any:
            between[0] -= 1
            if between[0] == 0:
                two.rows(p.id, offsets[:40], GONE)
            return run(*words)

        monkeypatch.setattr(one, "_run", other_first)
        one.rows(p.id, offsets, GONE)
        assert {r.payload for r in journal.read(p.id, p.trimmed + 1, p.end)} == {GONE}
        assert len(journal.read(p.id, p.trimmed + 1, p.end)) == len(offsets)
        assert journal.examine(lambda done, total: None).damage == ()
        assert [r.verdict for r in journal.read(p.id, p.end, 1)] == [Verdict.ACCEPTED]


COPY = redisscripts.COPY
CHANGES = [
    ("", "", None),
    ("  redis.call('XTRIM', spare, 'MINID', oldest[1])\n", "", "what was trimmed is back"),
    ("if #page == most then", "if #page > 0 and false then", "the end is not waited for"),
    ("elseif int(last(spare)) ~= after then return {'moved'} end", "end", "two grow one copy"),
    ("fields[n + 2] ~= proof(", "false and fields[n + 2] ~= proof(", "damage gets a checksum"),
    ("fields[n + 2] = proof(", "fields[n + 2] = fields[n + 2] or proof(", "the old checksum"),
]


@pytest.mark.parametrize(("text", "instead", "why"), CHANGES, ids=lambda x: str(x)[:20])
def test_a_stream_is_copied_while_it_changes(
    plain_node: Any, monkeypatch: pytest.MonkeyPatch, text: str, instead: str, why: str | None
) -> None:
    assert COPY.count(text) >= 1
    monkeypatch.setattr(redisscripts, "COPY", COPY.replace(text, instead) if text else COPY)
    monkeypatch.setattr(rediserase, "_PAGE", 16)
    prefix = f"copied-{CHANGES.index((text, instead, why))}"
    with closing(RedisJournal(plain_node.url, prefix=prefix)) as journal:
        if why is None:
            copied_while_it_changes(journal, plain_node.client(), prefix)
        else:
            found = AssertionError, JournalDamaged, JournalUnavailable, pytest.fail.Exception
            with pytest.raises(found):
                copied_while_it_changes(journal, plain_node.client(), prefix)


def copied_while_it_changes(journal: RedisJournal, client: Any, prefix: str) -> None:
    journal.begin_epoch("m", "spec", 0)
    p = journal.register("m", "r", "s", 1.0).id
    journal.append(p, 0, [row(i, 8, marked=i % 3 == 0) for i in range(60)])
    before = journal.read(p, 1, 60)
    one, two = journal.erasing(), journal.erasing()
    run, steps = one._run, 0

    def changing(*words: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            two.rows(p, [13], GONE)  # so the first begins anew
        if steps == 5:
            journal.trim("m", "spec", 1, {p: 5}, 1e9, 9)
            journal.append(p, 60, [row(60, 8, marked=False)])
        return run(*words)

    one._run = changing  # type: ignore[method-assign]
    one.rows(p, [1, 10, 58], GONE)
    assert journal.partition(p).trimmed == 5  # type: ignore[union-attr]
    found = journal.read(p, 6, 60)
    assert [r.offset for r in found] == list(range(6, 62))
    erased = [r.offset for r in found if r.payload == GONE]
    assert erased == [10, 13, 58]
    assert [r for r in found if r.payload != GONE][:-1] == [
        r for r in before[5:] if r.offset not in erased
    ]
    assert journal.examine(lambda done, total: None).damage == ()
    stream = f"{{{prefix}}}:rows:{p}"
    (_, fields), *_ = client.xrange(stream, "61-0", "61-0")
    client.xadd(stream, {**fields, b"seq": b"999999", b"payload": b"changed"}, id="62-0")
    with pytest.raises(JournalDamaged, match=f"row {p} 62"):
        journal.erasing().rows(p, [62], GONE)


def test_a_damaged_row_is_not_erased_over(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        p = journal.register("m", "r", "s", 1.0).id
        journal.append(p, 0, [row(1, 8, marked=True), row(2, 8, marked=True)])
        with journal._file.write() as db:
            db.execute("UPDATE rows SET source = 'boT' WHERE seq = 2")
        with pytest.raises(JournalDamaged, match=f"row 2 of partition {p}"):
            journal.erasing().rows(p, [1, 2], GONE)
        assert journal.erasing().rows(p, [1], GONE) == 1
