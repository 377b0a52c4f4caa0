"""Two saturated replicas on one SQLite journal: how long feedback takes at its worst.

Closed loop: each connection sends its next event when the last one was answered, to the
replicas' own ports, so nothing but the replicas and their journal is between.  Beside it stand
one replica alone, the peer that keeps nothing, and the disk's own sync.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.fixtures.service import service
from benchmarks.speed.http import peer
from online.client.load import generator
from online.client.load.bodies import Bodies

P99_MS = 25.0
"""Target of the two replicas' p99."""

MAX_MS = 100.0
"""Target of their longest answer."""

_PAGE = bytes(4096)
_PATH = "/v1/models/m/feedback"


@dataclass(frozen=True, slots=True)
class Row:
    """Rate and latencies of one party; ``good`` is None where there is no target."""

    what: str
    per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    good: bool | None = None


def run(*, seconds: float = 60.0, connections: int = 8, beside_s: float = 10.0) -> list[Row]:
    """Two replicas with ``connections`` each for ``seconds``; the others for ``beside_s``.

    Raises RuntimeError if a request fails.
    """
    bodies = Bodies()
    rows = [_disk(beside_s / 2)]
    with peer() as port:
        rows.append(_load("peer, learn, nothing kept", [port], "/learn", bodies.peer_learn,
                          2 * connections, beside_s))  # fmt: skip
    model = {"name": "m", "task": "binary", "learner": "logreg", "params": {"lr": 0.05}}
    for replicas, length in ((1, beside_s), (2, seconds)):
        with service({"replicas": replicas, "models": [model]}) as running:
            ports = [urlsplit(url).port or 0 for url in running.replica_urls().values()]
            if len(ports) != replicas:
                raise RuntimeError(f"{len(ports)} replicas listen, not {replicas}")
            bodies.run = replicas
            what = f"feedback, {replicas} replica{'s' if replicas > 1 else ''}"
            rows.append(
                _load(what, ports, _PATH, bodies.feedback, replicas * connections, length,
                      judge=replicas == 2)
            )  # fmt: skip
    return rows


def _load(
    what: str, ports: list[int], path: str, body: generator.Body, connections: int, seconds: float,
    *, judge: bool = False,
) -> Row:  # fmt: skip
    found = generator.run("127.0.0.1", ports, path, body, connections=connections, seconds=seconds)
    if found.errors:
        raise RuntimeError(f"{what}: {found.errors} of {found.requests} requests failed")
    good = found.p99_ms <= P99_MS and found.max_ms <= MAX_MS if judge else None
    return Row(
        what, found.rate, found.p50_ms, found.p99_ms, found.p999_ms, found.max_ms, good
    )  # fmt: skip


def _disk(seconds: float) -> Row:
    """One page written and synced again and again: what no journal on this disk can beat."""
    lengths: list[float] = []
    with tempfile.TemporaryDirectory(prefix="online-bench-") as name:
        file = os.open(Path(name) / "pages", os.O_RDWR | os.O_CREAT)
        begun = time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            os.pwrite(file, _PAGE, len(lengths) * len(_PAGE))
            os.fdatasync(file)
            lengths.append(time.perf_counter() - now)
        os.close(file)
    lengths.sort()
    n = len(lengths)
    p50, p99, p999, last = (lengths[min(n - 1, int(n * p))] * 1e3 for p in (0.5, 0.99, 0.999, 1))
    return Row("disk alone: write a page, fdatasync", n / seconds, p50, p99, p999, last)
