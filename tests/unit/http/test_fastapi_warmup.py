"""An operation that is asked for the first time has no file read in the turn that answers it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import Any

import httpx
import pytest
from fastapi import routing

from online.http import app as application
from online.http.fastapi_warmup import endpoints


def ask(app: Any, method: str, path: str, **body: Any) -> None:
    """Send the application one request."""

    async def send() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            await client.request(method, path, **body)

    asyncio.run(send())


def sources_read(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], int]:
    """Which functions' sources are read as an application first answers, and its operations."""
    read: list[str] = []
    original = inspect.getsourcelines

    def getsourcelines(func: Any) -> Any:
        read.append(func.__name__)
        return original(func)

    monkeypatch.setattr(routing, "_endpoint_context_cache", {})  # by id, which is used again
    cluster: Any = None
    app = application.build_rest({}, cluster)
    monkeypatch.setattr(inspect, "getsourcelines", getsourcelines)

    for path in ("/livez", "/v2", "/v2/health/live", "/v1/models/m/quarantine"):
        ask(app, "GET", path)
    return read, len(list(endpoints(app)))


def test_the_first_answer_of_an_operation_reads_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    read, operations = sources_read(monkeypatch)
    assert read == []
    assert operations > 30, "those of the included routers, too"


def test_without_that_it_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "read_no_sources", lambda app: None)
    read, _ = sources_read(monkeypatch)
    assert {"livez", "quarantine"} <= set(read), read


def routes_built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Routes that FastAPI builds as an application first answers."""
    built: list[str] = []
    included = routing._IncludedRouter
    original = included._build_effective_context

    def build(self: Any, route: Any) -> Any:
        built.append(getattr(route, "path", "?"))
        return original(self, route)

    cluster: Any = None
    app = application.build_rest({}, cluster)
    monkeypatch.setattr(included, "_build_effective_context", build)

    with contextlib.suppress(AttributeError):  # there is no cluster
        ask(app, "POST", "/v1/models/m/sources", json={"source": "a", "banned": True})
    monkeypatch.setattr(included, "_build_effective_context", original)
    return built


def test_the_first_answer_of_a_router_builds_no_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert routes_built(monkeypatch) == []
    monkeypatch.setattr(application, "build_routes", lambda routes: None)  # the control
    assert len(routes_built(monkeypatch)) > 10
