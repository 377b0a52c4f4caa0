"""A replica that holds some rows of a table fetches others, and waits for them within bounds."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from replica_world import SPEC, World, play, row, until

from online.errors import RequestError
from online.messages.structs import Prediction, PredictRequest
from online.models.features.hashed import Hashed
from online.models.fm import Fm, FmModel
from online.models.state.factors import TABLE
from online.service.state.parameter_servers import settings_of
from online.settings import config
from paramserver.core import wire
from paramserver.core.tables.row_message import ID
from paramserver.process.actor import ParameterServer
from paramserver.process.lineage import Lineage
from replay import codec
from replay.example import Example, Features

USERS = 150


def build() -> FmModel:
    return Fm(3, ["user", "film"], table=True).model_for("regression")


def event(i: int, draw: random.Random) -> Any:
    features: Features = {"user": float(i % USERS), "film": float(draw.randrange(20))}
    label = float(i % 3) + draw.random()
    payload = codec.encode(Example(features, label))
    return msgspec.structs.replace(row(f"e{i}"), payload=payload)


async def taught(world: World, **cache: float) -> tuple[Any, Any]:
    """A replica with all rows that has learned, and one that holds none yet."""
    draw = random.Random(3)
    whole = await world.replica("a", build=build)
    await whole.writer.record([event(i, draw) for i in range(2 * USERS)])
    await until(lambda: whole.counts["learned"] == 2 * USERS and whole.learner.own == 0)
    return whole, await world.replica("b", build=build, cache=cache)


def asked(world: World, replica: Any, user: int) -> Any:
    answer = world.serving(replica).predict(_request(user))
    assert isinstance(answer, Prediction)
    return answer


def _request(user: int) -> PredictRequest:
    return PredictRequest(features={"user": user, "film": 3})


def held(replica: Any) -> float:
    found: float = replica.learner.cache.report()["rows_held"]
    return found


def test_a_missing_row_is_named_and_comes_with_the_next_exchange(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        whole, some = await taught(world, rows=100)
        first = asked(world, some, 7)
        assert first.missing_rows == 3
        await until(lambda: asked(world, some, 7).missing_rows is msgspec.UNSET)
        for user in range(USERS):
            expected = asked(world, whole, user)
            assert expected.missing_rows is msgspec.UNSET
            await until(lambda user=user: asked(world, some, user).missing_rows is msgspec.UNSET)
            answer = asked(world, some, user)
            assert answer.prediction == expected.prediction
        assert held(some) <= 113 + 3
        assert len(some.learner.pulled[TABLE].data) == held(some) < USERS
        assert some.learner.cache.report()["rows_evicted"] > 0
        for replica in (whole, some):
            await replica.stop(5.0)

    play(tmp_path, scene)


def test_a_prediction_waits_for_rows_if_it_may(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        whole, some = await taught(world, rows=100, wait_ms=1_000)
        serving = world.serving(some)
        assert serving.waits
        answer = await serving.answered(_request(9))
        assert isinstance(answer, Prediction)
        assert answer.missing_rows is msgspec.UNSET
        assert answer.prediction == asked(world, whole, 9).prediction
        await until(lambda: not some.learner.cache._asked)
        refused = PredictRequest(features={"user": 10, "film": 3}, max_age_ms=0.0, id="odd\n")
        with pytest.raises(RequestError):
            await serving.answered(refused)
        rows = [{"user": 12, "film": 3}, {"user": "nobody"}]
        with pytest.raises(RequestError) as raised:
            await serving.answered(PredictRequest(instances=rows))
        assert raised.value.field == "instances[1].user"
        assert not some.learner.cache._asked, "no row is requested for what is refused"
        world.client.down = True
        some.settings.cache.__dict__["wait_ms"] = 20.0
        answer = await serving.answered(_request(11))
        assert isinstance(answer, Prediction)
        assert answer.missing_rows == 1, "the server is away"
        world.client.down = False
        for replica in (whole, some):
            await replica.stop(5.0)

    play(tmp_path, scene)


def test_events_wait_for_their_rows_but_not_for_a_server_that_is_away(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        whole, some = await taught(world, rows=100, learn_wait_ms=500)
        draw, cache = random.Random(4), some.learner.cache
        await some.writer.record([event(i, draw) for i in range(1_000, 1_040)])
        await until(lambda: some.counts["learned"] == 40)
        assert cache.report()["learned_without_rows"] == 0
        world.client.down = True
        await some.writer.record([event(i, draw) for i in range(1_060, 1_120)])
        await until(lambda: some.counts["learned"] == 100)
        assert cache.report()["learned_without_rows"] > 0
        world.client.down = False
        await until(lambda: whole.learner.tally.digest[0] == 2 * USERS + 100)
        user = 1_110 % USERS
        await until(lambda: asked(world, some, user).missing_rows is msgspec.UNSET)
        await until(lambda: whole.learner.version == some.learner.version)
        assert asked(world, some, user).prediction == asked(world, whole, user).prediction
        for replica in (whole, some):
            await replica.stop(5.0)

    play(tmp_path, scene)


def test_a_payload_is_decoded_and_a_row_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, hashed = Counter[bytes](), Counter[str]()
    decode, hash_row = codec.decode, Hashed.row

    def counted(payload: bytes) -> Example:
        decoded[payload] += 1
        return decode(payload)

    def noted(self: Hashed, features: Features, *, learns: bool) -> dict[str, float]:
        hashed["learned" if learns else "looked up"] += 1
        return hash_row(self, features, learns=learns)

    async def scene(world: World) -> None:
        whole, some = await taught(world, rows=100)
        draw = random.Random(5)
        monkeypatch.setattr(codec, "decode", counted)
        monkeypatch.setattr(Hashed, "row", noted)
        for begin, replica in ((1_000, whole), (2_000, some)):
            events = [event(i, draw) for i in range(begin, begin + 40)]
            before = replica.counts["learned"]
            await replica.writer.record(events)
            await until(lambda r=replica, n=before: r.counts["learned"] == n + 40)
            assert [decoded[one.payload] for one in events] == [1] * 40
        for replica in (whole, some):
            await until(lambda r=replica: asked(world, r, 7).missing_rows is msgspec.UNSET)
            hashed.clear()
            asked(world, replica, 7)
            assert hashed == {"looked up": 1}
            await replica.stop(5.0)

    play(tmp_path, scene)


def test_what_the_server_records_is_bounded_by_a_setting(tmp_path: Path) -> None:
    model = {"name": "m", "task": "binary", "learner": "fm", "params": {"table": True}}
    settings = config.load(None, {"models": [model], "limits": {"held_rows_max": 1_000}}, {})
    server = ParameterServer(
        Lineage("m", SPEC, "{}", "sum"), World(tmp_path).journal, str(tmp_path / "other"),
        settings_of(settings.models[0], settings), background=False,
    )  # fmt: skip
    assert server.restore()
    assert server.status()["tables"] == {}
    for rows, counts in (
        (1_000, {"held": 1_000, "unrecorded": 0}),
        (1, {"held": 0, "unrecorded": 1}),
    ):
        asked = {"t": np.arange(rows, 2 * rows, dtype=ID).tobytes()}
        request = wire.SyncRequest(
            wire.FORMAT, "r", 1, [], None, True, [], rows=asked, serial=2_000 - rows
        )
        server.sync(wire.encode(request))
        assert server.status()["tables"] == counts
