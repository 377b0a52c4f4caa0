"""Tables of senders who lie, flood or poison, by filter: no service is started for most of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from benchmarks.commands.table import (
    AsJson,
    First,
    Replicas,
    Rows,
    Seeds,
    Streams,
    app,
    followed,
    one_of,
    print_table,
    progress,
    show,
    verdict,
)
from online.settings.config import data_dir


@app.command()
def robustness(
    seeds: Annotated[int, typer.Option(help="runs of ours, of five", min=1, max=5)] = 5,
    long: Annotated[bool, typer.Option("--long", help="3,000 honest updates too")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="three attacks, one seed")] = False,
    only: Annotated[
        Literal["R6", "R7", "R8"] | None, typer.Option(help="one protocol and no other")
    ] = None,
    served: Annotated[
        bool, typer.Option("--served", help="R6 through a service of two replicas, too")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Attacks by defences of a network that learns from sources of which a quarter is hostile.

    R1, or R1 and R2, and R4 (what an update costs); drills on real streams: what an alarm undoes
    (R6), a world that turns without an attacker (R7), a poisoned buffer (R8).
    Needs torch and MNIST, Elec2, INSECTS and the gas sensors in ONLINE_DATA_DIR.
    Example: python -m benchmarks robustness --quick
    """
    from benchmarks.studies.pushes import filtercost
    from benchmarks.studies.pushes import robustness as bench

    if only is not None:
        found = _drills((only,), served=served, as_json=as_json)
        raise typer.Exit(0 if found else 1)
    data = bench.images(data_dir())
    parts = bench.parts(data, quick=quick, long=long, seeds=bench.SEEDS[:seeds], progress=progress)
    sizes = filtercost.SIZES[:1] if quick else filtercost.SIZES
    cost = [line for size in sizes for line in filtercost.costs(size)]
    memory = filtercost.memory(1_000 if quick else filtercost.SOURCES)
    verdicts = [row.good for part in parts for row in part.summaries]
    good = quick or all([*verdicts, memory.good, *(row.good for row in cost)])
    if as_json:
        tables: dict[str, Any] = {"parts": parts, "cost": cost}
        shown = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        print(json.dumps({**shown, "memory": asdict(memory), "good": good}))
    else:
        for part in parts:
            title = f"{part.name}: accuracy / trigger (honest rejected, hostile weight) in percent"
            print_table(title, bench.matrix(part.cells))
            show(part.name, part.summaries, as_json=False)
        show("R4, cost of an update", cost, as_json=False)
        show("memory", [memory], as_json=False)
        if not quick:
            every = ("R6", "R7", "R8")
            good = _drills(every, served=served, as_json=False) and good
    raise typer.Exit(0 if good else 1)


@app.command()
def liars(
    stream: Streams = None,
    seeds: Seeds = 3,
    first: First = 0,
    numbers: Annotated[bool, typer.Option("--numbers", help="of regression, instead")] = False,
    as_json: AsJson = False,
) -> None:
    """Five liars among twenty senders of real streams: who is found, and what is lost.

    Exits 1 if an honest source is quarantined, or accuracy falls by more than a point (numbers: if
    2 % of honest rows are set aside).  Needs Elec2, INSECTS, gas sensors, MNIST (and MovieLens) in
    ONLINE_DATA_DIR.  Example: python -m benchmarks liars --stream phishing --seeds 1
    """
    from benchmarks.attacks import liars as bench
    from benchmarks.attacks import number_lies

    if numbers:
        told = number_lies.run(range(first, first + seeds))
        raise verdict("liars, numbers", told, as_json=as_json)
    names = one_of(stream, bench.STREAMS)
    found = followed(bench.run(data_dir(), names, range(first, first + seeds)), _accuracy)
    raise verdict("liars", found, as_json=as_json)


@app.command()
def doors(
    only: Annotated[str, typer.Argument(help="weight, joins, ids or forget")],
    stream: Streams = None,
    seeds: Seeds = 3,
    first: First = 0,
    replicas: Replicas = None,
    rows: Rows = None,
    http: Annotated[bool, typer.Option(help="over HTTP, a service for each stream")] = False,
    as_json: AsJson = False,
) -> None:
    """A heavy weight, lies by short ids, guessed ids: what each costs, and who is caught.

    In this process; with --http by a running service.  *forget*: of who made an attack on a running
    service; exits 1 if its model is not as if they had sent nothing.  Needs Elec2 and INSECTS in
    ONLINE_DATA_DIR.  Example: python -m benchmarks doors joins --stream phishing
    """
    from benchmarks.attacks import doors as bench
    from benchmarks.attacks import forgotten

    if only not in ("weight", "joins", "ids", "forget"):
        raise typer.BadParameter("give weight, joins, ids or forget")
    names, places = one_of(stream, bench.STREAMS), range(first, first + seeds)
    if only == "forget":
        lines = forgotten.run(names, places, data_dir(), rows)
        raise verdict("forget", lines, as_json=as_json)
    make = bench.served if http else bench.tables
    found = make(only, names, places, replicas or [1, 2], data_dir(), rows)
    show(only, followed(found), as_json=as_json)


@app.command()
def floods(
    stream: Streams = None,
    kind: Annotated[list[str] | None, typer.Option(help="one of them; may be given again")] = None,
    seeds: Seeds = 3,
    first: First = 0,
    liars: Annotated[list[int] | None, typer.Option(help="how many; may be given again")] = None,
    lies: Annotated[list[int] | None, typer.Option(help="a row; may be given again")] = None,
    replicas: Replicas = None,
    rows: Rows = None,
    http: Annotated[bool, typer.Option("--http", help="sent to services")] = False,
    as_json: AsJson = False,
) -> None:
    """Sources that behave and then flood, names without end, a replica that hears few.

    Kinds: flood, quiet, unsure (in this process only), names, few, half.

    Exits 1 if fewer than four of five liars are caught, two honest rows of a hundred are set aside,
    accuracy falls by five points or half a point below no filter.  Needs the streams in
    ONLINE_DATA_DIR, and pyarrow for acs.  Example: python -m benchmarks floods --stream phishing
    --seeds 1
    """
    from benchmarks.attacks import floods as bench
    from benchmarks.attacks.floods_served import OverHttp

    kinds, streams = one_of(kind, bench.ATTACKS), one_of(stream, bench.STREAMS)
    found = bench.run(
        data_dir(), streams, range(first, first + seeds), tuple(kinds),
        liars or bench.LIARS, lies or bench.LIES, replicas or (1, 2),
        way=OverHttp() if http else None, most=rows,
    )  # fmt: skip
    raise verdict("floods", followed(found, _accuracy), as_json=as_json)


@app.command()
def strangers(
    stream: Streams = None,
    kind: Annotated[list[str] | None, typer.Option(help="one of them; may be given again")] = None,
    seeds: Seeds = 3,
    first: First = 0,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Eight of 26 sources lie as somebody would who has read how sources are judged.

    Kinds: tenth, third, light, ramp, class, region, near, vouch, stale, confirm.  Exits 1 if
    accuracy falls by five points.  Needs the streams in ONLINE_DATA_DIR.  Example: python -m
    benchmarks strangers --stream phishing --kind class --seeds 1
    """
    from benchmarks.attacks import strangers as bench
    from benchmarks.attacks.floods import STREAMS

    names, kinds = one_of(stream, STREAMS), tuple(one_of(kind, bench.KINDS))
    found = bench.run(data_dir(), names, range(first, first + seeds), kinds, rows)
    raise verdict("strangers", followed(found, _accuracy), as_json=as_json)


@app.command()
def honest(
    stream: Streams = None,
    deal: Annotated[list[str] | None, typer.Option(help="one of them; may be given again")] = None,
    seeds: Seeds = 1,
    first: First = 0,
    rows: Annotated[int, typer.Option(help="at most so many rows of each stream")] = 2_000,
    as_json: AsJson = False,
) -> None:
    """Honest sources that differ in fifteen ways: what the default filters cost them.

    Exits 1 if a deal loses half a point of accuracy, or two of its hundred rows are set aside.
    Needs the streams in ONLINE_DATA_DIR.  Example: python -m benchmarks honest --stream phishing
    --deal half --first 954
    """
    from benchmarks.attacks import deals as bench
    from benchmarks.attacks.floods import STREAMS

    def said(line: bench.Honest) -> str:
        lost = line.unfiltered - line.accuracy
        return f"{line.what}, seed {line.seed}: {lost:.2f} points, {line.set_aside:.1f} % aside"

    names, deals = one_of(stream, STREAMS), one_of(deal, bench.DEALS)
    found = bench.run(data_dir(), names, range(first, first + seeds), deals, rows)
    raise verdict("honest sources", followed(found, said), as_json=as_json)


def _accuracy(line: Any) -> str:
    return f"{line.what}, seed {line.seed}: {line.accuracy:.1f}"


def _drills(which: Sequence[str], *, served: bool, as_json: bool) -> bool:
    """Show the drills; return whether all targets are met."""
    from benchmarks.attacks import poisoned, turning, undo, undo_http

    folder = data_dir()
    tables: dict[str, Callable[[], Iterable[Any]]] = {
        "R6": lambda: undo.run(progress=progress),
        "R6, served": lambda: undo_http.run() if served else (),
        "R7": lambda: turning.run(folder, progress=progress),
        "R8": lambda: poisoned.run(folder, progress=progress),
    }
    good = True
    for name, make in tables.items():
        rows = list(make()) if name.split(",")[0] in which else []
        if rows:
            show(name, rows, as_json=as_json)
        good = good and all(row.good for row in rows)
    return good


@app.command()
def outliers(
    rows: Rows = None,
    seeds: Annotated[int, typer.Option(help="runs of each", min=1, max=10)] = 3,
    first: First = 0,
    stream: Streams = None,
    replicas: Replicas = None,
    http: Annotated[bool, typer.Option("--http", help="by services, 1e4 and 1e100 only")] = False,
    targets: Annotated[bool, typer.Option("--targets", help="of regression, instead")] = False,
    honest: Annotated[
        bool, typer.Option("--honest", help="nobody attacks: heavy tails, and streams in order")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """One true event with numbers that are far off, and many: what it costs a model.

    Exits 1 if one of them costs more than half a point, or bounds an honest stream a fifth.
    Example: python -m benchmarks outliers --seeds 1
    """
    from benchmarks.attacks import heavy_tails, outlying_targets
    from benchmarks.attacks import outliers as bench

    if honest:
        hard = [*heavy_tails.in_order(), *heavy_tails.run(range(first, first + seeds))]
        raise verdict("outliers, honest numbers", hard, as_json=as_json)
    if targets:
        costs = list(outlying_targets.run(seeds=range(first, first + seeds)))
        raise verdict("outliers, targets", costs, as_json=as_json)
    one_of(stream, bench.STREAMS)
    given: dict[str, Any] = {"streams": stream} if stream else {}
    found = list(
        (bench.over_http if http else bench.run)(
            seeds=range(first, first + seeds), replicas=replicas or (1, 2), rows=rows, **given
        )
    )
    show("outliers", found, as_json=as_json)
    raise typer.Exit(0 if all(x.good for x in found if x.kind in bench.OVER_HTTP) else 1)


@app.command()
def scale(as_json: AsJson = False) -> None:
    """Shards beside one server; and shards with relays, at a thousand million rows, on paper.

    Example: python -m benchmarks scale
    """
    from benchmarks.speed import scale as bench
    from benchmarks.speed.shards import compared

    several = [compared(shards, rows) for rows in (2_000, 30) for shards in (2, 4)]
    show("several parameter servers beside one", several, as_json=as_json)
    costs = bench.unit_costs()
    show("what a message costs a server, and whoever takes it", costs, as_json=as_json)
    found = [bench.simulated(at, costs) for at in bench.SETTINGS]
    show("a shard and a receiver", found, as_json=as_json)
    show("rows that change together", bench.changed(), as_json=as_json)
