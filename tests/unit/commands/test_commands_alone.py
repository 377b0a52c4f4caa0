"""What commands say when there is no service: in this process, as `online` runs them."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from online.commands.cli import main
from online.commands.cli import run as run_command
from online.service.processes import leftovers

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; what it printed if it ends with 0, else what it said on standard error."""
    for name in [name for name in os.environ if name.startswith("ONLINE_")]:
        monkeypatch.delenv(name)

    def run(*words: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["online", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said
        return said.err if code else said.out

    return run


@pytest.fixture
def refused(run: Run) -> Run:
    """Runs a command that is refused."""

    def refused(*words: str) -> str:
        said = run(*words, code=1)
        assert said.startswith("online: ")
        return said

    return refused


def test_commands_without_a_service(tmp_path: Path, run: Run, refused: Run) -> None:
    at = ("--state-dir", str(tmp_path / "state"))
    for command in (("status",), ("snapshot", "list"), ("snapshot", "create"),
                    ("snapshot", "pin", "x"), ("stream", "phishing"), ("freeze",), ("unfreeze",),
                    ("rollback", "--to", "1-1", "--yes"), ("rollback", "--undone")):  # fmt: skip
        error = refused(*command, *at)
        assert "no service runs on" in error
        assert "online serve" in error
    bad = tmp_path / "bad.yaml"
    bad.write_text("replica: 3\n")
    for command in (("config", "check"), ("config", "show"), ("serve",)):
        assert "Did you mean `replicas`?" in refused(*command, str(bad))
    assert "Name an existing file" in refused("serve", str(tmp_path / "none.yaml"))
    bad.write_text("models: [{name: m, task: binary, learner: lograg}]\n")
    assert "Did you mean `logreg`?" in refused("config", "check", str(bad))
    for command in (("status", "--no-such-option"), ("no-such-command",), ("serve", "--port", "x"),
                    ("snapshot", "pin"), ("stream", "phishing", "--rows", "0"),
                    ("stream", "phishing", "--times", "0")):  # fmt: skip
        run(*command, code=2)
    assert "no journal" in refused("fsck", *at)
    assert yaml.safe_load(run("config", "show"))["replicas"] == 2
    assert "good" in run("config", "check")
    assert run("--version").strip()


def test_commands_when_the_service_was_killed(tmp_path: Path, refused: Run) -> None:
    """Its facts are still there, and nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (tmp_path / "run.json").write_text(json.dumps({"url": f"http://127.0.0.1:{port}"}))
    for command in (("status",), ("snapshot", "list"), ("stream", "phishing")):
        assert "does not answer" in refused(*command, "--state-dir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait(20)
    for host, text in ((socket.gethostname(), "has died"), ("elsewhere", "does not answer")):
        (tmp_path / "owner.lock").write_text(f"pid {gone.pid} on {host}")
        assert text in refused("status", "--state-dir", str(tmp_path))


_FAILS_TO_START = """
import os
import sys
import time

import online.service.service
import online.commands.operate.serve as serve
from online.commands.cli import main
from online.errors import StartRefused


class Service:
    def __init__(self, settings, said):
        pass

    def start(self, **how):
        raise StartRefused("Ray did not start", "Start it again")

    def stop(self):
        with open({log!r}, "w") as file:  # as the real one, which keeps Ray's lines away
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        time.sleep({stops_s})

    def kill(self):
        pass


online.service.service.Service = Service
serve._STOP_S = 0.2
sys.argv = ["online", "serve", "--state-dir", {folder!r}]
main()
"""


@pytest.mark.parametrize("stops_s", [0, 60])
def test_a_start_that_fails_says_why_however_long_its_end_takes(
    tmp_path: Path, stops_s: int
) -> None:
    log = str(tmp_path / "stop.log")
    script = _FAILS_TO_START.format(stops_s=stops_s, folder=str(tmp_path), log=log)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    said = "online: Ray did not start. Start it again\n"
    assert (done.returncode, done.stderr) == (1, said), done.stderr


@pytest.mark.parametrize("place", ["file", "file/state", "circle/state"])
def test_a_state_folder_that_can_be_none_is_refused_in_one_line(
    tmp_path: Path, refused: Run, place: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    place = str(tmp_path / place)
    said = refused("serve", "--state-dir", place)
    assert said.count("\n") == 1
    assert "can't be used" in said
    assert "--state-dir" in said
    for command in (("status",), ("fsck",)):
        assert "Traceback" not in refused(*command, "--state-dir", place)


@pytest.mark.parametrize("target", ["absent", "link"])
def test_a_link_to_no_state_folder_is_no_new_one(tmp_path: Path, refused: Run, target: str) -> None:
    """The disk behind it is not mounted, say: another folder would begin with nothing."""
    (tmp_path / "link").symlink_to(tmp_path / target)
    for command in ("serve", "fsck"):
        said = refused(command, "--state-dir", str(tmp_path / "link"))
        assert "which is not there. Mount its disk" in said
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("damaged", ["", "{", "[]", "[1]", "3", '{"processes": 3}'])
def test_damaged_facts_of_a_service_are_of_none(tmp_path: Path, refused: Run, damaged: str) -> None:
    (tmp_path / "run.json").write_text(damaged)
    assert "no service runs" in refused("status", "--state-dir", str(tmp_path))
    assert list(leftovers(tmp_path / "run.json", tmp_path / "private")) == []


INTERRUPTED = """
import contextlib, os, signal, sys
import online.commands.cli as cli
from online.errors import OnlineError
if "control" in sys.argv:
    cli.nothing_begun = contextlib.nullcontext
    cli.KeyboardInterrupt = ()  # which catches nothing
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever runs the tests ignores
def read(*_):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**7):
        pass
if "between" in sys.argv:
    cli.application, cli.run = (lambda _: None), read
else:
    cli._module = read
cli.main()
"""


@pytest.mark.parametrize("when", ["reading", "between"])
def test_ctrl_c_while_a_command_is_being_read_ends_it_without_a_word(when: str) -> None:
    def end(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-c", INTERRUPTED, "status", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        return done.returncode, done.stderr

    assert end(when) == (130, "")
    code, said = end(when, "control")
    assert code != 130
    assert "KeyboardInterrupt" in said


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [("forget", 0, [10]), ("backfill", 4, [10]), ("report", 15, [15]), ("status", 0, [])],
)
def test_a_command_that_computes_leaves_the_processor_to_a_service(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, before: int, after: list[int]
) -> None:
    nice: list[int] = []
    monkeypatch.setattr(os, "getpriority", lambda which, who: before)
    monkeypatch.setattr(os, "setpriority", lambda which, who, level: nice.append(level))
    run(command, "--help")
    assert nice == after


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_a_letter_shows_its_number(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding))
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    run_command(lambda: print("‘b’ moved", flush=True), "online")
    assert shown.getvalue() == rb"\u2018b\u2019 moved" + b"\n"


def test_an_argument_that_is_no_text_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: "x\udcff".encode(), "online")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "online: 'x\\udcff' is no text. Write it in UTF-8\n"
