"""Messages in the words of somebody who meets the service for the first time."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from evaluation.errors import StreamUnusable
from evaluation.streams import open_stream
from online.client import play
from online.client.calls import Retry
from online.commands import base
from online.commands.change import snapshot
from online.commands.operate import serve
from online.errors import ConfigError, RequestError
from online.http.app import _unknown_model
from online.http.middleware.refusing import answer_errors
from online.messages.bodies import JSON, MSGPACK, UnreadEvent, decode, decode_events
from online.settings.config import load

ONE = {"name": "m", "task": "binary", "learner": "linear"}


def served(*names: str) -> httpx.Client:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"models": [{"model": name} for name in names]})

    return httpx.Client(base_url="http://s", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (None, "--model: several models are served. Name one of: clicks, prices"),
        ("price", "'price' is not served. Did you mean `prices`? Name one of: clicks, prices"),
        ("x", "--model: 'x' is not served. Name one of: clicks, prices"),
    ],
)
def test_a_model_that_is_not_named_or_not_served(model: str | None, said: str) -> None:
    with served("clicks", "prices") as client, pytest.raises(ConfigError) as refused:
        base.pick(client, model)
    assert said in str(refused.value)
    with served("clicks", "prices") as client, pytest.raises(ConfigError) as refused:
        base.pick(client, model, "NAME")  # of a command whose argument it is
    assert said.replace("--model", "NAME") in str(refused.value)


def test_another_model_than_the_default_needs_the_settings_file_that_has_it() -> None:
    with pytest.raises(ConfigError, match="Without --config only phishing is served"):
        base.pick_model(load(None, {}, {}), "clicks")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"models": ONE}, "models: a list is needed: a line each that begins with `-`"),
        ({"models": [ONE], "limits": 3}, "limits: a mapping is needed"),
        ({"models": [{**ONE, "sync": [1]}]}, "models.0.sync: a mapping is needed"),
        ({"models": [{"name": "m", "task": "binary"}]}, "models.0.learner: it is required"),
        ({"models": [ONE], "port": "http"}, "port: a whole number is needed, got 'http'"),
        ({"models": [{**ONE, "token_lifetime": "7 days"}]}, "one letter: write 7d, got '7 days'"),
        ({"models": [{**ONE, "label_wait": "1.5 Hours"}]}, "one letter: write 1.5h"),
        ({"models": [{**ONE, "label_wait": "soon"}]}, "as 90s, 5m, 12h, 7d or 2w, got 'soon'"),
        ({"models": [{**ONE, "name": "my prices"}]}, "models.0.name: letters, digits, `_`, `-`"),
        (
            {"models": [{**ONE, "task": "multiclass", "classes": ["a", "b"]}]},
            "models.0.classes: no list of labels is needed. Leave it out: labels are learned from",
        ),
        ({"models": [{**ONE, "labels": ["a", "b"]}]}, "models.0.labels: no list of labels is"),
        (
            {"models": [{**ONE, "filters": ["rat"]}]},
            "models.0.filters.0: model m: one of rate, samples, norm, direction, surprise is "
            "needed, got 'rat'. Did you mean `rate`?",
        ),
        ({"models": [{**ONE, "filters": "rat"}]}, "model m: default, none or a list of rate, sa"),
        ({"models": [{**ONE, "task": "chose"}]}, "choose, anomaly is needed, got 'chose'. Did you"),
        (
            {"models": [{**ONE, "classes": {"negative": 0, "positve": 1}}]},
            "models.0.classes.positve: one of negative, positive is needed, got 'positve'. "
            "Did you mean `positive`?",
        ),
    ],
)
def test_settings_are_explained_in_words_of_yaml(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, data, {})
    assert said in str(refused.value)
    assert "valid" not in str(refused.value)


def test_a_slip_in_the_environment_is_told(caplog: pytest.LogCaptureFixture) -> None:
    load(None, {}, {"ONLINE_PROT": "1", "ONLINE_PORT": "2", "ONLINE_SERVICE_URL": "x", "HOME": "/"})
    assert [one.getMessage() for one in caplog.records] == [
        "ONLINE_PROT of the environment is not read. Did you mean `ONLINE_PORT`?"
    ]


def test_what_cant_be_played_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_Foreground", None)  # nobody gets that far
    with pytest.raises(StreamUnusable, match="Did you mean `phishing`"):
        serve.serve(None, state_dir=tmp_path, play="phisning")


def test_who_plays_to_nobody_is_told_once_and_then_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(play, "_RETRY", Retry(attempts=100, give_up_s=30.0, cap_s=0.5))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(play.PlayFailed, match="Is the service running"):
            next(
                play.play(
                    open_stream("phishing"), url, "m", rate=None, rows=1, times=1, source="s",
                    stopped=lambda: False,
                )
            )  # fmt: skip
    assert [one.getMessage() for one in caplog.records if one.name == "online.client.play"] == [
        "model m: no answer; asking again for 30 s"
    ]


def test_a_length_of_time_in_digits_is_seconds() -> None:
    (model,) = load(None, {"models": [{**ONE, "label_wait": "90"}]}, {}).models
    assert model.label_wait == 90.0


def test_a_file_that_is_not_there_has_no_number(tmp_path: Path) -> None:
    with pytest.raises(StreamUnusable, match="No such file") as refused:
        open_stream(str(tmp_path / "absent.csv"))
    assert "Errno" not in str(refused.value)


def test_snapshots_show_their_version_as_answers_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"name": "1-694", "version": [1, 694], "created_at": time.time(), "size": 10,
             "pinned": False}  # fmt: skip

    def answer(request: httpx.Request) -> httpx.Response:
        data = {"models": [{"model": "m"}]} if request.url.path == "/v1/models" else None
        return httpx.Response(200, json=data or {"snapshots": [found]})

    client = httpx.Client(base_url="http://s", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(base.Context, "connect", lambda *_: client)
    snapshot.snapshot_list()
    said = capsys.readouterr().out
    assert "1.694" in said
    assert "[1" not in said


@pytest.mark.parametrize(
    ("decoder", "body", "field", "hint"),
    [
        (JSON.predict, b'{"feature":{"a":1}}', "feature", "Did you mean `features`?"),
        (JSON.predict, b'{"features":{"a":1},"max_age":1}', "max_age", "Did you mean `max_age_ms`"),
        (JSON.feedback, b'{"lable":1,"id":"t"}', "lable", "Did you mean `label`?"),
        (JSON.feedback, b'{"events":[{"lable":1}]}', "events[0].lable", "Did you mean `label`?"),
        (MSGPACK.feedback, b"\x81\xa3idd\xa1t", "idd", "Did you mean `id`?"),
        (JSON.predict, b'{"zzz":1}', "zzz", "Known here: features, id, instances, ids"),
        (
            JSON.choose,
            b'{"actions":[{"id":"news","minutes":5}]}',
            "actions[0].minutes",
            "Known here: id, features",
        ),
    ],
)
def test_unknown_fields_of_requests_name_the_one_that_is_meant(
    decoder: Any, body: bytes, field: str, hint: str
) -> None:
    with pytest.raises(RequestError) as refused:
        decode(decoder, body)
    assert (refused.value.status, refused.value.field) == (422, field)
    assert hint in (refused.value.hint or "")
    (line,) = asyncio.run(decode_events([b'{"lable":1}']))
    assert isinstance(line, UnreadEvent)
    assert "unknown field" in line.error.message
    assert line.error.hint == "Did you mean `label`?"


@pytest.mark.parametrize(
    ("decoder", "body", "field", "hint"),
    [
        (JSON.choose, b'{"actions":["news"]}', "actions[0]", 'Send {"id": …}; known here: id, f'),
        (MSGPACK.choose, b"\x81\xa7actions\x91\xa1n", "actions[0]", 'Send {"id": …}; known here'),
        (JSON.choose, b'{"actions":{"news":{}}}', "actions", 'Send a list of {"id": …}; known'),
        (JSON.choose, b'{"actions":[{"features":{}}]}', "actions[0]", 'Send {"id": …}; known'),
        (JSON.choose, b'{"context":{}}', None, 'Send {"actions": …}; known here: actions, con'),
        (JSON.reward, b'{"rewards":[1]}', "rewards[0]", 'Send {"id": …, "reward": …}; known'),
        (JSON.feedback, b'{"events":[1]}', "events[0]", "Send an object; known here: label, id"),
    ],
)
def test_a_value_of_another_form_is_told_what_stands_there(
    decoder: Any, body: bytes, field: str | None, hint: str
) -> None:
    with pytest.raises(RequestError) as refused:
        decode(decoder, body)
    assert (refused.value.status, refused.value.field) == (422, field)
    assert (refused.value.hint or "").startswith(hint)


def test_an_unknown_model_names_the_one_that_is_meant() -> None:
    hint = _unknown_model("phising", {"phishing": 1, "prices": 2}).hint
    assert hint == "Did you mean `phishing`? Served here: phishing, prices"
    assert _unknown_model("zzz", {"phishing": 1}).hint == "Served here: phishing"


class Body(BaseModel):
    """A body of an operator's request."""

    model_config = ConfigDict(extra="forbid")
    banned: bool = True


def test_fields_of_operators_requests_too() -> None:
    app = FastAPI()
    answer_errors(app)

    @app.post("/x")
    async def x(body: Body) -> dict[str, bool]:
        return {"banned": body.banned}

    async def ask() -> Any:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(base_url="http://s", transport=transport) as client:
            bodies = [
                await client.post(path, json={"band": True}) for path in ("/x", "/v1/mm/stats")
            ]
            return [body.json()["error"] for body in bodies]

    @app.get("/v1/{model}/status")
    async def status(model: str) -> None: ...

    error, nowhere = asyncio.run(ask())
    assert nowhere["hint"] == "Did you mean `/v1/mm/status`? See /docs"
    assert (error["field"], error["message"]) == ("band", "unknown field `band`")
    assert error["hint"] == "Did you mean `banned`?"


def test_a_name_between_colons_is_no_picture(capsys: pytest.CaptureFixture[str]) -> None:
    base.console(width=80).print("always:coffee: no answer to 1 choices")
    assert capsys.readouterr().out == "always:coffee: no answer to 1 choices\n"
