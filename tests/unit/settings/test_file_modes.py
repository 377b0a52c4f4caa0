"""Who may use what the service and its commands make, whatever the umask they were started with."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from online.edge.releases.folder import write
from online.errors import ConfigError, StartRefused
from online.rescore.published import Current
from online.rescore.stores import SqliteScores
from online.service.processes import Owner, leftovers, note, private_dir, remove_private
from online.service.service import Service
from online.service.state.run_file import running
from online.settings import config
from online.settings.file_modes import looser, umask_of
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from replay.journal.sqlite.journal import SqliteJournal


def modes(place: Path) -> dict[str, int]:
    """Permissions of all that is below a folder, and its own as ``.``."""
    found = {".": place, **{str(path.relative_to(place)): path for path in place.rglob("*")}}
    return {name: stat.S_IMODE(path.stat().st_mode) for name, path in found.items()}


def loose(place: Path, mode: str) -> dict[str, str]:
    """What is open to more than the mode says."""
    umask = umask_of(mode)
    return {name: f"{found:o}" for name, found in modes(place).items() if found & umask}


@pytest.fixture(autouse=True)
def started_with_no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def make_everything(state: Path) -> object:
    """One of each kind of file, as the processes of a service make them; what keeps them open.

    The log of a journal is gone once its last connection is.
    """
    owner = Owner(state)
    note(state / "run.json", {"url": None})
    journal = SqliteJournal(state / "journal.db", disk_low_mb=0)
    server = ParameterServer(
        Lineage("m", "f" * 64, "{}", "sum"),
        lambda: journal,
        str(state / "snapshots"),
        ServerSettings(umask=umask_of("700")),
        background=False,
    )
    assert server.restore()
    write(state / "edge" / "m" / "head", b"x")
    SqliteScores(state / "scores", "m").point(lambda _: Current())
    assert (state / "journal.db-wal").exists()
    owner.release()
    return journal, server


@pytest.mark.parametrize("mode", ["700", "750", "770"])
def test_no_file_is_forgotten(tmp_path: Path, mode: str) -> None:
    os.umask(umask_of(mode))
    opened = make_everything(tmp_path / "state")
    found = modes(tmp_path / "state")
    assert len(found) >= 12, found
    assert loose(tmp_path / "state", mode) == {}
    assert opened is not None, "until all was looked at"
    assert found["."] == int(mode, 8)
    files = {"700": 0o600, "750": 0o640, "770": 0o660}[mode]
    for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
        assert found[name] == files & (0o644 if mode == "750" else 0o666), (name, oct(found[name]))
    for name in ("journal.db.lock", "journal.db.queue", "journal.db.elder"):
        assert found[name] == (0o660 if mode == "770" else 0o600), "who may lock it stops the rest"


def test_the_parameter_server_takes_the_umask_of_its_settings(tmp_path: Path) -> None:
    """In a cluster that was there before, nobody else does."""
    make_everything(tmp_path / "state")
    assert os.umask(0) == 0o077
    assert loose(tmp_path / "state" / "snapshots", "700") == {}


def test_without_it_they_are_open(tmp_path: Path) -> None:
    """The control: the umask is what keeps them private."""
    Owner(tmp_path / "state")
    open_to_all = {".": "777", "owner.lock": "666", ".gitignore": "666"}
    assert loose(tmp_path / "state", "700") == open_to_all


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_leaves_the_key_and_the_journal_out(tmp_path: Path) -> None:
    """``git add -A`` beside a notebook must not take the signing key along."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    Owner(tmp_path / "online-state" / "clicks").release()
    (tmp_path / "online-state" / "clicks" / "key").write_bytes(b"secret")
    listing = ["git", "-C", tmp_path, "status", "--porcelain"]
    assert subprocess.run(listing, check=True, capture_output=True, text=True).stdout == ""
    (tmp_path / "online-state" / "clicks" / ".gitignore").unlink()
    assert subprocess.run(listing, check=True, capture_output=True, text=True).stdout != ""


@pytest.mark.parametrize(
    "command", [["edge", "keygen"], ["backfill", "--input", "t.csv", "--label", "y"]]
)
def test_commands(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "online.yaml").write_text(
        "models: [{name: m, task: regression, learner: linreg}]\nstate_dir: state\n"
    )
    (tmp_path / "t.csv").write_text("a,y\n1,2\n3,4\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ONLINE_")}
    subprocess.run(
        [sys.executable, "-m", "online", *command],
        cwd=tmp_path, env=environment, umask=0, check=False, capture_output=True, timeout=240,
    )  # fmt: skip
    assert (tmp_path / "state").exists()
    assert loose(tmp_path / "state", "700") == {}


@pytest.mark.parametrize(
    ("given", "mode"),
    [(700, "700"), ("700", "700"), (0o700, "700"), ("0750", "750"), (770, "770"), (0o770, "770")],
)
def test_modes_as_a_settings_file_has_them(given: object, mode: str) -> None:
    settings = config.load(None, {"state_mode": given}, {})
    assert (settings.state_mode, settings.umask) == (mode, 0o777 & ~int(mode, 8))


@pytest.mark.parametrize("given", ["777", 755, "rwx", 0o777, "", True])
def test_other_modes_are_refused(given: object) -> None:
    with pytest.raises(ConfigError, match=r"state_mode: .*700"):
        config.load(None, {"state_mode": given}, {})


def test_a_folder_that_is_open_already_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert f"chmod 700 {tmp_path}" in str(looser(tmp_path, umask_of("700")))
    assert "mode 755" in str(looser(tmp_path, umask_of("750")))
    for mode in ("700", "750", "770"):
        tmp_path.chmod(int(mode, 8))
        assert looser(tmp_path, umask_of(mode)) is None
    assert looser(tmp_path / "none", umask_of("700")) is None


def test_a_link_in_the_place_of_the_private_folder_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody may write to the folder of temporary files, and its name can be guessed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = private_dir(tmp_path / "state")
    made.rmdir()
    (tmp_path / "home").mkdir(mode=0o755)
    made.symlink_to(tmp_path / "home")
    with pytest.raises(StartRefused, match="or is a link"):
        private_dir(tmp_path / "state")
    assert modes(tmp_path / "home")["."] == 0o755


def test_a_service_that_may_not_start_leaves_no_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start that was refused left an empty one among the temporary files."""
    (place := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    owner = Owner(tmp_path / "state")
    settings = config.load(None, {"state_dir": str(tmp_path / "state")}, {})
    service = Service(settings, print)
    with pytest.raises(StartRefused):
        service.start(fresh=False, relearn=False)
    service.kill()
    owner.release()
    assert [*place.iterdir()] == []


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="no systemd-tmpfiles")
@pytest.mark.parametrize("held", [True, False])
def test_temporary_files_of_a_long_life_are_not_cleaned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    (place := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    owner, private = Owner(tmp_path / "state"), private_dir(tmp_path / "state")
    (private / "old").mkdir()
    (file := private / "old" / "haproxy.cfg").touch()
    for path in (file, file.parent, private):
        os.utime(path, (0, 0))
    if held:
        owner.hold(private)
    (rules := tmp_path / "rules.conf").write_text(f"d {place} - - - m:10d\n")
    subprocess.run(["systemd-tmpfiles", "--clean", rules], check=True)
    assert file.exists() == held
    owner.release()


def test_a_private_folder_that_is_made_anew_meanwhile_is_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path, remove, late = private_dir(tmp_path / "state"), shutil.rmtree, [1, 1]

    def removed(place: Any, **how: Any) -> None:
        remove(place, **how)
        if late and place == path:
            (path / "ray").mkdir(parents=late.pop() == 1)

    monkeypatch.setattr(shutil, "rmtree", removed)
    remove_private(tmp_path / "state")
    assert not path.exists()


def test_who_reads_the_logs_of_a_dead_service_is_not_ended(tmp_path: Path) -> None:
    """A start ended the `tail -f` that was to show why the one before had died."""
    (log := tmp_path / "raylet.out").touch()
    waits = [sys.executable, "-c", "import time; time.sleep(600)", f"--session-dir={tmp_path}"]
    with subprocess.Popen(["tail", "-f", str(log)]) as reader, subprocess.Popen(waits) as agent:
        try:
            found = {process.pid for process in leftovers(tmp_path / "run.json", tmp_path)}
        finally:
            reader.kill()
            agent.kill()
    assert found == {agent.pid}


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_another_user_is_told_why(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    with pytest.raises(StartRefused, match="state_mode"):
        running(tmp_path / "state")


@pytest.mark.parametrize("locks", [True, False])
def test_a_folder_whose_lock_file_was_removed_has_its_owner_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """Two services took each other's parameter server away, for as long as both ran."""
    if not locks:  # as some file systems of a network
        lock = fcntl.flock

        def of_files(file: Any, how: int) -> None:
            if isinstance(file, int):
                raise OSError(errno.EBADF, "no locks of folders")
            lock(file, how)

        monkeypatch.setattr(fcntl, "flock", of_files)
    owner = Owner(tmp_path / "state")
    (tmp_path / "state" / "owner.lock").unlink()
    if locks:
        with pytest.raises(StartRefused, match=r"a lock on the folder .* itself"):
            Owner(tmp_path / "state")
    owner.release()
    Owner(tmp_path / "state").release()


def test_who_locks_the_folder_itself_is_called_no_service_and_can_be_found(tmp_path: Path) -> None:
    """A backup's `flock state/ …` was told to be the service that had run there before."""
    state = tmp_path / "state"
    Owner(state).release()
    before = (state / "owner.lock").read_text()
    program = subprocess.Popen(["flock", str(state), "sh", "-c", "echo; cat"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert program.stdout is not None
        program.stdout.readline()
        with pytest.raises(StartRefused) as refused:
            Owner(state)
        said = str(refused.value)
        for wanted in ("a lock on the folder", "flock", f"`lsof {state}`", f"`fuser -v {state}`"):
            assert wanted in said
        assert not re.search("pid |unknown", said)
        assert (state / "owner.lock").read_text() == before
    finally:
        program.communicate()
    Owner(state).release()  # the one that was refused has kept no lock of its own
