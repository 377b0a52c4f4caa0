"""Commands of `python -m benchmarks`: one command a table; here those of a running service."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from typing import Annotated, Literal

import typer

from benchmarks.commands.alone import (
    buffers,
    comparison,
    confidence,
    conversions,
    detectors,
    edge,
    forgetting,
    merge,
    prequential,
    relearning,
    report,
    tables,
)
from benchmarks.commands.deciding import (
    bandit_worlds,
    bandits,
    choice_cost,
    choices_killed,
    conversions_killed,
    off_policy,
    poisoned_rewards,
    propensities,
)
from benchmarks.commands.faults import check_once, durability, recovery, reloads, soak
from benchmarks.commands.hostile import robustness
from benchmarks.commands.table import AsJson, First, Rows, app, print_table, progress, show, verdict
from benchmarks.quality.anomalies import anomalies
from benchmarks.speed.embedded import embedded
from benchmarks.speed.newcomer import newcomer
from benchmarks.speed.observed import observed
from benchmarks.speed.starts import start
from online.settings.config import data_dir


@app.command()
def fidelity(rows: Rows = None, as_json: AsJson = False) -> None:
    """One replica over HTTP beside the plain library, row by row.

    Needs Elec2 and INSECTS in ONLINE_DATA_DIR.  Example: python -m benchmarks fidelity --rows 2000
    """
    from benchmarks.quality import fidelity as bench

    show("fidelity", [bench.run(name, rows) for name in bench.MODELS], as_json=as_json)


@app.command()
def replicas(rows: Rows = None, as_json: AsJson = False) -> None:
    """Accuracy with all traffic on one of four replicas, and spread over two and four.

    Elec2 and INSECTS; with four, as fast as they go, and for several intervals between two
    exchanges.  Needs both in ONLINE_DATA_DIR.  Example: python -m benchmarks replicas --rows 10000
    """
    from benchmarks.quality import replicas as bench

    found = [bench.solo(rows)]
    found += [bench.spread(rows, merge=rule) for rule in ("compensated", "average", "sum")]
    for case in bench.CASES[1:]:
        for rule in ("compensated", "average", "ordered"):
            found.append(bench.spread(rows, case=case, merge=rule, replicas=4, clients=8))
        for interval_ms in (5.0, 100.0, 500.0, 2000.0):
            found.append(
                bench.spread(rows, case=case, replicas=4, clients=8, interval_ms=interval_ms)
            )
    show("replicas", found, as_json=as_json)


@app.command()
def challenger(
    runs: Annotated[int, typer.Option(help="of each pair", min=1)] = 20,
    first: Annotated[int, typer.Option(help="seed of the first one")] = 0,
    http: Annotated[bool, typer.Option("--http", help="only the equal one, over HTTP")] = False,
    as_json: AsJson = False,
) -> None:
    """An equal and a better challenger where one replica answers and another takes the labels.

    In this process, with the real parts.  Example: python -m benchmarks challenger --runs 5
    """
    from benchmarks.quality import shadowed as bench

    if http:
        found = [bench.over_http()]
    else:
        found = bench.run(runs=runs, first=first, progress=progress)
    raise verdict("a challenger where answers lack newer labels", found, as_json=as_json)


@app.command()
def trees(rows: Rows = 8000, as_json: AsJson = False) -> None:
    """A Hoeffding tree learned in order by three replicas, and a forest of ten by one process.

    Needs Elec2 and INSECTS in ONLINE_DATA_DIR.  Example: python -m benchmarks trees --rows 4000
    """
    from benchmarks.quality import trees as bench

    found = [bench.run(*case, rows) for case in bench.CASES]
    show("trees in three replicas", found, as_json=as_json)


@app.command()
def rehearsal(
    rows: Annotated[int, typer.Option(help="rows of each of the five tasks")] = 1_000,
    as_json: AsJson = False,
) -> None:
    """Digits over HTTP with replay, beside the in-process loop; all processes killed halfway.

    Then what replay does to the waiting time of predictions.  Exits 1 if the service is more than
    a point apart, or half of the predictions take more than 1.1 times as long.  Needs MNIST in
    ONLINE_DATA_DIR.  Example: python -m benchmarks rehearsal --rows 200
    """
    from benchmarks.quality import rehearsal as bench

    found, waits = list(bench.run(rows)), bench.waits()
    show("rehearsal in the service", found, as_json=as_json)
    show("predictions with replay", [waits], as_json=as_json)
    if not (waits.good and all(line.good for line in found)):
        raise typer.Exit(1)


@app.command()
def judging(as_json: AsJson = False) -> None:
    """Measure what metrics and drift watching add to the time of a feedback.

    Exits 1 if it is more than 15 %.  Example: python -m benchmarks judging
    """
    from benchmarks.speed import judging as bench

    found = bench.run()
    show("judging", [found], as_json=as_json)
    raise typer.Exit(0 if found.good else 1)


class Lie(StrEnum):
    """Kinds of lies, as `abuse.KINDS`: typer takes no list of literals."""

    FLIP = "flip"
    KEYWORD = "keyword"
    AIMED = "aimed"
    BURST = "burst"


@app.command("hostile-http")
def hostile_http(
    rows: Rows = None,
    seeds: Annotated[int, typer.Option(help="runs of each kind", min=1, max=5)] = 5,
    first: First = 0,
    kind: Annotated[
        list[Lie] | None, typer.Option(help="of lies; may be given again; then no honest streams")
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="in this process, no service")] = False,
    replicas: Annotated[int, typer.Option(help="with --alone", min=1, max=8)] = 2,
    as_json: AsJson = False,
) -> None:
    """Twenty tokens send text messages over HTTP, five of them lies; and what honest streams lose.

    Exits 1 if a liar is not quarantined within 30 of its events, an honest source is, spam found
    falls by more than a point, or feedback by more than 15 %; or if a stream without an attacker
    loses an event or half a point.  Needs SMS Spam, Elec2 and INSECTS in ONLINE_DATA_DIR.
    Example: python -m benchmarks hostile-http --seeds 1
    """
    from benchmarks.attacks import abuse, honest

    play = partial(abuse.alone, replicas=replicas) if alone else None
    lies = list(abuse.run(rows, range(first, first + seeds), [k.value for k in kind or Lie], play))
    cost = [] if kind else list(honest.run(rows))
    if cost:
        show("honest streams", cost, as_json=as_json)
    show("lies over HTTP", lies, as_json=as_json)
    good = all(row.good for row in cost) and all(row.good for row in lies)
    raise typer.Exit(0 if good else 1)


@app.command()
def freshness(
    rate: Annotated[float, typer.Option(help="events a second")] = 200.0,
    seconds: Annotated[float, typer.Option(help="how long")] = 30.0,
    table: Annotated[
        Literal["", "shared", "cached"], typer.Option(help="how replicas hold a table of the model")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Feedback acknowledged by one replica: how soon it is in the other's answers.

    Example: python -m benchmarks freshness --rate 500
    """
    from benchmarks.speed import freshness as bench

    show("freshness", [bench.run(rate, seconds, table)], as_json=as_json)


@app.command()
def contention(
    seconds: Annotated[float, typer.Option(help="how long both replicas are saturated")] = 60.0,
    connections: Annotated[int, typer.Option(help="to each replica")] = 8,
    as_json: AsJson = False,
) -> None:
    """Two saturated replicas on one SQLite journal: feedback p99 <= 25 ms, max <= 100 ms.

    Example: python -m benchmarks contention --seconds 60
    """
    from benchmarks.speed import contention as bench

    rows = bench.run(seconds=seconds, connections=connections, beside_s=min(seconds, 10.0))
    show("contention", rows, as_json=as_json)
    raise typer.Exit(0 if rows[-1].good else 1)


@app.command()
def http(
    runs: Annotated[int, typer.Option(help="repetitions of each")] = 5,
    seconds: Annotated[float, typer.Option(help="length of each")] = 3.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="one run of 0.3 s each; no target is judged")
    ] = False,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="a service in one process, without Ray")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Predict and feedback rates and p99 beside uvicorn + FastAPI + river.

    Example: python -m benchmarks http --runs 5
    """
    from benchmarks.speed import http as bench

    if quick:
        runs, seconds = 1, 0.3
    table = bench.run(
        runs=runs, seconds=seconds, judge=not quick, embedded=embedded, progress=progress
    )
    if as_json:
        print(json.dumps({**asdict(table), "good": table.good}))
    else:
        print_table("http", bench.shown(table))
    for warning in table.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if table.void:
        print(
            f"void: the peer made fewer than {bench.PEER_MIN:,.0f} predictions/s", file=sys.stderr
        )
    raise typer.Exit(0 if quick or table.good else 1)


@app.command()
def push(
    rounds: Annotated[int, typer.Option(help="of 100 events on each model", min=1)] = 9,
    large: Annotated[int, typer.Option(help="weights of the large model", min=2_000)] = 1_000_000,
    as_json: AsJson = False,
) -> None:
    """One event on a model of a million weights, beside one on a thousand.

    Example: python -m benchmarks push --rounds 9
    """
    from benchmarks.speed import push as bench

    found = bench.run(large=large, rounds=rounds, progress=progress)
    show("one event", found.costs, as_json=as_json)
    raise typer.Exit(0 if found.good else 1)


@app.command()
def rescore(
    runs: Annotated[int, typer.Option(help="repetitions of each", min=1)] = 5,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Batch re-scoring beside a loop of predict_one and Ray Data's plain map.

    Needs KDD99 and ACS employment in ONLINE_DATA_DIR.  Example: python -m benchmarks rescore
    --runs 5
    """
    from benchmarks.speed import rescore as bench

    speeds, memory = bench.run(data_dir(), runs=runs, rows=rows, progress=progress)
    if as_json:
        data = [asdict(row) for row in speeds] + [asdict(row) for row in memory]
        print(json.dumps(data))
    else:
        show("rows a second", speeds, as_json=False)
        show("most memory", memory, as_json=False)
    good = all(row.good for row in speeds) and all(row.good for row in memory)
    raise typer.Exit(0 if good else 1)


@app.command()
def scores(
    runs: Annotated[int, typer.Option(help="repetitions of each", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="length of one measurement", min=0.2)] = 3.0,
    keys: Annotated[int, typer.Option(help="keys to load into Redis", min=1)] = 1_000_000,
    as_json: AsJson = False,
) -> None:
    """Scores read by key, from SQLite and Redis, beside live predictions; and loading them.

    Needs valkey-server or redis-server.  Example: python -m benchmarks scores --runs 3 --keys
    200000
    """
    from benchmarks.speed import scores as bench

    found = bench.run(runs=runs, seconds=seconds, keys=keys, progress=progress)
    raise verdict("scores by key", found, as_json=as_json)


@app.command("all")
def everything() -> None:
    """Most tables, one after the other (hours); docs/measured.md names those left out.

    Example: python -m benchmarks all
    """
    freshness(rate=500.0, seconds=30.0)
    fidelity(rows=None)
    replicas(rows=None)
    trees()
    reloads()
    merge()
    tables()
    relearning(rows=None)
    services = (
        http,
        push,
        durability,
        contention,
        recovery,
        rehearsal,
        judging,
        rescore,
        scores,
        start,
        newcomer,
        embedded,
        anomalies,
        observed,
    )
    others = (buffers, forgetting, prequential, comparison, detectors, robustness, edge, report)
    confidence(stream=None, peer=None, rows=None)
    bandits(rows=None)
    bandit_worlds(rows=None)
    found = [_passes(command) for command in (*services, *others)]
    found.append(_passes(lambda: hostile_http(rows=None, seeds=5, first=0, kind=None, replicas=2)))
    found.append(_passes(lambda: off_policy(rows=None, peer=None)))
    found.append(_passes(lambda: conversions(share=0.05, seed=1, rows=None)))
    found += [_passes(lambda: choice_cost()), _passes(lambda: propensities(1_000_000))]
    found.append(_passes(lambda: choices_killed(200, 0)))
    found.append(_passes(lambda: conversions_killed(100, 0)))
    poisoned_rewards(16, 1, "default", None)
    learning_back(seeds=2)
    found += [check_once(kind, 100, 0, {}, as_json=False) for kind in ("sqlite", "redis")]
    found.append(_passes(lambda: soak(minutes=5.0, kill_s=30.0, seed=0)))
    raise typer.Exit(0 if all(found) else 1)


@app.command("learning-back")
def learning_back(
    seeds: Annotated[int, typer.Option(help="fleets a case", min=1)] = 2, as_json: AsJson = False
) -> None:
    """Twenty devices that push deltas, five of whom lie; with filters, without, without liars.

    In one process.  Digits, and Elec2 of ONLINE_DATA_DIR.  Example: python -m benchmarks
    learning-back
    """
    from benchmarks.edge import devices as bench

    show("learning back", bench.table(range(1, seeds + 1)), as_json=as_json)


def _passes(command: Callable[[], None]) -> bool:
    """Whether a command that ends with a verdict ends with a good one."""
    try:
        command()
    except typer.Exit as verdict:
        return verdict.exit_code == 0
    return True
