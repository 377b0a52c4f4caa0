"""The load generator against a server of the test's own."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from online.client.load import generator
from online.client.load.bodies import Bodies
from online.client.load.generator import Lane, Load, Operation, Report
from online.client.load.histogram import Histogram
from online.commands.cli import app
from online.commands.operate.load import bars, find
from online.errors import ConfigError

Answer = Callable[[str, bytes], tuple[int, bytes]]


@dataclass
class Served:
    """Two servers; ``answer`` may be replaced, ``seen`` are the requests in their order."""

    ports: list[int] = field(default_factory=list)
    seen: list[tuple[int, str, bytes]] = field(default_factory=list)
    authorized: list[str | None] = field(default_factory=list)
    answer: Answer = lambda path, body: (200, b"{}")
    last: Callable[[int], bool] = lambda n: False  # whether to close after the n-th request
    let_go: threading.Event = field(default_factory=threading.Event)  # for those that hang


@pytest.fixture
def served() -> Iterator[Served]:
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes

        def do_GET(self) -> None:
            state.authorized.append(self.headers["authorization"])
            model = {"model": "m", "task": "binary", "labels": ["DOWN", "UP"]}
            self._reply(200, json.dumps({"models": [model], **model}).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.seen.append((int(self.connection.getsockname()[1]), self.path, body))
            state.authorized.append(self.headers["authorization"])
            self.close_connection = state.last(len(state.seen))
            status, answer = state.answer(self.path, body)
            if status:
                with contextlib.suppress(OSError):  # the other side has given up
                    self._reply(status, answer)

        def _reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            if self.close_connection:
                self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.ports.append(int(server.server_address[1]))
    yield state
    state.let_go.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def _plain(i: int) -> bytes:
    return b"%d" % i


def _one(served: Served, **options: Any) -> Report:
    """A measurement of one operation."""
    names = {"connections": 1, "rate": None, "seconds": 0.2, "receipts": False, "rows": 1}
    o = {**names, **options}
    operation = Operation("one", "/", _plain, rows=o["rows"], receipts=o["receipts"])
    lane = Lane([operation], o["connections"], o["rate"])
    stopped = o.get("stopped", lambda: False)
    return generator.measure(
        "127.0.0.1", served.ports[:1], [lane], seconds=o["seconds"], stopped=stopped
    )


# -- connections and answers ---------------------------------------------------------------------


def test_connections_go_to_each_port_in_turn(served: Served) -> None:
    found = generator.run("127.0.0.1", served.ports, "/", _plain, connections=4, seconds=0.2)
    assert found.errors == 0
    assert found.requests == len(served.seen) > 10
    assert {port for port, _, _ in served.seen} == set(served.ports)
    ordered = [found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.p9999_ms]
    assert [*ordered, found.max_ms] == sorted([*ordered, found.max_ms])


def test_files_that_select_does_not_know(served: Served) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200:
        pytest.skip("this process may not open so many files")
    with contextlib.ExitStack() as files:
        for _ in range(1100):
            files.callback(os.close, os.dup(0))
        found = generator.run("127.0.0.1", served.ports, "/", _plain, connections=4, seconds=0.2)
    assert found.errors == 0
    assert found.requests == len(served.seen) > 10


def test_errors_are_counted_by_status(served: Served) -> None:
    served.answer = lambda path, body: (503 if int(body) % 2 else 202, b"{}")
    found = _one(served).total
    assert found.errors == found.requests // 2 == found.statuses["503"]
    assert found.statuses["202"] == found.requests - found.errors
    assert found.rate * 2 == pytest.approx(found.requests / 0.2, rel=0.5)


@pytest.mark.parametrize(
    ("statuses", "outcomes", "bad"),
    [
        (["learned", "learned"], {"learned": 2}, False),
        (["learned", "duplicate"], {"learned": 1, "duplicate": 1}, False),
        (["learned", "refused"], {"learned": 1, "refused": 1}, True),
    ],
)
def test_a_body_with_a_refused_row_is_an_error(
    served: Served, statuses: list[str], outcomes: dict[str, int], bad: bool
) -> None:
    """A 200 for many events says nothing of each of them."""
    text = json.dumps({"events": [{"status": s} for s in statuses]}, separators=(",", ":"))
    served.answer = lambda path, body: (200, text.encode())
    found = _one(served, receipts=True, rows=2).total
    assert found.outcomes == {name: n * found.requests for name, n in outcomes.items()}
    assert found.errors == (found.requests if bad else 0)
    assert found.rows_rate == pytest.approx(2 * found.rate)


def test_a_long_answer_comes_in_parts(served: Served) -> None:
    served.answer = lambda path, body: (200, b"x" * 3_000_000)
    found = _one(served).total
    assert found.errors == 0
    assert found.requests == len(served.seen) > 0


def test_a_closed_connection_is_opened_again(served: Served) -> None:
    """Closed after an answer that says so it costs nothing; closed instead of one, an error."""
    served.last = lambda n: n % 3 == 0
    served.answer = lambda path, body: (0 if int(body) == 5 else 200, b"{}")
    found = _one(served, rate=50.0, seconds=0.5).total
    assert found.statuses == {"200": 24, "no answer": 1}
    assert found.errors == 1
    assert [int(body) for _, _, body in served.seen] == list(range(25))  # each is sent once


# -- the schedule --------------------------------------------------------------------------------


def test_shares_are_even_over_time(served: Served) -> None:
    operations = [Operation(name, f"/{name}", _plain, share) for name, share in _SHARES]
    lanes = [Lane(operations, 1, 200.0), Lane([Operation("c", "/c", _plain)], 1, 50.0)]
    found = generator.measure("127.0.0.1", served.ports[:1], lanes, seconds=0.5)
    assert [(o.what, o.requests) for o in found.operations] == [("a", 80), ("b", 20), ("c", 25)]
    assert found.total.requests == 125
    mixed = [path for _, path, _ in served.seen if path != "/c"]
    assert all(Counter(mixed[k : k + 5])["/b"] == 1 for k in range(0, 100, 5))


_SHARES = [("a", 0.8), ("b", 0.2)]


def _stalls_once(served: Served, seconds: float) -> None:
    def answer(path: bytes | str, body: bytes) -> tuple[int, bytes]:
        if int(body) == 10:
            served.let_go.wait(seconds)
        return 200, b"{}"

    served.answer = answer


def test_a_stall_counts_for_every_request_that_was_due_in_it(served: Served) -> None:
    _stalls_once(served, 0.4)
    found = _one(served, rate=100.0, seconds=0.6)
    assert found.total.requests == 60
    assert found.total.p50_ms > 50  # most were due while the server stood still
    assert found.waited_p99_ms > 250
    # The control: a closed loop omits them, and shows one slow answer among many.
    served.seen.clear()
    closed = _one(served, seconds=0.6).total
    assert closed.max_ms > 390
    assert closed.p50_ms < found.total.p50_ms


def test_a_late_answer_delays_no_other_while_connections_are_free(served: Served) -> None:
    """The late one is answered last: it stands still until all others have been asked."""
    rest = threading.Event()

    def answer(path: bytes | str, body: bytes) -> tuple[int, bytes]:
        if len(served.seen) == 60:
            rest.set()
        return (200, b"{}") if int(body) != 10 or rest.wait(240) else (500, b"{}")

    served.answer = answer
    found = _one(served, rate=100.0, seconds=0.6, connections=4).total
    assert (found.requests, found.statuses) == (60, {"200": 60})


def test_what_could_not_be_sent_counts_as_lateness(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "_LATE_S", 0.1)
    monkeypatch.setattr(generator, "_ANSWER_S", 0.3)

    def hang(path: str, body: bytes) -> tuple[int, bytes]:
        served.let_go.wait(240)
        return 200, b"{}"

    served.answer = hang
    found = _one(served, rate=1000.0)
    assert found.total.statuses == {"no answer": 1}
    assert found.unfinished == 199
    assert sum(count for _, count in found.total.bars) == 200
    assert found.total.p50_ms > 350  # half were due 0.1 s after the beginning, and it took 0.5 s


def test_a_server_that_goes_away_is_counted_and_the_run_ends(served: Served) -> None:
    served.last = lambda n: True
    served.answer = lambda path, body: (0, b"")
    found = _one(served, rate=50.0, seconds=0.3).total
    assert found.statuses == {"no answer": 15}
    assert (found.errors, found.rate) == (15, 0)


def test_stopping_keeps_what_was_measured(served: Served) -> None:
    found = _one(served, rate=200.0, seconds=60.0, stopped=lambda: len(served.seen) >= 20)
    assert found.interrupted
    assert found.seconds < 30
    assert found.total.requests >= 19
    assert found.total.errors == 0
    assert found.total.rate == pytest.approx(found.total.requests / found.seconds)


# -- the generator itself ------------------------------------------------------------------------


def test_a_slow_generator_says_so(served: Served) -> None:
    def body(i: int) -> bytes:
        time.sleep(0.02)  # what a slow machine would do
        return b"0"

    lane = Lane([Operation("one", "/", body)], 4, 40.0)
    found = generator.measure("127.0.0.1", served.ports[:1], [lane], seconds=0.5)
    assert found.own_late_p99_ms > 10
    assert "itself is late" in (found.bottleneck or "")


def test_the_generator_is_blamed_only_for_its_own_lateness() -> None:
    total = Load("all", 1, 0, 1.0, 1.0, 1, 1, 20.0, 1, 1, 1, {}, {}, ())
    fair = Report(1.0, total, (), 0, 500.0, 3.0, 0.5, False)
    assert fair.bottleneck is None
    assert replace(fair, own_late_p99_ms=5.0).bottleneck is not None
    assert "of a core" in (replace(fair, cpu_share=0.95).bottleneck or "")
    quick = replace(fair, total=replace(total, p99_ms=1.0), own_late_p99_ms=0.4)
    assert quick.bottleneck is None


def test_percentiles_are_within_half_a_percent() -> None:
    rng = random.Random(1)
    values = [rng.lognormvariate(-6, 2) for _ in range(20_000)]
    one, other = Histogram(), Histogram()
    for i, value in enumerate(values):
        (one if i % 2 else other).add(value)
    one.merge(other)
    values.sort()
    assert one.count == len(values)
    for share in (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0):
        true = values[math.ceil(share * len(values)) - 1] * 1e3
        assert true - 0.001 <= one.ms(share) <= true * (1 + 1 / 256) + 0.001
    assert sum(count for _, count in one.bars()) == len(values)
    for upto, count in one.bars():
        low = 0.0 if upto == 0.001 else upto / 2
        assert count == sum(low <= int(v * 1e6) / 1e3 < upto for v in values)


def test_an_empty_histogram_has_no_time() -> None:
    empty = Histogram()
    assert (empty.ms(0.99), empty.bars(), empty.count) == (0.0, (), 0)
    empty.add(-1.0)
    assert (empty.ms(1), empty.count) == (0.0, 1)


# -- finding the rate ----------------------------------------------------------------------------


class _Machine:
    """Bears ``limit`` requests/s; the attempts in ``hiccups`` are slow at any rate."""

    def __init__(self, limit: float, hiccups: tuple[int, ...] = ()) -> None:
        self.limit, self.hiccups, self.tried = limit, hiccups, 0

    def __call__(self, rate: float) -> Report:
        self.tried += 1
        slow = rate > self.limit or self.tried in self.hiccups
        one = Load("one", 10, 0, rate, rate, 1, 1, 50.0 if slow else 2.0, 1, 1, 1, {}, {}, ())
        return Report(1.0, one, (one,), 0, 0.0, 0.0, 0.1, False)


@pytest.mark.parametrize("start", [1.0, 100.0, 730.0, 9000.0])
def test_the_largest_rate_is_found(start: float) -> None:
    found = find(_Machine(730.0), start=start, p99_ms=10.0)
    assert 730.0 / 1.05 <= found.rate <= 730.0
    assert all(step.holds == (step.rate <= 730.0) for step in found.steps)


def test_one_hiccup_is_no_limit_and_two_are() -> None:
    once = find(_Machine(730.0, (1,)), start=500.0, p99_ms=10.0)
    assert 730.0 / 1.05 <= once.rate <= 730.0
    assert find(_Machine(730.0, (1, 2)), start=500.0, p99_ms=10.0).rate < 500.0


@pytest.mark.parametrize("spoiled", ["errors", "unfinished", "nothing"])
def test_errors_and_lateness_never_hold(spoiled: str) -> None:
    def attempt(rate: float) -> Report:
        report = _Machine(math.inf)(rate)
        one = report.total
        if spoiled == "errors":
            one = replace(one, errors=1)
        elif spoiled == "nothing":
            one = replace(one, requests=0, p99_ms=0.0)
        late = 1 if spoiled == "unfinished" else 0
        return replace(report, total=one, operations=(one,), unfinished=late)

    assert find(attempt, start=500.0, p99_ms=10.0).rate == 0
    assert find(_Machine(math.inf), start=500.0, p99_ms=10.0).rate > 500_000


def test_finding_stops_when_told() -> None:
    machine = _Machine(730.0)

    def attempt(rate: float) -> Report:
        report = machine(rate)
        return replace(report, interrupted=machine.tried > 2)

    found = find(attempt, start=100.0, p99_ms=10.0)
    assert (found.rate, found.interrupted, len(found.steps)) == (200.0, True, 2)


# -- bodies and the command ----------------------------------------------------------------------


def test_every_event_has_an_id_of_its_own() -> None:
    bodies = Bodies([({"a": 1.5}, "UP"), ({"a": 2.5}, "DOWN")], source="load", run="r")
    events = [e for i in range(3) for e in json.loads(bodies.events(i, 4))["events"]]
    assert len({event["event_id"] for event in events}) == 12
    assert events[1] == {
        "features": {"a": 2.5}, "label": "DOWN", "source": "load", "event_id": "r-1",
    }  # fmt: skip
    bodies.run = "s"
    assert json.loads(bodies.feedback(1))["event_id"] == "s-1"
    assert json.loads(bodies.instances(1, 3)) == {"instances": [{"a": 2.5}, {"a": 1.5}, {"a": 2.5}]}
    assert json.loads(bodies.peer_many(0, 1)) == [{"features": {"a": 1.5}, "label": "UP"}]


def test_bars_are_as_long_as_their_counts() -> None:
    one = Load("one", 4, 0, 1, 1, 1, 1, 1, 1, 1, 1, {}, {}, ((1.024, 3), (2.048, 0), (4.096, 1)))
    lines = bars(one)
    assert [line.count("█") for line in lines] == [40, 0, 14]
    assert [line.split()[-1] for line in lines] == ["75.00%", "0.00%", "25.00%"]


@pytest.fixture
def _own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_own_signals")
def test_the_command_sends_rows_of_the_stream(served: Served) -> None:
    served.answer = lambda path, body: (200, b'{"status":"learned"}')
    options = ["--stream", "phishing", "--seconds", "0.5", "--rate", "100", "--json"]
    url = f"http://127.0.0.1:{served.ports[0]}"
    done = CliRunner().invoke(app, ["bench", "load", "--url", url, *options])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output.splitlines()[-1])
    assert [(o["what"], o["requests"]) for o in found["operations"]] == [
        ("predict", 40),
        ("feedback", 10),
    ]
    assert found["operations"][1]["outcomes"] == {"learned": 10}
    assert found["total"]["statuses"] == {"200": 50}
    sent = [json.loads(body) for _, path, body in served.seen if path.endswith("/m/feedback")]
    assert {event["label"] for event in sent} <= {"UP", "DOWN"}  # as the service calls them
    assert len({event["event_id"] for event in sent}) == 10
    assert all("empty_server_form_handler" in event["features"] for event in sent)


@pytest.mark.usefixtures("_own_signals")
@pytest.mark.parametrize("tokens", ["asks\nlearns\n", "both"])
def test_each_request_has_the_token_of_its_role(
    served: Served, tmp_path: Path, tokens: str
) -> None:
    served.answer = lambda path, body: (200, b'{"status":"learned"}')
    (tmp_path / "tokens").write_text(tokens)
    url = f"http://127.0.0.1:{served.ports[0]}"
    options = ["--url", url, "--stream", "phishing", "--token-file", str(tmp_path / "tokens")]
    rates = ["--seconds", "0.2", "--rate", "50", "--mix", "0.5"]
    assert CliRunner().invoke(app, ["bench", "load", *options, *rates]).exit_code == 0
    asks, learns = (tokens.split() * 2)[:2]
    sent = served.authorized[2:]
    assert served.authorized[:2] == [f"Bearer {asks}"] * 2  # the state of the model
    for held, (_, path, _) in zip(sent, served.seen, strict=True):
        assert held == (f"Bearer {asks}" if path.endswith("predict") else f"Bearer {learns}")


@pytest.mark.usefixtures("_own_signals")
def test_a_stream_of_another_task_is_refused(served: Served) -> None:
    url = f"http://127.0.0.1:{served.ports[0]}"
    options = ["--url", url, "--stream", "image_segments"]
    error = CliRunner().invoke(app, ["bench", "load", *options]).exception
    assert isinstance(error, ConfigError)
    assert "multiclass" in str(error)
    assert served.seen == []


def test_ctrl_c_prints_what_was_measured(served: Served, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"features": {"x": 1.0}}\n\n{"features": {"x": 2.0}}\n')
    url = f"http://127.0.0.1:{served.ports[0]}"
    options = ["--body", str(rows), "--mix", "1", "--rate", "100", "--seconds", "120"]
    command = [sys.executable, "-m", "online", "bench", "load", "--url", url, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while len(served.seen) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "p99.99" in out
    assert "× 200" in out
    assert {body for _, _, body in served.seen} == {
        b'{"features":{"x": 1.0}}',
        b'{"features":{"x": 2.0}}',
    }


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--rate", "0"], "--rate"),
        (["--rate", "nan"], "--rate"),
        (["--rate", "max", "--find"], "--rate"),
        (["--url", "http://127.0.0.1:9"], "--stream"),
        (["--stream", "phishing", "--body", "x"], "--stream"),
        (["--body", "/nowhere/x"], "--body"),
        (["--token-file", "/nowhere/x"], "--token-file"),
        (["--url", "https://x", "--stream", "phishing"], "--url"),
    ],
)
def test_options_that_can_not_be(options: list[str], field: str) -> None:
    error = CliRunner().invoke(app, ["bench", "load", *options]).exception
    assert isinstance(error, ConfigError)
    assert error.field == field


@pytest.mark.parametrize(
    ("text", "field"),
    [("", "--body"), ("[1]", "--body"), ('{"label": 1}', "--body"), ("{", "--body"),
     ('{"features": {"x": 1}}', "--mix")],
)  # fmt: skip
def test_rows_that_can_not_be(tmp_path: Path, text: str, field: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(text)
    error = CliRunner().invoke(app, ["bench", "load", "--body", str(rows)]).exception
    assert isinstance(error, ConfigError)
    assert error.field == field
