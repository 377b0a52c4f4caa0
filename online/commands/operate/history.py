"""`online history`: shows a model's recorded time series, or writes it to a file as a table."""

from __future__ import annotations

import csv
import json
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from online.commands.base import (
    Context,
    common,
    console,
    moment,
    pick_model,
    readable,
    replacing,
    table,
)
from online.errors import ConfigError, StartRefused
from refusals import installing

_SHOWN: Final = (
    "n", "accuracy", "no_change", "mae", "last_mae", "predictions_per_s", "learned_per_s",
    "refused_per_s", "predict_p99_s", "age_ms", "drift_state",
)  # fmt: skip
_MARKS: Final = 20
_SUFFIXES: Final = (".parquet", ".csv", ".json")


@common(model=False)
def history(
    context: Context,
    since: Annotated[
        str, typer.Option(help="start: 90m, 6h, 7d, 4w, or a time as 2026-01-31T14:00")
    ] = "1d",
    until: Annotated[str | None, typer.Option(help="end; default: now")] = None,
    points: Annotated[int, typer.Option(min=1, max=2000, help="number of steps to show")] = 24,
    out: Annotated[
        Path | None, typer.Option(help="write every step to this file: .parquet, .csv or .json")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="which model, if the settings have several")
    ] = None,
) -> None:
    """Show how a model did over time, as the service has recorded it; it need not run.

    With --out every step is written: all of the last hour, minutes for a day, quarters of an hour
    for a month, hours for a year.  Events (starts, decisions, alarms) are a text column, `marks`.

    Example: online history --since 7d

    Example: online history --since 52w --out history.parquet
    """
    from online.monitoring import series

    if out is not None and out.suffix not in _SUFFIXES:
        problem = f"{out} is none of {', '.join(_SUFFIXES)}"
        raise ConfigError("--out", problem, "Use one of these endings")
    settings = context.settings()
    name = pick_model(settings, model).name
    begin = moment("--since", since)
    end = time.time() if until is None else moment("--until", until)
    if not begin < end:
        raise ConfigError("--since", f"{since} is not before the end", "Give an earlier time")
    folder = settings.state_dir / series.FOLDER
    try:
        recorded = series.read(folder, name, begin, end, None if out is not None else points)
    except sqlite3.Error as error:
        remedy = "Run it again; or remove the state folder's `history`: a new one is started"
        raise StartRefused(f"the history of {name} can't be read: {error}", remedy) from None
    if not recorded["recorded"]:
        raise StartRefused(
            f"nothing is recorded of {name} in {folder}",
            "It is recorded where `online serve` runs: name its folder with --state-dir",
        )
    if out is not None:
        with replacing("--out", out) as part:
            _write(part, out.suffix, name, recorded)
        print(f"{len(recorded['columns']['at']):,} steps are in {out}", file=sys.stderr)
    elif context.as_json:
        print(json.dumps(recorded))
    else:
        _print(recorded)


def table_of(model: str, recorded: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The time series as columns of equal length; ``marks``: the events within each step."""
    columns: dict[str, list[Any]] = {"model": [], **recorded["columns"]}
    at = columns["at"]
    columns["model"] = [model] * len(at)
    texts: list[list[str]] = [[] for _ in at]
    for mark in recorded["marks"]:
        step = next((i for i, end in enumerate(at) if mark["at"] <= end), None)
        if step is not None:
            texts[step].append(f"{mark['kind']}: {mark['text']}")
    return {**columns, "marks": ["; ".join(words) or None for words in texts]}


def _write(out: Path, suffix: str, model: str, recorded: Mapping[str, Any]) -> None:
    columns = table_of(model, recorded)
    if suffix == ".json":
        out.write_text(json.dumps(columns))
    elif suffix == ".csv":
        with out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    else:
        _write_parquet(out, columns)


def _write_parquet(out: Path, columns: Mapping[str, list[Any]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise StartRefused(
            "Parquet files need a package that is missing", installing("store")
        ) from None
    arrays = {
        name: pa.array(values, pa.string() if name in ("model", "marks") else pa.float64())
        for name, values in columns.items()
        if name != "at"
    }
    at = [round(value * 1_000_000) for value in columns["at"]]
    arrays = {"at": pa.array(at, pa.timestamp("us", "UTC")), **arrays}
    pq.write_table(pa.table(arrays), out)


def _print(recorded: Mapping[str, Any]) -> None:
    columns = recorded["columns"]
    names = [name for name in _SHOWN if any(v is not None for v in columns.get(name, ()))]
    rows = table("up to", *names, right=("up to", *names))
    for i, at in enumerate(columns["at"]):
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(at))
        rows.add_row(when, *(_cell(columns[name][i]) for name in names))
    console().print(rows) if columns["at"] else print("no steps in this time")
    for mark in readable(recorded["marks"][-_MARKS:]):
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(mark["at"]))
        console().print(f"{when}  [bold]{mark['kind']}[/bold]: {mark['text']}")


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"
