"""What any replica says of a model: the journal's room, decisions, and what a freeze waits for."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from online.challenger.promotion import decision
from online.errors import RequestError
from online.http.app import build_rest
from online.rows.history import Decisions
from online.serving.operating import journal_room, status
from online.serving.operating.status import Cluster
from online.settings.model import Drift, ModelSettings
from online.settings.purposes import PURPOSES
from online.telemetry import prometheus
from online.watch.drift import DriftMonitor
from paramserver.errors import (
    DecisionUncertain,
    HandedOn,
    NothingDecided,
    NotReady,
    RollbackRefused,
    ServerUnavailable,
    SnapshotMissing,
)
from replay.errors import JournalUnavailable
from replay.example import Example
from replay.journal.base import Control, Usage

A, B = "a" * 64, "b" * 64


class Server:
    """Answers by name, in turn; the last one again and again.  An error is raised."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers, self.asked = answers, Counter[str]()

    async def call(self, method: str, timeout_s: float, *args: Any) -> Any:
        if method == "asked_by":
            self.who, method, *args = args  # type: ignore[assignment]
        self.asked[method] += 1
        answers = self.answers[method]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class World:
    """One replica with a journal of which only the room is asked."""

    def __init__(self, server: Server, size_max: int | None = 1000) -> None:
        self.server = server
        self.now_s, self.usage = 0.0, Usage(100, size_max, 10, 0)
        self.broken, self.decisions = False, Decisions("spec")
        tally = SimpleNamespace(views=(), digest=(10, 0), counters={})
        control = SimpleNamespace(current=self.look, decisions=self.decisions)
        writer = SimpleNamespace(partition=1)
        self.replica: Any = SimpleNamespace(
            replica="r1", version="1.2", age_ms=4.0,
            settings=SimpleNamespace(
                task="binary", purpose=PURPOSES["binary"], features=None, choose=None, anomaly=None
            ),
            updates_behind=0, incidents=[], report=lambda: {"waiting": 0.0}, control=control,
            writer=writer, store=SimpleNamespace(read=self.read), judge=None, filters=None,
            exchange=SimpleNamespace(peer=None),
            learner=SimpleNamespace(tally=tally, frozen=False, memory=None, tracks={}),
        )  # fmt: skip
        journal: Any = SimpleNamespace(usage=lambda model: self.usage)
        self.cluster = Cluster(
            {"m": self.replica}, {"m": server}, {"m": journal}, lambda name: {"spec": "spec"},
            monotonic_s=lambda: self.now_s,
        )  # fmt: skip

    async def read(self, step: Any, *args: Any) -> Any:
        if self.broken:
            raise JournalUnavailable("it is gone")
        return step(*args)

    async def look(self) -> Decisions:
        decisions: Decisions = await self.read(lambda: self.decisions)
        return decisions

    def shown(self) -> dict[str, Any]:
        return asyncio.run(self.cluster.model("m"))


def serving(**more: Any) -> dict[str, Any]:
    return {"replicas": {}, "refused": {}, "reach_s": 60.0, **more}


def test_the_alarm_is_an_incident_and_a_metric() -> None:
    world = World(Server(status=[serving()]))
    asyncio.run(world.cluster.start())
    assert world.shown()["incident"] is None
    world.usage = Usage(800, 1000, 90, 0)
    shown = world.shown()
    assert "80%" in shown["incident"]
    text = prometheus.exposition([shown])
    assert "online_journal_used_ratio 0.8" in text
    assert 'online_rollback_reach_seconds{model="m"} 60.0' in text
    assert "online_journal_days_left" not in text, "not measured yet"
    world.now_s = journal_room.TREND_S
    assert "online_journal_days_left " in prometheus.exposition([world.shown()])
    world.replica.incidents = ["worse", "late"]
    shown = world.shown()
    assert shown["incidents"][:2] == ["worse", "late"], "the replica's own hide nothing"
    assert "80%" in shown["incidents"][2]
    assert shown["incident"] == "; ".join(shown["incidents"])


def test_a_model_that_raises_at_every_event_is_an_incident() -> None:
    world = World(Server(status=[serving()]))
    world.decisions.failed.update({"aa": "KeyError: 'x'", "bb": "ZeroDivisionError: by zero"})
    shown = world.shown()
    assert (shown["rewrites"]["failed"], shown["incident"]) == (2, None), "others were learned"
    world.replica.learner.tally.digest = (0, 0)
    assert "nothing: 2 events failed, the newest: ZeroDivisionError" in world.shown()["incident"]


def test_a_journal_or_a_server_that_is_away_is_said() -> None:
    world = World(Server(status=[NotReady("restoring", "")]))
    world.broken = True
    asyncio.run(world.cluster.start())
    shown = world.shown()
    assert (shown["journal"], shown["rewrites"], shown["server"]) == (None, None, None)
    assert "online_learned_events" in prometheus.exposition([shown])
    with pytest.raises(RequestError, match="does not answer") as error:
        asyncio.run(world.cluster.events("m", "undone", None, 10))
    assert error.value.status == 503


def test_a_replica_that_does_not_start_is_an_incident() -> None:
    world = World(Server(status=[{}]))

    def away() -> str:
        raise OSError("Ray does not answer")

    for absent, incident in (
        (lambda: "its code is broken", "a replica does not start: its code is broken"),
        (away, "a replica does not start: its code is broken"),
        (lambda: None, None),
        (away, None),
    ):
        world.cluster._absent = absent
        assert world.shown()["incident"] == incident
    world.replica.incidents = ["the journal is held"]
    world.cluster._absent = lambda: "broken"
    told = ["the journal is held", "a replica does not start: broken"]
    assert world.shown()["incidents"] == told


def test_a_challenger_is_shown_and_promoted_only_when_it_may() -> None:
    world = World(Server(status=[serving()], promote=[{"control": 3, "before": A, "after": B}]))
    with pytest.raises(RequestError, match="has no challenger"):
        asyncio.run(world.cluster.promote("m", back=False))
    standing = {
        "verdict": "better", "rows": 900, "difference": 0.1, "interval": (0.04, 0.16), "late": 2,
        "champion": 0.8, "challenger": 0.9,
    }  # fmt: skip
    learning = {"state": "learning", "spec_hash": B, "behind_rows": 5, **standing}
    told: list[Any] = [
        ServerUnavailable("Challenger:m", "no actor has that name"),
        {"state": "beginning", "incident": "it reads"},
        {**learning, "behind_rows": status.BEHIND_MAX + 1},
        learning,
    ]
    challenger = Server(status=told)
    world.cluster._challengers = {"m": challenger}
    model = ModelSettings.model_validate(
        {"name": "m", "task": "binary", "learner": "logreg", "challenger": {"learner": "linear"}}
    )
    world.replica.settings, world.replica.spec = model, A
    controls: Any = []
    world.cluster._journals["m"].controls = lambda name, after: controls  # type: ignore[index]
    for code, refusal in ((503, "not there"), (503, "it reads"), (409, "2,001 rows behind")):
        with pytest.raises(RequestError, match=refusal) as error:
            asyncio.run(world.cluster.promote("m", back=False))
        assert error.value.status == code
    with pytest.raises(RequestError, match="has not served before"):
        asyncio.run(world.cluster.promote("m", back=True))
    done = asyncio.run(world.cluster.promote("m", back=False))
    assert (done["from"], done["to"], done["verdict"]) == (A, B, "better")
    note = decision(model, B, A, "operator", {})
    controls.append(Control(3, "m", "promote", "key", note))
    assert asyncio.run(world.cluster.promote("m", back=True))["to"] == B
    assert world.server.asked["promote"] == 2
    asyncio.run(world.cluster.start())
    shown = world.shown()
    assert (shown["challenger"]["learner"], shown["challenger"]["rows"]) == ("linear", 900)
    text = prometheus.exposition([shown])
    for line in ('verdict{model="m"} 1.0', 'difference_low{model="m"} 0.04', "late{model="):
        assert f"online_challenger_{line}" in text


def test_scores_of_each_epoch_are_differences_of_totals() -> None:
    ends = [
        {"epoch": 3, "n": 100.0, "correct": 60.0}, {"epoch": 4, "n": 300.0, "correct": 240.0},
        {"epoch": 5, "n": 150.0, "correct": 95.0}, {"epoch": 7, "n": 160.0, "correct": 105.0},
    ]  # fmt: skip
    assert status.by_epoch("binary", ends) == [
        {"epoch": 7, "n": 10, "accuracy": 1.0}, {"epoch": 4, "n": 200, "accuracy": 0.9},
    ], "nobody knows where the third began, and the fifth was rolled back"  # fmt: skip
    first = [{"epoch": 1, "n": 4.0, "abs_error": 2.0}]
    assert status.by_epoch("regression", first) == [{"epoch": 1, "n": 4, "mae": 0.5}]
    assert status.by_epoch("binary", [{"epoch": 1}]) == []


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_ACT_POLL_S", 0.0)


@pytest.mark.usefixtures("no_pause")
def test_freeze_waits_for_every_replica() -> None:
    frozen = {"frozen": 3, "control": 3, "version": [1, 5], "complete": False}
    late = {"replicas": {"a": {"control": 3}, "b": {"control": 0}}, "version": [1, 6]}
    server = Server(
        freeze=[frozen],
        status=[
            {**late, "freeze_complete": False},
            {**late, "freeze_complete": False},
            {**late, "freeze_complete": True, "version": [1, 7]},
        ],
    )
    done = asyncio.run(World(server).cluster.freeze("m"))
    assert (done["complete"], done["missing"], done["version"]) == (True, [], [1, 7])
    assert server.asked["status"] == 3


@pytest.mark.usefixtures("no_pause")
def test_freeze_names_who_is_missing_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_ACT_S", -1.0)
    late = {"replicas": {"a": {"control": 3}, "b": {"control": 0}}, "version": [1, 6]}
    server = Server(
        freeze=[{"frozen": 3}],
        unfreeze=[{"control": 4}],
        status=[{**late, "freeze_complete": False}],
    )
    cluster = World(server).cluster
    done = asyncio.run(cluster.freeze("m"))
    assert (done["complete"], done["missing"]) == (False, ["b"])
    done = asyncio.run(cluster.unfreeze("m"))
    assert (done["complete"], done["missing"]) == (False, ["a", "b"])


@pytest.mark.usefixtures("no_pause")
def test_a_rollback_stands_although_the_server_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    behind = {"replicas": {"a": {"control": 0}}, "version": [2, 6]}
    acted = {"replicas": {"a": {"control": 1}}, "version": [2, 7]}
    done = {"control": 1, "undone": 5, "version": [2, 6]}
    server = Server(rollback=[done], status=[behind, NotReady("restoring", ""), acted])
    found = asyncio.run(World(server).cluster.rollback("m", "x"))
    assert found == {**done, "complete": True, "missing": []}
    monkeypatch.setattr(status, "_ACT_S", -1.0)
    server = Server(rollback=[done], status=[NotReady("restoring", "")])
    found = asyncio.run(World(server).cluster.rollback("m", "x"))
    assert found == {**done, "complete": False, "missing": []}


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (SnapshotMissing("x"), 404, "unknown_snapshot"),
        (RollbackRefused("x", "it is damaged", ("y",)), 422, "rollback_refused"),
        (NotReady("restoring", ""), 503, "server_unavailable"),
        (NothingDecided("away"), 503, "server_unavailable"),
        (HandedOn("m"), 503, "server_unavailable"),
        (DecisionUncertain("rollback", "k", "no answer"), 503, "server_unavailable"),
    ],
)
def test_what_a_server_refuses(error: Exception, code: int, name: str) -> None:
    with pytest.raises(RequestError) as raised:
        asyncio.run(World(Server(rollback=[error])).cluster.rollback("m", "x"))
    assert (raised.value.status, raised.value.code) == (code, name)
    assert raised.value.hint
    after_s = {NotReady: 1, NothingDecided: 1, HandedOn: 30}.get(type(error))
    assert raised.value.retry_after_s == after_s


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_an_operators_body_is_json_and_says_so(kind: str) -> None:
    """Not what any page of a browser may send without asking."""
    world = World(Server(rollback=[{"control": 1}], status=[{"version": [1, 1], "replicas": {}}]))
    rest = build_rest({"m": SimpleNamespace()}, world.cluster)  # type: ignore[dict-item]

    async def post(kind: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=rest)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            url, headers = "/v1/models/m/rollback", {"Content-Type": kind} if kind else {}
            return await client.post(url, content=b'{"to":"1-1"}', headers=headers)

    answer = asyncio.run(post(kind))
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "media_type")
    assert "application/json" in answer.json()["error"]["hint"]
    assert not world.server.asked
    assert asyncio.run(post("application/json")).json()["control"] == 1


def test_nothing_is_learned_again_while_frozen() -> None:
    world = World(Server())
    world.cluster._journals["m"].partitions = lambda model: ()  # type: ignore[attr-defined]
    world.replica.learner.frozen = True
    with pytest.raises(RequestError) as raised:
        asyncio.run(world.cluster.relearn("m", "undone", None, 10))
    assert (raised.value.status, raised.value.code) == (409, "still_frozen")
    world.replica.learner.frozen = False
    assert asyncio.run(world.cluster.relearn("m", "undone", None, 10))["learned"] == 0


@pytest.mark.parametrize(("alone", "shown"), [(True, {"n": 3}), (False, None)])
def test_with_several_replicas_nobody_knows_which_labels_are_to_come(
    alone: bool, shown: Any
) -> None:
    judge = SimpleNamespace(
        summary=lambda: {"state": "ok", "without_labels": {"n": 3}}, report=lambda: {}
    )
    replica: Any = SimpleNamespace(judge=judge, replica="r1")
    reports: dict[str, dict[str, float]] = {"r1": {}} if alone else {"r1": {}, "r2": {}}
    found = status._drift(replica, reports)
    assert found == {"state": "ok", "without_labels": shown, "of": "r1", "replicas": {}}
    none: Any = SimpleNamespace(judge=None)
    assert status._drift(none, reports) is None


def test_the_drift_is_what_all_replicas_know_whichever_answers() -> None:
    """One has all the labels: the other one, asked, said "0 labelled rows" after 5,000."""
    busy, quiet = (
        DriftMonitor(Drift(reference_rows=200, window_rows=200), "binary") for _ in range(2)
    )
    draw = random.Random(1)
    for i in range(1, 1_501):
        right = draw.random() < (0.9 if i < 1_000 else 0.3)
        score = {"true": 0.8, "false": 0.2}
        busy.learned(1, i, Example({"x": 1.0}, right, score=score, predicted_at=1.0), float(i))
    reports: dict[str, dict[str, float]] = {"busy": busy.report(), "quiet": {"contact_age_s": 1.0}}
    for name, judge in (("busy", busy), ("quiet", quiet)):
        replica: Any = SimpleNamespace(judge=judge, replica=name)
        found = status._drift(replica, reports)
        assert found is not None
        assert (found["state"], found["judged"]) == ("act", 1_500)
        assert found["why"].startswith("the error rose from 0.")
        if name == "quiet":
            assert found["of"] == "busy"
            assert found["replicas"]["busy"]["judged"] == 1_500
            assert found["replicas"]["quiet"]["state"] == "not enough data"
    gone = {**reports, "busy": {**reports["busy"], "contact_age_s": 60.0}}
    alone = status._drift(SimpleNamespace(judge=quiet, replica="quiet"), gone)  # type: ignore[arg-type]
    assert alone is not None
    assert alone["state"] == "not enough data", "one that is gone says nothing any more"
