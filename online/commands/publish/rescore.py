"""`online rescore`: scores tables with a snapshot, audits the scores, and publishes them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from online.commands.base import (
    Context,
    Model,
    common,
    counting,
    duration,
    in_private,
    need_table_packages,
    pick_model,
)
from online.commands.repeat import in_child, repeat, without
from online.errors import ConfigError, OnlineError
from online.settings.config import Settings, environment
from online.settings.model import ModelSettings

if TYPE_CHECKING:
    from online.models.rewards import Action
    from online.rescore.plan import Plan
    from online.rescore.pool import Deal
    from online.rescore.run import Outcome, Request, Scored, Start
    from online.rescore.work import MakeModel

RAY_ROWS: Final = 2_000_000
"""Rows of a table from which scoring in one process takes longer than starting Ray."""

_ONE_BY_ONE: Final = 20  # factor of time per row if a model predicts row by row

Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="local, auto or host:port; default: a job's own cluster, else no Ray for tables below "
        "--ray-rows, and local for larger ones",
    ),
]
RayRows = Annotated[
    int,
    typer.Option(
        "--ray-rows",
        min=0,
        help="rows from which a local Ray is started; a twentieth of them for a model that "
        "predicts row by row",
    ),
]
Ttl = Annotated[str | None, typer.Option("--ttl", help="how long scores are served, as 7d")]
Store = Annotated[
    str | None, typer.Option("--store", help="also by key: sqlite:FOLDER or redis://host:6379/0")
]


@common(model=False)
def rescore(
    context: Context,
    files: Annotated[
        list[str],
        typer.Option("--input", help="Parquet, CSV or JSON lines; a folder; s3://…; repeatable"),
    ],
    output: Annotated[str, typer.Option("--output", help="folder of all runs; s3://…")],
    model: Model = None,
    snapshot: Annotated[str, typer.Option(help="its name, or latest")] = "latest",
    store: Store = None,
    ttl: Ttl = None,
    key: Annotated[str | None, typer.Option(help="column of the rows' ids")] = None,
    time_column: Annotated[
        str | None, typer.Option("--time", help="column of the time for which features are valid")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="a column to leave out")] = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="columns that the model knows may be missing")
    ] = False,
    actions: Annotated[
        Path | None,
        typer.Option(help="JSON file of actions: choose the best of them for each row's context"),
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="default: from files and snapshot")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="publish though scores shifted, or features are older")
    ] = False,
    workers: Annotated[int, typer.Option(help="processes that score", min=1, max=1_024)] = 2,
    ray: Ray = None,
    ray_rows: RayRows = RAY_ROWS,
    every: Annotated[str | None, typer.Option(help="repeat at this interval, as 1h")] = None,
) -> None:
    """Score tables with a snapshot of a model; the service need not run.

    Scores are written aside, read back and audited, and published atomically.  An interrupted
    command continues where it ended when it is repeated; a completed one does nothing.

    Example: online rescore --input people.parquet --key id --output ./scores

    Example: online rescore --input s3://lake/day/ --key id --output s3://lake/scores
    --store sqlite:./state/scores --ttl 7d
    """
    from online.challenger.promotion import as_stored

    settings = as_stored(context.settings())
    places = (Path(output), Path((store or "").removeprefix("sqlite:")))
    if any(place.resolve().is_relative_to(settings.state_dir) for place in places):
        in_private(settings)  # permissions of other folders are the user's choice
    chosen = pick_model(settings, model)
    ttl_s = None if ttl is None else duration("--ttl", ttl)
    if actions is not None and chosen.choose is None:
        raise ConfigError("--actions", f"{chosen.name} does not choose", "Set `task: choose`")
    need_table_packages()
    if every is not None:
        if run_id is not None:
            raise ConfigError("--run-id", "a run has its id only once", "Leave it out with --every")
        repeat(in_child(without(sys.argv[1:], "--every")), duration("--every", every))
    from online.rescore.best import actions_in
    from online.rescore.run import Request
    from online.rows.schema import declared_columns

    request = Request(
        tuple(files), output, run_id, key, time_column, frozenset(ignore or ()), missing_ok, force,
        ttl_s, settings.limits.text_bytes_max, declared_columns(chosen),
    )  # fmt: skip
    among = () if actions is None else actions_in(actions)
    begin = partial(start, output, ray or environment().get("RAY_ADDRESS"), workers, ray_rows)
    _once(request, settings, chosen, snapshot, store, among, begin, as_json=context.as_json)


def _once(
    request: Request, settings: Settings, model: ModelSettings, snapshot: str, store: str | None,
    actions: Sequence[Action], begin: Start, *, as_json: bool,
) -> None:  # fmt: skip
    from online.rescore.run import execute, planned
    from online.rescore.snapshot import scored
    from online.rescore.stores import open_store

    begun = planned(request.output, request.run) if request.run is not None else None
    if begun is not None and snapshot == "latest":  # continue with the run's snapshot
        snapshot = begun.snapshot
    source = scored(model, settings, snapshot, actions)
    opened = None if store is None else open_store(store, model.name, request.ttl_s)
    began = time.monotonic()
    with (
        counting("scoring", hidden=as_json) as progress,
        redirect_stdout(sys.stderr),
    ):  # Ray prints too
        outcome = execute(
            request, source, begin, store=opened, now_s=time.time(), progress=progress
        )
    print_outcome(outcome, source, time.monotonic() - began, as_json=as_json)


@contextmanager
def start(
    output: str, address: str | None, workers: int, ray_rows: int, plan: Plan, make: MakeModel
) -> Iterator[Deal]:
    """Provide the function that scores a plan's shards: in this process, or on Ray with actors.

    Parameters:
        address: Of the Ray cluster; None: this process, or a local Ray from ``ray_rows`` rows on.
    """
    one_by_one = plan.method == "rows"
    if address is None and plan.rows < (ray_rows // _ONE_BY_ONE if one_by_one else ray_rows):
        from online.rescore.work import alone

        yield alone(plan, output, make, time.monotonic)
        return
    from online.rescore.pool import deal
    from online.service.on_ray.scoring_ray import ray_for

    with ray_for(address or "local", f"{output}/{plan.run}", workers, _end):
        yield deal(plan, output, make, workers)


def _end(error: OnlineError) -> None:
    """End this process: its main thread would wait inside Ray for a minute."""
    from online.service import processes

    print(f"online: {error}", file=sys.stderr, flush=True)
    processes.end(processes.own_processes())
    os._exit(1)


def print_outcome(outcome: Outcome, source: Scored, took_s: float, *, as_json: bool) -> None:
    """Print the outcome of a run."""
    report = outcome.report
    facts: dict[str, Any] = asdict(outcome)
    facts["report"] = None if report is None else msgspec.to_builtins(report)
    facts |= {"model": source.name, "version": source.version, "seconds": took_s}
    facts |= {
        "first_s": None,
        "last_s": None,
        "score_s": max(0.0, outcome.last_s - outcome.first_s),
    }
    if outcome.first_s == float("inf"):
        facts["score_s"] = 0.0
    if as_json:
        print(json.dumps(facts))
        return
    if outcome.was_published or report is None:
        print(f"run {outcome.run} is published: nothing to do")
        return
    print(
        f"run {outcome.run} of {source.name} {source.version} is published: {report.scored:,} rows "
        f"scored ({outcome.scored:,} of them now, in {facts['score_s']:.1f} s of {took_s:.1f} s), "
        f"{report.quarantined:,} in quarantine, {report.sampled} checked one by one"
    )
    if outcome.skipped:
        print(f"{outcome.skipped:,} rows keep their score: nothing in them has another weight now")
    elif outcome.all_because:
        print(f"every row was scored: {outcome.all_because}")
    for warning in (*report.warnings, *report.forced):
        print(f"warning: {warning}", file=sys.stderr)
