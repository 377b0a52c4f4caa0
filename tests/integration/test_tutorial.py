"""The tutorial is run as it stands: its Python in one process, its commands beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from online.settings.config import environment

PAGE: Final = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
_BLOCK: Final = re.compile(r"^```(python|sh)\n(.*?)^```$", re.M | re.S)
NAMED: Final = "1-37"
"""The page's name of the snapshot: it depends on how fast it went."""


class Reader:
    """Somebody who types what stands on the page, in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.names: dict[str, Any] = {}
        self._snapshot = NAMED
        self._online = folder / "bin" / "online"
        self._online.parent.mkdir()
        self._online.write_text(f'#!/bin/sh\nexec {sys.executable} -m online "$@"\n')
        self._online.chmod(0o755)

    def type(self, language: str, text: str) -> None:
        """Do one block; raises if anything in it fails."""
        if language == "python":
            exec(compile(text, "docs/tutorial.md", "exec"), self.names)
            return
        path = f"{self._online.parent}:{environment().get('PATH', os.defpath)}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text.replace(NAMED, self._snapshot)],
            capture_output=True, text=True, timeout=240, env={**environment(), "PATH": path},
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        if "snapshot create" in text:
            (self._snapshot,) = re.findall(r"\b\d+-\d+\b", done.stdout)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    found = Reader(tmp_path)
    yield found
    if "service" in found.names:
        found.names["service"].stop()


def test_the_tutorial(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    for language, text in _BLOCK.findall(PAGE):
        reader.type(language, text)
    drift, quality = reader.names["drift"], reader.names["quality"]
    assert drift["state"] == "act", "the alarm rings within a thousand rows"
    assert drift["why"].startswith("the error rose from")
    assert quality["accuracy"] > quality["majority"] + 0.1
    out = capsys.readouterr().out.splitlines()
    printed = [line for line in out if not line.startswith("online: ")]
    assert printed[-1] == "True", "what was learned before the harm is there after a restart"
    asked = reader.names["asked"]
    assert (asked.prediction, asked.version.split(".")[0]) == (True, "2"), "it went back"


def test_a_block_that_does_not_work_is_noticed(reader: Reader) -> None:
    with pytest.raises(NameError):
        reader.type("python", "service.predict()")
    with pytest.raises(AssertionError):
        reader.type("sh", "online bogus")
