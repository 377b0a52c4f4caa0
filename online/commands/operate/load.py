"""`online bench load`: measures the load that a service sustains, with rows of a given stream."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from online.client.load.generator import Lane, Load, Operation, Report, measure
from online.client.simple_client import SimpleClient
from online.commands.base import AsJson, Model, checked, console, pick, table
from online.errors import ConfigError
from online.settings import config

if TYPE_CHECKING:
    from evaluation.streams import Stream
    from replay.example import Features, Label

_LEARNERS: Final = {"binary": "logreg", "multiclass": "softmax", "regression": "linreg"}
_SOURCE = "load"
_ROWS_MAX = 2000  # distinct rows of a stream, which are sent in turn
_CONNECTIONS_MAX = 900  # more would delay the generator by a millisecond
_RATE_MIN, _RATE_MAX = 1.0, 1e6
_BAR = 40
_PIPED_COLUMNS = 160  # wide enough that no number is cut off in a file or pipe

Try = Callable[[float], Report]


@dataclass(frozen=True, slots=True)
class Step:
    """Result of one attempted rate: the worst p99 of the operations, and whether it is within the
    bound."""

    rate: float
    reached: float
    p50_ms: float
    p99_ms: float
    errors: int
    unfinished: int
    holds: bool
    bottleneck: str | None


@dataclass(frozen=True, slots=True)
class HighestRate:
    """The largest rate (requests/s) within the bound, 0 if none; and all attempted steps."""

    rate: float
    p99_ms_max: float
    steps: list[Step]
    interrupted: bool


def find(attempt: Try, *, start: float, p99_ms: float, precision: float = 0.05) -> HighestRate:
    """Find the largest rate at which every operation's p99 is at most ``p99_ms``.

    The rate is doubled until the bound is exceeded (or halved until it is kept), then bisected to
    within ``precision``.  A rate beyond the bound is tried once more, as a single hiccup of the
    machine is not a limit.  Errors and requests that were not sent in time count as exceeding.
    """
    steps: list[Step] = []
    rate, low, high = start, 0.0, math.inf
    while high > low * (1 + precision) and _RATE_MIN <= rate <= _RATE_MAX:
        for _ in range(2):
            report = attempt(rate)
            if report.interrupted:
                return HighestRate(low, p99_ms, steps, True)
            steps.append(_step(rate, report, p99_ms))
            if steps[-1].holds:
                break
        if steps[-1].holds:
            low = rate
        else:
            high = rate
        rate = low * 2 if high == math.inf else high / 2 if low == 0 else math.sqrt(low * high)
    return HighestRate(low, p99_ms, steps, False)


def _step(rate: float, report: Report, p99_ms: float) -> Step:
    worst = max(load.p99_ms for load in report.operations)
    total = report.total
    holds = worst <= p99_ms and not total.errors and not report.unfinished
    return Step(
        rate, total.rate, total.p50_ms, worst, total.errors, report.unfinished,
        holds and total.requests > 0, report.bottleneck,
    )  # fmt: skip


app = typer.Typer(
    help="Load tests of this machine; `python -m benchmarks` in a checkout has more tables.",
    no_args_is_help=True,
)


@app.command()
def load(
    url: Annotated[str | None, typer.Option(help="a running service; none: start one")] = None,
    model: Model = None,
    rate: Annotated[str, typer.Option(help="requests per second, or `max`")] = "500",
    seconds: Annotated[
        float | None, typer.Option(help="duration [default: 30; each step of --find: 5]", min=0.1)
    ] = None,
    connections: Annotated[
        int, typer.Option(help="keep-alive connections", min=1, max=_CONNECTIONS_MAX)
    ] = 16,
    mix: Annotated[
        float, typer.Option(help="share of predictions; the rest is feedback", min=0, max=1)
    ] = 0.8,
    rows: Annotated[int, typer.Option(help="rows per request", min=1, max=100_000)] = 1,
    stream: Annotated[
        str | None, typer.Option(help="stream or table with the rows to send")
    ] = None,
    body: Annotated[
        Path | None, typer.Option(help='lines of {"features": {…}, "label": …} to send instead')
    ] = None,
    find_rate: Annotated[
        bool, typer.Option("--find", help="find the largest rate that keeps --p99-ms")
    ] = False,
    p99_ms: Annotated[float, typer.Option(help="bound of each operation's p99", min=0.01)] = 10.0,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="bearer tokens: a line for predictions, one for feedback; else ONLINE_TOKEN"
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(help="replicas of the started service", min=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """Send requests at a fixed rate; latencies count from the time when each request was due.

    The feedback is really learned (its source is `load`): use --mix 1 with a model in use.

    Example: online bench load --url http://127.0.0.1:8000 --stream elec2 --rate 500

    Example: online bench load --find --p99-ms 5
    """
    per_s = None if rate == "max" else _rate(rate)
    if find_rate and per_s is None:
        raise ConfigError("--rate", "--find needs a first rate, not `max`", "Give a number")
    rows_given = _Rows.of(url, stream, body)
    tokens = _tokens(token_file)
    if mix < 1 and any(label is None for _, label in rows_given.rows):
        raise ConfigError("--mix", f"{mix:g}: some rows have no label", "Add labels, or --mix 1")
    stopped = threading.Event()
    with _target(url, rows_given, replicas) as base:
        served, labelled = _served(base, model, rows_given, tokens)
        operations = _operations(served, labelled, mix, rows, tokens)
        parts = urlsplit(base)
        signal.signal(signal.SIGINT, lambda *_: stopped.set())
        length = seconds or (5.0 if find_rate else 30.0)

        def attempt(at: float | None) -> Report:
            lane = Lane(operations, connections, at)
            with _progress(hidden=as_json) as progress:
                return measure(
                    parts.hostname or "", [parts.port or 80], [lane], seconds=length,
                    progress=progress, stopped=stopped.is_set,
                )  # fmt: skip

        if find_rate and per_s is not None:
            highest = find(attempt, start=per_s, p99_ms=p99_ms)
            raise typer.Exit(_show_found(highest, as_json=as_json))
        report = attempt(per_s)
    raise typer.Exit(_show_report(report, as_json=as_json))


# -- what is sent, and where to ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows to send, and the stream they come from (None: a file of bodies)."""

    stream: Stream | None
    rows: list[tuple[Features, Label | None]]

    @classmethod
    def of(cls, url: str | None, stream: str | None, body: Path | None) -> _Rows:
        """Read the rows that the options name.  Raises ConfigError if they name none, or two."""
        from online.tables.streams import stream_of

        if (stream is None) == (body is None) and (url is not None or body is not None):
            raise ConfigError(
                "--stream", "one of --stream and --body is needed",
                "Name the stream whose features the model knows",
            )  # fmt: skip
        if body is not None:
            return cls(None, _file(body))
        opened = stream_of(stream or "phishing", config.data_dir())
        return cls(opened, list(islice(opened.rows, _ROWS_MAX)))

    @property
    def task(self) -> str:
        """The task that fits the labels."""
        if self.stream is not None:
            return self.stream.task
        labels = {json.dumps(label) for _, label in self.rows}
        if labels <= {"true", "false", "null"}:
            return "binary"
        numbers = all(isinstance(label, float) for _, label in self.rows)
        return "regression" if numbers else "multiclass"


def _file(path: Path) -> list[tuple[Features, Label | None]]:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError("--body", f"{path}: {error.strerror}", "Name a readable file") from None
    rows: list[tuple[Features, Label | None]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            rows.append((dict(data["features"]), data.get("label")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{path}, line {number}: {error!r}"
            hint = 'Write one {"features": {…}, "label": …} a line'
            raise ConfigError("--body", problem, hint) from None
    if not rows:
        raise ConfigError("--body", f"{path} has no rows", "Write one row a line")
    return rows


@contextlib.contextmanager
def _target(url: str | None, rows: _Rows, replicas: int) -> Iterator[str]:
    """URL of the given service, or of a started one with a model for the rows."""
    if url is not None:
        if urlsplit(url).scheme != "http":
            raise ConfigError(
                "--url", f"{url!r} is not http://…", "Name the service behind the proxy"
            )
        yield url.rstrip("/")
        return
    from online.client.load.own_service import service

    model = {"name": "m", "task": rows.task, "learner": _LEARNERS[rows.task]}
    print("starting a service", file=sys.stderr)
    with service({"replicas": replicas, "models": [model]}) as own_url:
        yield own_url


def _tokens(path: Path | None) -> tuple[str, ...]:
    """Bearer tokens for predictions and for feedback, or an empty tuple."""
    if path is None:
        token = config.own_token(None, config.environment())
        return () if token is None else (token, token)
    try:
        tokens = path.read_text().split()
    except OSError as error:
        problem = f"{path}: {error.strerror}"
        raise ConfigError("--token-file", problem, "Name a readable file") from None
    if not 1 <= len(tokens) <= 2:
        problem = f"{path} has {len(tokens)} tokens"
        raise ConfigError("--token-file", problem, "Write one, or two: predictions, feedback")
    return tokens[0], tokens[-1]


def _served(
    base: str, model: str | None, rows: _Rows, tokens: tuple[str, ...]
) -> tuple[str, Sequence[tuple[Features, Label | None]]]:
    """Name of the model, and the rows with labels as the service names them."""
    client = SimpleClient(base, tokens[0] if tokens else None)
    served = pick(client, model)
    status = checked(client.get(f"/v1/models/{served}"))
    if rows.stream is None:
        return served, rows.rows
    if status["task"] != rows.task:
        raise ConfigError(
            "--stream",
            f"{rows.stream.name} is a {rows.task} stream, model {served} is {status['task']}",
            "Name a stream of that task",
        )
    names = status["labels"]
    if not names:
        return served, rows.rows
    return served, [(x, names[bool(y)]) for x, y in rows.rows]


def _operations(
    model: str, rows: Sequence[tuple[Features, Label | None]], mix: float, n: int,
    tokens: tuple[str, ...],
) -> list[Operation]:  # fmt: skip
    from online.client.load.bodies import Bodies

    bodies = Bodies(rows, source=_SOURCE, run=uuid.uuid4().hex[:12])
    asks, learns = [f"authorization: Bearer {token}\r\n" for token in tokens] or ("", "")
    made = []
    if mix > 0:
        body = bodies.predict if n == 1 else partial(bodies.instances, n=n)
        made.append(Operation("predict", f"/v1/models/{model}/predict", body, mix, n, headers=asks))
    if mix < 1:
        body = bodies.feedback if n == 1 else partial(bodies.events, n=n)
        path = f"/v1/models/{model}/feedback"
        made.append(
            Operation("feedback", path, body, 1 - mix, n, receipts=True, headers=learns)
        )  # fmt: skip
    return made


def _rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if _RATE_MIN <= (value := float(text)) <= _RATE_MAX:
            return value
    bounds = f"{_RATE_MIN:g} to {_RATE_MAX:,.0f}"
    raise ConfigError("--rate", f"{text!r} is not a rate", f"Give {bounds} requests/s, or `max`")


# -- what is shown -------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(*, hidden: bool) -> Iterator[Callable[[float, Load], None] | None]:
    """Print a line of progress: overwritten on a terminal, else one every five seconds."""
    if hidden:
        yield None
        return
    terminal, printed_s = sys.stderr.isatty(), time.monotonic()

    def show(seconds: float, load: Load) -> None:
        nonlocal printed_s
        if not terminal and time.monotonic() - printed_s < 5.0:
            return
        printed_s = time.monotonic()
        text = (
            f"{seconds:5.0f} s  {load.requests:,} requests, {load.rate:,.0f}/s  "
            f"p50 {load.p50_ms:.2f}  p99 {load.p99_ms:.2f} ms  {load.errors:,} errors"
        )
        print(f"{text:<78}", end="\r" if terminal else "\n", file=sys.stderr, flush=True)

    yield show
    if terminal:
        print(" " * 78, end="\r", file=sys.stderr, flush=True)


def _data(report: Report) -> dict[str, Any]:
    return {**asdict(report), "bottleneck": report.bottleneck}


def _show_report(report: Report, *, as_json: bool) -> int:
    """Print the report; returns the exit code."""
    if as_json:
        print(json.dumps(_data(report)))
    else:
        _print_report(report)
    good = report.total.requests > report.total.errors
    return 130 if report.interrupted else 0 if good else 1


def _print_report(report: Report) -> None:
    loads = list(report.operations)
    if len(loads) > 1:
        loads.append(report.total)
    numbers = (
        "requests", "errors", "per s", "rows/s", "p50", "p90", "p99", "p99.9", "p99.99", "max",
    )  # fmt: skip
    rows = table("", *numbers, right=numbers)
    for operation in loads:
        times = (
            operation.p50_ms,
            operation.p90_ms,
            operation.p99_ms,
            operation.p999_ms,
            operation.p9999_ms,
        )
        counts = (
            operation.requests,
            operation.errors,
            round(operation.rate),
            round(operation.rows_rate),
        )
        rows.add_row(
            operation.what,
            *(f"{n:,}" for n in counts),
            *(f"{t:.2f}" for t in (*times, operation.max_ms)),
        )
    print("latencies in ms, counted from when each request was due")
    console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS).print(rows)
    for line in bars(report.total):
        print(line)
    for operation in report.operations:
        counted = {**operation.statuses, **{f"rows {k}": n for k, n in operation.outcomes.items()}}
        print(f"{operation.what}: " + ", ".join(f"{n:,} × {k}" for k, n in sorted(counted.items())))
    print(
        f"{report.seconds:.1f} s; the generator took {report.cpu_share:.0%} of a core and was late "
        f"by {report.own_late_p99_ms:.2f} ms itself (p99)"
    )
    _warn(report)


def _warn(report: Report) -> None:
    if report.waited_p99_ms > 1:
        print(
            f"waited for a free connection: {report.waited_p99_ms:.1f} ms (p99); "
            "it is in the latencies"
        )
    if report.unfinished:
        print(
            f"{report.unfinished:,} requests were due and not answered at the end: they count "
            "with the time they had waited, the true percentiles are higher"
        )
    if report.bottleneck:
        print(
            f"warning: {report.bottleneck}; the service may be faster than this. Use another "
            "machine for the generator, or a lower rate"
        )


def bars(load: Load) -> list[str]:
    """A text histogram of latencies by powers of two."""
    whole = sum(count for _, count in load.bars)
    most = max((count for _, count in load.bars), default=0)
    return [
        f"< {upto:>9.3f} ms {'█' * math.ceil(_BAR * count / most):<{_BAR}} "
        f"{count:>9,}  {count / whole:6.2%}"
        for upto, count in load.bars
    ]


def _show_found(highest: HighestRate, *, as_json: bool) -> int:
    """Print the result of --find; returns the exit code."""
    code = 130 if highest.interrupted else 0 if highest.rate else 1
    if as_json:
        print(json.dumps(asdict(highest)))
        return code
    columns = ("rate", "reached", "p50 ms", "p99 ms", "errors", "unfinished", "holds")
    rows = table(*columns, right=columns)
    for step in highest.steps:
        rows.add_row(
            f"{step.rate:,.0f}", f"{step.reached:,.0f}", f"{step.p50_ms:.2f}",
            f"{step.p99_ms:.2f}", f"{step.errors:,}", f"{step.unfinished:,}",
            "yes" if step.holds else "no",
        )  # fmt: skip
    console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS).print(rows)
    if highest.rate:
        print(f"{highest.rate:,.0f} requests/s keep p99 ≤ {highest.p99_ms_max:g} ms")
    else:
        print(f"no rate that was tried keeps p99 ≤ {highest.p99_ms_max:g} ms")
    if any(step.bottleneck and not step.holds for step in highest.steps):
        print("warning: the generator itself was a bottleneck; the service may bear more")
    return code
