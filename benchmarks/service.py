"""A service of its own for one measurement: own processes, free ports, a folder that goes away."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from online.client.connection import Connection
from online.load import own_service
from online.load.own_service import write_settings
from online.settings import config

__all__ = [
    "Running", "form", "launch", "own_environment", "service", "settle", "status", "write_settings",
]  # fmt: skip

_ROOT: Final = Path(__file__).parents[1]  # where this package lies, and the tests beside it


@dataclass(slots=True)
class Running:
    """A service that was started for one measurement.

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
        if (ports := self.facts.get("replica_ports")) is None:
            return {"": self.url}  # one process: it answers itself
        first, last = ports
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
        own_service.stop(self.process)
        return time.monotonic() - begun


def own_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of what is started: it finds this package, which no installation brings.

    ``more`` is added; modules of its ``PYTHONPATH`` come first.
    """
    found = {**config.environment(), **(more or {})}
    places = [place for place in found.get("PYTHONPATH", "").split(os.pathsep) if place]
    return {**found, "PYTHONPATH": os.pathsep.join([*places, str(_ROOT)])}


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
    process, text, url = own_service.start(
        folder, *arguments, environment=own_environment(environment), file=file
    )
    return Running(folder, process, url, time.monotonic() - begun, text.splitlines())


def form(replicas: int) -> dict[str, Any]:
    """Settings of so many replicas; one is a process by itself, without Ray."""
    return {"cluster": "embedded"} if replicas == 1 else {"replicas": replicas}


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


def status(running: Running, model: str, url: str | None = None) -> dict[str, Any]:
    """Status of a model, from the replica at ``url`` or from whichever one answers."""
    with contextlib.closing(Connection(url or running.url, token=running.token)) as client:
        data: dict[str, Any] = client.get(f"/v1/models/{model}")[1]
    return data


def settle(running: Running, model: str, learned: int, timeout_s: float = 240.0) -> dict[str, Any]:
    """Wait until every replica has learned so many events; the model's status.

    The replica that answers a status counts its own rows at once and the others' when it next
    merges, so one that has them all says nothing about the one that answers the next request.
    """
    deadline = time.monotonic() + timeout_s
    counts: list[int] = []
    while True:
        with contextlib.suppress(OSError, KeyError):
            now = status(running, model)
            urls = running.replica_urls().values()
            counts = [now["learned"], *(status(running, model, url)["learned"] for url in urls)]
            if counts == [learned] * len(counts) and now["server"] is not None:
                return now
        if time.monotonic() > deadline:
            raise TimeoutError(f"{learned} events are not learned by every replica: {counts}")
        time.sleep(0.1)
