"""One event is one trace: from its request to the model of another replica."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import replica_world as worlds
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import online
from online.errors import ConfigError
from online.http.app import App
from online.http.middleware.traced import Traced
from online.replica.replica import ModelReplica
from online.settings import config
from online.settings.limits import Limits
from online.settings.telemetry import ENDPOINT, Telemetry
from online.telemetry.spans import Tracing
from online.telemetry.trace import STEPS_MAX, Crossing, Trace
from paramserver.core import wire
from paramserver.process.running import CONTEXT_MAX, MARKS_MAX, Marks

ASKED: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED: Final = ASKED[:-1] + "0"
FEEDBACK: Final = "/v1/models/m/feedback"
PREDICT: Final = "/v1/models/m/predict"


class Seen:
    """Tracing of one replica, and the spans that it has told of."""

    def __init__(self, name: str = "r", *, draw: float = 1.0, **settings: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(
            Telemetry(**settings), name, SimpleSpanProcessor(self.exporter),
            draw=lambda: draw, monotonic_s=lambda: 7.0,
        )  # fmt: skip

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


def client_of(world: worlds.World, replica: ModelReplica, tracing: Tracing) -> httpx.AsyncClient:
    app = App({"m": world.serving(replica)}, None, Limits())  # type: ignore[arg-type]
    transport = httpx.ASGITransport(Traced(app, tracing))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://it")


async def send(
    client: httpx.AsyncClient, event: str, context: str | None = ASKED, path: str = FEEDBACK
) -> httpx.Response:
    body: dict[str, Any] = {"features": {event: 1.0}}
    if path == FEEDBACK:
        body |= {"label": 1.0, "event_id": event}
    headers = {} if context is None else {"traceparent": context}
    return await client.post(path, json=body, headers=headers)


def test_one_event_is_one_trace_through_two_replicas(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        here, there = Seen("here"), Seen("there")
        a = await world.replica("here", crossing=here.tracing.crossing())
        b = await world.replica("there", crossing=there.tracing.crossing())
        async with client_of(world, a, here.tracing) as client:
            answer = await send(client, "x")
        assert answer.json()["status"] == "learned"
        await worlds.until(lambda: "visible" in there.spans())
        spans = {**here.spans(), **there.spans()}
        root = spans[f"POST {FEEDBACK}"]
        steps = ["read", "wait", "commit", "learn", "push", "visible"]
        assert set(spans) == {root.name, *steps}
        for name in steps:
            span = spans[name]
            assert span.context is not None
            assert f"{span.context.trace_id:032x}" == ASKED.split("-")[1], name
            assert span.parent is not None
            assert root.context is not None
            assert span.parent.span_id == root.context.span_id, name
        assert root.parent is not None
        assert f"{root.parent.span_id:016x}" == ASKED.split("-")[2], "the caller's goes on"
        ends = [spans[name].end_time for name in steps[:4]]
        assert ends == [spans[name].start_time for name in steps[1:4]] + [spans["push"].start_time]
        who = {n: spans[n].resource.attributes["service.instance.id"] for n in ("push", "visible")}
        assert who == {"push": "here", "visible": "there"}
        assert world.weight(b, "x") == 1.0, "it is there as the span says"
        assert set(there.spans()) == {"visible"}, "no other replica tells of the request"
        for replica in (a, b):
            await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_who_is_traced_follows_the_caller_then_the_lot(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        replica = await world.replica()
        for name, context, draw, sample, traced in (
            ("a", ASKED, 0.9, 0.0, True),
            ("b", NOT_SAMPLED, 0.0, 1.0, False),
            ("c", None, 0.4, 0.5, True),
            ("d", None, 0.5, 0.5, False),
            ("e", "rubbish", 0.5, 0.5, False),
            ("f", None, 0.0, 0.0, False),
        ):
            seen = Seen(draw=draw, sample=sample)
            async with client_of(world, replica, seen.tracing) as client:
                assert (await send(client, name, context)).status_code == 200
            assert bool(seen.spans()) is traced, name
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_callers_get_so_many_traces_a_second_and_no_more(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        replica, seen = await world.replica(), Seen(traces_per_s=3)
        async with client_of(world, replica, seen.tracing) as client:
            for i in range(5):
                assert (await send(client, f"e{i}", path=PREDICT)).status_code == 200
        assert len(seen.exporter.get_finished_spans()) == 3
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_what_was_answered_stands_in_the_span(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        replica, seen = await world.replica(), Seen()
        async with client_of(world, replica, seen.tracing) as client:
            await client.post(
                FEEDBACK, json={"label": 1}, headers={"traceparent": ASKED}, timeout=120
            )
        (span,) = seen.exporter.get_finished_spans()
        about = dict(span.attributes or {})
        assert about["http.response.status_code"] == 422
        assert about["online.model"] == "m"
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_trace_of_many_commits_ends_telling() -> None:
    told: list[str] = []
    trace = Trace(ASKED, lambda context, name, *_: told.append(name), lambda status: None)
    for _ in range(STEPS_MAX + 5):
        trace.step("commit")
    assert len(told) == STEPS_MAX


def test_a_row_is_pushed_once_and_only_when_the_server_has_it() -> None:
    told: list[tuple[str, int, int]] = []
    crossing = Crossing(lambda _, name, begun, ended, __: told.append((name, begun, ended)),
                        now_ns=lambda: 50)  # fmt: skip
    trace = Trace(ASKED, lambda *_: None, lambda _: None)
    crossing.learned(1, 7, trace, 20)
    push = wire.Push(1, "s", 1, 1, 6, 6, (1, 0), {})
    assert crossing.marks([push]) == [], "it is not in this push"
    push = wire.Push(1, "s", 1, 7, 9, 3, (1, 0), {})
    (mark,) = crossing.marks([push])
    assert (mark.partition, mark.offset, mark.context, mark.at_ns) == (1, 7, ASKED, 20)
    crossing.pushed({1: 6})
    assert told == []
    crossing.pushed({1: 9})
    crossing.pushed({1: 9})
    assert told == [("push", 20, 50)]
    crossing.arrived([wire.Mark(2, 1, ASKED, 90)])
    assert told[1] == ("visible", 50, 50), "another host's clock is ahead"


def test_marks_go_once_to_whoever_takes_the_values() -> None:
    marks = Marks()
    one = wire.Mark(1, 5, ASKED, 0)
    marks.note([one], (3, 10), {1: 4})
    assert marks.since((3, 9), 2) == [], "the row is not in the values"
    marks.note([one], (3, 11), {1: 5})
    marks.note([one], (3, 12), {1: 5})
    assert marks.since((3, 10), 2) == [one]
    assert marks.since((3, 10), 1) == [], "its own"
    assert marks.since((3, 11), 2) == []
    assert marks.since((2, 10), 2) == [], "all values are new: of no use"
    assert marks.since(None, 2) == []


def test_marks_are_bounded() -> None:
    marks = Marks()
    many = [wire.Mark(1, i, ASKED, 0) for i in range(1, 3 * MARKS_MAX)]
    marks.note([*many, wire.Mark(9, 1, "x" * (CONTEXT_MAX + 1), 0)], (1, 2), {1: 10**6, 9: 1})
    assert marks.since((1, 1), 2) == many[-MARKS_MAX:]


def test_messages_of_a_process_without_marks_are_read() -> None:
    request = wire.SyncRequest(wire.FORMAT, "r", 1, [], None, True, [])
    short = wire.msgspec.msgpack.encode(wire.msgspec.to_builtins(request)[:-1])
    assert wire.decode_request(short) == request


class Collector:
    """Takes OTLP over HTTP on a free port."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.came = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import gzip

                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                with outer.came:
                    outer.got.append((self.path, body))
                    outer.came.notify_all()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> list[Any]:
        return [
            span
            for path, body in list(self.got)
            if path == "/v1/traces"
            for some in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in some.scope_spans
            for span in scope.spans
        ]

    def lines(self) -> list[str]:
        return [
            record.body.string_value
            for path, body in list(self.got)
            if path == "/v1/logs"
            for some in ExportLogsServiceRequest.FromString(body).resource_logs
            for scope in some.scope_logs
            for record in scope.log_records
        ]

    def wait(self, there: Callable[[], bool]) -> None:
        with self.came:
            assert self.came.wait_for(there, 240)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def served(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    telemetry = {"endpoint": collector.url, "sample": 0, "logs": True}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BLRP_SCHEDULE_DELAY"):
            patch.setenv(name, "50")
        service = online.serve(
            "logreg", task="binary", name="traced", state_dir=tmp_path_factory.mktemp("traced"),
            settings={"telemetry": telemetry}, say=lambda _: None,
        )  # fmt: skip
    with service:
        yield service


def test_a_collector_gets_the_trace_of_a_real_request(served: Any, collector: Collector) -> None:
    body = {"features": {"a": 1.0}, "label": True, "event_id": "one"}
    path = "/v1/models/traced/feedback"
    answer = httpx.post(
        f"{served.url}{path}", json=body, headers={"traceparent": ASKED}, timeout=120
    )
    assert answer.json()["status"] == "learned"
    wanted = {f"POST {path}", "read", "wait", "commit", "learn", "push"}
    collector.wait(lambda: wanted <= {span.name for span in collector.spans()})
    assert {span.trace_id.hex() for span in collector.spans()} == {ASKED.split("-")[1]}


def test_a_histogram_names_the_newest_trace(served: Any) -> None:
    body = {"features": {"a": 1.0}}
    path = "/v1/models/traced/predict"
    httpx.post(f"{served.url}{path}", json=body, headers={"traceparent": ASKED}, timeout=120)
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}

    def named() -> list[Any]:
        text = httpx.get(f"{served.url}/metrics", headers=accept, timeout=120).text
        return [
            sample.exemplar
            for family in text_string_to_metric_families(text)
            if family.name == "online_predict_seconds"
            for sample in family.samples
            if sample.exemplar is not None
        ]

    found: list[Any] = []
    for _ in range(2_000):  # reports come with the exchange
        if found := named():
            break
    assert [one.labels for one in found] == [{"trace_id": ASKED.split("-")[1]}]
    assert ASKED.split("-")[1] not in httpx.get(f"{served.url}/metrics", timeout=120).text, (
        "plain text has none"
    )


def test_lines_of_the_log_come_too(served: Any, collector: Collector) -> None:
    import logging

    logging.getLogger("online.some").warning("a line\nof %s", "two")
    collector.wait(lambda: any(line.startswith("a line") for line in collector.lines()))
    (line,) = [line for line in collector.lines() if line.startswith("a line")]
    assert "\n" not in line


def test_without_an_endpoint_nothing_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, online\n"
        f"with online.serve('logreg', task='binary', state_dir={str(tmp_path)!r}) as service:\n"
        "    service.model.predict({'a': 1.0})\n"
        "of = ('opentelemetry.sdk', 'opentelemetry.exporter', 'online.telemetry.spans')\n"
        "print([m for m in sys.modules if m.startswith(of)])\n"  # FastAPI imports the API
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_environment_names_the_endpoint() -> None:
    given = {"telemetry": {"sample": 0.5}}
    found = config.load(None, given, {ENDPOINT: "http://collector:4318/"}).telemetry
    assert (found.endpoint, found.sample) == ("http://collector:4318", 0.5)
    given = {"telemetry": {"endpoint": "http://other"}}
    assert config.load(None, given, {ENDPOINT: "http://it"}).telemetry.endpoint == "http://other"
    assert config.load(None, {}, {}).telemetry.endpoint is None


@pytest.mark.parametrize("value", ["collector:4317", "http://", "http://me:secret@host", "ftp://x"])
def test_what_is_no_endpoint_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="endpoint") as refused:
        config.load(None, {"telemetry": {"endpoint": value}}, {})
    assert "secret@" not in str(refused.value)


def test_steps_are_awaited_by_nobody() -> None:
    """Control: a request that is not traced has no trace in its context, nor in its tasks'."""
    from online.telemetry.trace import current

    async def scene() -> None:
        async def behind(scope: Any, receive: Any, send: Any) -> None:
            assert current.get() is None

        scope = {"type": "http", "path": PREDICT, "method": "POST", "headers": []}
        await Traced(behind, Seen(sample=0.0).tracing)(scope, None, None)  # type: ignore[arg-type]

    asyncio.run(scene())
