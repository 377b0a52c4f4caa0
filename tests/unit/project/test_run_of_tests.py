"""A run of the tests that is told to end does, whatever the signal's exception met."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import lanes

TESTS = Path(__file__).parents[2]
ALONE = {**os.environ, "LANES": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
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
SHARES = """
import sys
sys.path.insert(0, {tests!r})
import lanes
lanes.ROOT = {folder!r}
sys.exit(lanes.main({services!r}, {computed!r}))
"""
WAITS = """
import signal

def test_first():
    open("waits", "w").close()
    signal.pause()
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
    environment = {**ALONE, "PYTHONPATH": f"{TESTS.parent}:{TESTS / 'conformance'}"}
    done = subprocess.run(
        [*command, tmp_path], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
    assert "told to end" in done.stdout
    assert "1 passed" in done.stdout, "the second does not run"


def begun(folder: Path, *services: str, computed: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    code = SHARES.format(tests=str(TESTS), folder=str(folder), services=services, computed=computed)
    return subprocess.Popen(
        [sys.executable, "-c", code], env=ALONE, stdout=subprocess.PIPE, text=True
    )


def test_every_share_is_run_and_one_that_fails_is_told(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"test_{i}.py").write_text(f"def test_it():\n    assert {i} != 4, 'four'\n")
    with begun(tmp_path, "test_0.py", computed=tuple(f"test_{i}.py" for i in range(1, 6))) as run:
        said, _ = run.communicate(timeout=240)
    assert run.returncode == 1
    assert (said.count("1 passed"), said.count("1 failed")) == (5, 1)
    assert "four" in said
    with begun(tmp_path, "test_[0-3].py") as run:
        said, _ = run.communicate(timeout=240)
    assert run.returncode == 0
    assert "4 passed" in said


def test_who_is_told_to_end_ends_its_shares(tmp_path: Path) -> None:
    (tmp_path / "test_waits.py").write_text(WAITS)
    (tmp_path / "test_never.py").write_text("def test_it():\n    pass\n")
    os.mkfifo(tmp_path / "waits")
    with begun(tmp_path, *["test_waits.py"] * 4, "test_never.py") as run:
        (tmp_path / "waits").read_text()
        run.terminate()
        said, _ = run.communicate(timeout=240)
    assert run.returncode == 130
    assert "passed" not in said


def test_every_test_is_in_one_share() -> None:
    found = Counter[Path]()
    for share in " ".join((*lanes.SERVICES, *lanes.COMPUTED)).split():
        for place in glob.glob(share, root_dir=lanes.ROOT):
            path = lanes.ROOT / place
            found.update([path] if path.is_file() else path.rglob("test_*.py"))
    assert found == Counter(TESTS.rglob("test_*.py"))
