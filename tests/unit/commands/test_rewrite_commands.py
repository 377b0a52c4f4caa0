"""Rollback, freeze and release as commands: exit codes, pages, patience, and Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from online.commands import base
from online.commands.change import forget, rewrites
from online.commands.cli import app
from online.errors import StartRefused
from online.rebuild.forget import Base
from online.rebuild.rebuild import Built, ForgetScope
from online.settings.config import load
from online.settings.model import ModelSettings
from paramserver.core.state import Contained, SnapshotState
from paramserver.errors import SnapshotMissing

Answer = tuple[int, dict[str, Any]]
_EVENT = {
    "event_id": "e1", "source": "s", "label": True, "at": 0.0, "row": "1:7", "status": "undone",
}  # fmt: skip


_WHAT_GOES = rewrites._to_be_undone


class Service:
    """Answers in turn; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer | Callable[[], Answer]] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"models": [{"model": "m"}]})
        body = json.loads(request.content) if request.content else dict(request.url.params)
        self.asked.append((request.url.path.rpartition("/")[2], body))
        answer = self.answers.pop(0)
        status, data = answer() if callable(answer) else answer
        return httpx.Response(status, json=data)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service()

    def connect(*_: object) -> httpx.Client:
        return httpx.Client(base_url="http://service", transport=httpx.MockTransport(made))

    monkeypatch.setattr(base.Context, "connect", connect)
    monkeypatch.setattr(rewrites.time, "sleep", lambda _: None)
    monkeypatch.setattr(
        rewrites, "_to_be_undone", lambda *_: {"rows": 1234, "since": 0.0, "version": (1, 2)}
    )
    return made


def run(*words: str, said: str | None = None) -> Any:
    return CliRunner().invoke(app, list(words), input=said)


def page(cursor: str | None, *, learned: int = 2, duplicate: int = 1, left: int = 0) -> Answer:
    counts = {"learned": learned, "queued": 0, "failed": 0, "duplicate": duplicate, "removed": 0}
    return 200, {**counts, "cursor": cursor, "left": left}


def error(status: int, code: str) -> Answer:
    return status, {"error": {"code": code, "message": f"it is {code}", "hint": "Do this"}}


def test_back_without_anybody_to_ask(service: Service) -> None:
    done = run("rollback", "--to", "1-2")
    assert done.exit_code == 1
    assert "1,234 rows are undone" in str(done.exception)
    assert "--yes" in str(done.exception)
    assert service.asked == []


@pytest.mark.parametrize(("said", "code", "asked"), [("y\n", 0, 1), ("n\n", 1, 0)])
def test_back_when_asked(
    service: Service, monkeypatch: pytest.MonkeyPatch, said: str, code: int, asked: int
) -> None:
    monkeypatch.setattr("online.commands.base.somebody", lambda: True)
    service.answers = [(200, {"undone": 3, "snapshot": "1-2", "missing": []})]
    done = run("rollback", "--to", "1-2", said=said)
    assert (done.exit_code, len(service.asked)) == (code, asked)


def test_back_said_beforehand(service: Service) -> None:
    service.answers = [(200, {"undone": 3, "snapshot": "1-2", "missing": []})]
    done = run("rollback", "--to", "1-2", "--yes", "--json")
    assert (done.exit_code, json.loads(done.stdout)["undone"]) == (0, 3)
    assert service.asked == [("rollback", {"to": "1-2"})]


@pytest.mark.parametrize(
    ("kept", "said"), [([[2, 1], [1, 5], [1, 2]], "1-5"), ([[2, 1]], "snapshot list")]
)
def test_a_snapshot_that_is_gone_since_it_was_listed_has_a_neighbour(
    service: Service, tmp_path: Path, kept: list[list[int]], said: str
) -> None:
    """The nearest of those before it, which retention has left."""
    rows = [{"name": f"{e}-{n}", "version": [e, n], "created_at": 0.0} for e, n in kept]
    service.answers = [(200, {"server": {}, "spec": "s"}), (200, {"snapshots": rows})]
    context: Any = SimpleNamespace(settings=lambda: load(None, {"state_dir": str(tmp_path)}, {}))
    with pytest.raises((StartRefused, SnapshotMissing), match="no snapshot '1-7'") as refused:
        _WHAT_GOES(context, base.Context().connect(), "m", "1-7")
    assert said in str(refused.value)


def test_pages_are_asked_until_the_end(service: Service) -> None:
    service.answers = [page("a", left=9), page("b", left=4), page(None)]
    done = run("rollback", "--relearn", "--json")
    result = json.loads(done.stdout)
    assert (done.exit_code, result["learned"], result["duplicate"]) == (0, 6, 3)
    assert result["cursor"] is None
    assert [body["after"] for _, body in service.asked] == [None, "a", "b"]


def test_a_busy_service_is_asked_again(service: Service) -> None:
    service.answers = [(200, {}), error(429, "busy"), error(503, "stopping"), page(None)]
    done = run("unfreeze", "--release", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["learned"] == 2
    assert [name for name, _ in service.asked] == ["unfreeze"] + ["relearn"] * 3
    assert {body["status"] for name, body in service.asked if name == "relearn"} == {"frozen"}


def test_what_is_refused_is_not_asked_again(service: Service) -> None:
    service.answers = [error(409, "still_frozen")]
    done = run("rollback", "--relearn")
    assert done.exit_code == 1
    assert "still_frozen" in str(done.exception)


def test_an_interrupt_says_where_it_goes_on(service: Service) -> None:
    def interrupt() -> Answer:
        raise KeyboardInterrupt

    service.answers = [page("1:1:40", left=9), interrupt]
    done = run("rollback", "--relearn")
    assert done.exit_code == 130
    assert "2 undone events learned" in done.stdout
    assert "--after 1:1:40" in done.stdout
    service.answers = [page(None)]
    assert run("rollback", "--relearn", "--after", "1:1:40").exit_code == 0
    assert service.asked[-1][1]["after"] == "1:1:40"


def test_lists(service: Service) -> None:
    again = {**_EVENT, "status": "learned_again", "learned_as": "2:9"}
    first = (200, {"events": [_EVENT], "cursor": "c", "left": 5, "removed": 2})
    service.answers = [first, (200, {"events": [again], "cursor": "d", "left": 4, "removed": 0})]
    done = run("rollback", "--undone", "--limit", "2")
    assert done.exit_code == 0
    for part in ("e1", "1:7", "2:9", "2 older rows", "--after d"):
        assert part in done.stdout
    service.answers = [(200, {"events": [], "cursor": None, "left": 0, "removed": 0})]
    assert "no frozen events" in run("freeze", "--list").stdout


@pytest.mark.parametrize(("missing", "code"), [([], 0), (["host:1"], 1)])
def test_freeze_tells_who_has_not_seen_it(service: Service, missing: list[str], code: int) -> None:
    answer = {"frozen": 4, "complete": not missing, "missing": missing, "version": [2, 9]}
    service.answers = [(200, answer)]
    done = run("freeze")
    assert done.exit_code == code
    assert "version 2.9" in done.stdout
    assert all(name in done.stdout for name in missing)


@pytest.mark.parametrize("words", [(), ("--to", "1-2", "--undone"), ("--undone", "--relearn")])
def test_one_thing_at_a_time(service: Service, words: tuple[str, ...]) -> None:
    assert run("rollback", *words).exit_code == 2
    assert service.asked == []


class Place:
    """States that are published aside, and removed again."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def publish(self, name: str, state: Any) -> None:
        self.names.append(name)

    def withdraw(self, name: str) -> None:
        self.names.remove(name)


def interrupted() -> Answer:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("answer", "stays"),
    [
        ((200, {"undone": 2, "complete": True, "missing": []}), 1),
        (error(422, "forget_refused"), 0),
        (error(503, "server_unavailable"), 1),  # its control row may stand
        (interrupted, 1),
    ],
)
def test_a_state_aside_is_removed_if_nothing_leads_to_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, answer: Any, stays: int
) -> None:
    work: Any = object.__new__(forget._Work)
    work.name, work._client = "m", base.Context().connect()
    work._model = ModelSettings(name="m", task="binary", learner="logreg")
    work._wanted, work._history = ForgetScope("bot"), Place()
    work._base = Base("1-1", Contained({}, frozenset()))
    built = Built(SnapshotState("m", "s", "", (1, 1), {}, {}), {1: [0, 2]}, 5, 0)
    monkeypatch.setattr(forget._Work, "_built", lambda *_, **__: built)
    server = {"version": [1, 1], "epoch": 1, "count": 1, "rewrite": 0}
    service.answers = [(200, {"complete": True}), (200, {"server": server}), answer]
    try:
        done = work.swap(as_json=True)
        assert (done["learned"], done["undone"]) == (5, 2)
    except (StartRefused, KeyboardInterrupt):
        assert answer[0] != 200 if isinstance(answer, tuple) else True
    assert len(work._history.names) == stays
    assert [path for path, _ in service.asked] == ["sources", "m", "forget"]


def test_another_base_is_chosen_if_retention_has_removed_the_first() -> None:
    """While the operator was asked, or replicas heard of the ban."""
    states = {"1-2": SnapshotState("m", "s", "", (1, 2), {}, {})}

    def loaded(name: str) -> SnapshotState:
        if name not in states:
            raise SnapshotMissing(name)
        return states[name]

    work: Any = object.__new__(forget._Work)
    work._found, work._to, work._history = None, None, SimpleNamespace(load=loaded)
    work._base = Base("1-4", Contained({}, frozenset()))

    def choose(found: Any, to: Any) -> None:
        work._base = Base("1-2", Contained({}, frozenset()))

    work._choose = choose
    assert work._start() is states["1-2"]


def test_nothing_is_built_before_every_replica_knows_the_ban(service: Service) -> None:
    work: Any = object.__new__(forget._Work)
    work.name, work._client, work._wanted = "m", base.Context().connect(), ForgetScope("bot")
    service.answers = [(200, {"complete": False, "missing": ["r2"]})]
    with pytest.raises(StartRefused, match="r2"):
        work.swap(as_json=True)
