"""A service of its own for one measurement: own processes, free ports, a folder that goes away."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from online.client.connection import Connection
from online.errors import StartRefused
from online.settings import config

_START_S = 180.0  # 10 to 15 on two idle cores
_STOP_S = 30.0


@dataclass(slots=True)
class Running:
    """A started service.

    ``url`` is what `online serve` printed; ``replica_urls`` go round the balancer.
    """

    folder: Path
    process: subprocess.Popen[str]
    url: str
    started_s: float
    lines: list[str] = field(default_factory=list)
    token: str | None = None

    @property
    def state_dir(self) -> Path:
        """Return the service's own state folder."""
        return self.folder / "state"

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the service notes about itself."""
        data: dict[str, Any] = json.loads((self.state_dir / "run.json").read_text())
        return data

    def replica_urls(self) -> dict[str, str]:
        """URL of each live replica's own port, by the replica's name."""
        first, last = self.facts["replica_ports"]
        found = {}
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status != psutil.CONN_LISTEN or not local or connection.pid is None:
                continue
            if first <= local.port <= last:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
                    started = psutil.Process(connection.pid).create_time()
                    found[f"{connection.pid}:{started:.2f}"] = f"http://127.0.0.1:{local.port}"
        return found

    def processes(self) -> list[psutil.Process]:
        """The service's process and everything it started."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def named(self, part: str) -> list[psutil.Process]:
        """Processes of the service with ``part`` in their title."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if part in " ".join(process.cmdline()) or part in process.name():
                    found.append(process)
        return found

    def stop(self) -> float:
        """SIGTERM and wait; the seconds it took."""
        begun = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(_STOP_S)
        return time.monotonic() - begun


def write_settings(folder: Path, settings: Mapping[str, Any]) -> Path:
    """``online.yaml`` in the folder, with a free port and its own state folder."""
    path = folder / "online.yaml"
    data = {"port": 0, "state_dir": str(folder / "state"), **settings}
    path.write_text(yaml.safe_dump(data))
    return path


def launch(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Running:
    """`online serve` on the folder's settings; returns when it has printed its URL.

    ``file``: of the settings, or of a model; None: ``online.yaml`` in the folder.
    """
    begun = time.monotonic()
    served = str(file or folder / "online.yaml")
    command = [sys.executable, "-m", "online", "serve", served, *arguments]
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, text=True,
        env={**config.environment(), **(environment or {})},
    )  # fmt: skip
    log.close()
    try:
        text, url = _started(process, folder / "serve.log", begun + _START_S)
    except BaseException:  # Ctrl-C, too, would leave it to go on starting
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        raise
    return Running(folder, process, url, time.monotonic() - begun, text.splitlines())


def _started(process: subprocess.Popen[str], log: Path, deadline: float) -> tuple[str, str]:
    """Wait until the service has printed its URL; return all that it has said, and the URL.

    Raises StartRefused if it ends, or does not start in time.
    """
    while True:
        text = log.read_text()
        if match := re.search(r"(http://[0-9.]+:\d+)/docs", text):
            return text, match[1]
        if process.poll() is not None or time.monotonic() > deadline:
            raise StartRefused(f"online serve did not start:\n{text[-2000:]}", "See above")
        time.sleep(0.02)


@contextlib.contextmanager
def service(settings: Mapping[str, Any], *arguments: str) -> Iterator[Running]:
    """A service with these settings, in a folder of its own that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="online-bench-") as name:
        folder = Path(name)
        write_settings(folder, settings)
        running = launch(folder, *arguments)
        try:
            yield running
        finally:
            running.stop()


def status(running: Running, model: str) -> dict[str, Any]:
    """Status of a model."""
    with contextlib.closing(Connection(running.url, token=running.token)) as client:
        data: dict[str, Any] = client.get(f"/v1/models/{model}")[1]
    return data


def settle(running: Running, model: str, learned: int, timeout_s: float = 60.0) -> dict[str, Any]:
    """Wait until the replica that answers has learned so many events; the model's status."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError, KeyError):
            now = status(running, model)
            server = now["server"]
            if now["learned"] == learned and server is not None:
                return now
        if time.monotonic() > deadline:
            raise TimeoutError(f"{learned} events are not learned: {now['learned']}")
        time.sleep(0.05)
