"""Twenty models in one replica: what goes wrong with one leaves the others alone."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import replica_world as worlds

from online.http.app import App
from online.models.adapters.linear import Linear
from online.models.base import Prediction
from online.settings.limits import Limits
from replay.example import Features, Label
from replay.journal.base import Appended, NewRow
from replay.journal.sqlite.journal import SqliteJournal

MODELS: Final = 20
FAILS, DIVERGES, FLOODED = "m0", "m1", "m2"
LIMITS: Final = Limits(ongoing_max=32, feedback_wait_s=60)  # on a slow machine, too


class Fails(Linear):
    """Its learning raises."""

    def learn(self, x: Features, y: Label, w: float = 1.0) -> None:
        raise RuntimeError("its own code")


class Diverges(Linear):
    """What it answers is no number."""

    def predict(self, x: Features) -> Prediction:
        return Prediction(math.nan, None)


class Stuck(SqliteJournal):
    """A journal whose disk has stopped."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, disk_low_mb=0)
        self.go = threading.Event()

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        self.go.wait(240)
        return super().append(partition, known, rows, epoch)


def test_a_failing_a_diverging_and_a_flooded_model_leave_seventeen_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        servings, served, stuck = {}, {}, None
        for i in range(MODELS):
            name = f"m{i}"
            (tmp_path / name).mkdir()
            world = worlds.World(tmp_path / name)
            kind = {FAILS: Fails, DIVERGES: Diverges}.get(name)
            given: dict[str, Any] = {"limits": LIMITS}
            if kind is not None:
                given["build"] = lambda kind=kind: kind(worlds.counting().estimator)
            if name == FLOODED:
                given["journal"] = stuck = Stuck(tmp_path / name / "journal.db")
            replica = await world.replica(**given)
            servings[name], served[name] = world.serving(replica), (world, replica)
        assert stuck is not None
        app: Any = App(servings, None, LIMITS)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:

            async def send(name: str, event: str) -> httpx.Response:
                body = {"features": {event: 1.0}, "label": 1e9, "event_id": event}
                return await client.post(f"/v1/models/{name}/feedback", json=body)

            async def ask(name: str) -> httpx.Response:
                return await client.post(
                    f"/v1/models/{name}/predict", json={"features": {"a": 1.0}}
                )

            # More than all slots of the replica, to one model whose disk has stopped.
            flood = [
                asyncio.create_task(send(FLOODED, f"f{i}")) for i in range(3 * LIMITS.ongoing_max)
            ]
            refused = len(flood) - LIMITS.ongoing_max // 2  # the others wait for the disk
            await worlds.until(lambda: sum(t.done() for t in flood) == refused, 240.0)
            others = [f"m{i}" for i in range(3, MODELS)]
            for i in range(3):
                failed = await send(FAILS, f"x{i}")
                assert (failed.status_code, failed.json()["status"]) == (422, "failed")
                nothing = await ask(DIVERGES)
                assert nothing.json()["error"]["code"] == "not_finite"
                for name in others:
                    assert (await ask(name)).status_code == 200
                    learned = await send(name, f"e{i}")
                    assert learned.json()["status"] == "learned", name
            assert (await ask(FLOODED)).status_code == 200, "its predictions do not wait, too"
            assert (await ask(FAILS)).status_code == 200, "it answers as it did before"
            stuck.go.set()
            statuses = Counter(answer.status_code for answer in await asyncio.gather(*flood))
            assert statuses == {200: LIMITS.ongoing_max // 2, 429: 80}, "definite, and bounded"
        for name in others:
            world, replica = served[name]
            assert [world.weight(replica, f"e{i}") for i in range(3)] == [1, 1, 1]
            assert replica.learner.tally.digest[0] == 3, "its own rows, and nobody else's"
            assert not replica.incidents
        assert served[FAILS][1].learner.tally.digest[0] == 0
        await asyncio.gather(*(replica.stop(5) for _, replica in served.values()))

    asyncio.run(scene())


def test_a_flood_without_the_bound_would_take_all_slots(tmp_path: Path) -> None:
    """The negative control: half of the slots are what a model's journal may hold up."""

    async def scene() -> None:
        servings, stuck = {}, Stuck(tmp_path / "journal.db")
        worldly = worlds.World(tmp_path)
        unbounded = Limits(ongoing_max=10 * LIMITS.ongoing_max, feedback_wait_s=60)
        replica = await worldly.replica(limits=unbounded, journal=stuck)
        servings["m2"] = worldly.serving(replica)
        (tmp_path / "other").mkdir()
        other = worlds.World(tmp_path / "other")
        beside = await other.replica(limits=LIMITS)
        servings["m3"] = other.serving(beside)
        app: Any = App(servings, None, LIMITS)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            body = {"features": {"a": 1.0}, "label": 1.0}
            flood = [
                asyncio.create_task(client.post("/v1/models/m2/feedback", json=body))
                for _ in range(LIMITS.ongoing_max)
            ]
            await worlds.until(lambda: app._under_way == LIMITS.ongoing_max, 240.0)
            asked = await client.post("/v1/models/m3/predict", json={"features": {"a": 1.0}})
            assert asked.status_code == 429
            stuck.go.set()
            await asyncio.gather(*flood)
        await replica.stop(5)
        await beside.stop(5)

    asyncio.run(scene())
