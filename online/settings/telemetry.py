"""Single requests are told of in traces, logs and lines: the settings of that."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from online.settings.tree import Tree

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""Names the endpoint in the environment, as for every program that speaks OTLP."""


def _endpoint(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        named = parts.username is not None
    except ValueError:  # of the port; it would quote the address
        good, named = False, False
    if not good or named:
        raise ValueError(
            "give http://host:4318 or https://host, without a user: headers for a collector stand "
            "in OTEL_EXPORTER_OTLP_HEADERS"
        )
    return value.rstrip("/")


class Telemetry(Tree):
    """Traces and logs by OTLP, and a log of requests; all of it is off without a word."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = Field(
        None,
        description="a collector that takes OTLP over HTTP: http://127.0.0.1:4318; default: "
        "OTEL_EXPORTER_OTLP_ENDPOINT of the environment; none: no traces",
    )
    sample: float = Field(
        0.01, ge=0, le=1, description="share of requests that are traced if no caller asks for it"
    )
    traces_per_s: int = Field(
        20, ge=1, description="traces that a replica begins a second at most, asked for or drawn"
    )
    logs: bool = Field(False, description="send the lines of the log to the endpoint, too")
    access_log: float = Field(
        0,
        ge=0,
        le=1,
        description="share of requests of which a line of JSON is written; failures (5xx) always "
        "if it is above 0",
    )
