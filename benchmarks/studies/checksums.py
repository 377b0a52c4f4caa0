"""This benchmark measures what the checksums of the SQLite journal cost.

It makes the same appends with and without them, turn by turn.

Both write the same batches into files of their own, one after the other in turns that change who
begins, so that a disk that is slower for a while is so for both.  The rate of an append is all that
is measured: in feedback it is a part, so that what feedback loses is less.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from replay import codec
from replay.example import Example
from replay.journal import sqliteappend, sqlitefile, sqliteproof
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite import SqliteJournal

LEAST = 0.97
_T = {9: 2.262, 11: 2.201, 14: 2.145, 19: 2.093, 29: 2.045}  # 97.5 % of Student's t, by freedom


@dataclass(frozen=True, slots=True)
class Cost:
    """Rows a second with checksums, by those without: mean of the turns and its 95 % interval."""

    batch: int
    turns: int
    rows_per_s: float
    bare_per_s: float
    ratio: float
    low: float
    high: float

    @property
    def good(self) -> bool:
        """Whether the interval reaches what is allowed."""
        return self.high >= LEAST


@contextmanager
def _bare() -> Iterator[None]:
    """No checksum is made or compared."""
    modules = ((sqliteappend, "checksum"), (sqlitefile, "checksum"), (sqliteproof, "proves"))
    before = [vars(module)[name] for module, name in modules]
    for module, name in modules:
        setattr(module, name, (lambda *_: True) if name == "proves" else (lambda *_: 0))
    try:
        yield
    finally:
        for (module, name), one in zip(modules, before, strict=True):
            setattr(module, name, one)


def run(
    turns: int = 12,
    seconds: float = 2.0,
    batches: tuple[int, ...] = (1, 8, 64),
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Cost]:
    """Measure each size of batch in ``turns`` pairs of ``seconds`` each.

    ``folder`` is on the disk that is meant (None: that of temporary files).
    """
    found = []
    for batch in batches:
        pairs = []
        for turn in range(turns):
            rates = {}
            for bare in (False, True) if turn % 2 else (True, False):
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    rates[bare] = _rate(Path(place) / "journal.db", batch, seconds, bare=bare)
            pairs.append((rates[False], rates[True]))
            progress(f"batch {batch}, turn {turn + 1}: {rates[False] / rates[True]:.3f}")
        found.append(_cost(batch, pairs))
    return found


def _rate(path: Path, batch: int, seconds: float, *, bare: bool) -> float:
    """Rows a second that one writer gets into a new journal, each batch durable."""
    if bare:
        with _bare():
            return _rate(path, batch, seconds, bare=False)
    payload = codec.encode(
        Example({f"feature {i}": i / 7 for i in range(9)}, True, score={"1": 0.5})
    )
    with closing(SqliteJournal(path, disk_low_mb=0)) as journal:
        partition, end = journal.register("m", "r", "s" * 64, 1.0).id, 0
        until_s = (begun_s := time.perf_counter()) + seconds
        while time.perf_counter() < until_s:
            rows = [
                NewRow(os.urandom(16), f"event {end + i}", "source", Verdict.ACCEPTED, payload, 1.0)
                for i in range(batch)
            ]
            end = journal.append(partition, end, rows).end
        return end / (time.perf_counter() - begun_s)


def _cost(batch: int, pairs: list[tuple[float, float]]) -> Cost:
    logs = [math.log(with_ / without) for with_, without in pairs]
    mean, n = statistics.fmean(logs), len(logs)
    t = next((value for freedom, value in _T.items() if freedom >= n - 1), 2.0)
    half = t * statistics.stdev(logs) / math.sqrt(n) if n > 1 else math.inf
    return Cost(
        batch=batch,
        turns=n,
        rows_per_s=statistics.median(pair[0] for pair in pairs),
        bare_per_s=statistics.median(pair[1] for pair in pairs),
        ratio=math.exp(mean),
        low=math.exp(mean - half),
        high=math.exp(mean + half),
    )
