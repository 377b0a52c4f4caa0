"""Every command of the cookbook and of the operations page is run, or says that it is not.

A shell block stands behind `<!-- not run: why -->` or is run as it stands, in the page's order,
against one service; the port, the folder and names of snapshots are the service's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from online.bench.service import Running, service
from online.config import environment

pytestmark = pytest.mark.ray

DOCS: Final = Path(__file__).parents[2] / "docs"
_BLOCK: Final = re.compile(
    r"^(?:<!-- not run: (.+?) -->\n)?```(sh|python)\n(.*?)^```$", re.M | re.S
)


class Block(NamedTuple):
    language: str
    text: str
    not_run: str | None


def blocks(text: str) -> list[Block]:
    """The page's commands, in their order."""
    return [Block(language, body, why) for why, language, body in _BLOCK.findall(text)]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    model = {"name": "phishing", "task": "binary", "learner": "logreg"}
    with service({"replicas": 1, "models": [model], "limits": {"adopt_s": 2}}) as found:
        yield found


def run(running: Running, script: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run it in the service's folder, where `online` is this source's."""
    script = script.replace("http://127.0.0.1:8000", running.url)
    tools = running.folder / "bin"
    tools.mkdir(exist_ok=True)
    online = tools / "online"
    online.write_text(f'#!/bin/sh\nexec {sys.executable} -m online "$@"\n')
    online.chmod(0o755)
    path = f"{tools}:{environment().get('PATH', os.defpath)}"
    command = ["bash", "-euo", "pipefail", "-c", script]
    if program == "python":
        command = [sys.executable, "-c", script]
    return subprocess.run(
        command, cwd=running.folder, capture_output=True, text=True, timeout=120,
        env={**environment(), "PATH": path},
    )  # fmt: skip


def test_the_cookbook(running: Running) -> None:
    found = blocks((DOCS / "cookbook.md").read_text())
    assert not [b for b in found if b.not_run], "all of it can be run"
    shell = "\n".join(b.text for b in found if b.language == "sh")
    done = run(running, shell, "bash")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "learned\nduplicate" in done.stdout
    (python,) = (b.text for b in found if b.language == "python")
    done = run(running, python, "python")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["online bogus", "curl -sf http://127.0.0.1:8000/nothing"])
def test_a_command_that_does_not_work_is_found(running: Running, script: str) -> None:
    assert run(running, script, "bash").returncode != 0
