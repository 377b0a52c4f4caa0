"""Every command of the cookbook and of the pages for operators is run, or says that it is not.

A shell block stands behind `<!-- not run: why -->` or is run as it stands, in the page's order,
against one service; the port, the folder and names of snapshots are the service's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import pytest

from benchmarks.fixtures.service import Running, service
from online.client import Client, Event
from online.settings.config import environment

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
    return [Block(language, body, why or None) for why, language, body in _BLOCK.findall(text)]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    model = {"name": "phishing", "task": "binary", "learner": "logreg"}
    with service({"replicas": 1, "models": [model], "limits": {"adopt_s": 2}}) as found:
        yield found


def snapshot(running: Running) -> str:
    """Name of a new snapshot: the page has one of another service."""
    made = httpx.post(f"{running.url}/v1/models/phishing/snapshots", timeout=120)
    return str(made.json()["name"])


def run(running: Running, script: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run it in the service's folder, where `online` is this source's."""
    script = script.replace("http://127.0.0.1:8000", running.url)
    if "3-120" in script:
        script = script.replace("3-120", snapshot(running))
    tools = running.folder / "bin"
    tools.mkdir(exist_ok=True)
    online = tools / "online"
    online.write_text(f'#!/bin/sh\nexec {sys.executable} -m online "$@"\n')
    curl = tools / "curl"  # answers of 400 and above are failures, whatever the page leaves out
    fails = 'case " $*" in *" -sf "*) ;; *) set -- --fail-with-body "$@" ;; esac'
    curl.write_text(f'#!/bin/sh\n{fails}\nexec {shutil.which("curl")} "$@"\n')
    for tool in (online, curl):
        tool.chmod(0o755)
    path = f"{tools}:{environment().get('PATH', os.defpath)}"
    command = ["bash", "-euo", "pipefail", "-c", script]
    if program == "python":
        command = [sys.executable, "-c", script]
    return subprocess.run(
        command, cwd=running.folder, capture_output=True, text=True, timeout=240,
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


def feed(running: Running, name: str) -> None:
    """Something to freeze, undo and look at."""
    with Client(running.url) as client, client.batch("phishing") as batch:
        for i in range(20):
            batch.add(Event(features={"a": float(i)}, label=i % 2 == 0, event_id=f"{name}-{i}"))


def for_operators() -> str:
    """Their pages, in the order in which their commands are run."""
    pages = ("runbook", "monitoring", "deploy", "sizing", "audit")
    return "\n".join((DOCS / f"{page}.md").read_text() for page in pages)


def test_the_pages_for_operators(running: Running) -> None:
    text = for_operators()
    for i, block in enumerate(blocks(text)):
        if block.not_run is not None:
            assert len(block.not_run.split()) >= 4, f"no reason: {block.not_run}"
            continue
        feed(running, f"block{i}")
        done = run(running, block.text, "bash")
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    assert (running.folder / "backup" / "journal.db").exists()
    assert list((running.folder / "saved-logs").iterdir())
    assert (running.folder / "admin.token").stat().st_mode & 0o077 == 0


def test_what_is_not_run_is_what_can_not_be() -> None:
    """Whoever marks a block must come by here."""
    text = for_operators()
    left_out = [b.text.split("\n")[0] for b in blocks(text) if b.not_run]
    assert [line.split()[0:2] for line in left_out] == [
        ["online", "quarantine"], ["curl", "-s"], ["online", "fsck"], ["ls", "-l"],
        ["online", "serve"], ["online", "serve"], ["online", "backfill"],
        ["python3", "-m"], ["serve", "deploy"],
        ["docker", "build"], ["PASSWORD=$(openssl", "rand"], ["online", "bench"],
        ["online", "certificates"], ["import", "hashlib,"],
    ]  # fmt: skip


def test_a_mark_far_from_its_block_marks_nothing() -> None:
    block = "```sh\nls\n```\n"
    assert blocks(f"<!-- not run: no reason -->\n{block}") == [Block("sh", "ls\n", "no reason")]
    assert blocks(f"<!-- not run: no reason -->\n\n{block}") == [Block("sh", "ls\n", None)]


@pytest.mark.parametrize("script", ["online bogus", "curl -sf http://127.0.0.1:8000/nothing"])
def test_a_command_that_does_not_work_is_found(running: Running, script: str) -> None:
    assert run(running, script, "bash").returncode != 0
