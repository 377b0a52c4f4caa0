"""Tables of a service whose processes, hosts and disks fail: one command a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks.commands.table import (
    AsJson,
    app,
    one_of,
    print_table,
    progress,
    show,
    show_result,
    verdict,
)


@app.command("exactly-once")
def exactly_once(
    journal: Annotated[
        Literal["sqlite", "redis"], typer.Option(help="redis starts a server of its own")
    ] = "sqlite",
    rounds: Annotated[int, typer.Option(help="kills")] = 20,
    seed: Annotated[int, typer.Option(help="of the instants and targets")] = 0,
    changing: Annotated[
        bool, typer.Option("--changing", help="a provisional label of each event first")
    ] = False,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="one process without Ray: each kill is of all")
    ] = False,
    shards: Annotated[int, typer.Option(help="parameter servers of the model")] = 1,
    resharding: Annotated[
        bool, typer.Option("--resharding", help="wish for another number before each kill")
    ] = False,
    table: Annotated[
        Literal["", "shared", "cached"], typer.Option(help="how replicas hold a table of the model")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Kill processes at random instants under load; nothing is lost or learned twice.

    Example: python -m benchmarks exactly-once --journal redis --rounds 20
    """
    how: dict[str, Any] = {"changing": changing, "embedded": embedded, "held": table}
    how |= {"shards": shards, "wishing": resharding}
    good = check_once(journal, rounds, seed, how, as_json=as_json)
    raise typer.Exit(0 if good else 1)


def check_once(
    journal: Literal["sqlite", "redis"],
    rounds: int,
    seed: int,
    how: Mapping[str, Any],
    *,
    as_json: bool,
) -> bool:
    from benchmarks.faults import exactly_once as bench

    result = bench.run(rounds, journal=journal, seed=seed, progress=progress, **how)
    show_result(result, as_json=as_json)
    return result.good


@app.command()
def mishaps(
    journal: Annotated[
        Literal["sqlite", "redis"], typer.Option(help="redis starts a server of its own")
    ] = "sqlite",
    only: Annotated[list[str] | None, typer.Option(help="a mishap; may be given again")] = None,
    times: Annotated[int, typer.Option(help="of each", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="of what is drawn")] = 0,
    ray: Annotated[bool, typer.Option("--ray", help="two replicas, not one process")] = False,
    as_json: AsJson = False,
) -> None:
    """Operators, programs and the machine do harm under load; nothing is lost or learned twice.

    Example: python -m benchmarks mishaps --only "snapshots removed" --times 3
    """
    from benchmarks.faults import mishaps as bench

    found = []
    for name in one_of(only, list(bench.kinds(journal))):
        found.append(bench.run(name, journal, times, seed, embedded=not ray))
        print(found[-1], file=sys.stderr)
    raise verdict("mishaps", found, as_json=as_json)


@app.command()
def hosts(
    fault: Annotated[
        str | None, typer.Option(help="kill, cut, one-way, delay, loss, full, full-journal, none")
    ] = None,
    seconds: Annotated[float, typer.Option(help="how long it lasts")] = 10.0,
    runs: Annotated[int, typer.Option(help="of each fault")] = 3,
    seed: Annotated[int, typer.Option(help="of the clients and the network")] = 0,
    to: Annotated[
        Path | None, typer.Option(help="file that gets a line of JSON after each run")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The service on three hosts (network namespaces); one fails under load: medians and worst.

    Needs root.  Without --fault the whole table: 24 runs of two to five minutes; a failed
    one stops none.  Example: python -m benchmarks hosts --fault kill --runs 1
    """
    from benchmarks.faults import hosts as bench
    from benchmarks.faults import hosts_table

    def keep(row: Mapping[str, Any]) -> None:
        if to is not None:
            with to.open("a") as file:
                file.write(json.dumps(row) + "\n")

    plan = [(bench.fault(fault), seconds)] if fault else list(bench.faults())
    rows = hosts_table.campaign(
        plan, runs, seed=seed, keep=keep,
        progress=progress,
    )  # fmt: skip
    for row in rows:
        if "failed" in row:
            print(f"{row['fault']}, seed {row['seed']}: {row['failed']}", file=sys.stderr)
    print(json.dumps(rows)) if as_json else print_table("hosts", hosts_table.table(rows))
    raise typer.Exit(0 if all(row["good"] for row in rows) else 1)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(help="of load")] = 30.0,
    kill_s: Annotated[float, typer.Option("--kill-s", help="seconds between two kills")] = 30.0,
    seed: Annotated[int, typer.Option(help="of what is killed")] = 0,
    as_json: AsJson = False,
) -> None:
    """Mixed load at half of capacity and a kill now and then: nothing lost, nothing grows.

    Example: python -m benchmarks soak --minutes 1 --kill-s 10
    """
    from benchmarks.faults import soak as bench

    result = bench.run(minutes * 60, kill_s=kill_s, seed=seed, progress=progress)
    show_result(result, as_json=as_json)
    raise typer.Exit(0 if result.good else 1)


@app.command()
def reloads(
    rounds: Annotated[int, typer.Option(help="of all phases")] = 5,
    seconds: Annotated[float, typer.Option(help="of a phase, at least")] = 15.0,
    rate: Annotated[float, typer.Option(help="requests a second")] = 400.0,
    as_json: AsJson = False,
) -> None:
    """Measure what a replica that comes or goes costs callers: HAProxy loads its settings anew.

    Example: python -m benchmarks reloads --rounds 1 --seconds 5 --rate 100
    """
    from benchmarks.faults import reloads as bench

    rows = bench.run(
        rounds=rounds, seconds=seconds, rate=rate,
        progress=progress,
    )  # fmt: skip
    show("reloads", rows, as_json=as_json)


@app.command()
def durability(as_json: AsJson = False) -> None:
    """A trace (strace) that the journal's sync returns before the 200 leaves.

    Example: python -m benchmarks durability
    """
    from benchmarks.faults import durability as bench

    result = bench.run()
    if as_json:
        print(json.dumps({**asdict(result), "good": result.good}))
    else:
        for name, proof in asdict(result).items():
            print(f"{name}: {', '.join(f'{k} {v}' for k, v in proof.items())}")
    raise typer.Exit(0 if result.good else 1)


@app.command("shard-killed")
def shard_killed(
    kills: Annotated[int, typer.Option(help="of one server after the other")] = 6,
    as_json: AsJson = False,
) -> None:
    """Kill one of a model's two parameter servers: how soon pushes to it are taken again.

    Example: python -m benchmarks shard-killed --kills 2
    """
    from benchmarks.faults import shard_killed as bench

    found = list(bench.run(kills))
    raise verdict("a killed server of two", found, as_json=as_json)


@app.command()
def recovery(
    runs: Annotated[int, typer.Option(help="kills of each")] = 5,
    weights: Annotated[int | None, typer.Option(help="of the model; default: 64 MB")] = None,
    as_json: AsJson = False,
) -> None:
    """Killed parameter server (64 MB) and killed replica: how long until all is as before.

    Example: python -m benchmarks recovery --runs 5
    """
    from benchmarks.faults import recovery as bench

    found = bench.run(runs=runs, weights=weights or bench.WEIGHTS)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        show("recovery", found.figures, as_json=False)
        print(f"{found.failed} of {found.predictions} predictions failed")
    raise typer.Exit(0 if found.good else 1)
