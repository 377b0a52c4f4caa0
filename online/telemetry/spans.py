"""Exports traces as OpenTelemetry spans, by OTLP over HTTP.

Imported only if an endpoint is configured.  Whether a request is traced is decided before anything
else: by the caller's ``traceparent`` if there is one, otherwise at random, and at most
``traces_per_s`` times a second.  Spans and log lines wait in bounded queues
(``OTEL_BSP_MAX_QUEUE_SIZE``) and are dropped when these are full, so nothing waits for the
collector.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import StatusCode

from online.settings.telemetry import Telemetry
from online.telemetry.trace import Crossing, Trace
from replay.plain import plain

_PARENT: Final = b"traceparent"
_NAMES: Final = (_PARENT, b"tracestate")
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_WITHIN_MAX: Final = 256  # cached parent contexts
_PATH_MAX: Final = 256
_SERVICE: Final = "online"
_SEVERITIES: Final = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
)


class Tracing:
    """Begins traces, and converts their steps into spans.

    Parameters:
        replica: Name of this process, an attribute of all its spans.
        processor: Receives the spans; None: a thread sends them to the endpoint in batches.
        draw: Returns a random number in [0, 1), for a request without a caller's decision.
        monotonic_s: A monotonic clock in seconds, for the bound on traces a second.
    """

    def __init__(
        self,
        settings: Telemetry,
        replica: str,
        processor: SpanProcessor | None = None,
        *,
        draw: Callable[[], float] = random.random,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sample, self._most = settings.sample, settings.traces_per_s
        self._draw, self._monotonic_s = draw, monotonic_s
        self._second, self._begun = -1, 0
        about = {"service.name": _SERVICE, "service.instance.id": replica}
        resource = Resource.create(about)
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor or _sending(settings))
        self._tracer = self._provider.get_tracer("online.tracing")
        self._lines = _Lines(settings, resource) if settings.logs and settings.endpoint else None

    def drawn(self) -> bool:
        """Decide at random whether a request without a caller's decision is traced."""
        return self._draw() < self._sample

    def begin(
        self,
        headers: list[tuple[bytes, bytes]],
        method: str,
        path: str,
        decided: bool | None = None,
    ) -> Trace | None:
        """Begin the trace of a request about a model; None: it is not traced.

        ``decided`` is what :meth:`drawn` returned for this request earlier; None: not called yet.
        """
        asks = False
        for name, _ in headers:
            if name == _PARENT:
                asks = True
        if not asks and not (self.drawn() if decided is None else decided):
            return None  # the cheap exit of most requests
        given = {
            name.decode(): value.decode("latin-1") for name, value in headers if name in _NAMES
        }
        parent = _PROPAGATOR.extract(given, Context()) if given else None
        asked = None if parent is None else get_current_span(parent).get_span_context()
        if asked is not None and asked.is_valid:
            if not asked.trace_flags.sampled:
                return None
        else:
            parent = None
            if asks and not self.drawn():
                return None
        if not self._has_room():
            return None
        path, model = path[:_PATH_MAX], path.split("/")[3][:_PATH_MAX]
        more = {"http.request.method": method, "url.path": path, "online.model": model}
        span = self._tracer.start_span(
            f"{method} {path}", parent or Context(), SpanKind.SERVER, more
        )

        def end(status: int) -> None:
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_status(StatusCode.ERROR)
            span.end()

        own = span.get_span_context()
        context = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
        return Trace(context, self._emit, end)

    def _has_room(self) -> bool:
        """Apply the bound on traces a second, which includes traces that callers request."""
        second = int(self._monotonic_s())
        if second != self._second:
            self._second, self._begun = second, 0
        self._begun += 1
        return self._begun <= self._most

    def crossing(self) -> Crossing:
        """Make an observer of one model's traced rows on their way to other replicas."""
        return Crossing(self._emit)

    def _emit(
        self, context: str, name: str, begun_ns: int, ended_ns: int, more: Mapping[str, str | int]
    ) -> None:
        if (within := _within(context)) is not None:  # else an invalid context
            span = self._tracer.start_span(name, within, attributes=more, start_time=begun_ns)
            span.end(ended_ns)

    def close(self) -> None:
        """Send what is queued, as far as the collector takes it, and stop."""
        if self._lines is not None:
            self._lines.close()
        self._provider.shutdown()


@lru_cache(_WITHIN_MAX)
def _within(context: str) -> Context | None:
    """Parse a ``traceparent``; cached, because a trace's steps come soon after each other."""
    within = _PROPAGATOR.extract({"traceparent": context}, Context())
    return within if get_current_span(within).get_span_context().is_valid else None


def _sending(settings: Telemetry) -> SpanProcessor:
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{settings.endpoint}/v1/traces"))


class _Lines(logging.Handler):
    """Sends the service's log lines to the endpoint, too."""

    def __init__(self, settings: Telemetry, resource: Resource) -> None:
        super().__init__(logging.INFO)
        self._provider = LoggerProvider(resource, shutdown_on_exit=False)
        self._provider.add_log_record_processor(
            BatchLogRecordProcessor(OTLPLogExporter(endpoint=f"{settings.endpoint}/v1/logs"))
        )
        self._logger = self._provider.get_logger("online")
        self._of = [logging.getLogger(name) for name in ("online", "paramserver", "replay")]
        for logger in self._of:
            logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Export a line; its own errors are not logged, which would cause another line."""
        try:
            body = plain(record.getMessage())
            if record.exc_info and record.exc_info[1] is not None:
                body += f": {plain(repr(record.exc_info[1]))}"
            severity = next(
                (name for level, name in _SEVERITIES if record.levelno >= level),
                SeverityNumber.DEBUG,
            )
            self._logger.emit(
                LogRecord(
                    timestamp=int(record.created * 1e9),
                    severity_text=record.levelname,
                    severity_number=severity,
                    body=body,
                    attributes={"logger": record.name},
                )
            )
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Send what is queued, and stop listening."""
        for logger in self._of:
            logger.removeHandler(self)
        self._provider.shutdown()
        super().close()
