"""A run of the tests that is told to end does, whatever the signal's exception met."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
DROPPED = """
import contextlib
import os
import signal

def test_first():
    with contextlib.suppress(KeyboardInterrupt):  # as a finalizer or a callback does
        os.kill(os.getpid(), signal.{name})

def test_second():
    pass
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_run_ends_after_the_test_that_drops_the_interrupt(tmp_path: Path, name: str) -> None:
    (tmp_path / "test_dropped.py").write_text(DROPPED.format(name=name))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TESTS.parent}:{TESTS / 'conformance'}",
        "LANES": "",
    }
    done = subprocess.run(
        [*command, tmp_path], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
    assert "told to end" in done.stdout
    assert "1 passed" in done.stdout, "the second does not run"
