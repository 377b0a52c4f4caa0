"""The command line: `online serve | stream | status | snapshot | config | fsck | bench`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import yaml
from rich.console import Console
from rich.table import Table

from online import __version__, config
from online.bench.cli import app as bench_app
from online.errors import ConfigError, OnlineError, StartRefused

app = typer.Typer(
    name="online",
    help="A model that answers over HTTP and learns from every piece of feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
snapshot_app = typer.Typer(help="List, create, show and pin snapshots.", no_args_is_help=True)
config_app = typer.Typer(help="Show or check the settings.", no_args_is_help=True)
app.add_typer(snapshot_app, name="snapshot")
app.add_typer(config_app, name="config")
app.add_typer(bench_app, name="bench")

_STOP_S = 4.0  # then everything is ended at once, which takes up to a second
_TEND_S = 0.25

File = Annotated[Path | None, typer.Argument(help="settings file; none: online.yaml if it is here")]
FileOption = Annotated[Path | None, typer.Option("--config", help="settings file")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="state folder of the service")]
AsJson = Annotated[bool, typer.Option("--json", help="print data as JSON")]
Model = Annotated[str | None, typer.Option("--model", help="which model, if several are served")]


def load_settings(path: Path | None, **overrides: Any) -> config.Settings:
    """Settings from the file named, else from ./online.yaml if it is there, else the defaults."""
    if path is None and Path("online.yaml").exists():
        path = Path("online.yaml")
    return config.load(path, overrides, config.environment())


def service(path: Path | None, state_dir: Path | None) -> dict[str, Any]:
    """Facts of the running service."""
    from online.names import running

    return running(load_settings(path, state_dir=state_dir))


def pick(client: httpx.Client, model: str | None) -> str:
    """The model meant: the only one served, unless it is named."""
    served = [m["model"] for m in client.get("/v1/models").json()["models"]]
    if model is None and len(served) == 1:
        return str(served[0])
    if model in served:
        return str(model)
    raise ConfigError("--model", f"{model!r} is not served", f"Name one of: {', '.join(served)}")


@app.command()
def serve(
    path: File = None,
    state_dir: StateDir = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 takes a free one")] = None,
    replicas: Annotated[int | None, typer.Option(help="how many replicas")] = None,
    play: Annotated[str | None, typer.Option(help="play this stream until Ctrl-C")] = None,
    rate: Annotated[float, typer.Option(help="rows a second of --play")] = 100.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="begin without what was learned")] = False,
    relearn: Annotated[
        bool, typer.Option("--relearn", help="learn the whole journal again")
    ] = False,
) -> None:
    """Start the service and keep it running until Ctrl-C.

    Example: online serve online.yaml
    """
    from online.cluster import Service

    settings = load_settings(path, state_dir=state_dir, port=port, replicas=replicas)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    stop = threading.Event()

    started = False

    def said(line: str) -> None:
        print(f"  {line}", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):  # Ray puts its own in, which aborts
            signal.signal(number, on_signal)

    running = Service(settings, said)

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():  # the second one: at once
            running.kill()
            os._exit(130)
        stop.set()
        if not started:  # give the start up, wherever it is
            raise KeyboardInterrupt

    print(f"online {__version__}, state in {settings.state_dir}", flush=True)
    code = 0
    try:
        running.start(fresh=fresh, relearn=relearn)
        started = True
        _print_urls(settings, running.url)
        if play is not None:
            threading.Thread(
                target=_play_forever, args=(running.url, settings, play, rate, stop), daemon=True
            ).start()
        code = _watch(running, stop)
        print("\nstopping: replicas push, a last snapshot is written", flush=True)
    except KeyboardInterrupt:
        code = 130
    finally:
        stop.set()
        watchdog = threading.Timer(_STOP_S, _kill, args=(running, code))
        watchdog.daemon = True
        watchdog.start()
        running.stop()
        watchdog.cancel()
    raise typer.Exit(code)


def _watch(running: Any, stop: threading.Event) -> int:
    """Until a signal (0), or until Ray is gone (2)."""
    while not stop.wait(_TEND_S):
        running.tend()
        if not running.alive():
            print("Ray has stopped: the service can't go on; start it again", file=sys.stderr)
            return 2
    return 0


def _kill(running: Any, code: int) -> None:
    running.kill()
    os._exit(code)


def _print_urls(settings: config.Settings, url: str) -> None:
    name = settings.models[0].name
    print(f"\n  {url}/          what is served, and how good it is")
    print(f"  {url}/docs      every request and answer")
    print(f"  {url}/metrics   Prometheus\n")
    print(f"  models: {', '.join(m.name for m in settings.models)}   stop with Ctrl-C\n")
    print(f"  online status --state-dir {settings.state_dir}", flush=True)
    print(f"  online stream NAME --model {name} --state-dir {settings.state_dir}\n", flush=True)


def _play_forever(
    url: str, settings: config.Settings, name: str, rate: float, stop: threading.Event
) -> None:
    from evaluation.streams import open_stream
    from online.play import PlayFailed, play

    stream = open_stream(name, config.data_dir())
    model = settings.models[0].name
    print(f"  playing {stream.name} ({stream.n_rows:,} rows) at {rate:g} rows/s, over and over\n")
    shown = time.monotonic()
    try:
        scores = play(
            stream, url, model, rate=rate, rows=None, times=10**9, source="play",
            stopped=stop.is_set,
        )  # fmt: skip
        for score in scores:
            if time.monotonic() - shown >= 2.0:
                shown = time.monotonic()
                print(f"  {_line(score, stream.n_rows)}", flush=True)
    except PlayFailed as error:
        if not stop.is_set():
            print(f"  playing stopped: {error}", file=sys.stderr, flush=True)


def _line(score: Any, n_rows: int) -> str:
    """One line of progress: the score beside its baselines, and which time it is played."""
    s = score.summary()
    turn, row = divmod(max(score.rows - 1, 0), n_rows)
    again = "" if turn == 0 else f"  (rows seen before: time {turn + 1} through)"
    if score.task == "regression":
        text = f"MAE {_f(s['mae'])}  mean so far {_f(s['mean_mae'])}  last {_f(s['last_mae'])}"
    else:
        text = (
            f"accuracy {_f(s['accuracy'])}  majority {_f(s['majority'])}  no-change "
            f"{_f(s['no_change'])}  kappa-M {_f(s['kappa_m'])}  kappa-T {_f(s['kappa_t'])}"
        )
    return f"row {row + 1:>6,}/{n_rows:,}  {text}{again}"


def _f(value: float | None) -> str:
    if value is None:
        return "  –  "
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


@app.command()
def stream(
    name: Annotated[str, typer.Argument(help="a stream's name, or a CSV file with a header")],
    model: Model = None,
    rate: Annotated[str, typer.Option(help="rows a second, or `max`")] = "100",
    rows: Annotated[int | None, typer.Option(help="play only so many rows")] = None,
    times: Annotated[int, typer.Option(help="play it so many times")] = 1,
    label: Annotated[str | None, typer.Option(help="label column of a CSV file")] = None,
    source: Annotated[str, typer.Option(help="source that the feedback names")] = "stream",
    url: Annotated[str | None, typer.Option(help="service to play against")] = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Play a data set against the running service, test then learn.

    Example: online stream phishing --rate max
    """
    from evaluation.streams import open_stream
    from online.play import play

    per_s = None if rate == "max" else _rate(rate)
    played = open_stream(name, config.data_dir(), label=label)
    base = url or str(service(path, state_dir)["url"])
    stopped = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    with httpx.Client(base_url=base, timeout=30.0) as client:
        served = pick(client, model)
    n_rows = min(rows or played.n_rows, played.n_rows)
    begun = shown = time.monotonic()
    score = None
    terminal = sys.stderr.isatty() and not as_json
    for score in play(
        played, base, served, rate=per_s, rows=rows, times=times, source=source,
        stopped=stopped.is_set,
    ):  # fmt: skip
        if not as_json and time.monotonic() - shown >= (0.2 if terminal else 5.0):
            shown = time.monotonic()
            end = "\r" if terminal else "\n"
            print(f"{_line(score, n_rows)}", end=end, file=sys.stderr, flush=True)
    if score is None:
        raise StartRefused(f"{name} has no rows", "Name another stream")
    elapsed = time.monotonic() - begun
    result = {
        "stream": played.name, "model": served, "rows": score.rows, "retries": score.retries,
        "rows_per_s": round(score.rows / elapsed, 1), **score.summary(),
        "rows_played_again": max(score.rows - n_rows, 0), "interrupted": stopped.is_set(),
    }  # fmt: skip
    if as_json:
        print(json.dumps(result))
    else:
        print(f"{_line(score, n_rows)}" + " " * 20)
        print(f"{score.rows:,} rows in {elapsed:.1f} s, {result['rows_per_s']:,} rows/s")
    raise typer.Exit(130 if stopped.is_set() else 0)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError("--rate", f"{text!r} is not a rate", "Give rows a second, or `max`")
    return value


@app.command()
def status(path: FileOption = None, state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """What runs: version, freshness, quality and replicas of each model.

    Example: online status --json
    """
    facts = service(path, state_dir)
    with httpx.Client(base_url=facts["url"], timeout=10.0) as client:
        models = client.get("/v1/models").json()["models"]
    if as_json:
        print(json.dumps({"url": facts["url"], "models": models}))
        return
    console = Console()
    console.print(facts["url"])
    for model in models:
        _show_model(console, model)


def _show_model(console: Console, model: dict[str, Any]) -> None:
    server = model["server"]
    quality = model["quality"]
    console.print(f"\n[bold]{model['model']}[/bold]  {model['task']}, {model['learner']}")
    console.print(f"version {model['version']}   learned {model['learned']:,} events")
    shown = "  ".join(f"{k} {_f(v)}" for k, v in quality.items() if k != "n" and v is not None)
    console.print(f"prequential over {quality['n']:,} answers: {shown or 'no answers yet'}")
    if server is None:
        console.print("[red]parameter server: no contact; replicas answer and keep feedback[/red]")
    else:
        age = server["snapshot_age_s"]
        text = "none yet" if age is None else f"{age:.0f} s old"
        console.print(f"parameter server: {server['state']}; newest snapshot {text}")
        for name, reason in server["refused"].items():
            console.print(f"[red]snapshot {name} was refused: {reason}[/red]")
    if model["incident"]:
        console.print(f"[red]incident: {model['incident']}[/red]")
    table = Table(box=None, pad_edge=False)
    for column in ("replica", "predictions", "learned", "age ms", "rows behind", "contact"):
        table.add_column(column, justify="left" if column == "replica" else "right")
    for name, report in model["replicas"].items():
        table.add_row(
            name,
            f"{report.get('predictions', 0):,.0f}",
            f"{report.get('learned', 0):,.0f}",
            f"{report['age_ms']:.0f}" if "age_ms" in report else "–",
            f"{report.get('behind_rows', 0):,.0f}",
            f"{report['contact_age_s']:.1f} s ago",
        )
    console.print(table)


@snapshot_app.command("list")
def snapshot_list(
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Snapshots kept, newest first.

    Example: online snapshot list
    """
    with httpx.Client(base_url=service(path, state_dir)["url"], timeout=60.0) as client:
        name = pick(client, model)
        found = checked(client.get(f"/v1/models/{name}/snapshots"))["snapshots"]
    if as_json:
        print(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("snapshot", "version", "age", "bytes", "pinned"):
        table.add_column(column)
    for s in found:
        age = time.time() - s["created_at"]
        pinned = "yes" if s["pinned"] else ""
        table.add_row(s["name"], str(s["version"]), f"{age:,.0f} s", f"{s['size']:,}", pinned)
    Console().print(table)


@snapshot_app.command("create")
def snapshot_create(
    model: Model = None,
    pin: Annotated[bool, typer.Option("--pin", help="keep it beyond the retention")] = False,
    path: FileOption = None,
    state_dir: StateDir = None,
) -> None:
    """Publish a snapshot now.

    Example: online snapshot create --pin
    """
    with httpx.Client(base_url=service(path, state_dir)["url"], timeout=60.0) as client:
        name = pick(client, model)
        url = f"/v1/models/{name}/snapshots"
        print(json.dumps(checked(client.post(url, params={"pin": pin}))))


@snapshot_app.command("pin")
def snapshot_pin(
    snapshot: Annotated[str, typer.Argument(help="its name, from `snapshot list`")],
    off: Annotated[bool, typer.Option("--off", help="no longer")] = False,
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
) -> None:
    """Keep a snapshot beyond the retention, or (--off) no longer.

    Example: online snapshot pin 3-120
    """
    with httpx.Client(base_url=service(path, state_dir)["url"], timeout=60.0) as client:
        name = pick(client, model)
        url = f"/v1/models/{name}/snapshots/{snapshot}/pin"
        print(json.dumps(checked(client.post(url, params={"on": not off}))))


@snapshot_app.command("show")
def snapshot_show(
    file: Annotated[Path, typer.Argument(help="a snapshot's file")], as_json: AsJson = True
) -> None:
    """What a snapshot file holds, checked; works without a running service.

    Example: online snapshot show state/snapshots/prices/0123456789abcdef/NAME
    """
    from paramserver.snapshots.format import decode

    try:
        data = file.read_bytes()
    except OSError as error:
        hint = "Name a file under state_dir/snapshots"
        raise StartRefused(f"{file}: {error.strerror}", hint) from None
    state = decode(data)
    sizes = {n: len(b.data) if hasattr(b.data, "__len__") else 1 for n, b in state.values.items()}
    print(
        json.dumps(
            {
                "model": state.model, "spec": state.spec, "version": list(state.version),
                "clock": dict(state.clock), "closed": sorted(state.closed),
                "created_at": state.created_at, "parent": state.parent, "blocks": sizes,
                "spec_text": json.loads(state.spec_text) if state.spec_text else None,
            },
            indent=1,
        )
    )  # fmt: skip


def checked(response: httpx.Response) -> dict[str, Any]:
    """The answer's data, or its error as ours."""
    if response.status_code >= 400:
        error = response.json().get("error", {})
        raise StartRefused(error.get("message", response.text), error.get("hint") or "")
    data: dict[str, Any] = response.json()
    return data


@config_app.command("show")
def config_show(path: File = None, as_json: AsJson = False) -> None:
    """Every setting with its value, defaults included.

    Example: online config show online.yaml
    """
    data = load_settings(path).model_dump(mode="json")
    print(json.dumps(data) if as_json else yaml.safe_dump(data, sort_keys=False), end="")


@config_app.command("check")
def config_check(path: File = None) -> None:
    """Check a settings file, and that its models can be built.

    Example: online config check online.yaml
    """
    from online.names import load_model

    settings = load_settings(path)
    for model in settings.models:
        loaded = load_model(model, settings, b"\0" * 32)
        text = "any number of replicas" if loaded.model.mergeable else "replicas: 1"
        print(f"{model.name}: {model.task}, {model.learner}, {text}")
    print("the settings are good")


@app.command()
def fsck(path: FileOption = None, state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Compare the model's digest of learned events with the journal.

    Works with the service running (it waits until nothing is in flight) or stopped.

    Example: online fsck
    """
    from online.fsck import check

    settings = load_settings(path, state_dir=state_dir)
    results = [check(settings, model.name) for model in settings.models]
    if as_json:
        print(json.dumps([r.as_dict() for r in results]))
    else:
        for result in results:
            print(result)
    raise typer.Exit(0 if all(r.good for r in results) else 1)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Options that stand before a command."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run a command: exit code 0, 1 for a refusal (said on stderr), 2 for wrong usage."""
    from evaluation.errors import EvaluationError
    from online.models.errors import ModelError
    from paramserver.errors import ParamServerError
    from replay.errors import ReplayError

    known = (OnlineError, EvaluationError, ModelError, ParamServerError, ReplayError)
    try:
        app()
    except known as error:
        print(f"online: {error}", file=sys.stderr)
        sys.exit(1)
    except httpx.TransportError as error:
        print(
            f"online: the service does not answer ({error}); see `online status`", file=sys.stderr
        )
        sys.exit(1)
