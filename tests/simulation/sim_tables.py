"""Ledgers that keep their sums in a table, too, which replicas hold in part or read of their host.

Whatever they hold of the table must at any time be what the names of the same version say.
"""

from __future__ import annotations

import os
import random
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
from sim_actor import MODEL
from sim_loop import SimLoop
from sim_model import Ledger

import online.replica.host_tables
import paramserver.process.shared_tables
import paramserver.snapshots.passed_rows
import paramserver.snapshots.views
from online.learning import cached_rows
from online.settings.cache import Cache
from paramserver.core.blocks import Block, Blocks
from paramserver.core.tables.layered import LayeredRows, on_top_of
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import SyncReply
from replay.example import Features

if TYPE_CHECKING:
    from sim_processes import Learner, Server
    from sim_world import Climate

    from online.learning.local_model import LocalModel

BLOCK = "table"
IDS = 12
_PUBLISH_S, _LOOK_S, _AGAIN = 0.1, 0.05, 3
_PIECES, _GONE = 2, 0.1  # pieces of changed rows; some are overwritten before they are read


def drawn(seed: int) -> Mapping[str, Any]:
    """A tenth of the seeds hold some rows of a table, another one shares a table."""
    x = random.Random(f"table {seed}").random()
    return {"cached": x < 0.1, "shared": 0.1 <= x < 0.2}


def id_of(event: str) -> int:
    """The row of an event; several have the same, so that rows change often."""
    return 1 + zlib.crc32(event.encode()) % IDS


def sums_by_id(sums: Mapping[str, float]) -> dict[int, float]:
    """What each row must be."""
    out = dict.fromkeys(range(1, IDS + 1), 0.0)
    for event, x in sums.items():
        out[id_of(event)] += x
    return out


def read(table: Rows | LayeredRows) -> dict[int, float]:
    """Each row."""
    ids = np.arange(1, IDS + 1, dtype=np.uint64)
    return dict(zip(ids.tolist(), table.get(ids)[0][:, 0].tolist(), strict=True))


class TableLedger(Ledger):
    """Adds each weight to a row of a table, too."""

    table = BLOCK

    def __init__(self, die: Callable[[], None], twice: Callable[[str], None] | None = None) -> None:
        super().__init__(die, twice)
        self.rows: Rows | LayeredRows = Rows.empty(1)
        self._moved: dict[int, float] = {}

    def row_ids(self, features: Features) -> list[int]:
        """The row of the event."""
        return [id_of(str(features["event"]))]

    def _add(self, features: Features, x: float) -> None:
        (row,) = self.row_ids(features)
        self._moved[row] = self._moved.get(row, 0.0) + x
        super()._add(features, x)

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        moved, self._moved = self._moved, {}
        if not moved:
            return super().cut()
        ids = np.array([*moved], np.uint64)
        delta = np.array([[x] for x in moved.values()], np.float32)
        self.rows.put(ids, self.rows.get(ids)[0] + delta)
        return {**super().cut(), BLOCK: Block("rows", Rows(ids, delta))}

    def rebase(self, values: Blocks) -> None:
        """New values, with the open delta on top."""
        super().rebase(values)
        if BLOCK in values:
            self.rows.update(values[BLOCK].data)

    def reset(self, values: Blocks) -> None:
        """Exactly the values."""
        self._moved, block = {}, values.get(BLOCK)
        self.rows = Rows.empty(1) if block is None else block.data.copy()
        super().reset({name: one for name, one in values.items() if name != BLOCK})

    def rest_on(self, tables: Mapping[str, Rows]) -> Iterator[None]:
        """Read rows from this table where they have no value of their own."""
        if BLOCK not in tables:
            return iter(())
        self.rows, steps = on_top_of(tables[BLOCK], self.rows)
        return steps

    def check_rows(self, held: Collection[int], where: str) -> None:
        """Raise AssertionError if a row that is held is not what the names say."""
        rows = read(self.rows)
        for i, x in sums_by_id(self.sums).items():
            here = rows[i] + self._moved.get(i, 0.0)
            assert i not in held or here == x, f"{where}: row {i} counts {here}, not {x}"


def ledger(climate: Climate, **given: Any) -> Callable[..., Ledger]:
    """Return what makes a model."""
    return TableLedger if climate.cached or climate.shared else partial(Ledger, **given)


# -- rows that are held in part ------------------------------------------------------------------


def hold_some(learner: Learner, real: LocalModel) -> Cache:
    """Let a replica hold some rows; return how long it waits for others."""
    world = learner.world
    if not world.climate.cached:
        return Cache()
    r = random.Random(f"cached {world.seed} {learner.name}")
    # looked up now: a mutant may stand there
    cache = real.cache = cached_rows.CachedRows(
        BLOCK,
        r.randint(2, 6),
        lambda row: TableLedger.row_ids(real.serving, row),  # type: ignore[arg-type]
    )

    def ask() -> None:
        """Rows are asked for by predictions, too."""
        if learner.alive:
            cache.use({r.randint(1, IDS) for _ in range(r.randint(1, 2))})
            world.loop.call_later(0.2 * r.random(), ask)

    learner.process.spawn(_soon(ask))
    return Cache(rows=100, learn_wait_ms=r.choice((1.0, 50.0, 1_000.0)))


async def _soon(step: Callable[[], None]) -> None:
    step()


# -- tables that a host's processes share ----------------------------------------------------------


class HostMemory:
    """The memory file system of the host, with what dead processes had open."""

    def __init__(self, folder: Path, loop: SimLoop) -> None:
        self.folder = folder / "shared"
        self._clock = _Clock(loop)
        self.begin()

    def begin(self) -> None:
        """Empty it, and let the service use it as it would a larger one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        publishing = paramserver.process.shared_tables
        publishing.time = self._clock  # type: ignore[assignment]
        publishing._PUBLISH_S, publishing.ROWS_LEAST = _PUBLISH_S, 1  # type: ignore[misc]
        paramserver.snapshots.passed_rows.PIECES_MAX = _PIECES  # type: ignore[misc]
        online.replica.host_tables._LOOK_S = _LOOK_S  # type: ignore[misc]
        cached_rows.AGAIN_MAX = _AGAIN  # type: ignore[misc]

    def tables(self, learner: Learner, real: LocalModel) -> Any:
        """What a replica reads of it."""
        spec = learner.spec
        place = paramserver.snapshots.views.lineage_folder(str(self.folder), MODEL, spec)
        views = Views(place, spec)
        learner.pins = views.pins
        r = random.Random(f"passed {learner.world.seed} {learner.name}")
        kind = online.replica.host_tables.HostTables  # looked up now: a mutant may stand there

        class Checked(kind):  # type: ignore[misc, valid-type]
            """What is right with the next exchange must be right before it, too."""

            def with_passed(self, reply: SyncReply) -> SyncReply | None:
                if reply.passed and r.random() < _GONE:
                    for server in learner.world.servers(spec=spec):
                        overwrite(server)
                found: SyncReply | None = super().with_passed(reply)
                learner.world.counts["rows passed"] += len(reply.passed or ())
                learner.world.counts["passed rows gone"] += found is None
                return found

            def rest(self) -> Iterator[None]:
                yield from super().rest()
                check_replica(learner, real)

        return Checked(real, views, learner.world.loop.time)


class _Clock:
    def __init__(self, loop: SimLoop) -> None:
        self.monotonic = loop.time


class Views(paramserver.snapshots.views.Views):
    """Knows which files its process has locked."""

    def __init__(self, folder: Path, spec: str) -> None:
        super().__init__(folder, spec)
        self.pins: list[Any] = []

    def _open(self, path: Path) -> Any:
        view = super()._open(path)
        self.pins += [ref(table._holder) for table in view.tables.values()]
        return view


def release(actor: Any) -> None:
    """The kernel releases the locks of a process that has ended."""
    for pin in (one() for one in getattr(actor, "pins", ())):
        if pin is not None:
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, pin._descriptor)
            os.close(nothing)
    shared = None if not hasattr(actor, "real") else actor.real._running.shared
    if shared is not None:
        shared._views.clear()
        if shared._memory is not None:
            shared._memory.close()


# -- what must hold --------------------------------------------------------------------------------


def overwrite(server: Server) -> None:
    """Overwrite all rows that the server has passed, as time would."""
    shared = server.real._running.shared
    if shared is not None and shared._passed is not None:
        shared._passed.ring[:] = 1


def check_server(server: Server, values: Any) -> None:
    """Raise AssertionError if the server's table is not what its names say."""
    if BLOCK in values:
        expected = sums_by_id(values["sums"].data if "sums" in values else {})
        rows = read(values[BLOCK].data)
        assert rows == expected, f"{server.name}: the table is {rows}, not {expected}"


def check_replica(learner: Learner, real: LocalModel) -> None:
    """Raise AssertionError if a row that a replica holds is not what its names say."""
    model = real.serving
    if not isinstance(model, TableLedger):
        return
    held: Collection[int] = range(1, IDS + 1)
    if (cache := real.cache) is not None:
        held = [] if real.catching_up or not real.up_to_date else cache._uses
        learner.world.counts["rows held"] += len(held)
    elif isinstance(model.rows, LayeredRows):
        learner.world.counts["rows of a host"] += len(model.rows) - model.rows.own_rows
    model.check_rows(held, learner.name)
