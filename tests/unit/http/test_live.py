"""Answers and labels as they come: bounded, only while watched, each replica its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from online.client.simple_client import Answer, NoAnswer
from online.commands.operate import events, top
from online.http import ring as module
from online.http.ring import Ring
from online.messages.choices import Action, ChooseRequest, Chosen, Ranked, Reward, RewardRequest
from online.messages.structs import (
    Event,
    FeedbackRequest,
    Prediction,
    Predictions,
    PredictRequest,
    Receipt,
    Receipts,
    Row,
)


class Time:
    """A clock for both uses."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def ring(clock: Time) -> Ring:
    return Ring(clock, clock)


def answered(ring: Ring, x: float = 1.0, size: int = 10) -> None:
    if ring.watched:
        given = Prediction("t" * 99, True, "m", "3.4", 2, 5.0, 0, {"true": 0.7, "false": 0.3})
        ring.take(PredictRequest({"x": x}), given, size)


def labelled(ring: Ring) -> None:
    if ring.watched:
        asked = FeedbackRequest(label=True, features={"x": 1.0}, event_id="e1", source="shop")
        ring.take(asked, Receipt("learned", "e1", "3.4", "3.5"), 10)


def test_nothing_is_taken_while_nobody_watches(ring: Ring) -> None:
    answered(ring)
    assert ring.look(None) == {"cursor": 0, "missed": 0, "events": []}
    answered(ring)
    labelled(ring)
    assert ring.look(0) == {
        "cursor": 2, "missed": 0,
        "events": [
            {
                "at": 100.0, "kind": "answer", "id": "t" * 16, "features": {"x": 1.0},
                "prediction": True, "probabilities": {"true": 0.7, "false": 0.3},
                "version": "3.4+2",
            },
            {
                "at": 100.0, "kind": "label", "id": "e1", "source": "shop", "label": True,
                "features": {"x": 1.0}, "status": "learned", "version": "3.5",
            },
        ],
    }  # fmt: skip
    assert ring.look(2) == {"cursor": 2, "missed": 0, "events": []}


def test_it_is_let_go_of_when_nobody_looks_any_more(ring: Ring, clock: Time) -> None:
    ring.look(None)
    answered(ring)
    clock.now_s += module.WATCHED_S
    answered(ring)
    assert ring.watched
    clock.now_s += 1
    answered(ring)
    assert not ring.watched
    assert ring.look(0)["events"] == []


def test_a_replica_that_began_anew_is_asked_from_now_on(ring: Ring) -> None:
    ring.look(None)
    answered(ring)
    assert ring.look(17) == {"cursor": 1, "missed": 0, "events": []}


def test_it_is_bounded_and_says_what_was_missed(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUESTS_MAX", 3)
    ring.look(None)
    for i in range(5):
        answered(ring, float(i))
    found = ring.look(0)
    assert [e["features"]["x"] for e in found["events"]] == [2.0, 3.0, 4.0]
    assert (found["cursor"], found["missed"]) == (5, 2)
    answered(ring, 5.0, size=module.BYTES_MAX - 15)
    assert len(ring._taken) == 2, "bodies count"
    answered(ring, 6.0, size=module.BYTES_MAX + 1)
    found = ring.look(5)
    assert [e["features"]["x"] for e in found["events"]] == [5.0]
    answered(ring, 7.0)
    assert ring.look(found["cursor"])["missed"] == 1, "one that is too long is missed"


def test_a_look_is_bounded_and_the_next_one_goes_on(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_MAX", 2)
    ring.look(None)
    for i in range(3):
        answered(ring, float(i))
    first = ring.look(0)
    assert (len(first["events"]), first["cursor"], first["missed"]) == (2, 2, 0)
    assert len(ring.look(2)["events"]) == 1


def test_requests_of_many_rows_show_some_and_count_the_rest(ring: Ring) -> None:
    ring.look(None)
    rows = [{"x": float(i)} for i in range(8)]
    given = Predictions([Row(i) for i in range(8)], "m", "1.2", 0, 5.0, 0)
    ring.take(PredictRequest(instances=rows), given, 10)
    several = FeedbackRequest(events=[Event(label=i, id="own") for i in range(2)])
    ring.take(several, Receipts([Receipt("learned"), Receipt("duplicate")], "m"), 10)
    found = ring.look(0)["events"]
    assert [e["kind"] for e in found] == ["answer"] * 5 + ["more"] + ["label"] * 2
    assert found[5]["rows"] == 3
    assert [(e["id"], e["status"]) for e in found[6:]] == [("own", "learned"), ("own", "duplicate")]


def test_choices_and_rewards_are_shown_with_what_was_likely(ring: Ring) -> None:
    ring.look(None)
    asked = ChooseRequest([Action("news"), Action("sport")], {"hour": 9.0})
    ranking = [Ranked("sport", 0.75, 0.4), Ranked("news", 0.25, 0.1)]
    ring.take(asked, Chosen("t" * 99, "sport", 0.75, ranking, "m", "1.2", 3, 5.0, 0), 10)
    ring.take(RewardRequest("own-1", 1.0, source="shop"), Receipt("learned", "own-1"), 10)
    several = RewardRequest(rewards=[Reward(f"own-{i}", 0.0) for i in range(8)])
    ring.take(several, Receipts([Receipt("learned")] * 8, "m"), 10)
    choice, reward, *rest = ring.look(0)["events"]
    assert choice == {
        "at": 100.0, "kind": "choice", "id": "t" * 16, "features": {"hour": 9.0},
        "action": "sport", "probability": 0.75, "of": 2, "version": "1.2+3",
    }  # fmt: skip
    assert reward == {
        "at": 100.0, "kind": "reward", "id": "own-1", "source": "shop", "label": 1.0,
        "status": "learned",
    }  # fmt: skip
    assert [e["kind"] for e in rest] == ["reward"] * 5 + ["more"]
    assert rest[5]["rows"] == 3


# -- the command -----------------------------------------------------------------------------


class Asked:
    """A service of two replicas behind a balancer."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers, self.paths = list(answers), list[str]()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Answer:
        """Answer in turn; None: nobody does."""
        self.paths.append(path)
        if not self.answers:
            raise NoAnswer("gone")
        return Answer(200, json.dumps(self.answers.pop(0)).encode())


def given(replica: str, cursor: int, *ats: float, missed: int = 0) -> dict[str, Any]:
    found = [
        {"kind": "label", "at": at, "label": 1, "status": "learned", "source": "a"} for at in ats
    ]
    return {"replica": replica, "cursor": cursor, "missed": missed, "events": found}


def test_each_replica_is_met_and_goes_on_from_its_own_cursor() -> None:
    client = Asked(
        given("a:1", 5), given("b:2", 9), given("a:1", 7, 3.0, 4.0), given("b:2", 10, 2.0),
        given("a:1", 7),
    )  # fmt: skip
    cursors: dict[str, int] = {}
    assert events._look(client, "m", cursors) == []  # type: ignore[arg-type]
    assert cursors == {"a:1": 5, "b:2": 9}
    found = events._look(client, "m", cursors)  # type: ignore[arg-type]
    assert [(e["at"], e["replica"]) for e in found] == [(2.0, "b:2"), (3.0, "a:1"), (4.0, "a:1")]
    assert client.paths[2] == "/v1/models/m/live?after=5@a:1&after=9@b:2"
    assert cursors == {"a:1": 7, "b:2": 10}


def test_a_service_that_is_gone_for_a_moment_ends_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = Asked(given("a:1", 5, missed=2))
    assert events._look(client, "m", {}) == [{"kind": "missed", "rows": 2, "replica": "a:1"}]  # type: ignore[arg-type]
    assert "does not answer" in capsys.readouterr().err


def test_lines_are_for_people_or_programs(capsys: pytest.CaptureFixture[str]) -> None:
    answer = {
        "kind": "answer", "at": 0.25, "prediction": "yes\x1b", "probabilities": {"yes\x1b": 0.75},
        "features": {"x": 1},
    }  # fmt: skip
    label = {"kind": "label", "at": 0.0, "label": True, "status": "learned", "source": "shop"}
    choice = {"kind": "choice", "at": 0.0, "action": "news", "probability": 0.75, "of": 2}
    for event in (answer, label, {"kind": "more", "rows": 3}, choice):
        events._print(event, None, None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop().endswith(".000 -> news (0.75 of 2 actions)")
    assert lines[0].endswith('.250 -> "yes\\u001b" (0.75)  {"x": 1}')
    assert lines[1].endswith(".000 <- true learned of shop")
    assert lines[2].strip() == "… and 3 more rows"
    events._print(answer, "label", None, as_json=False)
    events._print(label, None, "other", as_json=False)
    events._print(choice, "reward", None, as_json=False)
    assert capsys.readouterr().out == ""
    events._print(label, "label", "shop", as_json=True)
    assert json.loads(capsys.readouterr().out) == label


# -- the overview in a terminal ------------------------------------------------------------------


def model(**more: Any) -> dict[str, Any]:
    return {
        "model": "m[b]", "task": "binary", "incident": None, "drift": {"state": "act"},
        "quality": {"n": 500, "accuracy": 0.91, "no_change": 0.6, "majority": 0.55},
        "replicas": {"a": {"predictions": 10.0, "feedback_learned": 4.0, "age_ms": 12.0}},
        "server": {"epoch": 1}, "rewrites": {"frozen": 0}, **more,
    }  # fmt: skip


class Overview(Asked):
    """A service whose counters grow."""

    def __init__(self, *models: dict[str, Any]) -> None:
        super().__init__()
        self.models = list(models)

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Answer:
        """The next status, or the course."""
        if path.endswith("/history"):
            return Answer(200, json.dumps({"columns": {"accuracy": [0.5, None, 0.9]}}).encode())
        if not self.models:
            raise NoAnswer("gone")
        return Answer(200, json.dumps({"models": [self.models.pop(0)]}).encode())


def text(screen: top.Screen) -> str:
    from rich.console import Console

    wide = Console(width=200, no_color=True)
    with wide.capture() as captured:
        wide.print(screen.drawn())
    return captured.get()


def test_the_overview_has_rates_and_a_course() -> None:
    later = model(replicas={"a": {"predictions": 30.0, "feedback_learned": 8.0, "age_ms": 7000.0}})
    screen = top.Screen(Overview(model(), later))  # type: ignore[arg-type]
    screen.look(0.0)
    assert "–" in text(screen)
    screen.look(2.0)
    shown = text(screen)
    for word in ("m[b]", ".9100", ".6000", "better than both", "▁ █", "act", "7 s", "10.0", "2.0"):
        assert word in shown, word
    screen.look(4.0)
    assert "the numbers are older" in text(screen)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"incident": "a [red]surprise"}, "incident"),
        ({"rewrites": {"frozen": 7}}, "frozen"),
        (
            {"quality": {"n": 5, "accuracy": 1.0, "no_change": 0.0, "majority": 0.0}},
            "too few labels",
        ),
        ({"quality": {"n": 500, "accuracy": 0.5, "no_change": 0.6, "majority": 0.4}}, "not better"),
        (
            {
                "task": "regression",
                "quality": {"n": 500, "mae": 1.0, "last_mae": 2.0, "mean_mae": 3.0},
            },
            "better than both",
        ),
        ({"server": None, "drift": None, "rewrites": None}, "better than both"),
    ],
)
def test_a_verdict_is_a_word(more: dict[str, Any], word: str) -> None:
    screen = top.Screen(Overview(model(**more)))  # type: ignore[arg-type]
    screen.look(0.0)
    assert word in text(screen)


def test_blocks_have_eight_heights() -> None:
    assert top.blocks([0.0, 1.0, 0.5, None, 1.0]) == "▁█▅ █"
    assert (top.blocks([]), top.blocks([1.0]), top.blocks([2.0, 2.0])) == ("", "", "▁▁")
