"""`online top`: shows all models of a running service live in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from online.client.simple_client import NoAnswer, SimpleClient
from online.commands.base import Context, checked, common, console, readable, span
from online.messages.model_status import short

if TYPE_CHECKING:
    from rich.console import RenderableType

_SERIES_S: Final = 3600.0
_SERIES_POINTS: Final = 24
_SERIES_EVERY_S: Final = 15.0  # the interval at which the service records
_FEW: Final = 100  # labels below which scores are not judged, as on the HTML page
_OLD_S: Final = 5.0
_STEPS: Final = "▁▂▃▄▅▆▇█"
_DRIFT: Final = {"act": "[red]act[/red]", "watch": "[yellow]watch[/yellow]"}


@common(model=False, as_json=False)
def top(
    context: Context,
    every: Annotated[float, typer.Option(min=0.2, help="seconds between two updates")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="poll twice, print, and end")] = False,
) -> None:
    """Show every model live until Ctrl-C: score beside baselines, time series, drift, age, traffic.

    The time series is that of the last hour, as recorded by the service.  Rates are sums over all
    replicas between two updates.

    Example: online top
    """
    from rich.live import Live

    client = context.connect(timeout_s=10.0)
    screen = Screen(client)
    if once or not sys.stdout.isatty():
        screen.look(time.monotonic())
        time.sleep(every)
        screen.look(time.monotonic())
        console().print(screen.drawn())
        return
    try:
        with Live(console=console(), auto_refresh=False, screen=True) as live:
            while True:
                screen.look(time.monotonic())
                live.update(screen.drawn(), refresh=True)
                time.sleep(every)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


class Screen:
    """Composes the screen from the newest statuses, the previous ones, and the time series."""

    def __init__(self, client: SimpleClient) -> None:
        self._client = client
        self._models: Sequence[Mapping[str, Any]] = ()
        self._totals: dict[str, dict[str, float]] = {}
        self._rates: dict[str, dict[str, float]] = {}
        self._series: dict[str, tuple[float, str]] = {}
        self._at_s = 0.0
        self._problem: str | None = None

    def look(self, now_s: float) -> None:
        """Poll all models; ``now_s``: a monotonic clock."""
        try:
            models = checked(self._client.get("/v1/models"))["models"]
        except NoAnswer as error:
            self._problem = str(error)
            return
        self._problem = None
        for model in models:
            name, now = model["model"], totals(model)
            if (before := self._totals.get(name)) is not None and now_s > self._at_s:
                # A restarted replica counts from 0.
                self._rates[name] = {
                    key: max(value - before[key], 0.0) / (now_s - self._at_s)
                    for key, value in now.items()
                }
            self._totals[name] = now
            if now_s - self._series.get(name, (-1e9, ""))[0] >= _SERIES_EVERY_S:
                self._series[name] = now_s, self._series_line(model)
        self._models, self._at_s = models, now_s

    def _series_line(self, model: Mapping[str, Any]) -> str:
        """The score of the last hour as block characters; empty if it is unknown."""
        url = f"/v1/models/{model['model']}/history"
        try:
            params = {"since": time.time() - _SERIES_S, "points": _SERIES_POINTS}
            answer = self._client.get(url, params=params)
        except NoAnswer:
            return ""
        if answer.status_code != 200:
            return ""
        columns = answer.json()["columns"]
        name = "anomalies" if model.get("anomaly") else score_of(model)[0]
        return blocks(columns.get(name, []))

    def drawn(self) -> RenderableType:
        """The table of all models, with problems below it."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, expand=False)
        for column in (
            "model", "score", "rule", "verdict", "last hour", "drift", "age", "answers/s",
            "rows/s", "behind", "set aside", "replicas",
        ):  # fmt: skip
            left = column in ("model", "verdict", "last hour", "drift")
            table.add_column(column, justify="left" if left else "right", no_wrap=column == "model")
        notes: list[Text] = []
        for model in self._models:
            name = model["model"]
            series = self._series.get(name, (0.0, ""))[1]
            table.add_row(*row(readable(model), self._rates.get(name, {}), series))
            if model["incident"]:
                notes.append(Text(f"{readable(name)}: {readable(model['incident'])}", style="red"))
        if self._problem is not None:
            notes.append(Text(f"{self._problem}; the numbers are older", style="red"))
        return Group(table, *notes)


def totals(model: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of answers and labels of all replicas."""
    reports = model["replicas"].values()
    labels = ("feedback_learned", "feedback_clipped", "feedback_quarantined", "feedback_queued")
    return {
        "answers": sum(r.get("predictions", 0.0) + r.get("choices", 0.0) for r in reports),
        "labels": sum(report.get(name, 0.0) for report in reports for name in labels),
    }


def score_of(model: Mapping[str, Any]) -> tuple[str, str, str]:
    """Names of the score, and of the scores of two baselines."""
    if model["task"] == "choose":
        return "reward", "constant", "evenly"
    if model["task"] == "regression":
        return "mae", "last_mae", "mean_mae"
    return "accuracy", "no_change", "majority"


def verdict(model: Mapping[str, Any]) -> str:
    """A verdict on the score, as on the HTML page."""
    quality, (score, *rules) = model["quality"], score_of(model)
    if model["incident"]:
        return "[red]incident[/red]"
    if (anomaly := model.get("anomaly")) and anomaly["rows"]:
        auc = "" if quality.get("auc") is None else f", AUC {short(quality['auc'])}"
        return f"{100 * anomaly['share']:.1f} % anomalies{auc}"
    if quality["n"] < _FEW:
        return "too few labels"
    known = [quality[rule] for rule in rules if quality[rule] is not None]
    better = [
        quality[score] < value if score == "mae" else quality[score] > value for value in known
    ]
    return "[green]better than both[/green]" if all(better) else "[yellow]not better[/yellow]"


def row(model: Mapping[str, Any], rates: Mapping[str, float], series: str) -> list[str]:
    """The table cells of a model, whose texts are already escaped."""
    quality, (score, rule, _) = model["quality"], score_of(model)
    reports = model["replicas"].values()
    age_s = max((r["age_ms"] for r in reports if "age_ms" in r), default=0.0) / 1000
    drift = "–" if model["drift"] is None else str(model["drift"]["state"])
    frozen = bool((model["rewrites"] or {}).get("frozen"))
    age = span(age_s) if age_s >= 1 else f"{age_s * 1000:.0f} ms"
    behind = sum(r.get("behind_rows", 0.0) for r in reports)
    aside = max((r.get("filter_quarantined_sources", 0.0) for r in reports), default=0.0)
    return [
        str(model["model"]),
        short(quality[score]) if quality["n"] else "–",
        short(quality[rule]) if quality["n"] else "–",
        "[yellow]frozen[/yellow]" if frozen else verdict(model),
        series,
        _DRIFT.get(drift, drift),
        f"[red]{age}[/red]" if age_s > _OLD_S or model["server"] is None else age,
        *(f"{rates[key]:,.1f}" if key in rates else "–" for key in ("answers", "labels")),
        f"{behind:,.0f}",
        f"{aside:,.0f}",
        str(len(model["replicas"])),
    ]


def blocks(values: Sequence[float | None]) -> str:
    """Values as block characters of eight heights, scaled from the least to the greatest."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    scale = (len(_STEPS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        " " if value is None else _STEPS[round((value - low) * scale)] for value in values
    )
