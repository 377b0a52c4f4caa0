"""`online bench NAME`: one command a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from online.bench.sizing import load

app = typer.Typer(help="Measured tables, each beside a peer.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print data as JSON")]
Rows = Annotated[int | None, typer.Option(help="only so many rows of the stream")]


def _show(title: str, rows: Iterable[Any], *, as_json: bool) -> None:
    data = [asdict(row) for row in rows]
    if as_json:
        print(json.dumps(data))
        return
    _print(title, data)


def _print(title: str, data: list[dict[str, Any]]) -> None:
    table = Table(title=title, box=None, pad_edge=False)
    for name in data[0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "what" else "right")
    for row in data:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return (
            f"{value:.3g}"
            if abs(value) < 0.001
            else f"{value:,.4f}"
            if value < 1
            else f"{value:,.1f}"
        )
    return str(value)


@app.command()
def fidelity(rows: Rows = None, as_json: AsJson = False) -> None:
    """One replica over HTTP beside the plain library, row by row.

    Needs Elec2 and INSECTS in ONLINE_DATA_DIR.  Example: online bench fidelity --rows 2000
    """
    from online.bench import fidelity as bench

    _show("fidelity", [bench.run(name, rows) for name in bench.MODELS], as_json=as_json)


@app.command()
def replicas(rows: Rows = None, as_json: AsJson = False) -> None:
    """Accuracy with all traffic on one of four replicas, and spread over two and four.

    Elec2 and INSECTS; with four, as fast as they go, and for several intervals between two
    exchanges.  Needs both in ONLINE_DATA_DIR.  Example: online bench replicas --rows 10000
    """
    from online.bench import replicas as bench

    found = [bench.solo(rows)]
    found += [bench.spread(rows, merge=rule) for rule in ("compensated", "average", "sum")]
    for case in bench.CASES[1:]:
        for rule in ("compensated", "average", "ordered"):
            found.append(bench.spread(rows, case=case, merge=rule, replicas=4, clients=8))
        for interval_ms in (5.0, 100.0, 500.0, 2000.0):
            found.append(
                bench.spread(rows, case=case, replicas=4, clients=8, interval_ms=interval_ms)
            )
    _show("replicas", found, as_json=as_json)


@app.command()
def trees(rows: Rows = 8000, as_json: AsJson = False) -> None:
    """A Hoeffding tree learned in order by three replicas, and a forest of ten by one process.

    Needs Elec2 and INSECTS in ONLINE_DATA_DIR.  Example: online bench trees --rows 4000
    """
    from online.bench import trees as bench

    found = [bench.run(*case, rows) for case in bench.CASES]
    _show("trees in three replicas", found, as_json=as_json)


@app.command()
def freshness(
    rate: Annotated[float, typer.Option(help="events a second")] = 200.0,
    seconds: Annotated[float, typer.Option(help="how long")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Feedback acknowledged by one replica: how soon it is in the other's answers.

    Example: online bench freshness --rate 500
    """
    from online.bench import freshness as bench

    _show("freshness", [bench.run(rate, seconds)], as_json=as_json)


@app.command("exactly-once")
def exactly_once(
    journal: Annotated[
        Literal["sqlite", "redis"], typer.Option(help="redis starts a server of its own")
    ] = "sqlite",
    rounds: Annotated[int, typer.Option(help="kills")] = 20,
    seed: Annotated[int, typer.Option(help="of the instants and targets")] = 0,
    as_json: AsJson = False,
) -> None:
    """Kill processes at random instants under load; nothing is lost or learned twice.

    Example: online bench exactly-once --journal redis --rounds 20
    """
    good = _exactly_once(journal, rounds, seed, as_json=as_json)
    raise typer.Exit(0 if good else 1)


def _exactly_once(
    journal: Literal["sqlite", "redis"], rounds: int, seed: int, *, as_json: bool
) -> bool:
    from online.bench import exactly_once as bench

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    result = bench.run(rounds, journal=journal, seed=seed, progress=progress)
    data = {**asdict(result), "good": result.good}
    if as_json:
        print(json.dumps(data))
    else:
        for name, value in data.items():
            print(f"{name.replace('_', ' ')}: {value}")
    return result.good


@app.command()
def durability(as_json: AsJson = False) -> None:
    """A trace (strace) that the journal's sync returns before the 200 leaves.

    Example: online bench durability
    """
    from online.bench import durability as bench

    result = bench.run()
    if as_json:
        print(json.dumps({**asdict(result), "good": result.good}))
    else:
        for name, proof in asdict(result).items():
            print(f"{name}: {', '.join(f'{k} {v}' for k, v in proof.items())}")
    raise typer.Exit(0 if result.good else 1)


@app.command()
def contention(
    seconds: Annotated[float, typer.Option(help="how long both replicas are saturated")] = 60.0,
    connections: Annotated[int, typer.Option(help="to each replica")] = 8,
    as_json: AsJson = False,
) -> None:
    """Two saturated replicas on one SQLite journal: feedback p99 <= 25 ms, max <= 100 ms.

    Example: online bench contention --seconds 60
    """
    from online.bench import contention as bench

    rows = bench.run(seconds=seconds, connections=connections, beside_s=min(seconds, 10.0))
    _show("contention", rows, as_json=as_json)
    raise typer.Exit(0 if rows[-1].good else 1)


@app.command()
def recovery(
    runs: Annotated[int, typer.Option(help="kills of each")] = 5,
    weights: Annotated[int | None, typer.Option(help="of the model; default: 64 MB")] = None,
    as_json: AsJson = False,
) -> None:
    """Killed parameter server (64 MB) and killed replica: how long until all is as before.

    Example: online bench recovery --runs 5
    """
    from online.bench import recovery as bench

    found = bench.run(runs=runs, weights=weights or bench.WEIGHTS)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        _show("recovery", found.figures, as_json=False)
        print(f"{found.failed} of {found.predictions} predictions failed")
    raise typer.Exit(0 if found.good else 1)


@app.command()
def http(
    runs: Annotated[int, typer.Option(help="repetitions of each")] = 5,
    seconds: Annotated[float, typer.Option(help="length of each")] = 3.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="one run of 0.3 s each; no target is judged")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Predict and feedback rates and p99 beside uvicorn + FastAPI + river.

    Example: online bench http --runs 5
    """
    from online.bench import http as bench

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    if quick:
        runs, seconds = 1, 0.3
    table = bench.run(runs=runs, seconds=seconds, judge=not quick, progress=progress)
    if as_json:
        print(json.dumps({**asdict(table), "good": table.good}))
    else:
        _print("http", bench.shown(table))
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

    Example: online bench push --rounds 9
    """
    from online.bench import push as bench

    found = bench.run(large=large, rounds=rounds, progress=lambda x: print(x, file=sys.stderr))
    _show("one event", found.costs, as_json=as_json)
    raise typer.Exit(0 if found.good else 1)


app.command()(load)


@app.command()
def merge(
    stream: Annotated[
        list[str] | None, typer.Option(help="a stream, or `sea`; may be given again")
    ] = None,
    rows: Rows = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="three cells of Phishing, in seconds")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Merge rules on streams dealt to several replicas, each rule at its best learning rate.

    Needs Elec2 and INSECTS in ONLINE_DATA_DIR.  Example: online bench merge --stream elec2
    """
    from evaluation.benchmarks import merge as bench
    from online.config import data_dir

    names = stream or (["phishing"] if quick else list(bench.STREAMS))
    cells = bench.QUICK if quick else bench.FULL
    found = [
        line
        for name in names
        for line in bench.run(
            bench.load(name, data_dir(), rows), cells, progress=lambda x: print(x, file=sys.stderr)
        )
    ]
    print(json.dumps([asdict(line) for line in found]) if as_json else bench.markdown(found))


@app.command()
def journal(as_json: AsJson = False) -> None:
    """Ways for two writers of one node to share a journal.

    Example: online bench journal
    """
    from evaluation.benchmarks import journal as bench

    found = bench.run()
    if as_json:
        print(json.dumps(found))
        return
    for row in found:
        print(row)


@app.command()
def buffers(
    peer: Annotated[
        Path | None, typer.Option(help="Python of an environment with avalanche-lib==0.6.0")
    ] = None,
    largest: Annotated[int, typer.Option(help="most items", min=1_000)] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="turns of each size", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """A step of rehearsal (10 items in, 10 drawn) by size and length of stream, beside Avalanche.

    Example: online bench buffers --peer ../avalanche/bin/python
    """
    from evaluation.benchmarks import buffers as bench

    sizes = [n for n in bench.SIZES if n <= largest]
    found = bench.run(
        sizes=sizes, rounds=rounds, peer=peer, progress=lambda x: print(x, file=sys.stderr)
    )
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        _show("by items kept", found.kept, as_json=False)
        _show("by items offered to 1,000 slots", found.offered, as_json=False)
        if found.beside:
            _show("beside Avalanche's reservoir", found.beside, as_json=False)
    raise typer.Exit(0 if found.good else 1)


@app.command()
def forgetting(
    long: Annotated[
        bool, typer.Option("--long", help="permuted and rotated MNIST too (an hour)")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What streams make a network forget, with and without rehearsal, beside published figures.

    Needs torch, and MNIST, gas sensors and Elec2 in ONLINE_DATA_DIR.  Example:
    online bench forgetting --json
    """
    from evaluation.benchmarks import forgetting as bench
    from online.config import data_dir

    found = bench.run(data_dir(), long=long, progress=lambda x: print(x, file=sys.stderr))
    if as_json:
        print(json.dumps({**asdict(found), "good": found.good}))
    else:
        _show("tasks one after the other", found.tasks, as_json=False)
        _show("tables that drift", found.drift, as_json=False)
        _show("cost", found.cost, as_json=False)
    raise typer.Exit(0 if found.good else 1)


@app.command()
def robustness(
    peer: Annotated[
        Path | None, typer.Option(help="Python of an environment with byzfl==0.0.11")
    ] = None,
    seeds: Annotated[int, typer.Option(help="runs of ours, of five", min=1, max=5)] = 5,
    long: Annotated[bool, typer.Option("--long", help="3,000 honest updates too")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="three attacks, one seed")] = False,
    as_json: AsJson = False,
) -> None:
    """Attacks by defences of a network that learns from sources of which a quarter is hostile.

    Needs torch and MNIST in ONLINE_DATA_DIR.  Example: online bench robustness --quick
    """
    from evaluation.benchmarks import filtercost, synchronous
    from evaluation.benchmarks import robustness as bench
    from online.config import data_dir

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    data = bench.images(data_dir())
    parts = bench.parts(data, quick=quick, long=long, seeds=bench.SEEDS[:seeds], progress=progress)
    beside = [] if peer is None else synchronous.run(data, peer, progress=progress)
    sizes = filtercost.SIZES[:1] if quick else filtercost.SIZES
    cost = [line for size in sizes for line in filtercost.costs(size)]
    memory = filtercost.memory(1_000 if quick else filtercost.SOURCES)
    verdicts = [row.good for part in parts for row in part.summaries]
    good = quick or all([*verdicts, memory.good, *(row.good for row in cost)])
    if as_json:
        tables: dict[str, Any] = {"parts": parts, "beside": beside, "cost": cost}
        shown = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        print(json.dumps({**shown, "memory": asdict(memory), "good": good}))
    else:
        for part in parts:
            _print(f"{part.name}: accuracy / trigger (honest rejected, hostile weight) in percent",
                   bench.matrix(part.cells))  # fmt: skip
            _show(part.name, part.summaries, as_json=False)
        if beside:
            _show("R3, rounds beside byzfl", beside, as_json=False)
        _show("R4, cost of an update", cost, as_json=False)
        _show("memory", [memory], as_json=False)
    raise typer.Exit(0 if good else 1)


@app.command("all")
def everything() -> None:
    """Every table, one after the other (about an hour).

    Example: online bench all
    """
    freshness(rate=500.0, seconds=30.0)
    fidelity(rows=None)
    replicas(rows=None)
    trees()
    merge()
    journal()
    found = [
        _passes(command) for command in (http, push, buffers, durability, contention, recovery)
    ]
    found += [_exactly_once(kind, 100, 0, as_json=False) for kind in ("sqlite", "redis")]
    raise typer.Exit(0 if all(found) else 1)


def _passes(command: Callable[[], None]) -> bool:
    """Whether a command that ends with a verdict ends with a good one."""
    try:
        command()
    except typer.Exit as verdict:
        return verdict.exit_code == 0
    return True
