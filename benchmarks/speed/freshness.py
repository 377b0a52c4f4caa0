"""How long until feedback acknowledged by one replica is in the answers of another."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from dataclasses import dataclass
from typing import Final

from benchmarks.faults.exactly_once import settings_of
from benchmarks.fixtures import counting_table
from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.counting_table import Held
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.service import Running, service, status
from online.service.processes import free_port

_NAMES: Final = 100
_ROWS_NAMES: Final = 1_000  # of a table: eight rows each, and one of 4,096 rows is shared
_FILL_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Freshness:
    """Milliseconds from the acknowledgement at replica A to the answer of replica B."""

    events_per_s: float
    samples: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def run(rate: float = 200.0, seconds: float = 20.0, held: Held = "") -> Freshness:
    """Feedback at ``rate`` events/s over both replicas; about ten a second are followed.

    Parameters:
        held: How replicas hold the model's table; empty: it has none.
    """
    settings = settings_of(free_port())
    settings["models"][0] |= counting_table.settings_of(held)
    with service(settings) as running:
        if held:
            _fill(running, held)
        return measure(running, rate, seconds, _ROWS_NAMES if held else _NAMES)


def _fill(running: Running, held: Held) -> None:
    """Teach all names, so that the table is large enough to share; wait until it is shared."""
    with contextlib.closing(Connection(running.url, 60.0)) as client:
        events = [
            {"features": {f"f{i}": 1.0}, "label": COUNT_LABEL, "event_id": f"fill-{i}"}
            for i in range(_ROWS_NAMES)
        ]
        code, receipt = client.post("/v1/models/counting/feedback", {"events": events})
        assert code == 200, receipt
    deadline = time.monotonic() + _FILL_S
    while held == "shared" and not _shared(running):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no replica reads the server's table after {_FILL_S:g} s")
        time.sleep(0.1)


def _shared(running: Running) -> bool:
    """Whether the server passes changed rows to replicas that read its table."""
    server = status(running, "counting").get("server") or {}
    return bool((server.get("shared") or {}).get("passed"))


def measure(running: Running, rate: float, seconds: float, names: int = _NAMES) -> Freshness:
    """The measurement against a running service of the counting model."""
    first, second = sorted(running.replica_urls().values())
    stop = threading.Event()
    sent = [0, 0]
    threads = [
        threading.Thread(target=_load, args=(url, rate / 2, stop, sent, i, names))
        for i, url in enumerate((first, second))
    ]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    delays: list[float] = []
    with contextlib.closing(Connection(first)) as a, contextlib.closing(Connection(second)) as b:
        while time.monotonic() - begun < seconds:
            delays.append(_follow(a, b, f"probe-{len(delays)}"))
            time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - begun
    delays.sort()
    return Freshness(
        events_per_s=(sum(sent) + len(delays)) / elapsed,
        samples=len(delays),
        p50_ms=statistics.median(delays),
        p99_ms=delays[min(len(delays) - 1, int(len(delays) * 0.99))],
        max_ms=delays[-1],
    )


def _follow(a: Connection, b: Connection, event: str) -> float:
    """Acknowledged at A; ask B until the event's own weight shows in its answer."""
    body = {"features": {event: 1.0}, "label": COUNT_LABEL, "event_id": event}
    status, receipt = a.post("/v1/models/counting/feedback", body)
    assert status == 200, receipt
    acknowledged = time.monotonic()
    rows = {"instances": [{event: 1.0}, {"never sent": 1.0}]}
    while True:
        _, answer = b.post("/v1/models/counting/predict", rows)
        with_event, without = (row["prediction"] for row in answer["predictions"])
        if with_event != without:
            return (time.monotonic() - acknowledged) * 1e3
        if time.monotonic() - acknowledged > 30:
            raise TimeoutError(f"{event} did not arrive in 30 s")


def _load(
    url: str, rate: float, stop: threading.Event, sent: list[int], i: int, names: int
) -> None:
    with contextlib.closing(Connection(url)) as client:
        begun = time.monotonic()
        while not stop.is_set():
            event = f"load-{i}-{sent[i]}"
            body = {
                "features": {f"f{sent[i] % names}": 1.0},
                "label": COUNT_LABEL,
                "event_id": event,
            }
            status, receipt = client.post("/v1/models/counting/feedback", body)
            assert status == 200, receipt
            sent[i] += 1
            ahead = begun + sent[i] / rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
