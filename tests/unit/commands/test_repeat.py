"""`--every`: runs in their time, whatever became of the last one, by a clock of the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from online.commands.repeat import in_child, repeat, without
from online.errors import ConfigError


class Clock:
    """Time goes on by what runs take and by what is waited for; after ``n`` waits: Ctrl-C."""

    def __init__(self, took: list[float], codes: list[int], n: int) -> None:
        self.now, self._took, self._codes, self._n = 100.0, took, codes, n
        self.began: list[float] = []
        self.said: list[str] = []

    def once(self) -> int:
        self.began.append(self.now)
        at = len(self.began) - 1
        self.now += self._took[at]
        return self._codes[at]

    def wait(self, seconds: float) -> None:
        self.now += seconds
        if len(self.began) == self._n:
            raise KeyboardInterrupt

    def run(self) -> int:
        with pytest.raises(typer.Exit) as ended:
            repeat(
                self.once, 60.0, monotonic_s=lambda: self.now, wait=self.wait, say=self.said.append
            )
        return ended.value.exit_code


def test_runs_begin_in_their_time() -> None:
    clock = Clock([5.0, 90.0, 0.0, 1.0], [0, 0, 0, 0], 4)
    assert clock.run() == 130
    assert clock.began == [100.0, 160.0, 250.0, 310.0], "a long one is followed at once"
    assert clock.said == []


def test_a_failed_run_is_said_and_the_next_one_comes() -> None:
    clock = Clock([1.0] * 4, [1, -9, 0, 1], 4)
    assert clock.run() == 130
    assert clock.began == [100.0, 160.0, 220.0, 280.0]
    assert clock.said == [
        "online: that run failed (exit code 1); next in 59 s",
        "online: that run failed (exit code -9), 2 times in a row; next in 59 s",
        "online: that run failed (exit code 1); next in 59 s",
    ]


def test_wrong_usage_is_not_tried_again() -> None:
    clock = Clock([1.0], [2], 9)
    assert clock.run() == 2
    assert clock.began == [100.0]


def test_the_command_of_one_run() -> None:
    given = ["rescore", "--every", "1h", "--input", "x", "--every=2h", "--output", "o"]
    assert without(given, "--every") == ["rescore", "--input", "x", "--output", "o"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_gently(tmp_path: Path, number: signal.Signals) -> None:
    """The child is a group of its own: it gets one SIGINT, from its parent, and cleans up."""
    child = tmp_path / "child.py"
    child.write_text(
        "import pathlib, signal\n"
        "def stop(*_):\n"
        "    pathlib.Path('stopped').touch(); raise SystemExit(130)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "print('runs', flush=True)\n"
        "signal.pause()\n"
    )
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import signal, sys, typer\n"
        "from online.commands import repeat\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored behind a shell's &
        f"sys.executable = {str(tmp_path / 'python')!r}\n"
        "try: repeat.repeat(repeat.in_child([]), 3600)\n"
        "except typer.Exit as e: sys.exit(e.exit_code)\n"
    )
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nexec {sys.executable} {child}\n")
    fake.chmod(0o755)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(parent)], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environ
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(number)
        assert process.wait(240) == 130
    assert (tmp_path / "stopped").exists()


def test_a_run_with_a_name_is_made_once(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from online.commands.cli import app

    given = ["rescore", "--input", "x", "--output", "o", "--every", "1h", "--run-id", "a"]
    result: Any = CliRunner().invoke(app, [*given, "--state-dir", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "--run-id" in str(result.exception)


def test_a_signal_that_comes_while_the_child_is_started_ends_the_child_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[int] = []

    class Starting:
        def __init__(self, *_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)  # it is taken before anybody has the child

        def send_signal(self, number: int) -> None:
            sent.append(number)

        def wait(self, timeout: float | None = None) -> int:
            return 130

    monkeypatch.setattr("online.commands.repeat.subprocess.Popen", Starting)
    with pytest.raises(KeyboardInterrupt):
        in_child([])()
    assert sent == [signal.SIGINT]
