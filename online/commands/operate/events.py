"""`online events`: shows predictions and feedback as they happen."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any, Final, Literal

import typer

from online.client.simple_client import NoAnswer, SimpleClient
from online.commands.base import Context, checked, common, pick
from replay.plain import plain

app = typer.Typer(help="Predictions and feedback as they happen.", no_args_is_help=True)

_WIDE: Final = 110  # characters of a row's features per line


@app.command("tail")
@common()
def events_tail(
    context: Context,
    only: Annotated[
        Literal["answer", "label", "choice", "reward"] | None, typer.Option(help="this kind only")
    ] = None,
    source: Annotated[str | None, typer.Option(help="labels of this source only")] = None,
    every: Annotated[float, typer.Option(min=0.05, help="seconds between two polls")] = 0.5,
    seconds: Annotated[
        float | None, typer.Option("--for", min=0, help="end after this time; else with Ctrl-C")
    ] = None,
) -> None:
    """Show what is predicted and learned, one line each, until Ctrl-C (exit code 130).

    It needs an admin token, because the lines contain callers' data.  Replicas keep the newest
    requests only while somebody watches; those that were too fast to be shown are counted.  With
    --json each line is an object.

    Example: online events tail --model phishing --only label
    """
    client = context.connect(timeout_s=10.0)
    name = pick(client, context.model)
    end = None if seconds is None else time.monotonic() + seconds
    cursors: dict[str, int] = {}
    try:
        while True:
            for answer in _look(client, name, cursors):
                _print(answer, only, source, as_json=context.as_json)
            sys.stdout.flush()
            if end is not None and time.monotonic() >= end:
                return
            time.sleep(every)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _look(client: SimpleClient, model: str, cursors: dict[str, int]) -> list[dict[str, Any]]:
    """Poll once more than there are replicas, because the balancer chooses which one answers."""
    events: list[dict[str, Any]] = []
    for _ in range(max(len(cursors), 1) + 1):
        after = "&after=".join(f"{n}@{replica}" for replica, n in cursors.items())
        query = f"?after={after}" if after else ""
        try:
            answer = checked(client.get(f"/v1/models/{model}/live{query}"))
        except NoAnswer as error:
            print(f"online: {error}", file=sys.stderr)
            break
        cursors[answer["replica"]] = answer["cursor"]
        if answer["missed"]:
            events.append(
                {"kind": "missed", "rows": answer["missed"], "replica": answer["replica"]}
            )
        events += ({**event, "replica": answer["replica"]} for event in answer["events"])
    return sorted(events, key=lambda event: float(event.get("at", 0.0)))


def _print(event: dict[str, Any], only: str | None, source: str | None, *, as_json: bool) -> None:
    kind = event["kind"]
    others = only not in (None, kind) or (source is not None and event.get("source") != source)
    if kind not in ("more", "missed") and others:
        return
    if as_json:
        print(json.dumps(event))
    elif kind in ("more", "missed"):
        print(f"{'':12} … and {event['rows']:,} {'more rows' if kind == 'more' else 'requests'}")
    else:
        at = time.strftime("%H:%M:%S", time.localtime(event["at"]))
        ms = int(event["at"] % 1 * 1000)
        known = event.get("features")
        features = f"  {json.dumps(known, ensure_ascii=False)}" if known else ""
        text = features if len(features) <= _WIDE else features[: _WIDE - 1] + "…"
        if kind == "answer":
            line = f"-> {json.dumps(event['prediction'])}{_sure(event)}"
        elif kind == "choice":
            line = f"-> {event['action']} ({event['probability']:.2f} of {event['of']} actions)"
        else:
            label = json.dumps(event["label"]) if "label" in event else "no label,"
            line = f"<- {label} {event['status']} of {event['source']}"
        print(plain(f"{at}.{ms:03} {line}{text}"))


def _sure(event: dict[str, Any]) -> str:
    """The probability of the predicted label, if the model has one."""
    prediction = event["prediction"]
    text = prediction if isinstance(prediction, str) else json.dumps(prediction)
    share = (event.get("probabilities") or {}).get(text)
    return "" if share is None else f" ({share:.2f})"
