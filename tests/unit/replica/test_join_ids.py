"""Which ids a stored join may have, and what gets one without asking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from join_world import label, predict, refusal

from online.errors import RequestError
from online.messages.structs import PredictRequest
from online.rows.prediction_ids import Keys, Nonces, Predicted, Tokens
from online.serving.feedback.events import is_join_id
from online.settings.limits import Limits


@pytest.mark.parametrize("text", ["a", "0" * 64, "A-b_c.d:e", ".", "join-0"])
def test_short_ids(text: str) -> None:
    assert is_join_id(text)


@pytest.mark.parametrize("text", ["", "0" * 65, "a b", "a\n", "é", "a/b", "a=", "٣"])
def test_what_is_no_short_id(tmp_path: Path, text: str) -> None:
    assert not is_join_id(text)

    async def scene(world: Any) -> None:
        replica = await world.replica()
        serving = world.serving(replica)
        with pytest.raises(RequestError) as caught:
            predict(serving, text)
        assert (caught.value.status, caught.value.field) == (422, "id")
        assert repr(text[:80]) in caught.value.message
        assert caught.value.hint
        error = await refusal(serving, text)
        assert (error.status, error.code) == (404, "unknown_id")
        assert not replica.counts["joins_kept"]
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_no_own_id_for_many_rows_and_nothing_beside_an_id(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica()
        serving = world.serving(replica)
        with pytest.raises(RequestError) as caught:
            serving.predict(PredictRequest(instances=[{"a": 1.0}], id="x"))
        assert (caught.value.status, caught.value.field) == (422, "id")
        for more in ({"features": {"a": 1.0}}, {"event_id": "e"}):
            with pytest.raises(RequestError) as caught:
                await label(serving, "x", **more)
            assert (caught.value.status, caught.value.field) == (422, "id")
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_token_is_longer_than_every_short_id() -> None:
    tokens = Tokens(Keys([bytes(32)]), "m", Nonces(bytes(6)))
    shortest = Predicted(1, {"": 0}, None, (0, 0, 0), 0.0, None, "f" * 16)
    assert len(tokens.issue(shortest)) > 64


def test_a_prediction_whose_token_is_too_long_gets_a_short_id(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica(limits=Limits(token_bytes_max=256, feedback_wait_s=60))
        serving = world.serving(replica)
        wide = {f"f{i}": 1.0 for i in range(100)}
        given = serving.predict(PredictRequest(features=wide)).id
        assert is_join_id(given)
        assert (await label(serving, given))[:2] == (200, "learned")
        assert world.weight(replica, "f99") == 1
        assert len(serving.predict(PredictRequest(features={"a": 1.0})).id) > 64
        rows = serving.predict(PredictRequest(instances=[wide, {"a": 1.0}], ids=True)).predictions
        assert [is_join_id(row.id) for row in rows] == [True, False]
        assert replica.counts["tokens_too_long"] == 2
        await replica.stop(5)

    worlds.play(tmp_path, scene)
