"""One bit of a journal changes: it is seen, or nothing that the journal says or does changes."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import flipped_world as worlds
import pytest

from replay.errors import JournalDamaged, ReplayError
from replay.journal.sqlite import proof as sqliteproof
from replay.journal.sqlite.file import cut_log
from replay.journal.sqlite.journal import SqliteJournal

SUFFIXES = ("", "-wal")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A journal whose log holds its second half, as a killed process leaves it."""
    folder = tmp_path_factory.mktemp("made")
    with closing(SqliteJournal(folder / "journal.db", synchronous="OFF")) as journal:
        partitions = worlds.fill(journal)
    with closing(SqliteJournal(folder / "journal.db", synchronous="OFF")) as journal:
        journal.append(partitions[2], 36, [worlds.row(n) for n in range(2000, 2020)])
        journal.write_control("other", "x", "late", b"late")
        journal.run("m", worlds.SPECS[0], 2, 7)
        copy = folder / "copy"
        copy.mkdir()
        for suffix in SUFFIXES:
            shutil.copy(f"{folder / 'journal.db'}{suffix}", f"{copy / 'journal.db'}{suffix}")
    return copy, partitions


def opened(made: Any, folder: Path, bit: int | None = None) -> Path:
    """A copy in which a bit of both files, one behind the other, is another."""
    source, _ = made
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for suffix in SUFFIXES:
        data = bytearray((source / f"journal.db{suffix}").read_bytes())
        if bit is not None and 0 <= bit < 8 * len(data):
            data[bit // 8] ^= 1 << bit % 8
        bit = None if bit is None else bit - 8 * len(data)
        (folder / f"journal.db{suffix}").write_bytes(data)
    return folder / "journal.db"


def answers(path: Path, partitions: list[int]) -> tuple[list[Any], list[Any]]:
    with closing(SqliteJournal(path, synchronous="OFF", disk_low_mb=0)) as journal:
        return worlds.told(journal, partitions), worlds.done(journal, partitions)


def verdict(path: Path, partitions: list[int], whole: Any, again: Path) -> str:
    """What becomes of a flip; ``silent`` is what must not be."""
    try:
        with closing(SqliteJournal(path, synchronous="OFF", disk_low_mb=0)) as journal:
            if journal.examine(lambda done, total: None).damage:
                return "seen by fsck"
    except ReplayError:
        return "refused at the opening"
    try:
        found = answers(again, partitions)
    except ReplayError:
        return "refused when it is used"
    return "harmless" if found == whole else "silent"


def flip(made: Any, tmp_path: Path, bits: Iterable[int]) -> Counter[str]:
    """How many flips are of each verdict."""
    _, partitions = made
    whole = answers(opened(made, tmp_path / "whole"), partitions)
    found = Counter[str]()
    for bit in bits:
        path, again = opened(made, tmp_path / "one", bit), opened(made, tmp_path / "two", bit)
        found[what := verdict(path, partitions, whole, again)] += 1
        assert what != "silent", f"bit {bit}"
    return found


def anywhere(made: Any, n: int, seed: int) -> list[int]:
    """Bits of the file and its log, each as likely as any other."""
    size = sum((made[0] / f"journal.db{suffix}").stat().st_size for suffix in SUFFIXES)
    r = random.Random(seed)
    return [r.randrange(8 * size) for _ in range(n)]


def in_rows(made: Any) -> list[int]:
    """A bit in the payload of each of some rows."""
    data = (made[0] / "journal.db").read_bytes()
    return [8 * data.index(worlds.row(n).payload) + 100 for n in range(10, 100, 6)]


def test_an_unchanged_journal_is_good(made: Any, tmp_path: Path) -> None:
    with closing(SqliteJournal(opened(made, tmp_path / "one"))) as journal:
        found = journal.examine(lambda done, total: None)
    assert (found.damage, found.unchecked) == ((), 0)
    assert found.good > 150


def test_a_flipped_bit_is_seen_or_harmless(made: Any, tmp_path: Path) -> None:
    found = flip(made, tmp_path, anywhere(made, 200, 0))
    print(dict(found))
    assert found["harmless"] < 160, "where a newer page is in the log, or none"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_flipped_bits_are_seen_or_harmless(made: Any, tmp_path: Path, seed: int) -> None:
    print(dict(flip(made, tmp_path, anywhere(made, 300, seed))))


def test_a_damaged_log_is_refused_and_cut_if_an_operator_says_so(made: Any, tmp_path: Path) -> None:
    main = 8 * (made[0] / "journal.db").stat().st_size
    path = opened(made, tmp_path / "one", main + 8 * 5000)
    for _ in range(2):
        with pytest.raises(JournalDamaged, match="commits stand there") as refusal:
            SqliteJournal(path)
        assert refusal.value.definite
    assert cut_log(path, 5.0) is not None
    assert cut_log(path, 5.0) is None
    with closing(SqliteJournal(path)) as journal:
        assert journal.examine(lambda done, total: None).damage == ()


@pytest.mark.parametrize("cut", [1, 511, 512, 4096, 4120, 9000])
def test_a_commit_that_a_power_cut_tore_is_no_damage(made: Any, tmp_path: Path, cut: int) -> None:
    """Its end is missing, or was never written over what the file system had there."""
    for filled in (b"", bytes(cut)) if cut > 1 else (b"",):
        path = opened(made, tmp_path / "one")
        log = path.with_name("journal.db-wal")
        log.write_bytes(log.read_bytes()[:-cut] + filled)
        with closing(SqliteJournal(path)) as journal:
            assert journal.examine(lambda done, total: None).damage == ()


def test_a_bit_of_a_row_is_seen_and_without_checksums_it_is_not(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = flip(made, tmp_path, in_rows(made))
    assert found["seen by fsck"] > 5
    monkeypatch.setattr(sqliteproof, "proves", lambda stored, columns: True)
    with pytest.raises(AssertionError, match="bit"):
        flip(made, tmp_path, in_rows(made))
