"""A start waits for parameter servers, which may be slow to begin, or killed while they do."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError

from online.errors import StartRefused
from online.service.state import parameter_servers
from online.service.state.deadline import StartDeadline
from online.service.state.parameter_servers import Begun
from paramserver.errors import ServerUnavailable

SERVING = {"state": "serving", "reason": "", "epoch": 3, "count": 7, "refused": {}}
RESTORING = {"state": "restoring", "reason": ""}
OF_A_SERVER = ("confirm", "snapshot")
HANDLE = SimpleNamespace(status=SimpleNamespace(remote=lambda: "asked"))


def waited(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[str]:
    """What is said of a server that answers so; the first answer is that of who gets its handle."""
    left, said = list(answers), list[str]()

    def answer(*_: object, **__: object) -> Any:
        one = left.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    monkeypatch.setattr(ray, "get", answer)
    clock = iter(float(i) for i in range(1000))
    deadline = StartDeadline(20.0, lambda: next(clock))
    parameter_servers.wait_for([Begun("m", answer)], said.append, deadline)
    assert not left
    return said


def test_a_server_that_is_killed_while_it_begins_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = ActorUnavailableError("it restarts", b"a" * 16)
    answers = (GetTimeoutError(), away, HANDLE, RESTORING, away, GetTimeoutError(), SERVING)
    assert waited(monkeypatch, *answers) == ["model m: version 3.7"]


def test_a_server_whose_shared_process_begins_anew_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = RayTaskError("ask", "", ServerUnavailable("m", "it does not run in the shared process"))
    assert waited(monkeypatch, HANDLE, away, SERVING) == ["model m: version 3.7"]
    with pytest.raises(RayTaskError):
        waited(monkeypatch, HANDLE, RayTaskError("ask", "", ValueError("no")))


def test_a_server_that_writes_a_snapshot_for_long_has_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    methods = {name: SimpleNamespace(remote=partial(str, name)) for name in OF_A_SERVER}

    def get(asked: str, timeout: float) -> None:
        if asked in late:
            raise GetTimeoutError

    monkeypatch.setattr(ray, "get_actor", lambda *_: SimpleNamespace(**methods))
    monkeypatch.setattr(ray, "get", get)
    asks = parameter_servers.has_decided, parameter_servers.publishes
    for late in ((), ("snapshot",), OF_A_SERVER):
        found = [ask("m", "s" * 64, 1.0) for ask in asks]
        assert found == [name not in late for name in OF_A_SERVER]


def test_one_that_never_serves_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartRefused, match=r"is not ready \(restoring\)"):
        waited(monkeypatch, HANDLE, *[RESTORING] * 100)
    with pytest.raises(ActorDiedError):
        waited(monkeypatch, HANDLE, ActorDiedError())
