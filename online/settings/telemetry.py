"""Settings of traces, logs and the access log."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field

from online.settings.addresses import http_address
from online.settings.tree import Tree

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""Standard OpenTelemetry environment variable for the endpoint."""


def _endpoint(value: str) -> str:
    if (parts := http_address(value)) is None or parts.username is not None:
        raise ValueError(
            "give http://host:4318 or https://host, without a user: headers for a collector are "
            "given in OTEL_EXPORTER_OTLP_HEADERS"
        )
    return value.rstrip("/")


class Telemetry(Tree):
    """Traces and logs by OTLP, and an access log; all of it is off by default."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = Field(
        None,
        description="collector for OTLP over HTTP: http://127.0.0.1:4318; default: "
        "OTEL_EXPORTER_OTLP_ENDPOINT of the environment; none: no traces",
    )
    sample: float = Field(
        0.01, ge=0, le=1, description="share of requests that are traced unless a caller decides"
    )
    traces_per_s: int = Field(
        20, ge=1, description="most traces that a replica begins per second, however requested"
    )
    logs: bool = Field(False, description="send the log's lines to the endpoint, too")
    access_log: float = Field(
        0,
        ge=0,
        le=1,
        description="share of requests for which a JSON line is written; if above 0, failures "
        "(5xx) are always written",
    )
