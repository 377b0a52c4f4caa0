"""Requests behind a cached head are traced as often as others, though they skip the middleware."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from kept_connection import LIMITS, QUESTIONS, Caller, ways
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from test_ordinary import event, taught

from online.http.app import App
from online.http.middleware.traced import Traced
from online.settings.telemetry import Telemetry
from online.telemetry.spans import Tracing

ASKED = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nhost:"


def test_each_request_of_a_kept_connection_is_traced_at_the_rate_that_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        spans, rng, drawn = InMemorySpanExporter(), random.Random(3), list[float]()

        def draw() -> float:
            drawn.append(rng.random())
            return drawn[-1]

        tracing = Tracing(
            Telemetry(sample=0.2, traces_per_s=1000), "r", SimpleSpanProcessor(spans),
            draw=draw, monotonic_s=lambda: 7.0,
        )  # fmt: skip
        serving = await taught(world, limits=LIMITS)
        app = App({"m": serving}, None, LIMITS, draws_trace=tracing.drawn)  # type: ignore[arg-type]
        caller, taken = Caller(Traced(app, tracing)), ways(monkeypatch)  # type: ignore[arg-type]
        for i in range(60):
            for n in (0, 0, 0, 7):  # the last one has two rows: it goes the usual way
                caller.sends(QUESTIONS[n], action="predict")
                await caller.answered()
            caller.sends(event(rng, 7000 + i, source="one"))  # alone in its turn: read by itself
            assert (await caller.answered())[0] == 200
        assert len(drawn) == caller.asked == 300
        traced = [s for s in spans.get_finished_spans() if s.kind is SpanKind.SERVER]
        assert len(traced) == sum(one < 0.2 for one in drawn) > 20
        kinds = {span.name for span in traced}
        assert len(kinds) == 2
        assert taken[True] > 80
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_caller_that_asks_for_traces_gets_them_on_a_kept_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asking(Caller):
        def request(self, *given: Any) -> bytes:
            return super().request(*given).replace(b"host:", ASKED.encode())

    async def scene(world: worlds.World) -> None:
        spans, now_s = InMemorySpanExporter(), [7.0]
        tracing = Tracing(
            Telemetry(sample=0.0, traces_per_s=1), "r", SimpleSpanProcessor(spans),
            monotonic_s=lambda: now_s[0],
        )  # fmt: skip
        serving = await taught(world, limits=LIMITS)
        app = App({"m": serving}, None, LIMITS, draws_trace=tracing.drawn)  # type: ignore[arg-type]
        caller, taken = Asking(Traced(app, tracing)), ways(monkeypatch)  # type: ignore[arg-type]
        for _ in range(3):
            for _ in range(3):  # one of them is traced: there is room for one each second
                caller.sends(QUESTIONS[0], action="predict")
                await caller.answered()
            now_s[0] += 1.0
        assert len(spans.get_finished_spans()) == 3
        assert not taken[True]
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)
