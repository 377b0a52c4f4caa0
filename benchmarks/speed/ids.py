"""Tables of ids in process: memory, look-ups, additions, and what a snapshot of one takes.

Each is filled, asked and added to in a process of its own, in batches, by ids that are spread over
64 bits.  Beside the block kind ``rows`` stand what one would write oneself: a dict of row numbers
before a numpy array, the same before a torch embedding, and a dict of floats by name, which is what
a block of kind ``additive`` is.  Rates are by the processor's time of the process.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from online.models.fm import Fm
from paramserver.core.blocks import ROWS, Block, to_wire
from paramserver.core.server import Server
from paramserver.core.state import SnapshotState
from paramserver.core.tables.rows import Rows
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.store import DirectorySnapshots, Retention

IDS: Final = 10_000_000
WIDTH: Final = 16
BATCH: Final = 1_000
EVENT: Final = 30
"""Features of one event."""

_REPEATS: Final = 5
_BATCHES: Final = 200
_NAMED_MAX: Final = 200_000  # ids of the dict of floats: ten million would be thirty gigabytes
_TOTAL: Final = 1 << 20

Ids = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Line:
    """One table: bytes a row, rates in a million rows a second, and an event of thirty rows."""

    what: str
    ids: int
    bytes_a_row: float
    filled_m_per_s: float
    slowest_batch_ms: float
    read_m_per_s: float
    added_m_per_s: float
    event_us: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Seconds by the processor and by the wall, megabytes of memory and of the file."""

    what: str
    cpu_s: float
    wall_s: float
    peak_mb: float
    file_mb: float


@dataclass(frozen=True, slots=True)
class Event:
    """An event of thirty features in ``fm``: microseconds of the processor, bytes of its push."""

    what: str
    words: int
    learned_us: float
    predicted_us: float
    cut_us: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Pushed:
    """Bytes of the push of one event alone."""

    what: str
    bytes: int


class _Held(Protocol):
    def put(self, ids: Ids, rows: Floats) -> None: ...

    def read(self, ids: Ids) -> object: ...

    def add(self, ids: Ids, rows: Floats) -> None: ...


class _Rows:
    """The block kind ``rows``."""

    def __init__(self, ids: int, width: int) -> None:
        self.rows = Rows.empty(width)

    def put(self, ids: Ids, rows: Floats) -> None:
        self.rows.put(ids, rows)

    def read(self, ids: Ids) -> object:
        return self.rows.get(ids)

    def add(self, ids: Ids, rows: Floats) -> None:
        before, _ = self.rows.get(ids)
        self.rows.put(ids, before + rows)


class _Indexed:
    """An array of as many rows as there will be, and a dict of row numbers."""

    def __init__(self, ids: int, width: int) -> None:
        self.at: dict[int, int] = {}
        self.rows = np.zeros((ids, width), dtype=np.float32)

    def _places(self, ids: Ids) -> list[int]:
        at = self.at
        return [at[i] for i in ids.tolist()]

    def put(self, ids: Ids, rows: Floats) -> None:
        begin = len(self.at)
        self.at.update(zip(ids.tolist(), range(begin, begin + len(ids)), strict=True))
        self.rows[begin : begin + len(ids)] = rows

    def read(self, ids: Ids) -> object:
        return self.rows[self._places(ids)]

    def add(self, ids: Ids, rows: Floats) -> None:
        self.rows[self._places(ids)] += rows


class _Embedded(_Indexed):
    """A torch embedding, and a dict of row numbers."""

    def __init__(self, ids: int, width: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.at = {}
        self.torch, self.embedding = torch, torch.nn.Embedding(ids, width)
        self.embedding.weight.requires_grad_(False)

    def put(self, ids: Ids, rows: Floats) -> None:
        begin = len(self.at)
        self.at.update(zip(ids.tolist(), range(begin, begin + len(ids)), strict=True))
        self.embedding.weight[begin : begin + len(ids)] = self.torch.from_numpy(rows)

    def read(self, ids: Ids) -> object:
        return self.embedding(self.torch.tensor(self._places(ids)))

    def add(self, ids: Ids, rows: Floats) -> None:
        at = self.torch.tensor(self._places(ids))
        self.embedding.weight.index_add_(0, at, self.torch.from_numpy(rows))


class _Named:
    """A dict of floats for each number of a row, by name: blocks of kind ``additive``."""

    def __init__(self, ids: int, width: int) -> None:
        self.columns: list[dict[str, float]] = [{} for _ in range(width)]

    def put(self, ids: Ids, rows: Floats) -> None:
        names = [str(i) for i in ids.tolist()]
        for column, numbers in zip(self.columns, rows.T.tolist(), strict=True):
            column.update(zip(names, numbers, strict=True))

    def read(self, ids: Ids) -> object:
        names = [str(i) for i in ids.tolist()]
        return [[column[name] for name in names] for column in self.columns]

    def add(self, ids: Ids, rows: Floats) -> None:
        names = [str(i) for i in ids.tolist()]
        for column, numbers in zip(self.columns, rows.T.tolist(), strict=True):
            for name, x in zip(names, numbers, strict=True):
                column[name] += x


KINDS: Final[Mapping[str, Callable[[int, int], _Held]]] = {
    "rows": _Rows,
    "numpy and a dict": _Indexed,
    "torch and a dict": _Embedded,
    "dicts of floats": _Named,
}


def spread(n: int) -> Ids:
    """Ids that are all different, in no order."""
    return np.random.default_rng(1).permutation(n).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def measured(what: str, n: int, width: int) -> Line:
    """One table, filled and then asked, in this process."""
    every = spread(n)
    numbers = np.full((BATCH, width), 0.5, dtype=np.float32)
    gc.collect()
    before = _resident()
    table, slowest, begun = KINDS[what](n, width), 0.0, time.process_time()
    for begin in range(0, n, BATCH):
        ids, since = every[begin : begin + BATCH], time.process_time()
        table.put(ids, numbers[: len(ids)])
        slowest = max(slowest, time.process_time() - since)
    filled = n / (time.process_time() - begun)
    size = _resident() - before
    batch = min(BATCH, n)
    draw = np.random.default_rng(2)
    asked = [every[draw.choice(n, batch, replace=False)] for _ in range(_BATCHES)]
    few = [ids[:EVENT] for ids in asked]
    read = _rate(lambda ids: table.read(ids), asked, batch)
    added = _rate(lambda ids: table.add(ids, numbers[:batch]), asked, batch)
    event = 1e6 / _rate(lambda ids: table.read(ids), few, 1)
    return Line(what, n, size / n, filled / 1e6, slowest * 1e3, read / 1e6, added / 1e6, event)


def _rate(act: Callable[[Ids], object], batches: list[Ids], rows: int) -> float:
    """Rows a second of the processor, the median of some repeats."""
    rates = []
    for _ in range(_REPEATS):
        begun = time.process_time()
        for i in range(_BATCHES):
            act(batches[i % len(batches)])
        rates.append(_BATCHES * rows / (time.process_time() - begun))
    return statistics.median(rates)


def snapshots(n: int, width: int, place: Path) -> list[Snapshot]:
    """A server's table as a file, read again and asked; and what is written of 1 % that changed."""
    server = Server("m", "s", "", "sum", 1)
    every, rows = spread(n), Rows.empty(width)
    for begin in range(0, n, BATCH):
        ids = every[begin : begin + BATCH]
        rows.put(ids, np.full((len(ids), width), 0.5, dtype=np.float32))
    server.values["table"] = Block(ROWS, rows)
    del rows
    history, lines = SnapshotHistory(DirectorySnapshots(place), Retention()), []
    touched = np.random.default_rng(3).choice(every, max(n // 100, 1), replace=False)
    batches = np.array_split(touched, max(len(touched) // BATCH, 1))
    kept: list[SnapshotState] = []

    def begin_one() -> None:
        server.count += 1
        kept[:] = [server.begin_snapshot(0.0, None, {}, history.base_for_next())]

    def save() -> None:
        history.publish(f"1-{server.count}", kept[0])

    def restore() -> None:
        history.load(f"1-{server.count}").values["table"].data.get(every[:BATCH])

    def settle() -> None:
        for thread in threading.enumerate():
            if thread.name == "rows":
                thread.join()

    def change() -> None:
        for ids in batches:
            server.values["table"].data.put(ids, np.zeros((len(ids), width), dtype=np.float32))

    def part() -> None:
        begun = server.values["table"].data
        for table, begin in ((begun, n), (kept[0].values["table"].data, n + EVENT)):
            ids = np.arange(begin, begin + EVENT, dtype=np.uint64)
            table.put(ids, np.zeros((EVENT, width), dtype=np.float32))

    for what, act in (
        ("begun under the lock", begin_one),
        ("saved", save),
        ("restored, and asked once", restore),
        ("until no file is behind it", settle),
        ("1 % of the rows changed under it", change),
        ("begun, leaning on it", begin_one),
        ("leaning, saved", save),
        ("leaning, restored and asked once", restore),
        ("until no file is behind it", settle),
        ("thirty ids of its own, for it and for the copy", part),
    ):
        gc.collect()
        _forget_peak()
        before, cpu, wall = _resident(), time.process_time(), time.perf_counter()
        act()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        size = (place / f"1-{server.count}.snapshot").stat().st_size if "saved" in what else 0
        peak = max(_peak() - before, 0.0) / _TOTAL
        lines.append(Snapshot(what, cpu, wall, peak, size / _TOTAL))
    return lines


def events(words: int, n: int, k: int = 8) -> list[Event]:
    """Rows of so many different words, learned with a table and with names, turn by turn."""
    draw, models = random.Random(1), {"a table": True, "names": False}
    made = {w: Fm(k, text=("text",), table=t).model_for("binary") for w, t in models.items()}
    spent = {what: [0.0, 0.0, 0.0] for what in made}
    sizes = dict.fromkeys(made, 0)
    for _ in range(n):
        some = [" ".join(f"w{draw.randrange(words)}" for _ in range(EVENT - 1)) for _ in range(64)]
        for what, model in made.items():
            marks = [time.process_time()]
            for text in some:
                model.learn({"text": text}, len(text) % 2 == 0, 1.0)
            marks.append(time.process_time())
            for text in some:
                model.predict({"text": text})
            marks.append(time.process_time())
            delta = model.cut()
            marks.append(time.process_time())
            spent[what] = [
                x + b - a for x, (a, b) in zip(spent[what], pairwise(marks), strict=True)
            ]
            sizes[what] += len(msgspec.msgpack.encode(to_wire(delta)))
    each, out = 64 * n / 1e6, []
    for what, (learned, predicted, cut) in spent.items():
        size = sizes[what] / n / 64
        out.append(Event(what, words, learned / each, predicted / each, cut / each, size))
    return out


def one_event(k: int = 8) -> list[Pushed]:
    """One event pushed alone, with a table and with names."""
    text, out = " ".join(f"word{i}" for i in range(EVENT - 1)), []
    for what, table in (("a table", True), ("names", False)):
        model = Fm(k, text=("text",), table=table).model_for("binary")
        model.learn({"text": text}, True, 1.0)
        out.append(Pushed(what, len(msgspec.msgpack.encode(to_wire(model.cut())))))
    return out


def run(n: int = IDS, width: int = WIDTH) -> Iterator[Line]:
    """Each table in a process of its own."""
    for what in KINDS:
        ids = min(n, _NAMED_MAX) if what == "dicts of floats" else n
        yield _apart(measured, what, ids, width)


def run_snapshots(n: int = IDS, width: int = WIDTH) -> list[Snapshot]:
    """Snapshots of one table, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        return list(_apart(snapshots, n, width, Path(place)))


def _apart(act: Callable[..., Any], *given: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(act, given)


def _resident() -> float:
    return float(_status("VmRSS")) * 1024


def _peak() -> float:
    return float(_status("VmHWM")) * 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
