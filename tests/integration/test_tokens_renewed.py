"""New access tokens reach the running replicas of a service on Ray, and the replicas after them."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from benchmarks.fixtures.service import Running, launch, write_settings

pytestmark = pytest.mark.ray

WAIT_S: Final = 240
OLD, NEW, ADMIN = (f"{name}-token-0123456789abcdefgh" for name in ("old", "new", "admin"))
PREDICT: Final = "/v1/models/m/predict"
ROW: Final = {"features": {"a": 1.0}}


def settings(*predict: str) -> dict[str, Any]:
    tokens = {"predict": [*predict], "feedback": [ADMIN], "admin": [ADMIN]}
    models = [{"name": "m", "task": "binary", "learner": "logreg"}]
    return {"replicas": 2, "models": models, "tokens": tokens}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="online-renewed-") as name:
        write_settings(Path(name), settings(OLD))
        service = launch(Path(name))
        try:
            yield service
        finally:
            service.stop()


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (given := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return given


def reloaded(running: Running, *predict: str) -> None:
    """Write the tokens for predictions, send SIGHUP, and wait until it is done."""
    log, path = running.folder / "serve.log", running.folder / "online.yaml"
    before = len(log.read_text())
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **settings(*predict)}))
    running.process.send_signal(signal.SIGHUP)
    until(lambda: "tokens changed" in log.read_text()[before:])
    assert "replaced" not in log.read_text()[before:], "a replica did not confirm them"


def code(url: str, token: str, client: Any = httpx) -> int:
    """Status of a prediction; 0 without an answer."""
    headers = {"authorization": f"Bearer {token}"}
    try:
        return int(client.post(url + PREDICT, json=ROW, headers=headers, timeout=120).status_code)
    except httpx.HTTPError:
        return 0


def test_replicas_take_new_tokens_on_open_connections_and_hand_them_on(running: Running) -> None:
    replicas = running.replica_urls()
    assert len(replicas) == 2
    kept = [(url, httpx.Client()) for url in replicas.values()]
    for url, client in kept:
        assert [code(url, OLD, client) for _ in range(3)] == [200] * 3, "the head is known by then"
    reloaded(running, NEW)
    for url, client in kept:
        assert [code(url, OLD, client), code(url, NEW, client)] == [401, 200]
        client.close()
    assert running.replica_urls() == replicas
    one = next(iter(replicas))
    os.kill(int(one.partition(":")[0]), signal.SIGKILL)
    (another,) = until(lambda: running.replica_urls().keys() - replicas.keys())
    url = running.replica_urls()[another]
    until(lambda: code(url, NEW) == 200)
    assert code(url, OLD) == 401, "Serve starts it with what the first one was started with"
