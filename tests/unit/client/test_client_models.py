"""A model by its name: values of numpy and pandas, what operators do, and short reprs."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from online.client import (
    AsyncClient,
    AsyncModel,
    Client,
    Event,
    Model,
    NotANumber,
    NotASlot,
    NotAValue,
    NotRows,
    OutcomeUnknown,
    Retry,
    ServiceRefused,
    ServiceUnavailable,
    Status,
)
from online.client.drives import verb
from online.messages.structs import Prediction, Predictions, Receipt, Row
from online.messages.values import plain_value

PREDICTED = {"model": "m", "version": "1.2", "own": 0, "age_ms": 3.0, "updates_behind": 0}


class Service:
    """Answers predictions by the feature ``a``, and whatever else with an empty object."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.fails: list[type[httpx.TransportError] | int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        assert body is None or request.headers["content-type"] == "application/json"
        path = request.url.raw_path.decode().removeprefix("/v1/models/m")
        self.asked.append((request.method, path, body))
        if self.fails:
            fails = self.fails.pop(0)
            if isinstance(fails, int):
                error = {"error": {"code": "busy", "message": "why"}}
                return httpx.Response(fails, json=error)
            raise fails("lost", request=request)
        if path == "/predict" and "instances" in body:
            rows = [
                {"prediction": x["a"] > 0, "probabilities": {"true": x["a"]}, "id": f"t{i}"}
                for i, x in enumerate(body["instances"])
            ]
            return httpx.Response(200, json={**PREDICTED, "predictions": rows})
        if path == "/predict":
            return httpx.Response(200, json={**PREDICTED, "prediction": True, "id": "t"})
        if path == "/feedback":
            return httpx.Response(200, json={"status": "learned"})
        return httpx.Response(200, json={"snapshots": []})

    def given(self) -> dict[str, Any]:
        return {"transport": httpx.MockTransport(self), "retry": Retry(attempts=3)}


def waits(service: Service, verb: str, *args: Any, **kwargs: Any) -> Any:
    with Client("http://s", sleep=lambda _: None, **service.given()) as client:
        return getattr(client.model("m"), verb)(*args, **kwargs)


def awaits(service: Service, verb: str, *args: Any, **kwargs: Any) -> Any:
    async def pause(_: float) -> None:
        """Wait for nothing: the answer is there."""

    async def run() -> Any:
        async with AsyncClient("http://s", sleep=pause, **service.given()) as client:
            return await getattr(client.model("m"), verb)(*args, **kwargs)

    return asyncio.run(run())


Call = Callable[..., Any]


@pytest.fixture(params=[waits, awaits])
def call(request: pytest.FixtureRequest) -> Any:
    return request.param


# -- values ----------------------------------------------------------------------------------------


def test_rows_of_numpy_and_pandas_go_out_as_plain_values(call: Call) -> None:
    service = Service()
    frame = pd.DataFrame({"a": [0.5, -1.0], "b": ["x", None], "c": np.array([1, 2], np.int8)})
    frame["d"] = pd.array([1, None], "Int64")
    call(service, "predict", {"a": np.float32(0.5), "b": np.bool_(True), "c": np.int64(3)})
    call(service, "predict", frame.iloc[0])
    call(service, "predict_many", frame)
    call(service, "predict_many", np.array([[1.0, 2.0], [3.0, 4.0]]), names=["a", "b"])
    call(service, "feedback", np.True_, features=frame.iloc[0], event_id="e", weight=np.float64(2))
    assert [body.get("features", body.get("instances")) for _, _, body in service.asked] == [
        {"a": 0.5, "b": True, "c": 3},
        {"a": 0.5, "b": "x", "c": 1, "d": 1},
        [{"a": 0.5, "b": "x", "c": 1, "d": 1}, {"a": -1.0, "b": None, "c": 2, "d": None}],
        [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}],
        {"a": 0.5, "b": "x", "c": 1, "d": 1},
    ]
    assert (service.asked[-1][2]["label"], service.asked[-1][2]["weight"]) == (True, 2.0)


def test_answers_come_back_as_a_frame_or_an_array(call: Call) -> None:
    frame = pd.DataFrame({"a": [0.25, -1.0]}, index=["first", "second"])
    answers = call(Service(), "predict_many", frame, ids=True)
    assert answers.array().tolist() == [True, False]
    back = answers.frame(frame)
    assert list(back.index) == ["first", "second"]
    assert list(back.columns) == ["prediction", "true", "id"]
    assert back.loc["first", "true"] == 0.25


@pytest.mark.parametrize(
    ("verb", "args", "kwargs", "error", "said"),
    [
        ("predict", [{"a": np.nan}], {}, NotANumber, "features.a is nan"),
        ("predict", [pd.Series({"a": np.inf})], {}, NotANumber, "features.a is inf"),
        ("predict_many", [pd.DataFrame({"a": [1.0, None]})], {}, NotANumber, r"\[1\].a is nan"),
        ("feedback", [np.float64("nan")], {"id": "t"}, NotANumber, "label is nan"),
        ("predict", [{"a": pd.Timestamp(0)}], {}, NotAValue, "features.a is a Timestamp"),
        ("predict_many", [np.ones((2, 3))], {"names": ["a"]}, NotRows, "3 columns with 1 names"),
        ("predict_many", [{"a": 1.0}], {}, NotRows, "one row: give a list"),
        (
            "choose_slots",
            [["a"], ["top", "side"]],
            {"baselines": {"topp": "a", "top": "a", "sid": "a"}},
            NotASlot,
            "'topp', 'sid', which is none of the slots: name some of 'top', 'side'",
        ),
    ],
)
def test_what_is_no_value_is_named_and_not_sent(
    call: Call, verb: str, args: list[Any], kwargs: Any, error: type[Exception], said: str
) -> None:
    service = Service()
    with pytest.raises(error, match=said):
        call(service, verb, *args, **kwargs)
    assert service.asked == []


@pytest.mark.parametrize(
    ("actions", "sent"),
    [(["a", "b", "a"], ["a", "b", "a"]), ("news", ["news"]), ({"a": {}}, ["a"])],
)
def test_actions_are_sent_as_they_are_given(call: Call, actions: Any, sent: list[str]) -> None:
    service = Service()
    with pytest.raises(ServiceRefused, match="not_ours"):  # it knows nothing of choices
        call(service, "choose", actions)
    assert [one["id"] for one in service.asked[0][2]["actions"]] == sent


def test_what_pandas_does_not_have_is_null_and_the_callers_row_stays() -> None:
    row = {"a": pd.NA, "b": np.array(2.5), "c": "text"}
    assert plain_value("features", row) == {"a": None, "b": 2.5, "c": "text"}
    assert row["a"] is pd.NA
    event = Event(label=True, features={"a": np.float32(1)})
    with Client("http://s", **Service().given()) as client:
        client.model("m").feedback(True, features=event.features)
    assert event.features is not None
    assert isinstance(event.features["a"], np.float32)


# -- operators -------------------------------------------------------------------------------------

OPERATIONS = [
    ("status", [], {}, "GET", "", None),
    ("snapshots", [], {}, "GET", "/snapshots", None),
    ("snapshot", [], {"pin": True}, "POST", "/snapshots?pin=true", None),
    ("pin", ["3-120"], {"on": False}, "POST", "/snapshots/3-120/pin?on=false", None),
    ("rollback", ["3-120"], {}, "POST", "/rollback", {"to": "3-120"}),
    ("freeze", [], {}, "POST", "/freeze", None),
    ("unfreeze", [], {}, "POST", "/unfreeze", None),
    ("promote", [], {"back": True}, "POST", "/promote", {"back": True}),
    ("upgrade", [], {"on": False}, "POST", "/upgrade", {"on": False}),
    ("forget", ["bot"], {"snapshot": "aside-1", "undone": {3: [0, 2]}}, "POST", "/forget",
     {"source": "bot", "snapshot": "aside-1", "undone": {"3": [0, 2]}}),
    ("events", ["undone"], {}, "GET", "/events?status=undone&limit=100", None),
    ("relearn", ["frozen"], {"limit": 5}, "POST", "/relearn", {"status": "frozen", "limit": 5}),
    ("quarantine", [], {"source": "a b"}, "GET", "/quarantine?source=a+b&limit=100", None),
    ("release", [["3:120"]], {}, "POST", "/quarantine/release", {"rows": ["3:120"], "limit": 200}),
    ("discard", [], {"source": "bot"}, "POST", "/quarantine/discard",
     {"source": "bot", "limit": 200}),
    ("ban", ["bot"], {}, "POST", "/sources", {"source": "bot", "banned": True}),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "args", "kwargs", "method", "path", "body"), OPERATIONS)
def test_what_operators_do_is_asked_for(
    call: Call, verb: str, args: list[Any], kwargs: Any, method: str, path: str, body: Any
) -> None:
    service = Service()
    call(service, verb, *args, **kwargs)
    assert service.asked == [(method, path, body)]


def test_an_order_without_an_answer_is_not_given_twice(call: Call) -> None:
    """A promotion that is repeated takes the first one back."""
    for lost in (httpx.ReadError, httpx.ReadTimeout, 503):
        service = Service()
        service.fails = [lost]
        with pytest.raises(OutcomeUnknown, match="look at the status") as caught:
            call(service, "promote")
        assert not caught.value.definite
        assert len(service.asked) == 1
    for never in (httpx.ConnectError, 429):
        service = Service()
        service.fails = [never]
        call(service, "promote")
        assert len(service.asked) == 2
    service.fails = [httpx.ReadError] * 3
    with pytest.raises(ServiceUnavailable):
        call(service, "snapshots")


def test_both_kinds_of_client_have_the_same_verbs_with_their_documentation() -> None:
    names = {name for name, value in vars(Model.__mro__[1]).items() if isinstance(value, verb)}
    assert {row[0] for row in OPERATIONS} <= names
    for name in names:
        assert getattr(Model, name) is getattr(AsyncModel, name)
        assert len((getattr(Model, name).__doc__ or "").split()) > 3
    with Client("http://s") as client:
        assert "until_included" in inspect.signature(client.model("m").predict).parameters
        first = next(iter(inspect.signature(client.predict).parameters))
        assert first == "model"


# -- reprs -----------------------------------------------------------------------------------------


def test_reprs_are_short_and_say_what_counts() -> None:
    asked = Prediction("x" * 200, True, "m", "1.2", 3, 1.0, 0, {"true": 0.731, "false": 0.269})
    assert repr(asked) == "<prediction True (0.73) by m 1.2+3, id xxxxxxxxxxxx…>"
    assert repr(Prediction("own", 2.5, "m", "1.2", 0, None, None)).endswith("by m 1.2+0, id own>")
    many = Predictions([Row(True), Row(False)], "m", "1.2", 0, None, None)
    assert repr(many) == "<2 predictions by m 1.2+0>"
    assert repr(Receipt("clipped", "e", reason="far")) == "<clipped, event e, because far>"
    assert "no features" in repr(Receipt("refused", error={"message": "no features"}))
    with Client("http://s") as client:
        assert repr(client) == "<client of http://s>"
        assert repr(client.model("m")) == "<model m>"
        assert repr(client.batch("m")) == "<batch of m: 0 events wait>"


def test_a_status_is_a_small_table_with_the_course_of_the_score() -> None:
    quality = {"accuracy": 0.9, "majority": 0.6, "no_change": 0.5, "kappa_m": 0.75}
    versions = [{"epoch": 2, "n": 9, "accuracy": 0.9}, {"epoch": 1, "n": 9, "accuracy": 0.6}]
    status = Status(
        model="<m>", task="binary", version="2.7", learned=1234, quality=quality,
        versions=versions, drift={"state": "drift"}, incident=None,
    )  # fmt: skip
    assert status["learned"] == 1234
    assert status.course() == "▁█"
    assert repr(status).startswith("<<m>: version 2.7, learned 1,234, accuracy 0.9000, majority")
    one = Status(status, quality={**quality, "n": 1})
    assert repr(one).startswith("<<m>: version 2.7, learned 1,234, score too few answers (1), by")
    shown = status._repr_html_()
    assert "&lt;m&gt; (binary)" in shown
    assert '<td style="text-align:right">0.9000</td>' in shown
    assert repr(Status(version="1.2")) == "<model: version 1.2, learned 0>"
