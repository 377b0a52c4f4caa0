"""A model that takes long is explained in many turns of the loop, and others are answered between.

No clock of the machine is asked: the slow model moves the clock that its answers are timed by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import replica_world as worlds

from online.errors import RequestError
from online.messages.structs import Explanation, FeedbackRequest, Prediction, PredictRequest
from online.models.adapters.linear import Linear
from online.models.base import Prediction as Answer
from online.replica.shared import ChangeLock
from online.serving import explained
from online.serving.explained import Explained
from online.serving.serving import Serving
from online.settings.limits import Limits
from replay.example import Features

ROW: Features = {f"f{i}": float(i) for i in range(12)}
PLAIN = PredictRequest(features={"other": 1.0})
WHY = PredictRequest(features=ROW, explain=True)


class Slow(Linear):
    """A model whose answers take a hundredth of a second each, by a clock of its own."""

    def __init__(self) -> None:
        super().__init__(worlds.counting().estimator)
        self.now_s, self.asked = 0.0, 0

    def predict_many(self, rows: Sequence[Features]) -> list[Answer]:
        """Answer by the product of all numbers: no weights say what each has added."""
        self.now_s += 0.01 * len(rows)
        self.asked += len(rows)
        return [self._slowly(x) for x in rows]

    def predict(self, features: Features) -> Answer:
        return self._slowly(features)

    def _slowly(self, features: Features) -> Answer:
        first = super().predict(features).label
        assert isinstance(first, float)
        return Answer(first + len(features) ** 2, None)


async def slow(world: worlds.World, limits: Limits | None = None) -> tuple[Serving, Slow]:
    """A replica of the slow model that is timed by its clock."""
    replica = await world.replica(build=Slow, limits=limits)
    model = replica.learner.serving
    assert isinstance(model, Slow)
    serving = world.serving(replica)
    serving._explained = Explained(replica, serving._validator, lambda: model.now_s)
    return serving, model


async def most_between(serving: Serving, model: Slow) -> tuple[int, Explanation]:
    """How many parts of a row the model was asked between two answers to others, at most."""
    task = asyncio.create_task(serving.explained(WHY))
    seen, most = model.asked, 0
    while not task.done():
        serving.predict(PLAIN)
        await asyncio.sleep(0)
        most, seen = max(most, model.asked - seen), model.asked
    said = task.result()
    assert isinstance(said, Prediction)
    assert isinstance(said.explanation, Explanation)
    return most, said.explanation


def test_others_are_answered_after_each_part_of_a_row_that_a_slow_model_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        serving, model = await slow(world)
        most, said = await most_between(serving, model)
        assert most == 1
        assert model.asked == 2 + 2 * (len(ROW) - 1)
        assert said.base + sum(said.contributions.values()) == pytest.approx(said.output, abs=1e-9)
        monkeypatch.setattr(explained, "_TURN_S", 1e9)  # the control: as long as it takes
        serving._explained._size = 1 << 20
        most, _ = await most_between(serving, model)
        assert most >= len(ROW) - 1
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("guarded", [True, False])
def test_nothing_is_learned_while_an_answer_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    if not guarded:  # the control
        monkeypatch.setattr(ChangeLock, "held", False)

    async def scene(world: worlds.World) -> None:
        serving, _ = await slow(world)
        replica = serving.replica
        event = FeedbackRequest(features={"other": 1.0}, label=1.0, event_id="e")
        async with replica.change_lock.hold():
            feedback = asyncio.create_task(serving.feedback(event))
            await worlds.until(lambda: replica.writer.known > 0, 240.0)
            for _ in range(100):  # turns of the loop: learning needs two
                await asyncio.sleep(0)
            assert replica.counts["learned"] == (0 if guarded else 1)
            assert isinstance(serving.predict(PLAIN), Prediction)
        status, _ = await feedback
        assert (status, replica.counts["learned"]) == (200, 1)
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_an_explanation_is_of_the_answer_that_it_comes_with(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        serving, model = await slow(world)
        replica = serving.replica
        event = FeedbackRequest(features=ROW, label=1e3, event_id="e")
        task = asyncio.create_task(serving.explained(WHY))
        while model.asked < 2:
            await asyncio.sleep(0)
        assert replica.change_lock.held
        status, _ = await serving.feedback(event)
        assert status == 200
        assert task.done()
        said, now = task.result(), serving.predict(PredictRequest(features=ROW))
        assert isinstance(said, Prediction)
        assert isinstance(now, Prediction)
        assert isinstance(said.explanation, Explanation)
        assert said.prediction == pytest.approx(said.explanation.output, abs=1e-9)
        assert said.prediction != now.prediction  # the row has taught something
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_learning_has_a_turn_between_two_explanations(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        serving, _ = await slow(world)
        replica, learned = serving.replica, list[int]()

        async def another() -> None:
            async with replica.change_lock.hold():
                learned.append(replica.counts["learned"])

        event = FeedbackRequest(features={"other": 1.0}, label=1.0, event_id="e")
        async with replica.change_lock.hold():
            others = [asyncio.create_task(another()) for _ in range(3)]
            feedback = asyncio.create_task(serving.feedback(event))
            # Not for the lock alone, for which an exchange may have waited before the row is there.
            await worlds.until(lambda: replica.writer.known > 0, 240.0)
            await worlds.until(lambda: replica.change_lock._waited, 240.0)
        await asyncio.gather(*others, feedback)
        assert learned == [1, 1, 1]
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_what_takes_too_long_is_refused(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        serving, _ = await slow(world, Limits(explain_s=0.01))
        replica = serving.replica
        async with replica.change_lock.hold():  # somebody else's explanation, which does not end
            with pytest.raises(RequestError, match=r"within 0\.01 s") as error:
                await serving.explained(WHY)
        assert (error.value.status, error.value.code) == (503, "explain_too_slow")
        assert replica.counts["predictions"] == 0
        async with replica.change_lock.hold():  # it is given up: nobody waits in the line for it
            pass
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)
