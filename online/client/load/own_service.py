"""Starts a temporary service for one measurement, with its own processes, port and folder."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from online.errors import StartRefused
from online.settings import config

_START_S = 180.0  # it takes 10 to 15 s on two idle cores
_STOP_S = 120.0


def write_settings(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write ``online.yaml`` in the folder, with a free port and its own state folder."""
    path = folder / "online.yaml"
    data = {"port": 0, "state_dir": str(folder / "state"), **settings}
    path.write_text(yaml.safe_dump(data))
    return path


def start(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
    within_s: float = _START_S,
) -> tuple[subprocess.Popen[str], str, str]:
    """Start `online serve` on the folder's settings; returns its process, its output and its URL.

    Parameters:
        environment: The whole environment; None: this process's own.
        file: Settings file or model file; None: ``online.yaml`` in the folder.
        within_s: Seconds that the start may take.

    Raises:
        StartRefused: It has ended, or does not start in time.
    """
    served = str(file or folder / "online.yaml")
    command = [sys.executable, "-m", "online", "serve", served, *arguments]
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, text=True,
        env=config.environment() if environment is None else environment,
    )  # fmt: skip
    log.close()
    try:
        return process, *_started(process, folder / "serve.log", within_s)
    except BaseException:  # after Ctrl-C, too, it would continue to start
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        raise


def stop(process: subprocess.Popen[str]) -> None:
    """Send SIGTERM to a running service, and wait for its end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_S)


@contextlib.contextmanager
def service(settings: Mapping[str, Any]) -> Iterator[str]:
    """Run a service with these settings in a temporary folder; yields its URL."""
    with tempfile.TemporaryDirectory(prefix="online-load-") as name:
        folder = Path(name)
        write_settings(folder, settings)
        process, _, url = start(folder)
        try:
            yield url
        finally:
            stop(process)


def _started(process: subprocess.Popen[str], log: Path, within_s: float) -> tuple[str, str]:
    """Wait until the service has printed its URL; returns its output and the URL.

    Raises StartRefused if it has ended, or does not start in time.
    """
    deadline = time.monotonic() + within_s
    while True:
        code, text = process.poll(), log.read_text()
        if match := re.search(r"(http://[0-9.]+:\d+)/docs", text):
            return text, match[1]
        if code is not None or time.monotonic() > deadline:
            ended = f"was not ready after {within_s:g} s" if code is None else f"ended with {code}"
            problem = f"online serve {ended}, having printed:\n{text[-2000:]}"
            raise StartRefused(problem, "See what it printed; a busy machine takes longer")
        time.sleep(0.02)
