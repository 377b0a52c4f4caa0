"""Hours in minutes: mixed load at half of what the service bears, a kill now and then, all of it.

Nothing may be lost or learned twice, and what the service takes of memory and files must not grow.
The model counts as in :mod:`benchmarks.faults.exactly_once`, but on a bounded number of features: a
model that grows with its events would look like a leak.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import statistics
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.faults.exactly_once import Client, Sent, Site, learned, settings_of
from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, write_settings
from online.service.processes import free_port
from online.settings.config import load

FEATURES: Final = 500
GROWTH_MB: Final = 60.0
"""What the whole service may take more at the end than after its first third: Ray's own processes
go on filling their pools for some minutes."""
GROWTH_FILES: Final = 60
_CALIBRATE_S: Final = 5.0
_SHARE: Final = 0.5
_SAMPLE_S: Final = 1.0
_TARGETS: Final = ("replica", "server", "both")


@dataclass(frozen=True, slots=True)
class Result:
    """A result says what one run of the soak benchmark has found.

    ``lost`` and ``twice`` are features of which fewer events were learned than acknowledged, or
    more than sent.  Memory in MB (resident, shared pages counted once: PSS) and open files are of
    all processes of the service together: medians of the second third, and of the last.
    """

    seconds: float
    capacity_per_s: float
    per_s: float
    kills: dict[str, int]
    acknowledged: int
    predictions: int
    failed_predictions: int
    lost: list[str]
    twice: list[str]
    fsck_good: bool
    memory_mb: tuple[float, float]
    files: tuple[float, float]

    @property
    def flat(self) -> bool:
        """Whether neither memory nor files have grown."""
        return (
            self.memory_mb[1] - self.memory_mb[0] <= GROWTH_MB
            and self.files[1] - self.files[0] <= GROWTH_FILES
        )

    @property
    def good(self) -> bool:
        """Nothing lost, nothing twice, the digest agrees with the journal, nothing has grown."""
        return not (self.lost or self.twice) and self.fsck_good and self.flat


class Paced(Client):
    """Predicts and sends feedback in turn, ``period_s`` apart (0: as fast as possible)."""

    period_s = 0.0
    predictions = failed_predictions = 0

    def feature(self, event: str) -> str:
        """One of a bounded number."""
        return f"f{zlib.crc32(event.encode()) % FEATURES}"

    def run(self) -> None:
        """The loop.  What was late is not made up for: the load stays what it is."""
        i, due = 0, time.monotonic()
        while not self._stop_event.is_set():
            event = f"c{self._number}-{i}"
            i += 1
            self._ask(event)
            self.send(event)
            due = max(due + self.period_s, time.monotonic() - self.period_s)
            self._stop_event.wait(max(due - time.monotonic(), 0.0))

    def _ask(self, event: str) -> None:
        client = Connection(self._url(), 5.0)
        with contextlib.closing(client):
            try:
                body = {"features": {self.feature(event): 1.0}}
                code, _ = client.post("/v1/models/counting/predict", body)
            except (OSError, http.client.HTTPException):
                code = 0
        self.predictions += code == 200
        self.failed_predictions += code != 200


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample says what the service takes at a moment: seconds since the start, MB, open files."""

    at_s: float
    memory_mb: float
    files: int


def measure(running: Running, at_s: float) -> Sample:
    """All processes of the service together; one that ends meanwhile counts as nothing."""
    memory, files = 0.0, 0
    for process in running.processes():
        with contextlib.suppress(psutil.Error, OSError):
            memory += process.memory_full_info().pss / 2**20
            files += process.num_fds()
    return Sample(at_s, memory, files)


def thirds(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Those of the second third and of the last: the first one fills caches and pools."""
    end = samples[-1].at_s
    return (
        [s for s in samples if end / 3 <= s.at_s < end * 2 / 3],
        [s for s in samples if s.at_s >= end * 2 / 3],
    )


def run(
    seconds: float,
    *,
    kill_s: float = 30.0,
    clients: int = 6,
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> Result:
    """Load for so many seconds, and a kill every ``kill_s``."""
    rng = random.Random(seed)
    sent, stop = Sent(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="online-soak-") as name:
        path = write_settings(Path(name), settings_of(free_port()))
        site = Site(Path(name), None, None)
        threads = [Paced(i, lambda: site.running.url, sent, stop, i) for i in range(clients)]
        try:
            for thread in threads:
                thread.start()
            time.sleep(_CALIBRATE_S)
            capacity = 2 * len(sent.acknowledged) / _CALIBRATE_S  # each with a prediction
            progress(f"bears {capacity:,.0f} requests/s; now at half of it")
            for thread in threads:
                thread.period_s = 2 * clients / (capacity * _SHARE)
            begun, before = time.monotonic(), len(sent.acknowledged)
            samples, kills = _watch(site, seconds, kill_s, rng, progress)
            rate = 2 * (len(sent.acknowledged) - before) / (time.monotonic() - begun)
            stop.set()
            for thread in threads:
                thread.join(150)
            times, findings, _ = learned(site.running, load(path, {}, {}))
        finally:
            stop.set()
            site.stop()
    least = Counter(threads[0].feature(e) for e in sent.acknowledged)
    most = least + Counter(threads[0].feature(e) for e in sent.unanswered)
    early, late = thirds(samples)
    return Result(
        seconds=seconds,
        capacity_per_s=capacity,
        per_s=rate,
        kills=dict(kills),
        acknowledged=len(sent.acknowledged),
        predictions=sum(t.predictions for t in threads),
        failed_predictions=sum(t.failed_predictions for t in threads),
        lost=sorted(f for f, n in least.items() if times.get(f, 0) < n),
        twice=sorted(f for f, n in times.items() if n > most[f]),
        fsck_good=findings.good,
        memory_mb=_medians([s.memory_mb for s in early], [s.memory_mb for s in late]),
        files=_medians([s.files for s in early], [s.files for s in late]),
    )


def _medians(early: list[float] | list[int], late: list[float] | list[int]) -> tuple[float, float]:
    return float(statistics.median(early)), float(statistics.median(late))


def _watch(
    site: Site, seconds: float, kill_s: float, rng: random.Random, progress: Callable[[str], None]
) -> tuple[list[Sample], Counter[str]]:
    """Samples and kills until the time is over."""
    samples: list[Sample] = []
    kills: Counter[str] = Counter()
    begun = time.monotonic()
    while (now := time.monotonic() - begun) < seconds:
        if now >= kill_s * (sum(kills.values()) + 1):
            kills[site.kill(rng.choice(_TARGETS))] += 1
        samples.append(measure(site.running, now))
        if len(samples) % 30 == 0:
            last = samples[-1]
            progress(f"{now:,.0f} s: {last.memory_mb:,.0f} MB, {last.files:,} files, {dict(kills)}")
        time.sleep(_SAMPLE_S)
    return samples, kills
