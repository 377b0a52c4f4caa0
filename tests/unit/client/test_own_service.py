"""A service that is started for one measurement, and what is said if it does not start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from online.client.load.own_service import _started
from online.errors import StartRefused


def refusal(code: str, log: Path, within_s: float) -> str:
    process = subprocess.Popen([sys.executable, "-c", code], text=True)
    try:
        with pytest.raises(StartRefused) as refused:
            _started(process, log, within_s)
    finally:
        process.kill()
        process.wait()
    return str(refused.value)


def test_a_service_that_ended_is_told_from_one_that_is_slow(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_text("starting Ray\n")
    ended = refusal("raise SystemExit(3)", log, 60.0)
    assert ended.startswith("online serve ended with 3, having printed:\nstarting Ray")
    slow = refusal("import time; time.sleep(600)", log, 0.1)
    assert slow.startswith("online serve was not ready after 0.1 s, having printed:\nstarting Ray")
    assert "a busy machine takes longer" in slow
