"""A model that declares its features: the same rows are taken and refused through every door."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import replica_world as worlds

from online.errors import RequestError
from online.http.app import App
from online.messages.structs import Event, FeedbackRequest, Prediction, PredictRequest, Receipt
from online.models.errors import LearnerUnusable
from online.models.loading.from_settings import load_model
from online.serving.feedback.ordinary import EventRow
from online.serving.scores import ScoresRequest, many
from online.serving.serving import Serving
from online.settings.config import Settings
from online.settings.limits import Limits
from online.settings.model import ModelSettings

FEATURES: dict[str, Any] = {
    "a": {"type": "number", "required": True},
    "b": {"type": "number", "range": [0, 10]},
    "c": "number",
}
GOOD = {"a": 1.0, "b": 2.0}
BAD: dict[str, Any] = {"a": "1.5", "b": 2.0}
ODD: dict[str, Any] = {"a": 1.0, "bb": 2.0}


def scene(
    tmp_path: Path, play: Callable[[Serving, worlds.World], Awaitable[None]], **settings: Any
) -> None:
    async def inside(world: worlds.World) -> None:
        replica = await world.replica(**({"features": FEATURES} | settings))
        try:
            await play(world.serving(replica), world)
        finally:
            await replica.stop(1.0)

    worlds.play(tmp_path, inside)


def learned(world: worlds.World) -> list[dict[str, Any]]:
    """Features of the rows that the journal has, in order of their commits."""
    journal = world.journal()
    with contextlib.closing(journal):
        pages = [journal.read(p.id, 1, 100) for p in journal.partitions("m")]
    rows = [row for page in pages for row in page]
    return [worlds.codec.decode(row.payload).features for row in rows]


def ask(features: Any, **more: Any) -> PredictRequest:
    return PredictRequest(features=features, **more)


def test_predict_and_feedback_take_and_refuse_the_same(tmp_path: Path) -> None:
    async def play(serving: Serving, world: worlds.World) -> None:
        with pytest.raises(RequestError) as caught:
            serving.predict(ask(BAD))
        assert caught.value.field == "features.a"
        with pytest.raises(RequestError) as again:
            await serving.feedback(FeedbackRequest(features=BAD, label=1.0, event_id="e"))
        assert str(again.value) == str(caught.value)
        with pytest.raises(RequestError, match="required"):
            serving.predict(ask({"b": 1.0}))
        answer = serving.predict(ask(ODD))
        assert isinstance(answer, Prediction)
        assert answer.unknown is msgspec.UNSET, "unless it is asked for"
        status, receipt = await serving.feedback(FeedbackRequest(features=ODD, label=1.0))
        assert isinstance(receipt, Receipt)
        assert (status, receipt.status, receipt.unknown) == (200, "learned", ["bb"])
        status, receipt = await serving.feedback(FeedbackRequest(id=answer.id, label=1.0))
        assert isinstance(receipt, Receipt)
        assert (receipt.status, receipt.unknown) == ("learned", msgspec.UNSET)
        serving.predict(ask(ODD, id="mine"))
        status, receipt = await serving.feedback(FeedbackRequest(id="mine", label=1.0))
        assert isinstance(receipt, Receipt)
        assert receipt.status in ("learned", "waiting")
        await worlds.until(lambda: len(learned(world)) == 3)
        assert learned(world) == [{"a": 1.0}] * 3

    scene(tmp_path, play)


def test_details_name_what_is_missing_and_what_is_unknown(tmp_path: Path) -> None:
    async def play(serving: Serving, world: worlds.World) -> None:
        answer = serving.predict(ask(ODD, details=True))
        assert isinstance(answer, Prediction)
        assert (answer.missing, answer.unknown) == (["b", "c"], ["bb"])
        several = serving.predict(
            PredictRequest(instances=[GOOD, ODD, {**GOOD, "c": 3}], details=True)
        )
        assert not isinstance(several, Prediction)
        assert [(row.missing, row.unknown) for row in several.predictions] == [
            (["c"], []), (["b", "c"], ["bb"]), ([], []),
        ]  # fmt: skip
        plain = serving.predict(PredictRequest(instances=[ODD]))
        assert b"unknown" not in msgspec.json.encode(plain)

    scene(tmp_path, play)


def test_without_a_declaration_both_take_any_name_and_details_tell_the_new_ones(
    tmp_path: Path,
) -> None:
    async def play(serving: Serving, world: worlds.World) -> None:
        await serving.feedback(FeedbackRequest(features={"a": 1.0}, label=1.0))
        answer = serving.predict(ask({"a": 1.0, "zz": 2.0}, details=True))
        assert isinstance(answer, Prediction)
        assert (answer.missing, answer.unknown) == (msgspec.UNSET, ["zz"])
        _status, receipt = await serving.feedback(FeedbackRequest(features={"zz": 2.0}, label=1.0))
        assert isinstance(receipt, Receipt)
        assert (receipt.status, receipt.unknown) == ("learned", msgspec.UNSET)
        answer = serving.predict(ask({"zz": 2.0}, details=True))
        assert isinstance(answer, Prediction)
        assert answer.unknown == []

    scene(tmp_path, play, features=None)


def test_strict_refuses_a_name_at_both(tmp_path: Path) -> None:
    async def play(serving: Serving, world: worlds.World) -> None:
        for call in (
            lambda: asyncio.sleep(0, serving.predict(ask(ODD))),
            lambda: serving.feedback(FeedbackRequest(features=ODD, label=1.0)),
        ):
            with pytest.raises(RequestError) as caught:
                await call()
            assert (caught.value.status, caught.value.field) == (422, "features.bb")
            assert caught.value.hint == "Did you mean `b`?"
        assert learned(world) == []

    scene(tmp_path, play, strict=True)


def test_a_repeat_of_an_event_from_before_the_declaration_is_known(tmp_path: Path) -> None:
    async def inside(world: worlds.World) -> None:
        before = await world.replica("before")
        event = FeedbackRequest(features={"z": 5.0}, label=1.0, event_id="e")
        status, receipt = await world.serving(before).feedback(event)
        assert isinstance(receipt, Receipt)
        assert receipt.status == "learned"
        await before.stop(1.0)
        after = await world.replica("after", features=FEATURES, strict=True)
        status, receipt = await world.serving(after).feedback(event)
        assert isinstance(receipt, Receipt)
        assert (status, receipt.status, receipt.first_outcome) == (200, "duplicate", "learned")
        event.event_id = "another"
        with pytest.raises(RequestError):
            await world.serving(after).feedback(event)
        await after.stop(1.0)

    worlds.play(tmp_path, inside)


def test_rows_read_together_are_those_read_one_by_one(tmp_path: Path) -> None:
    """Numbers without a range go the fast way; whatever is declared otherwise is looked at."""
    rows: list[dict[str, Any]] = [
        {"a": 0.5, "c": 1.0}, {"a": 1, "c": 0.5}, {"a": 1.0, "c": True}, {"a": 1.0, "b": 3.0},
        {"a": 1.0, "b": 11.0}, {"b": 1.0}, {"a": 1.0, "zz": 1.0}, {"a": "1"}, {"c": None},
    ]  # fmt: skip
    wanted = [
        "learned", "learned", "refused", "learned",
        "refused", "refused", "learned", "refused", "refused",
    ]  # fmt: skip

    async def play(serving: Serving, world: worlds.World) -> None:
        wide = {name: 0.5 for name in "abc"}
        first = [Event(1.0, features=wide | {"a": i / 9, "c": 1 - i / 9}) for i in range(10)]
        await serving.record(first)
        events = [Event(1.0, features=dict(row), event_id=f"e{i}") for i, row in enumerate(rows)]
        together = serving._reader.ordinary.read(events)
        assert [isinstance(one, EventRow) for one in together] == [True, True] + [False] * 7
        receipts = await serving.record(events)
        assert [receipt.status for receipt in receipts] == wanted
        assert receipts[6].unknown == ["zz"]
        fields = [r.error["field"] for r in receipts if isinstance(r.error, dict)]
        assert fields == [
            "events[2].features.c", "events[4].features.b", "events[5].features.a",
            "events[7].features.a", "events[8].features.a",
        ]  # fmt: skip

    scene(tmp_path, play)


async def send(app: Any, path: str, content: bytes, kind: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.post(path, content=content, headers={"content-type": kind})


@pytest.mark.parametrize("kind", ["json", "msgpack", "x-ndjson"])
def test_bodies_of_every_kind(tmp_path: Path, kind: str) -> None:
    async def play(serving: Serving, world: worlds.World) -> None:
        app: Any = App({"m": serving}, None, Limits())  # type: ignore[arg-type]
        form: Any = msgspec.msgpack if kind == "msgpack" else msgspec.json
        path, mime = "/v1/models/m", f"application/{kind}"
        bad, odd = ({"features": row, "label": 1.0} for row in (BAD, ODD))
        if kind == "x-ndjson":
            lines = form.encode(bad) + b"\n" + form.encode(odd)
            answer = await send(app, f"{path}/feedback", lines, mime)
            first, second = map(json.loads, answer.content.splitlines())
            assert first["error"]["field"].endswith("features.a")
            assert second["unknown"] == ["bb"]
            return
        refused = await send(app, f"{path}/feedback", form.encode(bad), mime)
        error = form.decode(refused.content)["error"]
        assert (refused.status_code, error["field"]) == (422, "features.a")
        assert error["hint"] == "Send 1.5, without quotation marks"
        taken = await send(app, f"{path}/feedback", form.encode(odd), mime)
        assert form.decode(taken.content)["unknown"] == ["bb"]
        asked = form.encode({"features": ODD, "details": True})
        answer = await send(app, f"{path}/predict", asked, mime)
        said = form.decode(answer.content)
        assert (said["missing"], said["unknown"]) == (["b", "c"], ["bb"])

    scene(tmp_path, play)


def test_tensors(tmp_path: Path) -> None:
    def tensor(name: str, datatype: str, data: list[Any]) -> dict[str, Any]:
        return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data}

    async def play(serving: Serving, world: worlds.World) -> None:
        app: Any = App({"m": serving}, None, Limits())  # type: ignore[arg-type]

        async def post(action: str, *inputs: Any, **more: Any) -> tuple[int, Any]:
            body = msgspec.json.encode({"inputs": inputs, **more})
            answer = await send(app, f"/v2/models/m/{action}", body, "application/json")
            return answer.status_code, answer.json()

        a, odd = tensor("a", "FP64", [1.0, 2.0]), tensor("bb", "FP64", [1.0, 2.0])
        status, said = await post("infer", a, odd, parameters={"details": True})
        outputs = {output["name"]: output.get("data") for output in said["outputs"]}
        assert outputs["missing"] == ['["b","c"]'] * 2 or outputs["missing"] == ['["b", "c"]'] * 2
        assert [json.loads(text) for text in outputs["unknown"]] == [["bb"]] * 2
        status, said = await post("infer", tensor("a", "BYTES", ["1", "2"]))
        assert (status, "rows[0].a: a number is needed" in said["error"]) == (422, True)
        label = tensor("label", "FP64", [1.0, 2.0])
        status, said = await post("feedback", a, odd, label)
        outputs = {output["name"]: output["data"] for output in said["outputs"]}
        assert outputs["status"] == ["learned", "learned"]
        assert [json.loads(text) for text in outputs["unknown"]] == [["bb"]] * 2
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            shown = (await client.get("/v2/models/m")).json()
        assert shown["inputs"] == [
            {"name": name, "datatype": "FP64", "shape": [-1]} for name in ("a", "b", "c")
        ]

    scene(tmp_path, play)


def test_scores_by_key_that_are_made_now(tmp_path: Path) -> None:
    async def play(serving: Serving, world: worlds.World) -> None:
        with pytest.raises(RequestError) as caught:
            await many(None, serving, ScoresRequest(["k"], {"k": BAD}), 10)
        assert caught.value.field == "features.k.a"
        given = await many(None, serving, ScoresRequest(["k"], {"k": ODD}), 10)
        assert given.scores[0].source == "live"

    scene(tmp_path, play)


def test_the_document_has_the_types_and_an_example_that_is_taken(tmp_path: Path) -> None:
    async def play(serving: Serving, world: worlds.World) -> None:
        plain = world.serving(await world.replica("plain"))
        for servings in ({"m": serving}, {"m": serving, "plain": plain}):
            app: Any = App(servings, None, Limits())  # type: ignore[arg-type]
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                document = (await client.get("/openapi.json")).json()
                schemas = document["components"]["schemas"]
                assert schemas["RowOf.m"]["properties"]["b"]["maximum"] == 10
                assert schemas["RowOf.m"]["required"] == ["a"]
                of_row = schemas["PredictRequest"]["properties"]["features"]["anyOf"]
                assert {"$ref": "#/components/schemas/RowOf.m"} in of_row
                assert ({"type": "object"} in of_row) == ("plain" in servings)
                for action in ("v1:predict", "v1:feedback", "v2:infer", "v2:feedback"):
                    path = "/{}/models/{{model}}/{}".format(*action.split(":"))
                    body = document["paths"][path]["post"]["requestBody"]["content"]
                    example = body["application/json"]["examples"]["m"]["value"]
                    answer = await client.post(path.format(model="m"), json=example)
                    assert answer.status_code == 200, answer.text
        await plain.replica.stop(1.0)
        app = App({"m": plain}, None, Limits())  # type: ignore[arg-type]
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://service"
        ) as client:
            assert "RowOf" not in (await client.get("/openapi.json")).text

    scene(tmp_path, play)


def test_texts_are_not_declared_of_a_model_of_numbers(tmp_path: Path) -> None:
    given = {"name": "m", "task": "binary", "learner": "logreg", "features": {"city": "category"}}
    model = ModelSettings.model_validate(given)
    settings = Settings(models=(model,), base_dir=tmp_path)
    with pytest.raises(LearnerUnusable, match=r"features\.city is a category.*numbers only"):
        load_model(model, settings, bytes(32))
    load_model(model.model_copy(update={"learner": "linear"}), settings, bytes(32))
