"""The log of decisions: each control row has a line, and whoever forges it is noticed."""

from __future__ import annotations

import contextlib
import json
import pickle
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from online.audit.chain import Entry, Signer
from online.audit.checking import SeenHead, all_lines, check
from online.audit.log import Audited, entry_of, note, note_start, open_audited
from online.commands.cli import application
from online.rebuild.soundness import check_log
from online.settings.config import Settings, load
from online.settings.places import open_journal
from paramserver.core.state import SnapshotState
from paramserver.process.acting import acting
from paramserver.process.lineage import publish
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from replay.errors import LineTaken
from replay.journal.base import Journal, Line
from replay.journal.checksum import checksum
from replay.journal.sqlite.journal import SqliteJournal

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
MODEL = {"name": "m", "task": "binary", "learner": "logreg"}


def key_file(folder: Path, *keys: bytes) -> Path:
    file = folder / "key"
    file.write_text("".join(key.hex() + "\n" for key in keys or (KEY,)))
    return file


def opened(folder: Path, lines_max: int = 1000) -> Any:
    bare = SqliteJournal(folder / "journal.db", synchronous="OFF")
    return Audited(bare, folder / "key", lines_max, lambda: 7.0)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Any]:
    key_file(tmp_path)
    with contextlib.closing(opened(tmp_path)) as made:
        yield made


@pytest.fixture
def asked_by() -> Iterator[Callable[[str], None]]:
    before = acting.get()
    yield lambda who: acting.set(who) and None
    acting.set(before)


def entries(journal: Journal) -> list[Entry]:
    return [entry_of(line) for line in all_lines(journal)]


def faults(journal: Journal, *seen: SeenHead, keys: tuple[bytes, ...] = (KEY,)) -> list[str]:
    return list(check(journal, keys, ["m", "n"], seen).faults)


def newest(journal: Journal) -> SeenHead:
    """The newest line as a snapshot that is published now knows it."""
    import hashlib

    line = journal.newest_line()
    assert line is not None
    return SeenHead("1-1", line.number, hashlib.sha256(line.text).hexdigest())


def decide(journal: Any, *keys: str, model: str = "m") -> None:
    for key in keys:
        payload = msgspec.json.encode({"source": "bot", "banned": True, "clock": {"3": 9}})
        journal.write_control(model, "source", key, payload)


# -- what is written -------------------------------------------------------------------------


def test_a_decision_and_its_line_are_one_step(journal: Any, asked_by: Any) -> None:
    asked_by("alice\n10.0.0.7")
    decide(journal, "a")
    asked_by("")
    row, won = journal.write_control("m", "freeze", "f", b"")
    assert (row.seq, won) == (2, True)
    assert journal.write_control("m", "freeze", "f", b"other") == (row, False)
    first, second = entries(journal)
    assert (first.who, first.origin, first.act, first.key) == ("alice", "10.0.0.7", "source", "a")
    assert {k: v for k, v in first.about.items() if k != "sha256"} == {
        "source": "bot", "banned": True,
    }  # fmt: skip
    assert (second.who, second.origin, second.act, second.at) == ("the service", "", "freeze", 7.0)
    assert faults(journal) == []


def test_other_acts_are_noted(journal: Any, tmp_path: Path) -> None:
    note_start(journal, ["m", "n"])
    note(journal, "pin", "m", {"snapshot": "3-120", "on": True})
    assert [(e.act, e.model) for e in entries(journal)] == [("start", None), ("pin", "m")]
    with contextlib.closing(SqliteJournal(tmp_path / "other.db", synchronous="OFF")) as bare:
        note(bare, "pin", "m", {})  # a journal without a log: nothing
        note_start(bare, ["m"])
        assert bare.newest_line() is None


def test_everything_else_is_the_journals(journal: Any) -> None:
    assert journal.head("m", "s").epoch == 0
    assert journal.batch_rows_max == 1024


def test_without_keys_there_is_no_log_yet(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path)) as journal:
        decide(journal, "a")
        assert journal.newest_line() is None
        key_file(tmp_path)
        decide(journal, "b")
        assert [e.key for e in entries(journal)] == ["b"]
        assert faults(journal) == [], "what was decided before it began has no line"


def test_the_opener_travels_to_other_processes(tmp_path: Path) -> None:
    key_file(tmp_path)
    settings = load(None, {"models": [MODEL], "state_dir": str(tmp_path)}, {})
    from online.settings.places import journal_opener

    again = pickle.loads(pickle.dumps(journal_opener(settings)))
    assert again.func is open_audited
    with contextlib.closing(again()) as journal:
        decide(journal, "a")
        assert [e.key for e in entries(journal)] == ["a"]


def test_many_at_once_leave_a_line_each(journal: Any, tmp_path: Path) -> None:
    others = [opened(tmp_path) for _ in range(3)]

    def write(name: int) -> None:
        decide(others[name], *(f"{name}-{i}" for i in range(10)))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert len(entries(journal)) == len(journal.controls("m", 0)) == 30
    assert faults(journal) == []


def test_a_log_that_others_always_write_to_first_is_given_up(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal._journal, "newest_line", lambda: None)
    decide(journal, "a")
    with pytest.raises(LineTaken):
        decide(journal, "b")
    assert [c.key for c in journal.controls("m", 0)] == ["a"], "no decision without its line"


# -- forgeries -------------------------------------------------------------------------------


@pytest.fixture
def forged(journal: Any, tmp_path: Path) -> Callable[..., None]:
    """Changes the store behind the journal's back, checksums included."""
    note_start(journal, ["m", "n"])
    decide(journal, "a", "b")
    note(journal, "pin", "m", {"snapshot": "1-1", "on": True})

    def change(*statements: str) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
            db.create_function("checksum", -1, checksum)
            for statement in statements:
                assert db.execute(statement).rowcount > 0

    assert faults(journal, newest(journal)) == []
    return change


LAST = "DELETE FROM lines WHERE number = (SELECT max(number) FROM lines)"


def test_a_last_line_that_was_cut_is_missed(journal: Any, forged: Any) -> None:
    decide(journal, "c")
    forged(LAST)
    assert faults(journal) == ["decision 3 of model 'm' (source) has no line"]


def test_a_last_line_without_a_decision_is_missed_by_snapshots(journal: Any, forged: Any) -> None:
    seen = newest(journal)
    forged(LAST)
    assert faults(journal) == []
    assert faults(journal, seen) == [
        "1 lines are missing at the end: snapshot 1-1 knows them"
    ]  # fmt: skip


def test_a_line_in_between_is_missed(journal: Any, forged: Any) -> None:
    forged("DELETE FROM lines WHERE number = 2")
    found = faults(journal)
    assert found[0] == "line 3: line 2 is missing before it"
    assert found[-1] == "decision 1 of model 'm' (source) has no line"


def test_first_lines_without_an_anchor_are_missed(journal: Any, forged: Any) -> None:
    forged("DELETE FROM lines WHERE number <= 2")
    assert faults(journal)[0] == "line 3: line 1 is missing before it"


def test_a_changed_line_is_noticed(journal: Any, forged: Any) -> None:
    text = journal.lines(1, 1)[0].text
    other = text.replace(b"the service", b"the serVice")
    forged(f"UPDATE lines SET text = x'{other.hex()}' WHERE number = 2",
           "UPDATE lines SET checksum = checksum(number, text)")  # fmt: skip
    assert faults(journal) == [
        "line 2: the service's key has not signed it",
    ]  # fmt: skip


def chain(key: bytes, acts: list[Entry]) -> list[Line]:
    """A whole log, as whoever has this key would write it."""
    signer, lines = Signer([key]), list[Line]()
    for entry in acts:
        lines.append(signer.line(entry, lines[-1] if lines else None))
    return lines


def test_a_chain_made_anew_without_the_key_is_noticed(journal: Any, forged: Any) -> None:
    acts = [msgspec.structs.replace(e, who="somebody else") for e in entries(journal)]
    seen = newest(journal)
    rows = [
        f"UPDATE lines SET text = x'{line.text.hex()}' WHERE number = {line.number}"
        for line in chain(OTHER, acts)
    ]
    forged(*rows, "UPDATE lines SET checksum = checksum(number, text)")
    assert faults(journal) == ["line 4: it is the last one, and by a key that is not known"]
    assert len(faults(journal, seen)) == 2
    parts = [msgspec.msgpack.decode(line.text) for line in chain(OTHER, acts)]
    mine = msgspec.msgpack.decode(Signer([KEY]).line(acts[0], None).text)[2]
    texts = [msgspec.msgpack.encode([*part[:2], mine, part[3]]) for part in parts]
    forged(
        *(
            f"UPDATE lines SET text = x'{t.hex()}' WHERE number = {i}"
            for i, t in enumerate(texts, 1)
        ),
        "UPDATE lines SET checksum = checksum(number, text)",
    )
    assert [f"line {i}: the service's key has not signed it" for i in range(1, 5)] == faults(
        journal
    )


def test_an_older_log_put_in_its_place_is_noticed(journal: Any, forged: Any) -> None:
    seen = newest(journal)
    forged("DELETE FROM lines WHERE number >= 3")
    note(journal, "pin", "m", {"snapshot": "2-2", "on": False})
    decide(journal, "c")
    assert faults(journal) == ["decision 2 of model 'm' (source) has no line"]
    assert "line 4: it is not the one that snapshot 1-1 knows" in faults(journal, seen)


def test_a_log_that_begins_anew_is_noticed(journal: Any, forged: Any) -> None:
    seen = newest(journal)
    forged("DELETE FROM lines")
    assert faults(journal, seen) == ["4 lines are missing at the end: snapshot 1-1 knows them"]
    note_start(journal, ["m", "n"])
    assert faults(journal) == [], "by itself it could be a log that has just begun"
    assert faults(journal, seen) == ["3 lines are missing at the end: snapshot 1-1 knows them"]


def test_lines_that_went_with_a_journal_are_missed_until_that_is_accepted(
    journal: Any, forged: Any
) -> None:
    seen = newest(journal)
    forged("DELETE FROM lines WHERE number >= 3", "DELETE FROM control WHERE seq >= 2")
    before, after = (SeenHead("1-1", seen.number, seen.sha256, at) for at in (6.0, 8.0))
    assert len(faults(journal, before)) == 1
    journal.write_control("m", "lost", "lost:1", b"{}")
    note(journal, "pin", "m", {"snapshot": "2-2", "on": True})
    assert faults(journal, before) == [], "the line says that somebody went on without"
    assert len(faults(journal, after)) == 1, "a snapshot from after it knows better"
    assert len(faults(journal, SeenHead("1-1", 2, "0" * 64, 6.0))) == 1, "older lines must be there"
    key = "UPDATE lines SET checksum = checksum(number, text)"
    stranger = Signer([OTHER]).line(
        Entry(9.0, "lost", "x", "m", key="lost:1"), journal.lines(1, 1)[0]
    )
    forged(f"UPDATE lines SET text = x'{stranger.text.hex()}' WHERE number = 3", key)
    assert len(faults(journal, before)) > 1, "nobody without the key accepts a loss"


def test_a_decision_that_was_taken_away_is_noticed(journal: Any, forged: Any) -> None:
    forged("DELETE FROM control WHERE seq = 2")
    assert faults(journal) == ["line 3: its decision about 'm' is not in the journal"]


def test_without_a_key_nobody_says_that_lines_are_verified(journal: Any) -> None:
    decide(journal, "a")
    found = check(journal, [], ["m"], ())
    assert (found.good, found.verified) == (True, False)
    assert "nobody verified who wrote them" in str(found)
    found = check(journal, [KEY], ["m"], ())
    assert found.verified
    assert "nobody" not in str(found)


def test_a_line_that_is_none(journal: Any, forged: Any) -> None:
    forged("UPDATE lines SET text = x'00' WHERE number = 2",
           "UPDATE lines SET checksum = checksum(number, text)")  # fmt: skip
    found = faults(journal)
    assert found[:2] == [
        "line 2: it can't be read",
        "line 3: it does not follow from the lines before it",
    ]


def test_lines_of_a_key_that_is_gone_are_vouched_for(journal: Any, tmp_path: Path) -> None:
    decide(journal, "a", "b")
    key_file(tmp_path, OTHER, KEY)
    with contextlib.closing(opened(tmp_path)) as later:
        decide(later, "c")
    assert faults(journal, keys=(OTHER, KEY)) == []
    found = check(journal, [OTHER], ["m"], ())
    assert (found.faults, found.old) == ((), 2)
    assert faults(journal) == ["line 3: it is the last one, and by a key that is not known"]
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
        db.create_function("checksum", -1, checksum)
        text = db.execute("SELECT text FROM lines WHERE number = 1").fetchone()[0]
        changed = text.replace(b"the service", b"the serVice")
        db.execute(
            "UPDATE lines SET text = ?, checksum = checksum(1, ?) WHERE number = 1",
            (changed, changed),
        )
    assert faults(journal, keys=(OTHER,)) == [
        "line 1: it does not follow from the lines before it",
    ]  # fmt: skip


# -- with snapshots, tokens and commands -----------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Settings:
    key_file(tmp_path)
    file = tmp_path / "online.yaml"
    file.write_text(yaml.safe_dump({"models": [MODEL], "state_dir": str(tmp_path)}))
    return load(file, {}, {})


def test_a_snapshot_knows_the_newest_line(folder: Settings, tmp_path: Path) -> None:
    with contextlib.closing(open_journal(folder)) as journal:
        note_start(journal, ["m"])
        note(journal, "pin", "m", {"snapshot": "1-1"})
        journal.begin_epoch("m", "s", 0)
        place = lineage_place(str(tmp_path / "snapshots"), "m", "s")
        history = SnapshotHistory(open_snapshots(place), Retention())
        publish(journal, history, SnapshotState("m", "s", "", (1, 1), {}, {}), None)
        (manifest,) = history.manifests().values()
        assert manifest.log == (2, newest(journal).sha256)
    assert check_log(folder).as_dict() == {
        "good": True, "lines": 2, "trimmed": 0, "old": 0, "faults": [],
        "verified": True,
    }  # fmt: skip
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
        db.execute(LAST)
    assert check_log(folder).faults == (
        "1 lines are missing at the end: snapshot 1-1 of m knows them",
    )
    assert "NOT GOOD" in str(check_log(folder))


def run(folder: Path, *words: str) -> Any:
    return CliRunner().invoke(
        application("audit"), ["audit", *words, "--config", str(folder / "online.yaml")]
    )


def test_decisions_are_listed_and_exported(folder: Settings, tmp_path: Path, asked_by: Any) -> None:
    with contextlib.closing(open_journal(folder)) as journal:
        note_start(journal, ["m"])
        asked_by("alice\n10.0.0.7")
        decide(journal, "a", "b")
        asked_by("")
    done = run(tmp_path, "list", "--who", "alice", "--json")
    found = json.loads(done.output)
    assert [(one["number"], one["act"], one["origin"]) for one in found] == [
        (2, "source", "10.0.0.7"), (3, "source", "10.0.0.7"),
    ]  # fmt: skip
    assert len(json.loads(run(tmp_path, "list", "--act", "start", "--json").output)) == 1
    assert json.loads(run(tmp_path, "list", "--since", "2035-01-01", "--json").output) == []
    assert (
        len(json.loads(run(tmp_path, "list", "--since", "1h", "--limit", "1", "--json").output))
        == 1
    )
    assert "10.0.0.7" in run(tmp_path, "list", "--model", "m").output
    for name in ("out.jsonl", "out.csv"):
        assert run(tmp_path, "export", str(tmp_path / name), "--who", "alice").exit_code == 0
        assert len((tmp_path / name).read_text().splitlines()) == (3 if name.endswith("csv") else 2)
    assert run(tmp_path, "list", "--since", "soon").exit_code == 1
    assert run(tmp_path, "export", str(tmp_path / "x.txt")).exit_code == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
        db.create_function("checksum", -1, checksum)
        db.execute("UPDATE lines SET text = x'00', checksum = checksum(1, x'00') WHERE number = 1")
    done = run(tmp_path, "list")
    assert done.exit_code == 1
    assert "it can't be read" in done.output


def test_there_is_no_journal_or_no_key(tmp_path: Path, folder: Settings) -> None:
    assert run(tmp_path, "list").exit_code == 1
    with contextlib.closing(open_journal(folder)):
        (tmp_path / "key").unlink()
    assert "can't be read" in str(run(tmp_path, "list").exception)


def test_rows_that_fail_push_no_decision_out(journal: Any) -> None:
    """Whoever may send feedback could else fill the log with rows that the model raises on."""
    journal.write_control("m", "freeze", "freeze:0", b"{}")
    for i in range(20):
        journal.write_control("m", "failed", f"failed:{i}", b"it can't")
    journal.write_control("m", "unfreeze", "unfreeze:22", b"{}")
    assert [entry.act for entry in entries(journal)] == ["freeze", "unfreeze"]
    assert faults(journal) == []
