"""Seeds of the whole system, and mutants that they must notice.  See ``run.py``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import run
from sim_choice_mutants import CHOICES, DECIDED_CHOICES
from sim_mutants import MUTANTS
from sim_shard_mutants import BY_SETTINGS, DECIDED, RESHARDED, RESHARDED_AND_DECIDED, TRIMMED
from sim_table_mutants import CACHED, SHARED

SEEDS, COUNTED = 80, 77
MANY, COUNTED_OF_MANY = 1_020, 1_000
"""With every seed that the short form runs."""
RARE = [105], None, {"forgets": True}  # an operator dies in a step: one seed of some hundreds
SEALED = 70_313, 1  # a quarantined row whose partition is sealed before it is answered
STARTED_BESIDE = 60_022, 1  # a server of a replaced lineage, which has rows that the new one lacks
SAME = range(500, 503)
KINDS = {
    "EIO", "accepted loss", "ban", "cancelled handler", "clock a month ahead", "clock set back",
    "crash acceptance", "crash all", "crash head", "crash in a step", "crash learning",
    "crash operator", "crash replica", "crash server", "cut", "deadly row", "delay", "drop",
    "duplicate", "forget", "freeze", "full disk", "lost answer", "older journal", "pause",
    "power cut", "relearn", "reorder", "rollback", "second server", "slow disk", "stall",
    "start from a peer", "stop replica", "torn write", "unsynced forgotten",
}  # fmt: skip
"""Every kind of fault that there is."""


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Processes of their own, in which SQLite sees the simulated disk."""
    with run.pool(run.default_jobs()) as pool:
        if (reason := pool.submit(run.unavailable).result()) is not None:
            pytest.skip(f"no simulated disk: {reason}")
        yield pool


@pytest.fixture(scope="module")
def hunts(processes: ProcessPoolExecutor) -> dict[str, Future[Any]]:
    """All mutants at once, on all cores."""
    return {name: processes.submit(run.find, name, m.within) for name, m in MUTANTS.items()}


@pytest.mark.parametrize(
    ("seeds", "counted"),
    [(SEEDS, COUNTED), pytest.param(MANY, COUNTED_OF_MANY, marks=pytest.mark.long)],
)
def test_seeds(processes: ProcessPoolExecutor, seeds: int, counted: int) -> None:
    out = run.Outcome()
    apart = (processes.submit(run.run_seeds, *RARE), *run.submit(processes, *SEALED))
    for future in (*run.submit(processes, 0, seeds), *apart):
        out.add(future.result())
    failed = [f"{message}\n  {run.replay(seed)} --trace" for seed, message in out.failures]
    assert not failed, "\n".join(failed)
    assert out.counted >= counted, "seeds without a fault do not count"
    assert out.counts.keys() - run.NOT_FAULTS == KINDS, "each kind of fault was met"
    assert out.counts["rows held"], "a table was held in part"
    assert out.counts["rows of a host"], "a table was shared"
    assert out.counts["rows passed"], "changed rows came in files"


@pytest.mark.parametrize(
    ("climate", "aggregate", "seeds", "met"),
    [
        (CHOICES, "earliest", 14, {"reward learned", "reward conflict"}),
        (CHOICES, "sum", 5, {"reward waiting", "reward expired"}),
        (CHOICES, "last", 5, {"reward waiting", "reward expired"}),
        (DECIDED_CHOICES, "earliest", 12, {"reward frozen", "choice undone", "choice frozen"}),
        (DECIDED_CHOICES, "sum", 12, {"reward waiting", "choice frozen"}),
        *(
            pytest.param(climate, aggregate, 40, {"default"}, marks=pytest.mark.long)
            for climate in (CHOICES, DECIDED_CHOICES)
            for aggregate in ("earliest", "sum", "last")
        ),
    ],
)
def test_choices_have_one_reward_or_the_default_whatever_happens(
    processes: ProcessPoolExecutor,
    climate: Mapping[str, Any],
    aggregate: str,
    seeds: int,
    met: set[str],
) -> None:
    halves = [range(seeds // 2), range(seeds // 2, seeds)]
    out, given = run.Outcome(), {**climate, "aggregate": aggregate}
    for future in [processes.submit(run.run_seeds, some, None, given) for some in halves]:
        out.add(future.result())
    assert not out.failures, "\n".join(f"{seed}: {message}" for seed, message in out.failures)
    met = {"chosen again", "default", "reward duplicate", *met}
    assert not [one for one in met if not out.counts[one]], f"met: {dict(out.counts)}"


@pytest.mark.parametrize("seeds", [2, pytest.param(300, marks=pytest.mark.long)])
def test_several_servers_of_one_model_are_as_one(
    processes: ProcessPoolExecutor, seeds: int
) -> None:
    out = run.Outcome()
    climates = [(0, {"shards": 2}), (1000, DECIDED), (2000, {"shards": 3})]
    climates += [(3000, RESHARDED), (4000, {**RESHARDED, "shards": 1, "snapshot_s": 0.5})]
    climates += [(5000, RESHARDED_AND_DECIDED), (6000, BY_SETTINGS), (7000, TRIMMED)]
    begun, n = STARTED_BESIDE
    pieces = [(range(first, first + seeds), climate) for first, climate in climates]
    pieces.append((range(begun, begun + n), RESHARDED))
    for future in [
        processes.submit(run.run_seeds, some, None, climate) for some, climate in pieces
    ]:
        out.add(future.result())
    assert not out.failures, "\n".join(f"{seed}: {message}" for seed, message in out.failures)
    met = {"rollback", "crash server", "crash replica", "reshard"}
    assert met <= out.counts.keys(), f"{out.counts}"


@pytest.mark.parametrize("seeds", [4, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize(("climate", "met"), [(CACHED, "rows held"), (SHARED, "rows of a host")])
def test_what_replicas_hold_of_a_table_is_of_their_version(
    processes: ProcessPoolExecutor, climate: Mapping[str, Any], met: str, seeds: int
) -> None:
    out = processes.submit(run.run_seeds, range(seeds), None, climate).result()
    assert not out.failures, "\n".join(f"{seed}: {message}" for seed, message in out.failures)
    assert out.counts[met]


def test_rows_whose_small_commits_wait_for_others_are_learned_once(
    processes: ProcessPoolExecutor,
) -> None:
    out = processes.submit(run.run_seeds, range(7000, 7012), None, None, True).result()
    assert not out.failures, "\n".join(f"{seed}: {message}" for seed, message in out.failures)
    assert out.counts["gathered"], "a commit has waited"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_noticed(name: str, hunts: dict[str, Future[Any]]) -> None:
    found = hunts[name].result()
    assert found is not None, f"not in {MUTANTS[name].within} seeds"


def test_a_seed_is_the_same_twice(processes: ProcessPoolExecutor) -> None:
    first = [processes.submit(run.trace, seed) for seed in SAME]
    with run.pool(1) as other:  # strings have other hashes there
        again = list(other.map(run.trace, SAME))
    for seed, one, two in zip(SAME, first, again, strict=True):
        assert len(two) > 10, f"{seed}: nothing happens"
        assert one.result() == two, run.replay(seed)
