"""How long until the pushes of a killed parameter server are taken, of a model with two of them.

Each kill is of the other one.  Feedback and predictions go on meanwhile, and each has to be
answered: the longest that one took stands beside.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import psutil

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.service import Running, service, status

TAKEN_S: Final = 2.0
"""Target: from the kill of one server until a push to it is acknowledged again."""

_EVENTS: Final = 5  # of one body
_PAUSE_S: Final = 0.05
_CALM_S: Final = 4.0  # between two kills: a snapshot is published meanwhile
_WAIT_S: Final = 120.0
_PATH: Final = "/v1/models/counting"
_SETTINGS: Final[dict[str, Any]] = {
    "replicas": 2,
    "models": [
        {
            "name": "counting", "task": "regression", "shards": 2, "filters": "none",
            "learner": "benchmarks.fixtures.learners:counting", "sync": {"merge": "sum"},
            "snapshots": {"interval_s": 2},
        }
    ],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Killed:
    """Seconds from the kill of a server until it serves, and until a push to it is taken.

    Attributes:
        processor_s: What the new process has taken of the processor until then.
        predict_s, feedback_s: The longest that a request took meanwhile.
    """

    shard: int
    serves_s: float
    taken_s: float
    processor_s: float
    predict_s: float
    feedback_s: float

    @property
    def good(self) -> bool:
        """Whether its pushes were taken in time."""
        return self.taken_s <= TAKEN_S


class Load(threading.Thread):
    """Sends feedback and asks for predictions, turn by turn; an answer that is none ends it.

    Attributes:
        slowest: The longest of each kind since it was set, in seconds.
        failed: What it was ended by; None: it goes on.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self._stop_event = url, threading.Event()
        self.slowest: dict[str, float] = {}
        self.failed: str | None = None

    def run(self) -> None:
        """Ask for predictions and send labels until it is stopped."""
        sent = 0
        with contextlib.closing(Connection(self._url, 60.0)) as client:
            while not self._stop_event.wait(_PAUSE_S) and self.failed is None:
                names = [f"e{sent + i}" for i in range(_EVENTS)]
                sent += _EVENTS
                events = [
                    {"features": {name: 1.0}, "label": COUNT_LABEL, "event_id": name}
                    for name in names
                ]
                self._ask(client, "feedback", {"events": events})
                self._ask(client, "predict", {"features": {names[0]: 1.0}})

    def _ask(self, client: Connection, verb: str, body: dict[str, Any]) -> None:
        begun = time.monotonic()
        code, answer = client.post(f"{_PATH}/{verb}", body)
        if code != 200:
            self.failed = f"{verb}: {code} {answer}"
        self.slowest[verb] = max(self.slowest.get(verb, 0.0), time.monotonic() - begun)

    def stop(self) -> None:
        """End it.  Raises RuntimeError if a request was not answered."""
        self._stop_event.set()
        self.join()
        if self.failed is not None:
            raise RuntimeError(self.failed)


def run(kills: int) -> Iterator[Killed]:
    """Kill one server after the other."""
    with service(_SETTINGS) as running:
        load = Load(running.url)
        load.start()
        try:
            for i in range(kills):
                time.sleep(_CALM_S)
                yield _kill(running, load, (i + 1) % 2)
        finally:
            load.stop()


def _kill(running: Running, load: Load, shard: int) -> Killed:
    before = _shard(running, shard)
    load.slowest = {}
    begun = time.monotonic()
    psutil.Process(before["pid"]).kill()
    serves_s, count = 0.0, 0
    while (passed := time.monotonic() - begun) < _WAIT_S and load.failed is None:
        now = _shard(running, shard)
        if now.get("state") != "serving" or now["epoch"] <= before["epoch"]:
            continue
        if not serves_s:
            serves_s, count = passed, now["count"]
        elif now["count"] > count:
            cpu = sum(psutil.Process(now["pid"]).cpu_times()[:2])
            slowest = [load.slowest.get(verb, 0.0) for verb in ("predict", "feedback")]
            return Killed(shard, serves_s, passed, cpu, *slowest)
    raise TimeoutError(f"no push to shard {shard} was taken; {load.failed}")


def _shard(running: Running, shard: int) -> dict[str, Any]:
    """Return a shard's part of the status; next to nothing of one that does not answer."""
    shards = (status(running, "counting").get("server") or {}).get("shards", [{}, {}])
    found: dict[str, Any] = shards[shard]
    return found
