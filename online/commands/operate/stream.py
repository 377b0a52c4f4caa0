"""`online stream`: plays a data set against the running service, test then learn."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from typing import Annotated, Any

import typer

from online.client.simple_client import SimpleClient
from online.commands.base import Context, Model, checked, client_of, common, pick
from online.errors import ConfigError, StartRefused
from online.settings import config
from online.settings.purposes import PURPOSES


@common(model=False)
def stream(
    context: Context,
    name: Annotated[str, typer.Argument(help="name of a stream, or a table as for `online init`")],
    model: Model = None,
    rate: Annotated[str, typer.Option(help="rows per second, or `max`")] = "100",
    rows: Annotated[int | None, typer.Option(min=1, help="play only this many rows")] = None,
    times: Annotated[int, typer.Option(min=1, help="play the stream this many times")] = 1,
    label: Annotated[str | None, typer.Option(help="label column of a table")] = None,
    source: Annotated[str, typer.Option(help="source of the feedback")] = "stream",
    url: Annotated[
        str | None, typer.Option(help="URL of the service; its token: ONLINE_TOKEN")
    ] = None,
) -> None:
    """Play a data set against the running service, test then learn.

    Example: online stream phishing --rate max
    """
    from online.client.play import line, play
    from online.tables.streams import stream_of

    per_s = None if rate == "max" else _rate(rate)
    reached = context.reached(url)
    client = client_of(reached)
    served = pick(client, model)
    purpose = PURPOSES[checked(client.get(f"/v1/models/{served}"))["task"]]
    played = stream_of(name, config.data_dir(), label=label, task=purpose.labels)
    stopped = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    declared = declared_features(client, served)
    texts = {name for name, one in declared.items() if "string" in one["type"]}
    others = [n for n in next(iter(played.rows), ({}, None))[0] if n not in declared]
    if declared and others:
        said = f"{len(others):,} columns are left out, model {served} declares no such features"
        print(f"{said}: {', '.join(others)[:200]}", file=sys.stderr)
    n_rows = min(rows or played.n_rows, played.n_rows)
    begun = printed_s = time.monotonic()
    score = None
    terminal = sys.stderr.isatty() and not context.as_json
    for score in play(
        played, reached.url, served, rate=per_s, rows=rows, times=times, source=source,
        stopped=stopped.is_set, token=reached.token, texts=texts,
    ):  # fmt: skip
        if not context.as_json and time.monotonic() - printed_s >= (0.2 if terminal else 5.0):
            printed_s = time.monotonic()
            end = "\r" if terminal else "\n"
            print(f"{line(score, n_rows)}", end=end, file=sys.stderr, flush=True)
    if score is None:
        raise StartRefused(f"{name} has no rows", "Name another stream")
    elapsed = time.monotonic() - begun
    result = {
        "stream": played.name, "model": served, "rows": score.rows, "retries": score.retries,
        "rows_per_s": round(score.rows / elapsed, 1), **score.summary(),
        "rows_played_again": max(score.rows - n_rows, 0), "interrupted": stopped.is_set(),
    }  # fmt: skip
    if context.as_json:
        print(json.dumps(result))
    else:
        print(f"{line(score, n_rows)}" + " " * 20)
        print(f"{score.rows:,} rows in {elapsed:.1f} s, {result['rows_per_s']:,} rows/s")
    raise typer.Exit(130 if stopped.is_set() else 0)


def declared_features(client: SimpleClient, model: str) -> dict[str, Any]:
    """Return the features that the model declares, each with its JSON schema."""
    described = checked(client.get("/openapi.json"))["components"]["schemas"]
    declared: dict[str, Any] = described.get(f"RowOf.{model}", {}).get("properties", {})
    return declared


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError("--rate", f"{text!r} is not a rate", "Give rows a second, or `max`")
    return value
