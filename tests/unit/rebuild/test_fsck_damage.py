"""`online fsck` on a damaged journal: a readable verdict and exit code 1, whatever it is."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from online.commands.cli import main
from online.models.loading.from_settings import load_model
from online.settings import config
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `online fsck`; what it printed (``errors``: there), with the exit code expected."""
    for name in [name for name in os.environ if name.startswith("ONLINE_")]:
        monkeypatch.delenv(name)

    def run(state: Path, *words: str, code: int, errors: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["online", "fsck", "--state-dir", str(state), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said
        assert "Traceback" not in said.err
        return said.err if errors else said.out

    return run


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return left(tmp_path)


def left(tmp_path: Path) -> Path:
    """A folder that a service has left, with rows that no snapshot has."""
    settings = config.load(None, {"state_dir": str(tmp_path / "state")}, {})
    (model,) = settings.models
    spec = load_model(model, settings, b"\0" * 32).spec_hash
    (tmp_path / "state").mkdir()
    with closing(SqliteJournal(tmp_path / "state" / "journal.db")) as journal:
        p = journal.register(model.name, "r", spec, 1.0).id
        journal.begin_epoch(model.name, spec, 0)
        rows = [
            NewRow(bytes([i]) * 16, f"e{i}", "s", Verdict.ACCEPTED, payload(i), 1.0)
            for i in range(1, 60)
        ]
        journal.append(p, 0, rows)
        journal.write_control(model.name, "failed", "failed:x", b"why")
    return tmp_path / "state"


def payload(i: int) -> bytes:
    return codec.encode(Example({"x": float(i), "name": f"value of {i}"}, True))


def change(state: Path, old: bytes, new: bytes) -> None:
    path = state / "journal.db"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_a_good_folder(state: Path, run: Run) -> None:
    said = run(state, code=0)
    assert said.startswith("journal: sound\n")
    (found,) = json.loads(run(state, "--json", code=0))
    assert found["journal"]["sound"]
    assert found["journal"]["good"] > 60
    assert found["good"]


_DEFAULT = b"halves INTEGER NOT NULL DEFAULT 0"

DAMAGE: dict[str, Callable[[Path], None]] = {
    "a row": lambda s: change(s, b"value of 30", b"value of 31"),
    "a decision": lambda s: change(s, b"failed:x", b"failed:y"),
    "text that is no text": lambda s: change(s, b"value of 7", b"\xff\xfelue of 7"),
    "a definition": lambda s: change(s, b"CREATE TABLE rows", b"CREATE TABLE rovs"),
    "a default": lambda s: change(s, _DEFAULT, _DEFAULT[:-1] + b"1"),
    "its first bytes": lambda s: change(s, b"SQLite format 3", b"SQLite format 7"),
    "its end": lambda s: (s / "journal.db").write_bytes((s / "journal.db").read_bytes()[:-9000]),
    "everything": lambda s: (s / "journal.db").write_bytes(b"\x5a" * 50_000),
    "a page": lambda s: change(s, (s / "journal.db").read_bytes()[8192:8300], bytes(108)),
    "the log": lambda s: (s / "journal.db-wal").write_bytes(b"\x37\x7f\x06\x82" + bytes(9000)),
}


@pytest.mark.parametrize("what", list(DAMAGE))
def test_every_damage_has_a_verdict(state: Path, run: Run, what: str) -> None:
    DAMAGE[what](state)
    said = run(state, code=1)
    assert said.startswith("journal: DAMAGED\n")
    assert "A damaged journal" in said


def test_the_verdict_as_data(state: Path, run: Run) -> None:
    DAMAGE["a row"](state)
    (found,) = json.loads(run(state, "--json", code=1))
    assert not found["journal"]["sound"]
    assert found["journal"]["damage"]


@pytest.mark.parametrize("why", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_disk_that_does_not_let_it_look_is_no_damage(
    state: Path, run: Run, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    def refuse(path: Path, wait_s: float) -> None:
        raise OSError(why, os.strerror(why), f"{path}.lock")

    monkeypatch.setattr("replay.journal.sqlite.file.FairLock", refuse)
    said = run(state, code=1, errors=True)
    assert "DAMAGED" not in said
    assert os.strerror(why) in said
    assert "needs room and has to be writable" in said
