"""`online doctor`: checks whether this machine can run the service, and suggests remedies."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import psutil
import typer

from online.commands.base import AsJson, File, StateDir, load_settings
from online.errors import OnlineError, StartRefused
from online.settings.config import EMBEDDED, Settings

Verdict = Literal["ok", "warn", "FAIL"]

_PYTHON: Final = (3, 11)
_SYNCS: Final = 20
_SYNC_MS: Final = (10.0, 200.0)  # per sync: above the first it is slow, above the second unusable
_GB: Final = 1 << 30
_MEMORY: Final = {True: (0.2, 0.4), False: (1.3, 2.0)}  # GB: minimum, comfortable; embedded or Ray
_DISK: Final = (0.2, 1.0)  # GB
_FUTURE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check: its name, verdict, observation and remedy."""

    what: str
    verdict: Verdict
    seen: str
    remedy: str = ""


def doctor(path: File = None, state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Check what the service needs: settings, Python, versions, ports, disk, memory and clock.

    Exit code 1: a check failed; its remedy is shown. Warnings do not fail.

    Example: online doctor online.yaml
    """
    findings = []
    for one in examine(path, state_dir):
        findings.append(one)
        if not as_json:
            print(f"{one.verdict:<4}  {one.what:<9} {one.seen}", flush=True)
            if one.verdict != "ok" and one.remedy:
                print(f"      {'':<9} {one.remedy}")
    good = all(one.verdict != "FAIL" for one in findings)
    if as_json:
        print(json.dumps({"good": good, "findings": [asdict(one) for one in findings]}))
    raise typer.Exit(0 if good else 1)


def examine(path: Path | None, state_dir: Path | None) -> Iterator[Finding]:
    """Yield the results, one check after the other."""
    yield _python(sys.version_info[:3], platform.system())
    try:
        settings = load_settings(path, state_dir=state_dir)
    except OnlineError as error:
        yield Finding("settings", "FAIL", " ".join(str(error).split()), "Mend the settings first")
        return
    names = ", ".join(model.name for model in settings.models)
    yield Finding("settings", "ok", f"{names}, {settings.cluster}, state in {settings.state_dir}")
    embedded = settings.cluster == EMBEDDED
    yield versions("online-learning-service")
    yield _port(settings)
    yield from _folder(settings)
    yield memory(psutil.virtual_memory().available / _GB, embedded=embedded)
    yield clock(settings.state_dir, time.time())


def _python(version: tuple[int, ...], system: str) -> Finding:
    found_version = ".".join(map(str, version))
    if version < _PYTHON:
        return Finding("python", "FAIL", found_version, "Python 3.11 or newer is needed")
    if system != "Linux":
        return Finding(
            "python", "warn", f"{found_version} on {system}", "The service is made for Linux"
        )
    return Finding("python", "ok", f"{found_version} on {system}")


def versions(distribution: str) -> Finding:
    """Check that installed packages have the versions that the service requires."""
    from packaging.requirements import Requirement

    try:
        texts = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return Finding("versions", "warn", f"{distribution} is not installed", "pip install -e .")
    wrong, installed = [], []
    for wanted in map(Requirement, texts):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version} is not {wanted.specifier}")
        if wanted.name in ("ray", "river", "numpy"):
            installed.append(f"{wanted.name} {version}")
    if wrong:
        remedy = f"pip install '{distribution}', into an environment of its own"
        return Finding("versions", "FAIL", "; ".join(wrong), remedy)
    return Finding("versions", "ok", ", ".join(installed))


def _port(settings: Settings) -> Finding:
    from online.service.processes import is_free
    from online.service.state.run_file import running

    at = f"{settings.port} of {settings.host}"
    with contextlib.suppress(StartRefused):
        url = running(settings.state_dir)["url"]
        return Finding("port", "ok", f"the service of this state runs at {url}")
    if settings.port == 0:
        return Finding("port", "ok", "any free one")
    try:
        free = is_free(settings.host, settings.port)
    except OSError as error:
        return Finding("port", "FAIL", f"{at}: {error.strerror or error}", "Give another host")
    if not free:
        return Finding("port", "FAIL", f"{at} is taken", "Stop what listens there, or --port 0")
    return Finding("port", "ok", f"{at} is free")


def _folder(settings: Settings) -> Iterator[Finding]:
    """Yield checks of the state's disk: writable, free space, and latency of syncs."""
    place = settings.state_dir
    while not place.exists():
        place = place.parent
    try:
        took = [_synced_ms(place) for _ in range(_SYNCS)]
    except OSError as error:
        remedy = "Give a folder that can be written: --state-dir"
        yield Finding("disk", "FAIL", f"{place}: {error.strerror}", remedy)
        return
    yield syncs(place, statistics.median(took), max(took))
    yield room(place, psutil.disk_usage(str(place)).free / _GB)


def _synced_ms(folder: Path) -> float:
    """Milliseconds until 4 KB are synced to the disk."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * 4096)
        file.flush()
        begun = time.perf_counter()
        os.fdatasync(file.fileno())
        return (time.perf_counter() - begun) * 1e3


def syncs(place: Path, median_ms: float, most_ms: float) -> Finding:
    """Check that syncs, which feedback waits for, are fast enough."""
    seen = f"{place}: a write is on the disk after {median_ms:.2f} ms, at most {most_ms:.1f}"
    slow, dead = _SYNC_MS
    if median_ms > dead:
        return Finding("disk", "FAIL", seen, "Feedback would time out: take a local disk")
    if median_ms > slow:
        return Finding("disk", "warn", seen, "Feedback waits as long: a local SSD takes less")
    return Finding("disk", "ok", seen)


def room(place: Path, free_gb: float) -> Finding:
    """Check that the disk has room for journal and snapshots."""
    seen, (least, good) = f"{free_gb:.1f} GB free at {place}", _DISK
    if free_gb < least:
        return Finding("room", "FAIL", seen, "Make room: feedback is refused on a full disk")
    return Finding("room", "ok" if free_gb >= good else "warn", seen, "See docs: the journal grows")


def memory(free_gb: float, *, embedded: bool) -> Finding:
    """Check that the free memory suffices for the form of the service."""
    least, good = _MEMORY[embedded]
    seen = f"{free_gb:.1f} GB available, about {least:g} needed"
    if free_gb < least:
        remedy = "Free some" if embedded else "Free some, or take `cluster: embedded`"
        return Finding("memory", "FAIL", seen, remedy)
    return Finding("memory", "ok" if free_gb >= good else "warn", seen, "Models need more on top")


def clock(state_dir: Path, now_s: float) -> Finding:
    """Check that the clock is not behind the state's files."""
    newest = 0.0
    for name in ("journal.db", "journal.db-wal", "run.json", "owner.lock"):
        with contextlib.suppress(OSError):
            newest = max(newest, (state_dir / name).stat().st_mtime)
    now = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now_s))
    if newest > now_s + _FUTURE_S:
        seen = f"{now}, and the state was written {newest - now_s:.0f} s later than that"
        return Finding("clock", "FAIL", seen, "Set the clock: labels would be refused or expire")
    return Finding("clock", "ok", now)
