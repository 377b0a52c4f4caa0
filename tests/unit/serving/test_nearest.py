"""The learned rows that are nearest to one: what was taken out or kept back is not among them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import replica_world as worlds
from provisional_world import half

from online.errors import RequestError
from online.http.app import App
from online.http.middleware.access import Access
from online.messages.structs import (
    Event,
    Explanation,
    FeedbackRequest,
    NearRow,
    Prediction,
    PredictRequest,
)
from online.replica.replica import ModelReplica
from online.rows import history
from online.serving import nearest
from online.serving.nearest import Sums, add_to, distance
from online.serving.serving import Serving
from online.settings.limits import Limits
from online.settings.tokens import Role
from paramserver.core import rewrites
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict

PATIENT: Final = Limits(feedback_wait_s=60, explain_s=600)
TOKENS: Final[dict[Role, list[str]]] = {
    "predict": ["predict-0123456789abcdefghijkl"],
    "admin": ["admin-0123456789abcdefghijkl"],
}


async def taught(world: worlds.World, n: int, limits: Limits = PATIENT) -> Serving:
    """A replica that has learned rows x = 0, 1, 2 … of the sources s0, s1, s2 … in turn."""
    serving = world.serving(await world.replica(limits=limits))
    for i in range(n):
        event = FeedbackRequest(
            features={"x": float(i)}, label=float(i), event_id=f"e{i}", source=f"s{i}"
        )
        status, _ = await serving.feedback(event)
        assert status == 200
    return serving


async def near(serving: Serving, x: float, n: int = 3) -> list[NearRow]:
    request = PredictRequest(features={"x": x}, explain=True, nearest=n)
    said = await serving.explained(request)
    assert isinstance(said, Prediction)
    assert isinstance(said.explanation, Explanation)
    assert isinstance(said.explanation.nearest, list)
    return said.explanation.nearest


async def events(serving: Serving, x: float, n: int = 3) -> list[str]:
    return [row.event_id for row in await near(serving, x, n)]


def control(replica: ModelReplica, kind: str, note: Any) -> None:
    replica.store.journal.write_control("m", kind, f"{kind}:1", msgspec.json.encode(note))


def test_the_nearest_learned_rows_come_first_and_say_whose_they_are(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        serving = await taught(world, 200)
        found = await near(serving, 100.2)
        assert [row.event_id for row in found] == ["e100", "e101", "e99"]
        first = found[0]
        assert (first.label, first.features, first.source) == (100.0, {"x": 100.0}, "s100")
        assert 0.0 < first.distance < found[1].distance < found[2].distance
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_rows_that_are_undone_or_of_a_banned_source_or_erased_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        serving = await taught(world, 10)
        replica = serving.replica
        partition = replica.writer.partition
        undone = {partition: (5, 6)}  # the sixth row, x = 5
        note = rewrites.Rollback(worlds.SPEC, "1-1", 0, {}, [], undone)
        control(replica, rewrites.ROLLBACK, note)
        control(replica, rewrites.SOURCE, rewrites.Source("s4", True))
        event = FeedbackRequest(features={"x": 5.1}, label=0.0, event_id="late", source="s4")
        await replica.control.read()
        status, _ = await serving.feedback(event)
        assert status == 202  # quarantined
        assert await events(serving, 5.0) == ["e6", "e7", "e3"]
        monkeypatch.setattr(codec, "is_erased", lambda payload: codec.decode(payload).label == 6.0)
        assert await events(serving, 5.0) == ["e7", "e3", "e8"]
        monkeypatch.undo()
        monkeypatch.setattr(history.Decisions, "bans", [])  # the control of each guard
        assert "e4" in await events(serving, 5.0)
        monkeypatch.setattr(history.Decisions, "learned", lambda self, row: True)
        assert set(await events(serving, 5.0)) == {"e5", "late", "e6"}
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_no_more_rows_are_read_than_the_setting_says(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        limits = PATIENT.model_copy(update={"nearest_rows": 4})
        serving = await taught(world, 10, limits)
        assert await events(serving, 0.0, 100) == ["e6", "e7", "e8", "e9"]
        assert len(await near(serving, 0.0, 2)) == 2
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_rows_of_other_models_in_the_same_store_do_not_count(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        limits = PATIENT.model_copy(update={"nearest_rows": 4})
        serving = await taught(world, 6, limits)
        journal = serving.replica.store.journal
        for model, x, n in (("other", 0.0, 40), ("m", 9.0, 1)):
            payload = codec.encode(Example({"x": x}, 1.0))
            partition = journal.register(model, "r2", worlds.SPEC, 0.0).id
            rows = [
                NewRow(bytes(15) + bytes([i]), f"{model}{i}", "", Verdict.ACCEPTED, payload, 1.0)
                for i in range(n)
            ]
            journal.append(partition, 0, rows)
        lost = journal.register("m", "r3", worlds.SPEC, 0.0)
        journal.register_lost("m", worlds.SPEC, lost.id + 1, 7, 10_000)
        assert await events(serving, 0.0, 100) == ["e3", "e4", "e5", "m0"]
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_many_rows_are_read_in_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(world: worlds.World) -> None:
        serving = world.serving(await world.replica(limits=PATIENT))
        batch = [Event(features={"x": float(i)}, label=0.0, event_id=f"e{i}") for i in range(300)]
        await serving.feedback(FeedbackRequest(events=batch))
        read, asked = serving.replica.store.read, list[str]()

        async def counted(step: Any, *args: Any) -> Any:
            if step.__module__ == nearest.__name__:  # others read, too
                asked.append(step.__name__)
            return await read(step, *args)

        monkeypatch.setattr(serving.replica.store, "read", counted)
        assert (await events(serving, 7.2))[0] == "e7"
        assert asked == ["_taught", "_taught", "_nearer"], asked
        asked.clear()
        monkeypatch.setattr(nearest, "_STEP_VALUES", 100)
        assert (await events(serving, 7.2))[0] == "e7"
        assert asked == [*["_taught"] * 4, *["_nearer"] * 3], asked
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_row_is_shown_under_the_id_that_its_caller_gave(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        replica = await world.replica(build=half, limits=PATIENT)
        serving, journal = world.serving(replica), replica.store.journal
        for label, early in ((8.0, True), (2.0, False)):
            order = FeedbackRequest(
                features={"x": 5.0}, label=label, event_id="order", provisional=early
            )
            assert (await serving.feedback(order))[0] == 200
        control(replica, rewrites.SOURCE, rewrites.Source("bad", True))
        await replica.control.read()
        event = FeedbackRequest(features={"x": 9.0}, label=1.0, event_id="mine", source="bad")
        assert (await serving.feedback(event))[0] == 202
        aside = next(row for row in journal.follow("m", 0, 100).rows if row.source == "bad")
        free = msgspec.json.encode(rewrites.Source("bad", False))
        journal.write_control("m", rewrites.SOURCE, "source:2", free)
        history.decide(journal, "m", aside.key, "released")
        decisions = await replica.control.read()
        listed = history.set_aside(journal, "m", decisions, aside)
        assert listed is not None
        again = listed.again(2.0)
        assert again is not None
        journal.append(journal.register("m", "r2", worlds.SPEC, 0.0).id, 0, [again])
        assert await events(serving, 9.0) == ["mine", "order"]
        rows = journal.follow("m", 0, 100).rows
        stored = next(row for row in rows if row.event_id.startswith("final"))
        key = history.again_key(3, stored.key.hex())
        name = f"again:3:1:2:{stored.key.hex()}:{stored.event_id}"
        twice = msgspec.structs.replace(stored, key=key, event_id=name)
        assert nearest._named(twice) == "order"
        for own in (name, stored.event_id):  # a caller may name events alike
            assert nearest._named(msgspec.structs.replace(stored, key=b"k", event_id=own)) == own
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_it_is_asked_beside_an_explanation_and_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        serving = await taught(world, 2)
        with pytest.raises(RequestError, match="beside an explanation"):
            serving.predict(PredictRequest(features={"x": 1.0}, nearest=1))
        hung = asyncio.Event()
        monkeypatch.setattr(serving.replica.store, "read", lambda *args: hung.wait())
        object.__setattr__(serving.replica, "limits", Limits(explain_s=0.01))
        with pytest.raises(RequestError, match=r"within 0\.01 s") as error:
            await near(serving, 1.0)
        assert "limits.nearest_rows" in (error.value.hint or "")
        assert (error.value.status, error.value.code) == (503, "explain_too_slow")
        monkeypatch.undo()
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("token", ["predict", "admin", None])
def test_learned_rows_are_shown_to_an_admin_alone(tmp_path: Path, token: Role | None) -> None:
    async def scene(world: worlds.World) -> None:
        serving = await taught(world, 3)
        access = None if token is None else Access(TOKENS)  # without tokens everybody is one
        app: Any = App({"m": serving}, None, PATIENT, access)  # type: ignore[arg-type]
        body = {"features": {"x": 1.0}, "explain": True, "nearest": 1}
        status, said = await ask(app, body, token)
        if token == "predict":
            assert (status, said["error"]["code"]) == (403, "forbidden")
            status, said = await ask(app, {**body, "nearest": 0}, token)
            assert "nearest" not in said["explanation"]
        else:
            assert said["explanation"]["nearest"][0]["event_id"] == "e1"
        assert status == 200
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


async def ask(app: Any, body: Any, token: Role | None) -> tuple[int, Any]:
    headers = [(b"content-type", b"application/json")]
    if token is not None:
        headers.append((b"authorization", f"Bearer {TOKENS[token][0]}".encode()))
    path = "/v1/models/m/predict"
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent[1:]))


def test_a_distance_is_the_mean_over_all_names_of_both_rows() -> None:
    numbers = [Example({"x": float(i)}, True) for i in (0, 2)]
    sums = Sums()
    add_to(sums, numbers)
    assert sums == {"x": pytest.approx((2.0, 1.0, 2.0))}
    spreads = {"x": 1.0}
    assert distance({"x": 0.0}, {"x": 2.0}, spreads) == pytest.approx(2 / 3)
    assert distance({"x": 0.0}, {"x": 1e9}, spreads) == pytest.approx(1.0)
    assert distance({"x": 1.0, "y": True}, {"x": 1.0}, spreads) == 0.5
    assert distance({"t": "red green"}, {"t": "Green blue"}, {}) == pytest.approx(2 / 3)
    assert distance({"t": "1"}, {"t": 1.0}, {}) == 1.0
    assert distance({"z": 3.0}, {"z": 4.0}, {"z": 0.0}) == 1.0
    assert distance({}, {}, {}) == 0.0
