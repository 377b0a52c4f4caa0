"""R8: what a third of lying sources leaves in a replay buffer, and in the model when they stop.

Twelve honest sources and six that send wrong labels from a fifth of the stream to three fifths of
it; then all rows are honest.  The model rehearses from a buffer of 500.  Without filters, without
them and with a ban of the six when they have stopped, which purges the buffer, and with filters,
which purge it of each source that they quarantine.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from benchmarks.attacks.turning import digits
from benchmarks.fixtures.single_replica import NAME, Row, Within
from evaluation.streams import open_stream
from online.settings.model import ModelSettings, Replay
from online.settings.sync import Sync
from replay.example import Label
from replay.journal.base import Verdict

ROWS: Final = 3_000
CAPACITY: Final = 500
POISONED_MAX: Final = 0.05
"""Share of the buffer that lies may hold when they have stopped, with filters."""

GUARDS: Final = ("none", "ban", "filters")
_HONEST: Final = tuple(f"user-{i:02}" for i in range(12))
_LIARS: Final = tuple(f"liar-{i}" for i in range(6))
_ASKED: Final = 5


@dataclass(frozen=True, slots=True)
class Poisoned:
    """One stream under one guard, or without lies.

    ``poisoned``: most of the buffer that lies ever held; ``stopped`` and ``end``: when they had
    stopped, and at the end.  ``accuracy``: on rows held back, then; all in percent.  ``caught``:
    liars quarantined or banned; ``honest_set_aside``: honest rows.
    """

    what: str
    seed: int
    poisoned: float
    stopped: float
    end: float
    accuracy_stopped: float
    accuracy_end: float
    caught: int
    honest_set_aside: int
    good: bool


def streams(data_dir: Path | None, rows: int) -> Iterator[tuple[str, ModelSettings, list[Row]]]:
    """Name, a model that rehearses, and rows.  Raises StreamUnusable."""
    common: dict[str, Any] = {
        "name": NAME,
        "sync": Sync(interval_ms=5),
        "replay": Replay(policy="balanced", capacity=CAPACITY),
    }
    elec2 = list(islice(iter(open_stream("elec2", data_dir).rows), rows))
    yield "elec2", ModelSettings(task="binary", learner="logreg", **common), elec2
    params = {"inputs": [f"p{i}" for i in range(49)], "hidden": 64, "outputs": 10, "scale": False}
    network = ModelSettings(task="multiclass", learner="mlp", params=params, **common)
    yield "digits", network, digits(data_dir, rows)


def run(
    data_dir: Path | None,
    rows: int = ROWS,
    seeds: Sequence[int] = (0,),
    progress: Callable[[str], None] = lambda line: None,
) -> Iterator[Poisoned]:
    """Each stream: without lies, and with them under each guard."""
    for name, model, stream in streams(data_dir, rows):
        for seed in seeds:
            for guard in ("no lies", *GUARDS):
                filters = "default" if guard == "filters" else "none"
                settings = model.model_copy(update={"filters": filters})
                with tempfile.TemporaryDirectory() as folder:
                    found = _scene(Path(folder), settings, name, stream, guard, seed)
                    line = asyncio.run(found)
                progress(str(line))
                yield line


async def _scene(
    folder: Path, settings: ModelSettings, name: str, stream: Sequence[Row], guard: str, seed: int
) -> Poisoned:
    world, draw = Within(folder, settings), random.Random(seed)
    await world.start()
    asked = stream[::_ASKED]
    sent = [row for i, row in enumerate(stream) if i % _ASKED]
    labels = sorted({label for _, label in sent}, key=str)
    lies, most, stopped, then = set[bytes](), 0.0, 0.0, 0.0
    begin, end = len(sent) // 5, 3 * len(sent) // 5
    for n, (features, label) in enumerate(sent):
        liar = draw.randrange(3) == 0
        source = draw.choice(_LIARS if liar else _HONEST)
        if liar and begin <= n < end:
            if guard != "no lies":
                lies.add(await world.send(source, features, _other(label, labels)))
        elif not (liar and n >= end):  # they have stopped
            await world.send(source, features, label)
        if n % 50 == 0:
            most = max(most, _share(world, lies))
        if n == end:
            if guard == "ban":
                await _ban(world)
            stopped, then = _share(world, lies), world.accuracy(asked)
    filters = world.replica.filters
    caught = set(world.replica.control.decisions.bans)
    caught |= set() if filters is None else set(filters.reputations.quarantined)
    aside = _set_aside(world)
    out = Poisoned(
        f"{name}, {guard}", seed, 100 * most, 100 * stopped, 100 * _share(world, lies), then,
        world.accuracy(asked), len(caught.intersection(_LIARS)), aside,
        guard != "filters" or stopped <= POISONED_MAX,
    )  # fmt: skip
    await world.replica.stop(5)
    return out


def _other(label: Label, labels: Sequence[Label]) -> Label:
    return labels[(labels.index(label) + 1) % len(labels)]


def _share(world: Within, lies: set[bytes]) -> float:
    """Return the share of the buffer that lies hold."""
    memory = world.replica.learner.memory
    assert memory is not None
    return sum(item.key in lies for item in memory.buffer) / max(len(memory.buffer), 1)


async def _ban(world: Within) -> None:
    """Ban the liars, and wait until the replica has purged its buffer."""
    for source in _LIARS:
        world.server.ban(source, True)
    while set(world.replica.control.decisions.bans) != set(_LIARS):
        await world.replica.control.current()
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)


def _set_aside(world: Within) -> int:
    """Honest rows that were."""
    with contextlib.closing(world.journal()) as journal:
        rows = journal.follow(NAME, 0, 10 * world.n).rows
    return sum(row.verdict is Verdict.QUARANTINED and row.source in _HONEST for row in rows)
