"""A prediction without a label within the window is a negative, once, until a label comes."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from pydantic import ValidationError
from river import linear_model, optim

from online.errors import RequestError
from online.messages.sender import sender
from online.messages.structs import FeedbackRequest, PredictRequest
from online.models.adapters.linear import Linear
from online.models.errors import LearnerUnusable
from online.models.loading.from_settings import load_model
from online.serving import defaults
from online.serving.default_labels import DefaultLabels
from online.serving.defaults import Defaults
from online.settings.config import Settings
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.settings.tokens import Grant
from online.sure.views import delays_in
from replay import codec
from replay.example import Example

WINDOW_S = 600.0


def build() -> Linear:
    """The step of a row is its weight times the slope, and no feature has a share in another's."""
    return Linear(linear_model.LogisticRegression(optim.SGD(1.0), intercept_lr=0.0, l2=0.0))


class Site:
    """A replica that predicts, on a clock of its own."""

    def __init__(self, world: Any, replica: Any, wall: worlds.Clock) -> None:
        self.replica, self.wall, self.clock = replica, wall, worlds.Clock()
        self.serving = world.serving(replica)
        learner, window = replica.learner, replica.settings.conversion_window
        rule = DefaultLabels(window, learner.tally.views, lambda: learner.serving)
        self.defaults = Defaults(replica, rule, wall, self.clock)

    async def predict(self, name: str, own: str | None = None) -> str:
        self.wall.s += 0.01  # no two are asked at the same instant
        id_: str = self.serving.predict(PredictRequest(features={name: 1.0}, id=own)).id
        await worlds.until(lambda: self.replica.writer.idle)
        return id_

    async def label(self, id_: str, label: bool, **more: Any) -> tuple[int, Any]:
        self.wall.s += 0.01
        found: tuple[int, Any] = await self.serving.feedback(
            FeedbackRequest(id=id_, label=label, **more)
        )
        return found

    async def give(self, after_s: float) -> int:
        self.clock.s += after_s
        return await self.defaults.give()

    @property
    def counted(self) -> dict[str, Any]:
        found = delays_in(self.replica.learner.tally.views)
        assert found is not None
        return found.summary()

    def slope(self, name: str) -> float:
        """What the model has learned of a name: half of a row's weight, by its label's sign."""
        weight = self.replica.learner.serving.estimator.weights.get(name, 0.0)
        assert isinstance(weight, float)
        return weight


async def site(world: Any, name: str = "r", wall: worlds.Clock | None = None, **more: Any) -> Site:
    wall, given = wall or worlds.Clock(), {"conversion_window": WINDOW_S, **more}
    given = {**given, "build": build, "task": "binary", "now_s": wall}
    return Site(world, await world.replica(name, **given), wall)


def rows(world: Any) -> list[Example]:
    with contextlib.closing(world.journal()) as journal:
        return [codec.decode(row.payload) for row in journal.follow("m", 0, 1000).rows]


def test_no_label_within_the_window_is_a_negative_once(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await site(world)
        for name, own in (("token", None), ("own", "order-1"), ("early", None)):
            id_ = await one.predict(name, own)
        assert (await one.label(id_, True))[1].status == "learned"
        assert await one.give(WINDOW_S - 1) == 0
        assert one.slope("token") == 0.0
        assert await one.give(60.0) == 2
        assert await one.give(WINDOW_S) == 0
        assert one.slope("token") == pytest.approx(-0.5)
        assert one.slope("own") == pytest.approx(-0.5)
        assert one.slope("early") == pytest.approx(0.5)
        assert one.replica.counts["labels_defaulted"] == 2
        assert one.counted["defaulted"] == 2
        assert one.replica.learner.tally.digest[0] == 3
        assert one.replica.learner.tally.counters["n"] == 3, "a label by default is judged"
        assert [(e.label, e.provisional, e.late) for e in rows(world)] == [
            (True, False, None), (False, True, 1.0), (False, True, 1.0),
        ]  # fmt: skip
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("own", [None, "order-1"])
def test_a_label_that_comes_later_takes_the_negative_back_once(
    tmp_path: Path, own: str | None
) -> None:
    async def scene(world: Any) -> None:
        one = await site(world)
        id_ = await one.predict("a", own)
        assert await one.give(WINDOW_S + 1) == 1
        code, told = await one.label(id_, True)
        assert (code, told.status) == (200, "learned")
        assert isinstance(told.corrects, str)
        again = [await one.label(id_, label) for label in (True, False)]
        assert [(code, told.status) for code, told in again] == [
            (200, "duplicate"), (409, "conflict"),
        ]  # fmt: skip
        # of the log loss (first label − final label) · x is left of both, whatever came between
        assert one.slope("a") == pytest.approx(0.5)
        assert (one.counted["defaulted"], one.counted["corrected"]) == (1, 1)
        assert one.replica.learner.tally.counters["n"] == 1, "the event is judged once"
        assert one.replica.counts["corrected"] == 1
        assert await one.give(WINDOW_S) == 0
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_two_replicas_and_labels_settle_each_prediction_once(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        wall = worlds.Clock()
        one, two = await site(world, "one", wall), await site(world, "two", wall)
        ids = [await one.predict(f"x{i}") for i in range(40)]
        for clock in (wall, one.clock, two.clock):
            clock.s += WINDOW_S + 60
        given = asyncio.gather(one.defaults.give(), two.defaults.give())
        told = [(await two.label(id_, True))[1] for id_ in ids[:20]]
        assert {receipt.status for receipt in told} <= {"learned", "queued"}
        late = sum(isinstance(receipt.corrects, str) for receipt in told)
        assert sum(await given) == len(ids) - 20 + late
        found = rows(world)
        assert sum(e.late is not None for e in found) == len(ids) - 20 + late
        assert sum(e.label is True for e in found) == 20
        assert sum(e.corrects is not None for e in found) == late
        for each in (one, two):
            await each.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_what_comes_late_weighs_by_the_share_that_has_come_in_time(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await site(world)
        for i in range(60):  # three of four within the window
            id_ = await one.predict(f"p{i}")
            one.wall.s += WINDOW_S / 10 if i % 4 else WINDOW_S * 10
            await one.label(id_, True)
        one.clock.s = one.wall.s
        share = one.counted["within"]
        assert share == pytest.approx(0.75, abs=0.01)
        weight, late = share + (1.0 - share) ** 2, 1.0 - share
        id_ = await one.predict("a")
        assert await one.give(WINDOW_S + 60) == 1
        assert one.counted["weight"] == pytest.approx(weight)
        assert one.slope("a") == pytest.approx(-0.5 * weight)
        back = rows(world)[-1]
        assert [back.weight, back.late] == pytest.approx([weight, late])
        before = one.replica.learner.serving.predict({"a": 1.0}).probabilities[True]
        await one.label(id_, True)
        moved = late * (1.0 - before) + weight * before
        assert one.slope("a") == pytest.approx(-0.5 * weight + moved)
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("labelled", [False, True])
def test_names_that_waited_longer_than_their_promise_keep_to_the_bound(
    tmp_path: Path, *, labelled: bool
) -> None:
    async def scene(world: Any) -> None:
        one = await site(world)
        names = one.replica.learner.vocabulary
        names.most = 4
        for turn in range(3):
            for i in range(2):
                await one.predict(f"n{turn}{i}", f"order-{turn}{i}")
            one.wall.s += one.replica.settings.label_wait + 1  # nothing is promised any more
        if labelled:
            for turn in range(3):
                for i in range(2):
                    await one.label(f"order-{turn}{i}", True)
        one.clock.s = one.wall.s
        assert await one.give(WINDOW_S) == (0 if labelled else 6)
        assert len(names) == 2, "half of the four is one source's"
        assert sum(bool(row.raw) for row in rows(world)) == 4
        assert one.replica.counts["names_left_out"] == 4
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_full_queue_refuses_a_prediction_and_takes_nothing_of_it(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await site(world, limits=Limits(feedback_wait_s=60, joins_queue_max=2))
        two = PredictRequest(instances=[{"a": 1.0}] * 2, ids=True)
        many = PredictRequest(instances=[{"a": 1.0}] * 3, ids=True)
        with pytest.raises(RequestError, match="3 rows at once, and no more than 2") as never:
            one.serving.predict(many)
        assert never.value.status == 422, "it would never fit"
        assert "Send fewer" in (never.value.hint or "")
        assert one.replica.writer.halves == 0
        assert len(one.serving.predict(two).predictions) == 2
        with pytest.raises(RequestError, match=r"another prediction.*: 2 wait to be") as caught:
            one.serving.predict(two)
        assert (caught.value.status, caught.value.code) == (429, "joins_full")
        assert "joins_queue_max" in (caught.value.hint or "")
        counts = one.replica.counts
        assert (counts["joins_refused"], counts["joins_dropped"]) == (2, 0)
        await worlds.until(lambda: one.replica.writer.idle)
        assert await one.give(WINDOW_S + 1) == 2
        sender.set(Grant(source="shop"))
        alone = PredictRequest(instances=[{"a": 1.0}], ids=True)
        one.serving.predict(alone)
        with pytest.raises(RequestError, match=r": 1 wait.*; 1 of yours wait.* at most half of"):
            one.serving.predict(alone)
        sender.set(Grant(source="till"))
        one.serving.predict(alone)
        await worlds.until(lambda: one.replica.writer.idle)
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_all_wait_anew_if_the_clock_was_ahead_and_is_set_back(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        wall = worlds.Clock()
        wall.s += 10 * WINDOW_S
        one = await site(world, "one", wall)
        wall.s -= 10 * WINDOW_S
        two = await site(world, "two", wall)
        await two.predict("a")  # to the first it would look ten windows old
        assert await one.give(WINDOW_S + 1) == 0
        assert one.replica.counts["defaults_held"] == 1
        assert await one.give(WINDOW_S / 2) == 0
        assert await one.give(WINDOW_S) == 1
        for each in (one, two):
            await each.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_what_was_stamped_in_a_wrong_future_waits_from_when_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: Any) -> None:
        month, wall = 30 * 86_400.0, worlds.Clock()
        wall.s += month
        ahead = await site(world, "ahead", wall)
        await ahead.predict("then", "order-1")
        await ahead.replica.stop(1)
        two = await site(world, "two")  # the clock is right again
        await two.predict("now", "order-2")
        assert await two.give(WINDOW_S + 1) == 1
        assert two.slope("now") == pytest.approx(-0.5), "it stops no other"
        assert await two.give(WINDOW_S - 1) == 0, "it is not hurried: it was first seen then"
        assert await two.give(defaults.WHOLE_S + 2) == 1
        assert two.slope("then") == pytest.approx(-0.5)
        assert await two.give(WINDOW_S) == 0
        await two.replica.stop(1)

    worlds.play(tmp_path / "with", scene)
    monkeypatch.setattr(defaults, "AHEAD_S", 1e12)  # the control: it would wait for a month
    with pytest.raises(AssertionError, match="assert 0 == 1"):
        worlds.play(tmp_path / "without", scene)


@pytest.mark.parametrize("heard", [True, False])
def test_a_replica_whose_clock_is_ahead_gives_nothing_before_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, heard: bool
) -> None:
    if not heard:
        monkeypatch.setattr(Defaults, "_by_others", lambda *_: float("inf"))

    async def scene(world: Any) -> None:
        wall, fast = worlds.Clock(), worlds.Clock()
        fast.s += 10 * WINDOW_S
        one, two = await site(world, "one", wall), await site(world, "two", fast)
        await one.label(await one.predict("row"), True)
        assert await two.give(0.0) == 0
        wall.s += WINDOW_S
        await one.predict("a")
        early = await two.give(WINDOW_S + 1)
        assert early == (0 if heard else 1), "it looks ten windows old"
        assert await two.give(WINDOW_S) == 1 - early, "and gets its label all the same"
        for each in (one, two):
            await each.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_without_a_window_nothing_is_written_and_nothing_given(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await site(world, conversion_window=None)
        await one.predict("a")
        assert await one.give(10 * WINDOW_S) == 0
        with contextlib.closing(world.journal()) as journal:
            assert journal.usage("m").halves == 0
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "regression"}, "take `task: binary`"),
        ({"task": "anomaly"}, "`task: anomaly` has none"),
        ({"conversion_window": "4d"}, "345600 s is longer than half of token_lifetime, 604800 s"),
        ({"replay": {"policy": "recent"}}, "leave one of the two out"),
    ],
)
def test_settings_that_can_not_be_kept_are_refused(given: dict[str, Any], said: str) -> None:
    base = {"name": "m", "task": "binary", "learner": "logreg", "conversion_window": "1h"}
    with pytest.raises(ValidationError, match=said):
        ModelSettings.model_validate({**base, **given})


def test_a_model_that_takes_no_lesson_back_is_refused(tmp_path: Path) -> None:
    model = {"name": "m", "task": "binary", "learner": "fm", "conversion_window": "1h"}
    settings = Settings.model_validate({"state_dir": tmp_path, "models": [model]})
    with pytest.raises(LearnerUnusable, match="conversion_window is 3600 s"):
        load_model(settings.models[0], settings, bytes(32))


def test_a_replica_that_was_replaced_does_not_end_the_defaults_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "_LOOK_S", 0.001)

    async def scene(world: Any) -> None:
        old, new = await site(world, "old"), await site(world, "new")
        await new.predict("a")
        await old.replica.stop(5)
        for one in (old, new):
            one.clock.s += 3 * WINDOW_S
        giving = asyncio.create_task(
            defaults.give_for_ever({"old": old.defaults, "new": new.defaults})
        )
        await worlds.until(lambda: giving.done() or new.replica.counts["labels_defaulted"])
        assert new.replica.counts["labels_defaulted"] == 1
        giving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await giving
        await new.replica.stop(5)

    worlds.play(tmp_path, scene)
