"""Run seeds of the whole-system simulation.

::

    run.py --seed 1234 [--trace]                       replay one
    run.py --seeds 20000 [--first N] [--jobs 2]        many, with progress
    run.py --mutants [NAME ...] [--seeds 3000]         how many seeds each mutant takes

Exit code 1: a seed has failed, or a mutant was not noticed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sim_loop import SimThread
from sim_mutant import Mutant
from sim_mutants import MUTANTS
from sim_vfs import Vfs
from sim_world import World

import online.replica.follower
import online.replica.journal_threads
import online.replica.queue
import paramserver.process.actor
from online.replica import learning_cost
from online.replica.queue import Queue
from paramserver.core.state import SnapshotState
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.pieces import Pieces

CHUNK = 50
_A_POOL = 1_000
"""Seeds of one process: what was killed in a seed is never freed altogether (.6 MB)."""
_GATHER_S = online.replica.queue._GATHER_S
NOT_FAULTS = frozenset(
    {"restart", "superseded", "label ban", "release", "taught again", "label by default"}
    | {"rows held", "rows of a host", "rows passed", "passed rows gone"}
)
"""What follows from faults or is an operator's work: it is counted, and is no fault."""


@dataclass
class Outcome:
    """What some seeds came to."""

    counts: Counter[str] = field(default_factory=Counter)
    counted: int = 0  # seeds with a fault
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.counts.update(other.counts)
        self.counted += other.counted
        self.failures += other.failures


@cache
def machine() -> Vfs:
    """This process's SQLite on simulated disks.  Raises RuntimeError where it can't be."""
    vfs = Vfs()
    reason = vfs.install()
    if reason is not None:
        raise RuntimeError(reason)
    # it hashes source files, which are no part of the simulated machine
    paramserver.process.actor.identity = lambda *_: "simulated"
    online.replica.journal_threads.OneThread = SimThread  # type: ignore[misc,assignment]
    # Its clock stands still within a turn: as few rows in each as possible.
    online.replica.follower.TURN_S = learning_cost.TURN_S = 0.0  # type: ignore[misc]
    online.replica.queue._GATHER_S = 0.0  # mutants name the seeds that notice them without it
    encoded = snapshot_format.encoded

    def meanwhile(state: SnapshotState) -> Pieces:
        vfs.disk.encoding(state)
        vfs.disk.between()  # a server does not stop while a snapshot is encoded
        return encoded(state)

    snapshot_format.encoded = meanwhile
    gc.collect()
    gc.freeze()
    return vfs


def unavailable() -> str | None:
    """Why nothing can be simulated in this process; None if it can."""
    try:
        machine()
    except RuntimeError as error:
        return str(error)
    return None


@contextmanager
def folder() -> Iterator[Path]:
    """Where the journal's lock files are, which are real ones."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as made:
        yield Path(made)


@contextmanager
def gathering(counts: Counter[str] | None) -> Iterator[None]:
    """Let small commits wait, and count those that do; None: none does."""
    if counts is None:
        yield
        return
    step = Queue._gather

    async def gather(self: Queue) -> None:
        begun_s = asyncio.get_running_loop().time()
        await step(self)
        counts["gathered"] += asyncio.get_running_loop().time() > begun_s

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(online.replica.queue, "_GATHER_S", _GATHER_S)
        patched.setattr(online.replica.queue, "_BESIDE", -1.0)
        patched.setattr(Queue, "_gather", gather)
        yield


def run_seeds(
    seeds: Sequence[int],
    name: str | None = None,
    given: Mapping[str, Any] | None = None,
    gathers: bool = False,
) -> Outcome:
    """Run seeds, of a mutant if it is named (then no further than the first that notices it).

    Parameters:
        given: What is the same in the climate of all of them, of no mutant.
        gathers: Whether small commits wait for others' rows, as beside many predictions.
    """
    vfs, mutant, out = machine(), MUTANTS[name] if name else Mutant(climate=given or {}), Outcome()
    climate: dict[str, Any] = {}
    if name or given:
        climate = {"background": False, "peers": False, **mutant.climate}
    with folder() as where, mutant.applied(), gathering(out.counts if gathers else None):
        for n, seed in enumerate(seeds):
            world = World(vfs, where, seed, faulty=mutant.faulty, climate=climate)
            gc.disable()
            try:
                out.counts.update(world.run())
            except Exception as error:
                out.failures.append((seed, _one_line(error)))
            out.counted += bool(world.counts.keys() - NOT_FAULTS)
            del world
            gc.enable()
            if n % 10 == 9:
                gc.collect()
            if name and out.failures:
                break
    gc.collect()
    return out


def _one_line(error: Exception) -> str:
    return (str(error) or repr(error)).strip().splitlines()[0][:300]


def trace(seed: int) -> list[str]:
    """What happens in one seed, line by line."""
    lines: list[str] = []
    gc.collect()  # what an earlier seed has left would close its files in the middle of this one
    gc.disable()
    try:
        with folder() as where:
            World(machine(), where, seed, trace=lines.append).run()
            return [line.replace(str(where), "") for line in lines]
    finally:
        gc.enable()


def replay(seed: int) -> str:
    """The command that runs one seed again."""
    return f"python tests/simulation/run.py --seed {seed}"


@contextmanager
def pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of their own: the simulation changes which files SQLite sees."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as made:
        yield made


def default_jobs() -> int:
    """All cores, but no more than 8."""
    return min(os.cpu_count() or 1, 8)


def submit(processes: ProcessPoolExecutor, first: int, n: int) -> list[Future[Outcome]]:
    """Start ``n`` seeds, some at a time."""
    chunks = [range(i, min(i + CHUNK, first + n)) for i in range(first, first + n, CHUNK)]
    return [processes.submit(run_seeds, chunk) for chunk in chunks]


def run_many(first: int, n: int, jobs: int, progress: bool = False) -> Outcome:
    """Seeds ``first … first + n - 1`` on some processes."""
    total, done, start_s, rest = Outcome(), 0, time.monotonic(), range(first, first + n)
    while rest:
        now, rest = rest[: _A_POOL * jobs], rest[_A_POOL * jobs :]
        with pool(jobs) as processes:
            for future in as_completed(submit(processes, now.start, len(now))):
                total.add(future.result())
                done = min(done + CHUNK, n)
                if progress:
                    rate = done / (time.monotonic() - start_s)
                    text = f"\r{done:,} of {n:,} seeds, {len(total.failures)} failed, {rate:.0f}/s "
                    print(text, end="", file=sys.stderr, flush=True)
    if progress:
        print(file=sys.stderr)
    return total


def find(name: str, n: int) -> tuple[int, str] | None:
    """The first of the seeds below ``n`` that notices a mutant, and how.

    They go on from the one that the mutant names, and then from 0.
    """
    begin = min(MUTANTS[name].begin, n)
    found = run_seeds([*range(begin, n), *range(begin)], name).failures
    return found[0] if found else None


def _show(outcome: Outcome) -> int:
    for kind, count in sorted(outcome.counts.items()):
        print(f"  {kind:24} {count:,}")
    for seed, message in sorted(outcome.failures):
        print(f"FAILED {seed}: {message}\n  {replay(seed)} --trace")
    print(f"{outcome.counted:,} seeds with faults, {len(outcome.failures)} failed")
    return 1 if outcome.failures else 0


def _one(seed: int, trace: bool) -> int:
    out = Outcome()
    with folder() as where:
        world = World(machine(), where, seed, trace=print if trace else None)
        try:
            world.run()
        except Exception as error:
            traceback.print_exc()
            out.failures.append((seed, _one_line(error)))
        out.counts, out.counted = world.counts, int(bool(world.counts.keys() - NOT_FAULTS))
    return _show(out)


def _mutants(names: Sequence[str], n: int, jobs: int) -> int:
    survived = 0
    with pool(jobs) as processes:
        futures = {processes.submit(find, name, n): name for name in names or MUTANTS}
        for future in as_completed(futures):
            found = future.result()
            survived += found is None
            taken = f"not in {n}" if found is None else f"{found[0] + 1:5} seeds: {found[1][:100]}"
            print(f"{futures[future]:55} {taken}", flush=True)
    return 1 if survived else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="say what happens in it")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="processes")
    parser.add_argument("--mutants", nargs="*", metavar="NAME", help="mutants instead of the code")
    given = parser.parse_args()
    if given.seed is not None:
        return _one(given.seed, given.trace)
    if given.mutants is not None:
        return _mutants(given.mutants, given.seeds, given.jobs)
    return _show(run_many(given.first, given.seeds, given.jobs, progress=sys.stderr.isatty()))


if __name__ == "__main__":
    sys.exit(main())
