"""Operators, other programs and the machine do harm to a service; acknowledged events count once.

Each kind of mishap happens some times under load, to a service of its own: in one process, or with
two replicas on Ray.  Clients repeat what was not answered; the weights of the counting model say
how often each event was learned (:mod:`benchmarks.faults.exactly_once`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from redis import Redis

from benchmarks.faults import exactly_once as once
from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.redis_server import Server
from benchmarks.fixtures.service import own_environment, write_settings
from online.service.processes import free_port
from online.settings.config import load

_CLIENTS: Final = 6
_ANSWERED: Final = 30  # events between two mishaps, at least
_JOIN_S: Final = 150.0
_TRIES: Final = 200
_DAY_S: Final = 86_400
_JUMPS_S: Final = (-30 * _DAY_S, -3_600, 7, 3_600, 3 * _DAY_S, 30 * _DAY_S)
_CLOCK: Final = """
import os, time
_time, _time_ns, _file = time.time, time.time_ns, os.environ["BENCH_CLOCK"]
_seen = [0.0, 0.0]

def _offset():
    now = time.monotonic()
    if now - _seen[0] > 0.2:
        _seen[0] = now
        try:
            with open(_file) as file:
                _seen[1] = float(file.read() or 0)
        except (OSError, ValueError):
            pass
    return _seen[1]

time.time = lambda: _time() + _offset()
time.time_ns = lambda: _time_ns() + int(_offset() * 1e9)
"""


@dataclass(slots=True)
class Scene:
    """A service under load, and what can be done to it.

    Attributes:
        clock: File with the seconds by which its wall clock is wrong.
        said: What became of each mishap, counted.
    """

    folder: Path
    given: dict[str, Any]
    site: once.Site
    store: Server | None
    sent: once.Sent
    rng: random.Random
    clock: Path
    said: Counter[str] = field(default_factory=Counter)
    n: int = 0

    @property
    def snapshots(self) -> Path:
        """Folder of the snapshots."""
        return self.site.running.state_dir / "snapshots"

    def wait(self, answered: int = _ANSWERED) -> None:
        """Until so many further events are acknowledged."""
        once.wait_answered(self.sent, len(self.sent.acknowledged) + answered)

    def post(self, events: list[dict[str, Any]]) -> Counter[str]:
        """Statuses of these events, sent in one body until it is answered."""
        for _ in range(_TRIES):
            with contextlib.closing(Connection(self.site.running.url, 60.0)) as client:
                code, answer = client.post("/v1/models/counting/feedback", {"events": events})
            if code == 200:
                return Counter(one["status"] for one in answer["events"])
            time.sleep(0.1)
        raise AssertionError(f"events are not taken: {code} {answer}")

    def command(self, *words: str) -> bool:
        """Give an operator's command; whether it was done.  A refusal is counted."""
        online = [sys.executable, "-m", "online", *words]
        config = ["--config", str(self.folder / "online.yaml")]
        done = subprocess.run(
            [*online, *config], capture_output=True, text=True, timeout=600, env=own_environment()
        )
        if done.returncode:
            self.said[f"{words[0]}: {done.stderr.strip()[:100]}"] += 1
        return done.returncode == 0


def _event(name: str, source: str = "bench") -> dict[str, Any]:
    return {"features": {name: 1.0}, "label": COUNT_LABEL, "event_id": name, "source": source}


def _snapshots_removed(scene: Scene) -> None:
    shutil.rmtree(scene.snapshots, ignore_errors=True)
    time.sleep(3.0)


def _snapshots_older(scene: Scene) -> None:
    copy = scene.folder / "older"
    for _ in range(_TRIES):  # files come and go meanwhile
        shutil.rmtree(copy, ignore_errors=True)
        with contextlib.suppress(OSError):
            shutil.copytree(scene.snapshots, copy)
            break
    scene.wait()
    for _ in range(_TRIES):
        shutil.rmtree(scene.snapshots, ignore_errors=True)
        with contextlib.suppress(OSError):
            copy.rename(scene.snapshots)
            break
    time.sleep(3.0)


def _clock(scene: Scene) -> None:
    """The wall clock is wrong by seconds to a month, before or after everything is killed."""
    jump = str(scene.rng.choice(_JUMPS_S))
    if scene.rng.random() < 0.5:
        scene.clock.write_text(jump)
    scene.site.kill("all")
    scene.clock.write_text(jump)


def _stands_still(scene: Scene) -> None:
    process = scene.site.running.process.pid
    os.kill(process, signal.SIGSTOP)
    time.sleep(scene.rng.choice((2.0, 6.0, 12.0)))
    os.kill(process, signal.SIGCONT)


def _hangups(scene: Scene) -> None:
    """SIGHUP after SIGHUP, while an editor writes the settings, some of them wrong."""
    path, rng = scene.folder / "online.yaml", scene.rng
    before = path.read_text()
    for _ in range(6):
        changed = yaml.safe_load(before)
        match rng.randrange(4):
            case 0:
                changed["limits"]["weight_max"] = rng.choice((2, 3, 5))
            case 1:
                changed["models"][0]["snapshots"]["interval_s"] = rng.choice((1, 2))
            case 2:
                changed["models"][0]["task"] = "binary"
            case _:
                changed["nonsense"] = 1
        text = json.dumps(changed)
        path.write_text(text[: rng.randrange(len(text))] if rng.random() < 0.3 else text)
        for _ in range(rng.choice((1, 5, 20))):
            scene.site.running.process.send_signal(signal.SIGHUP)
        time.sleep(rng.choice((0.0, 0.1, 1.0)))
    path.write_text(before)
    scene.site.running.process.send_signal(signal.SIGHUP)


def _two_operators(scene: Scene) -> None:
    """Two commands at once: both forget, or one forgets and one freezes or takes a snapshot."""
    scene.n += 1
    sources = [f"op{scene.n}{side}" for side in "ab"]
    for source in sources:
        scene.post([_event(f"{source}-{i}", source) for i in range(4)])
    first = ["forget", "--source", sources[0], "--yes"]
    second = scene.rng.choice(
        [["forget", "--source", sources[1], "--yes"], ["freeze"], ["snapshot", "create"]]
    )
    threads = [threading.Thread(target=scene.command, args=words) for words in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scene.command("unfreeze", "--release")
    for source in sources:  # what is left of one is a stranger at the end
        scene.command("forget", "--source", source, "--yes")


def _ids_removed(scene: Scene) -> None:
    _ids_changed(scene, older=False)


def _ids_older(scene: Scene) -> None:
    _ids_changed(scene, older=True)


def _ids_changed(scene: Scene, *, older: bool) -> None:
    """The index of ids is deleted, or a copy of before is put back; then events are repeated."""
    assert scene.store is not None
    key, before = "{online}:ids:counting", set(scene.sent.acknowledged)
    with contextlib.closing(Redis.from_url(scene.store.url)) as client:
        copy = client.dump(key)
        scene.wait()
        since = sorted(scene.sent.acknowledged - before)
        if older and copy is not None:
            client.restore(key, 0, copy, replace=True)
        else:
            client.delete(key)
    scene.said.update(scene.post([_event(name) for name in since]))


def _store_stands_still(scene: Scene) -> None:
    assert scene.store is not None
    scene.store.process.send_signal(signal.SIGSTOP)
    time.sleep(scene.rng.choice((2.0, 6.0, 12.0)))
    scene.store.process.send_signal(signal.SIGCONT)


BOTH: Final[Mapping[str, Callable[[Scene], None]]] = {
    "snapshots removed": _snapshots_removed,
    "older snapshots put back": _snapshots_older,
    "clock wrong and all killed": _clock,
    "service stands still": _stands_still,
    "SIGHUP storms": _hangups,
    "two operators at once": _two_operators,
}
REDIS: Final[Mapping[str, Callable[[Scene], None]]] = {
    "index of ids removed": _ids_removed,
    "older index of ids put back": _ids_older,
    "store stands still": _store_stands_still,
}


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of mishap: how often, and what became of the events.

    Attributes:
        embedded: Whether the service was one process.
        said: What was answered to repeats and commands of the mishap itself.
        retried: Answers but 200 that clients got, once an event and reason.
    """

    mishap: str
    journal: str
    embedded: bool
    times: int
    acknowledged: int
    lost: int
    twice: int
    strangers: int
    fsck_good: bool
    said: dict[str, int]
    retried: dict[str, int]
    good: bool


def kinds(journal: once.JournalKind) -> Mapping[str, Callable[[Scene], None]]:
    """The mishaps that such a store can have."""
    return {**BOTH, **(REDIS if journal == "redis" else {})}


def run(
    mishap: str, journal: once.JournalKind, times: int, seed: int, *, embedded: bool = True
) -> Line:
    """Let one kind of mishap happen so often, to a new service."""
    happens, sent, stop = kinds(journal)[mishap], once.Sent(), threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="online-mishap-") as name,
        once._store(Path(name) / "store", journal) as store,
    ):
        folder = Path(name)
        (folder / "clock").mkdir()
        (folder / "clock" / "sitecustomize.py").write_text(_CLOCK)
        clock = folder / "clock" / "offset"
        clock.write_text("0")
        environment = {"PYTHONPATH": str(folder / "clock"), "BENCH_CLOCK": str(clock)}
        given = once.settings_of(free_port(), store.url if store else journal, embedded=embedded)
        path = write_settings(folder, given)
        site = once.Site(folder, store, environment if happens is _clock else None)
        scene = Scene(folder, given, site, store, sent, random.Random(seed), clock)
        threads = [
            once.Client(
                i, lambda: site.running.url, sent, stop, seed * 1000 + i, timeout_s=60, pause_s=0.03
            )
            for i in range(_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(times):
                scene.wait()
                happens(scene)
            clock.write_text("0")
            scene.wait()
            stop.set()
            for thread in threads:
                thread.join(_JOIN_S)
            found = once.judge(site.running, load(path, {}, {}), sent)
        finally:
            stop.set()
            site.stop()
    retried = {what: n for what, n in sent.statuses.items() if what.startswith("retried")}
    good = not (found.lost or found.twice or found.strangers) and found.fsck_good
    return Line(
        mishap, journal, embedded, times, len(sent.acknowledged), len(found.lost), len(found.twice),
        len(found.strangers), found.fsck_good, dict(scene.said), retried, good,
    )  # fmt: skip
