"""`online report`: reports a model's quality, changes and advice as a page, JSON and exit code."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from online.commands.base import (
    AsJson,
    FileOption,
    Model,
    StateDir,
    bar,
    load_settings,
    moment,
    pick_model,
    replacing,
)
from online.errors import StartRefused
from online.settings.config import Settings
from online.settings.model import ModelSettings
from refusals import installing

if TYPE_CHECKING:
    from evaluation.report.rows import Origin, Rows
    from evaluation.report.values import Report

_OUT = Path("report.html")
_WORDS = {"ok": "OK", "watch": "WATCH", "act": "ACT", "not_enough_data": "NOT ENOUGH DATA"}

Column = Annotated[
    str | None, typer.Option(help="column, if its name is not recognised; none: no such column")
]


def report(
    file: Annotated[
        Path | None, typer.Option("--file", help="CSV or Parquet with predictions and labels")
    ] = None,
    label: Column = None,
    prediction: Column = None,
    score: Column = None,
    time_column: Annotated[str | None, typer.Option("--time", help="as --label")] = None,
    label_time: Column = None,
    version: Column = None,
    source: Column = None,
    features: Annotated[
        str | None, typer.Option(help="columns separated by commas; default: all others")
    ] = None,
    task: Annotated[
        Literal["binary", "multiclass", "regression"] | None, typer.Option(help="task of the file")
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="label whose probability the score is")
    ] = None,
    delay: Annotated[
        int, typer.Option(min=0, help="rows until a label is known, if no column has its time")
    ] = 0,
    model: Model = None,
    since: Annotated[
        str | None, typer.Option(help="labels recorded since: 7d, 2026-05-31 (UTC), …")
    ] = None,
    until: Annotated[str | None, typer.Option(help="and before")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="page to write (.json: its data)")
    ] = None,
    prometheus: Annotated[
        Path | None, typer.Option(help="file for the textfile collector: the verdict as gauges")
    ] = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON's schema")] = False,
) -> None:
    """Evaluate a model from its journal, or from a file of predictions and labels.

    Writes one self-contained page (report.html unless --out says otherwise).  Exit code 0: ok or
    watch; 1: act (or no report: the reason is on stderr); 3: not enough data.

    Example: online report --since 7d --out week.html

    Example: online report --file scored.parquet --label sold --score p_sold

    Example: ray job submit --working-dir . -- online report --file scored.csv --json
    """
    _check_extra()
    from evaluation.report.columns import Asked
    from evaluation.report.values import schema as json_schema

    if schema:
        print(json.dumps(json_schema()))
        return
    if file is not None:
        if model or since or until:
            raise typer.BadParameter("--model, --since and --until are of the journal, not a file")
        asked = Asked(label, prediction, score, time_column, label_time, version, source,
                      None if features is None else tuple(features.split(",")))  # fmt: skip
        made = _of_file(file, asked, task, positive, delay, quiet=as_json)
    else:
        settings = load_settings(path, state_dir=state_dir)
        made = _of_journal(settings, pick_model(settings, model), since, until, quiet=as_json)
    _give(made, out, prometheus, as_json=as_json)
    raise typer.Exit(made.verdict.exit_code)


def _check_extra() -> None:
    from evaluation.report import lacking

    if name := lacking():
        raise StartRefused(
            f"the report needs a package that is missing: {name}", installing("report")
        )


def _of_file(
    file: Path, asked: Any, task: Any, positive: str | None, delay: int, *, quiet: bool
) -> Report:
    from evaluation.report.filerows import FileRows

    rows = FileRows(file, asked, task=task, positive=positive, delay=delay)
    return _made(rows.origin, rows.rows(), quiet=quiet)


def _of_journal(
    settings: Settings, model: ModelSettings, since: str | None, until: str | None, *, quiet: bool
) -> Report:
    from online.rows.journal_rows import JournalRows, open_for_report, origin
    from online.sure.conformal import held

    with contextlib.closing(open_for_report(settings)) as journal:
        if not journal.partitions(model.name):
            known = "Name the model with --model, its settings with --config"
            raise StartRefused(f"the journal has nothing of a model {model.name!r}", known)
        span: dict[str, float] = {}
        if since is not None:
            span["since"] = moment("--since", since, UTC)
        if until is not None:
            span["until"] = moment("--until", until, UTC)
        rows = JournalRows(journal, model, held=held, **span)
        return _made(origin(model), rows, quiet=quiet, newest=rows)


def _made(origin: Origin, rows: Iterable[Rows], *, quiet: bool, newest: Any = None) -> Report:
    from evaluation.report.build import report_on

    with bar("rows", hidden=quiet) as progress:
        task = progress.add_task("rows", total=None)
        return report_on(
            origin,
            rows,
            made_at=time.time(),
            version=lambda: None if newest is None else newest.version,
            progress=lambda n: progress.update(task, completed=n),
        )


def _give(made: Report, out: Path | None, prometheus: Path | None, *, as_json: bool) -> None:
    from evaluation.report.page.render import render
    from evaluation.report.values import to_json

    if prometheus is not None:
        with replacing("--prometheus", prometheus) as part:
            part.write_text(gauges(made), encoding="utf-8")
    target = out if out is not None or as_json else _OUT
    if target is not None:
        data = to_json(made) if target.suffix == ".json" else render(made).encode()
        with replacing("--out", target) as part:
            part.write_bytes(data)
    if as_json:
        sys.stdout.write(to_json(made).decode() + "\n")
        return
    verdict = made.verdict
    print(f"{_WORDS[verdict.state]}: {verdict.sentence}")
    print(f"  {verdict.do}")
    for reason in verdict.reasons[1:]:
        print(f"  also {_WORDS[reason.state].lower()}: {reason.text}")
    print(f"{target}: {len(data):,} bytes")


def gauges(made: Report) -> str:
    """Format the verdict as Prometheus text; unknown values have no line."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    names = {"model": made.subject.name, "origin": made.subject.origin}
    verdict, rank = made.verdict, ("not_enough_data", "ok", "watch", "act")
    shown = (
        ("state", "0: not enough data, 1: ok, 2: watch, 3: act", rank.index(verdict.state)),
        ("made_seconds", "when the report was made", made.made_at),
        ("since_seconds", "since when the verdict is so", verdict.since_time),
        ("rows", "rows with an answer and a label", made.subject.judged),
    )
    for name, text, value in shown:
        if value is not None:
            gauge = Gauge(f"online_report_{name}", text, list(names), registry=registry)
            gauge.labels(**names).set(value)
    reasons = Gauge(
        "online_report_reasons", "findings", [*names, "section", "state"], registry=registry
    )
    for reason in verdict.reasons:
        reasons.labels(**names, section=reason.section, state=reason.state).inc()
    return generate_latest(registry).decode()
