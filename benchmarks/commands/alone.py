"""Tables of `python -m benchmarks` that no service is started for."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.table import (
    AsJson,
    Rows,
    Streams,
    app,
    needed,
    one_of,
    progress,
    show,
    verdict,
)
from online.settings.config import data_dir


@app.command()
def report(
    runs: Annotated[int, typer.Option(help="repetitions on Elec2", min=1)] = 5,
    largest: Annotated[int, typer.Option(help="rows of the largest input", min=10_000)] = 1_000_000,
    peer: Annotated[
        Path | None, typer.Option(help="Python of an environment with evidently and pandas<3")
    ] = None,
    broken: Annotated[
        bool, typer.Option("--broken", help="only whether it sees a frozen model break")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The report on Elec2: at most 5 s and 1 MB; memory flat from 10,000 rows on.

    Needs Elec2 in ONLINE_DATA_DIR.  Example: python -m benchmarks report --peer
    ../evidently/bin/python
    """
    from benchmarks.speed import report as bench

    if broken:
        from benchmarks.studies.drift import broken as frozen

        lines = frozen.run(data_dir(), progress=progress)
        raise verdict("the report on a frozen model", lines, as_json=as_json)
    found = bench.run(
        data_dir(), runs=runs, sizes=(bench.SIZES[0], largest), peer=peer, progress=progress
    )
    if as_json:
        print(json.dumps({**asdict(found), "good": found.good}))
    else:
        show("report", found.lines, as_json=False)
        for kind, growth in found.growth.items():
            print(f"peak memory of the largest {kind} over the smallest: {growth:.2f}")
        print(f"numbers that differ: {len(found.differing)}; loaded: {len(found.outside)}")
    raise typer.Exit(0 if found.good else 1)


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

    Needs Elec2 and INSECTS in ONLINE_DATA_DIR.  Example: python -m benchmarks merge --stream elec2
    """
    from benchmarks.studies import merge as bench

    names = stream or (["phishing"] if quick else list(bench.STREAMS))
    cells = bench.QUICK if quick else bench.FULL
    found = [
        line
        for name in names
        for line in bench.run(bench.load(name, data_dir(), rows), cells, progress=progress)
    ]
    print(json.dumps([asdict(line) for line in found]) if as_json else bench.markdown(found))


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

    Example: python -m benchmarks buffers --peer ../avalanche/bin/python
    """
    from benchmarks.studies.memory import buffers as bench

    sizes = [n for n in bench.SIZES if n <= largest]
    found = bench.run(sizes=sizes, rounds=rounds, peer=peer, progress=progress)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        show("by items kept", found.kept, as_json=False)
        show("by items offered to 1,000 slots", found.offered, as_json=False)
        if found.beside:
            show("beside Avalanche's reservoir", found.beside, as_json=False)
    raise typer.Exit(0 if found.good else 1)


@app.command()
def forgetting(
    long: Annotated[
        bool, typer.Option("--long", help="permuted and rotated MNIST too (an hour)")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what streams make a network forget, with and without rehearsal.

    Published figures stand beside it.  Needs torch, and MNIST, gas sensors and Elec2 in
    ONLINE_DATA_DIR.  Example: python -m benchmarks forgetting --json
    """
    from benchmarks.studies.memory import forgetting as bench

    found = bench.run(data_dir(), long=long, progress=progress)
    if as_json:
        print(json.dumps({**asdict(found), "good": found.good}))
    else:
        show("tasks one after the other", found.tasks, as_json=False)
        show("tables that drift", found.drift, as_json=False)
        show("cost", found.cost, as_json=False)
    raise typer.Exit(0 if found.good else 1)


@app.command()
def prequential(
    stream: Streams = None,
    rows: Rows = None,
    full: Annotated[
        bool, typer.Option("--full", help="forests and neighbours on the long streams too")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Learners tested, then taught, on real streams, beside baselines and published figures.

    Needs Elec2, INSECTS and gas sensors in ONLINE_DATA_DIR.  Example: python -m benchmarks
    prequential
    --stream phishing
    """
    from benchmarks.quality import prequential as bench
    from evaluation.streams import open_stream

    names = [open_stream(name, data_dir()).name for name in stream or bench.STREAMS]
    found = bench.run(data_dir(), streams=names, full=full, rows=rows, progress=progress)
    if as_json:
        print(json.dumps({**asdict(found), "good": found.good}))
    else:
        print(bench.shown(found))
    raise typer.Exit(0 if found.good else 1)


@app.command()
def defaults(
    stream: Streams = None,
    learner: Annotated[
        list[str] | None, typer.Option(help="a learner of the table; may be given again")
    ] = None,
    late: Annotated[
        list[int] | None, typer.Option(help="rows after which a label is known; may be given again")
    ] = None,
    kept: Annotated[
        Path | None, typer.Option(help="file of lines that are not measured again; others go there")
    ] = None,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Built-ins at their defaults beside river's rates, VowpalWabbit, a tree and a forest.

    Needs the streams in ONLINE_DATA_DIR that are named; all learners on all streams take an hour
    of the processor.  Example: python -m benchmarks defaults --stream phishing --learner auto
    """
    from benchmarks.fixtures import sources
    from benchmarks.quality import defaults as bench

    learners = one_of(learner, (*bench.LEARNERS, "mlp", *bench.VOWPAL))
    delays = [f" {n} late" for n in late or ()] or [""]
    streams = [name + after for name in stream or sources.STREAMS for after in delays]
    for name in streams:
        try:
            sources.named(name)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    found = bench.run(
        data_dir() or Path(),
        streams=streams,
        learners=learners,
        rows=rows,
        kept=kept,
        progress=progress,
    )
    show("Nobody has tuned them", found, as_json=as_json)
    show("mean rank", bench.ranks(found), as_json=as_json)


@app.command()
def asleep(
    stream: Annotated[
        list[str] | None, typer.Option(help="a stream of `defaults`; may be given again")
    ] = None,
    rows: Annotated[int, typer.Option(help="of each stream", min=10)] = 4_000,
    pairs: Annotated[int, typer.Option(help="of turns, one of each model", min=1)] = 11,
    as_json: AsJson = False,
) -> None:
    """Rows a second of `auto` beside `linear` while its views sleep, by processor time.

    Exits 1 if it is less than .95 of them.  Example: python -m benchmarks asleep --stream elec2
    """
    from benchmarks.fixtures.sources import STREAMS
    from benchmarks.quality import asleep as bench

    names = stream or ["elec2", "insects", "acs", "demand"]
    one_of(names, STREAMS)
    found = bench.run(data_dir() or Path(), streams=names, rows=rows, pairs=pairs)
    raise verdict("auto asleep beside linear", found, as_json=as_json)


@app.command()
def comparison(
    pairs: Annotated[int, typer.Option(help="of models, of each kind", min=1)] = 200,
    rows: Annotated[int, typer.Option(help="that each pair is compared on", min=100)] = 5_000,
    as_json: AsJson = False,
) -> None:
    """Equal and unequal models looked at at every row: who decides wrongly, and how soon.

    Example: python -m benchmarks comparison --pairs 50
    """
    from benchmarks.studies import comparison as bench

    found = bench.run(pairs=pairs, rows=rows, progress=progress)
    raise verdict("comparison", found, as_json=as_json)


@app.command()
def detectors(
    trials: Annotated[int, typer.Option(help="of each injected drift on Elec2", min=1)] = 10,
    seeds: Annotated[int, typer.Option(help="error streams of each course", min=1)] = 40,
    first: Annotated[int, typer.Option(help="first seed of both", min=0)] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="error streams only, few seeds; nothing is judged")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Drift detectors where the change is known, beside published figures and two controls.

    Needs Elec2, INSECTS, the synthetic drift files and ACS in ONLINE_DATA_DIR.  Example:
    python -m benchmarks detectors --trials 10
    """
    from benchmarks.studies.drift import drift as bench

    found = bench.run(
        None if quick else data_dir(),
        trials=trials,
        seeds=4 if quick else seeds,
        first=first,
        quick=quick,
        progress=progress,
    )
    if as_json:
        print(json.dumps({**asdict(found), "good": found.good, "aims": found.aims}))
    else:
        for title, rows in found.tables.items():
            show(title, rows, as_json=False)
        for aim, met in found.aims.items():
            print(f"{'met' if met else 'missed'}: {aim}")
    raise typer.Exit(0 if quick or found.good else 1)


@app.command()
def relearning(rows: Rows = None, as_json: AsJson = False) -> None:
    """Measure what `drift.on_rise: relearn` gains or loses beside doing nothing.

    Needs Elec2, INSECTS and the synthetic drift files in ONLINE_DATA_DIR.  Example:
    python -m benchmarks relearning --rows 15000
    """
    from benchmarks.studies.drift import relearning as bench

    found = bench.run(data_dir(), rows=rows, progress=progress)
    show("a fresh model after an alarm", found, as_json=as_json)


@app.command()
def factors(
    learner: Annotated[
        list[str] | None, typer.Option(help="a learner of the table; may be given again")
    ] = None,
    rows: Rows = None,
    every: Annotated[bool, typer.Option("--every", help="each setting, not the best")] = False,
    as_json: AsJson = False,
) -> None:
    """Ratings of films by `fm`, beside river's factorization machines and `linear`.

    Needs MovieLens in ONLINE_DATA_DIR.  Example: python -m benchmarks factors --learner fm
    """
    from benchmarks.quality import factors as bench

    names = one_of(learner, bench.LEARNERS)
    data = needed(data_dir(), "the ratings")
    found = bench.run(bench.ratings(data, "proof")[:rows], names, progress=progress)
    title = "stars of films, and whether four or more"
    show(title, found if every else bench.best(found), as_json=as_json)


@app.command()
def tables(
    ids: Annotated[int, typer.Option(help="ids of the table", min=1_000)] = 10_000_000,
    width: Annotated[int, typer.Option(help="numbers of a row", min=1)] = 16,
    as_json: AsJson = False,
) -> None:
    """A table of ids beside a dict with numpy, a dict with torch, and dicts of floats.

    Takes 2 GB and some minutes.  Example: python -m benchmarks tables --ids 1000000
    """
    from benchmarks.speed import growing, host_table
    from benchmarks.speed import ids as bench

    show(f"tables of {ids:,} ids", bench.run(ids, width), as_json=as_json)
    show("snapshots of the first", bench.run_snapshots(ids, width), as_json=as_json)
    found = [line for words in (500, 1_000_000) for line in bench.events(words, 50)]
    show("events of 30 features, 64 a push", found, as_json=as_json)
    show("one of them alone, pushed", bench.one_event(), as_json=as_json)
    show("pushes of another model beside a table", growing.run(), as_json=as_json)
    memory, replicas = host_table.run(ids, width)
    show("a server and replicas that share the table", memory, as_json=as_json)
    show("the replicas", replicas, as_json=as_json)


@app.command()
def edge(as_json: AsJson = False) -> None:
    """Exports of models trained on real streams: parity by runtime, sizes, times, updates.

    Needs Elec2, INSECTS, SMS texts and MNIST in ONLINE_DATA_DIR; a runtime that is not installed
    (Node, gcc, onnxruntime, a Cortex-M0 compiler) is left out.  Example: python -m benchmarks edge
    """
    from benchmarks.edge import exported as bench

    good = True
    tables = {}
    for title, found in bench.run(data_dir(), lambda x: print(x, file=sys.stderr)):
        good = good and all(getattr(row, "good", True) for row in found)
        tables[title] = [asdict(row) for row in found]
        if not as_json:
            show(title, found, as_json=False)
    if as_json:
        print(json.dumps(tables))
    raise typer.Exit(0 if good else 1)


@app.command()
def conversions(
    stream: Streams = None,
    learner: Annotated[
        list[str] | None, typer.Option(help="a built-in; may be given again")
    ] = None,
    share: Annotated[float, typer.Option(help="of positives; 0: as the stream has them")] = 0.05,
    seed: Annotated[int, typer.Option(help="of the delays, and of which positives stay")] = 1,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Labels that come late and only if they are positive, beside fake negatives weighted.

    Exits 1 if `logreg` closes less than half of the gap to an oracle.  Needs the data sets in
    ONLINE_DATA_DIR.  Example: python -m benchmarks conversions --stream elec2 --learner logreg
    """
    from benchmarks.quality import conversions as bench

    found = [
        line
        for name in one_of(stream, bench.STREAMS)
        for law in bench.LAWS
        for line in bench.run(
            name,
            data_dir(),
            law,
            one_of(learner, bench.LEARNERS),
            rows_max=rows or bench.ROWS,
            share=share or None,
            seed=seed,
        )
    ]
    show("log loss while positive labels come late", found, as_json=as_json)
    raise typer.Exit(0 if bench.kept(found) else 1)


@app.command()
def confidence(
    stream: Streams = None,
    peer: Annotated[
        Path | None, typer.Option(help="Python of an environment with online-conformal==1.0.2")
    ] = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="people of acs by race, sex and disability instead")
    ] = False,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Coverage of sets and intervals, with labels at once, 48 and 500 rows late, beside SAOCP.

    Needs the data sets in ONLINE_DATA_DIR.  Example: python -m benchmarks confidence --stream elec2
    """
    from benchmarks.quality import confidence as bench

    data = needed(data_dir(), "the streams")
    names = stream or [*bench.PROVE, *bench.UNSEEN]
    if groups:
        by = bench.run_groups(data, most=rows, progress=progress)
        show("coverage of groups, with one threshold and with parts of it", by, as_json=as_json)
        return
    found = bench.run(names, data, peer=peer, most=rows, progress=progress)
    show(
        "sets and intervals that are to have the label in 90 of 100 answers", found, as_json=as_json
    )
