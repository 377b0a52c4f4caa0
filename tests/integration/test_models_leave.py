"""What SIGHUP changes in a running service on Ray: its models, and its access tokens.

Models leave and come back, gently or while a replica is killed.  New tokens reach the running
replicas, and the replicas after them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import pytest
import yaml

from benchmarks.fixtures.service import Running, settle, status
from benchmarks.fixtures.service import service as serving
from online.settings.config import load
from online.settings.places import open_journal
from replay.journal.base import Partition

pytestmark = pytest.mark.ray

NAMES = ("stays", "leaves")
MODELS = [{"name": name, "task": "binary", "learner": "logreg"} for name in NAMES]
OLD, NEW, ADMIN = (f"{name}-token-0123456789abcdefgh" for name in ("old", "new", "admin"))
REPLACED: Final = "every replica was replaced"
AS_ADMIN: Final = {"authorization": f"Bearer {ADMIN}"}


def tokens(*predict: str) -> dict[str, list[str]]:
    """Whose tokens may predict, beside the administrator's."""
    return {"predict": [*predict], "feedback": [ADMIN], "admin": [ADMIN]}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving({"replicas": 2, "models": MODELS, "tokens": tokens(OLD)}) as made:
        made.token = ADMIN
        yield made


class Teacher(threading.Thread):
    """Sends one event after the other until the model is unknown."""

    def __init__(self, url: str, round_: str) -> None:
        super().__init__(daemon=True)
        self._url, self._round = f"{url}/v1/models/leaves/feedback", round_
        self.taught, self.unanswered, self.refused = 0, False, dict[str, Any]()

    def run(self) -> None:
        with httpx.Client(timeout=120, headers=AS_ADMIN) as client:
            while not self.refused:
                event = {"features": {"a": 1.0}, "label": True}
                event["event_id"] = f"{self._round}:{self.taught}"
                try:
                    answer = client.post(self._url, json=event)
                except httpx.HTTPError:  # its replica has gone: the same event is sent again
                    self.unanswered = True
                    continue
                if answer.status_code == 200:
                    self.taught, self.unanswered = self.taught + 1, False
                elif answer.status_code == 404:
                    self.refused = answer.json()["error"]


def reload(running: Running, last: str, *, kill: bool = False, **changed: Any) -> str:
    """Change the settings, send SIGHUP, and wait until the last line of what is said."""
    path, log = running.folder / "online.yaml", running.folder / "serve.log"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changed}))
    before, deadline = len(log.read_text()), time.monotonic() + 240
    replicas = running.replica_urls()
    running.process.send_signal(signal.SIGHUP)
    while last not in (said := log.read_text()[before:]):
        assert time.monotonic() < deadline, said
        assert running.process.poll() is None, said
        if kill and len(now := running.replica_urls()) > len(replicas):
            name = next(name for name in now if name in replicas)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(name.partition(":")[0]), signal.SIGKILL)
            kill = False
        time.sleep(0.02)
    return said


def partitions(running: Running) -> list[Partition]:
    """The partitions of the model that leaves."""
    place = {"state_dir": str(running.state_dir)}
    settings = load(running.folder / "online.yaml", place, {})
    with contextlib.closing(open_journal(settings)) as journal:
        return list(journal.partitions("leaves"))


@pytest.mark.parametrize("killed", [[True], pytest.param([False, True], marks=pytest.mark.long)])
def test_a_model_leaves_and_comes_back_with_all_that_it_has_acknowledged(
    running: Running, killed: list[bool]
) -> None:
    acknowledged = sum(partition.end for partition in partitions(running))
    unanswered = 0
    epoch = status(running, "stays")["server"]["epoch"]
    path = f"{running.url}/v1/models/leaves"
    for round_, kill in enumerate(killed):
        teacher = Teacher(running.url, f"{len(killed)}-{round_}")
        teacher.start()
        while teacher.taught < 100:
            assert teacher.is_alive()
            time.sleep(0.01)
        said = reload(running, REPLACED, models=MODELS[:1], kill=kill)
        assert "model leaves is no longer served; its state stays in" in said
        assert "model leaves: its state is in snapshot" in said
        teacher.join(240)
        assert teacher.refused["code"] == "unknown_model"
        for _ in range(20):  # whichever replica answers
            with httpx.Client(timeout=120, headers=AS_ADMIN) as client:
                answers = [client.get(path), client.post(f"{path}/predict", json={})]
            assert [answer.status_code for answer in answers] == [404, 404]
        assert kill or all(partition.sealed for partition in partitions(running))
        assert status(running, "stays")["server"]["epoch"] == epoch, "it went on, beside it"
        acknowledged += teacher.taught
        unanswered += teacher.unanswered
        written = sum(partition.end for partition in partitions(running))
        assert acknowledged <= written <= acknowledged + unanswered

        assert "model leaves is new" in reload(running, REPLACED, models=MODELS)
        now = settle(running, "leaves", written)
        adopted = any(report.get("adopted") for report in now["replicas"].values())
        assert kill or not adopted, "all was pushed before it left"


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 240
    while not (given := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return given


def code(url: str, token: str, client: Any = httpx) -> int:
    """Status of a prediction; 0 without an answer."""
    path, headers = f"{url}/v1/models/stays/predict", {"authorization": f"Bearer {token}"}
    body = {"features": {"a": 1.0}}
    try:
        return int(client.post(path, json=body, headers=headers, timeout=120).status_code)
    except httpx.HTTPError:
        return 0


def test_replicas_take_new_tokens_on_open_connections_and_hand_them_on(running: Running) -> None:
    until(lambda: len(running.replica_urls()) == 2)
    replicas = running.replica_urls()
    kept = [(url, httpx.Client()) for url in replicas.values()]
    for url, client in kept:
        until(lambda url=url, client=client: code(url, OLD, client) == 200)
        assert [code(url, OLD, client) for _ in range(3)] == [200] * 3, "the head is known by then"
    said = reload(running, "tokens changed", tokens=tokens(NEW))
    assert "replaced" not in said, "a replica did not confirm them"
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
