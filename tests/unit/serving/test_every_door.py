"""What is judged and bounded does not depend on how an event was sent, or beside which others."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from provisional_world import asked_of, event, frozen, guess, half, refused, sent, weight
from replica_world import World, play

from benchmarks.fixtures.senders import inside
from online.errors import RequestError
from online.messages.choices import Action, ChooseRequest, RewardRequest
from online.messages.sender import sender
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.rows.validator import Validator
from online.serving.choices.choosing import Choosing
from online.serving.choices.default_rewards import DefaultRewards
from online.serving.serving import Serving
from online.settings.choose import Choose
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.settings.tokens import Grant
from online.trust.filtering import SOURCES_MIN, Filtering
from paramserver.filters.base import Event as Judged
from paramserver.filters.base import Filter, Opinion, Source
from paramserver.filters.chain import Chain
from paramserver.filters.newcomers import Newcomers
from replay import codec
from replay.journal.base import Verdict

LIE, TRUTH = 8.0, 1.0
MOST = 2.0


@dataclass
class ByLabel(Filter):
    """A test that knows the lie."""

    name: str = "told"

    def judge(self, event: Judged, source: Source) -> Opinion:
        return Opinion(evidence=-1.5 if event.label == str(LIE) else 1.0)


def by_label(learner: Any) -> Filtering:
    return Filtering(
        Chain([ByLabel()], credit=5.0),
        model=lambda: learner.serving,
        clock=lambda: learner.clock,
        count=lambda: learner.version[1],
    )


def test_the_truth_under_a_lie_s_id_is_not_what_the_lie_is_judged_by(tmp_path: Path) -> None:
    """Both come in one body, so both are read before either is judged."""

    async def scene(world: World) -> None:
        replica = await world.replica(build=half, filters=by_label)
        serving = world.serving(replica)
        for i in range(SOURCES_MIN):
            await sent(serving, f"h{i}", TRUTH, source=f"h{i}")
        fates = []
        for n in range(12):
            both = [
                Event(label, features={f"x{n}": 1.0}, event_id=f"x{n}", source="x")
                for label in (LIE, TRUTH)
            ]
            _, answer = await serving.feedback(FeedbackRequest(events=both))
            fates.append([one.status for one in answer.events])
        assert fates[-1][0] == "quarantined", fates
        assert fates[0] == ["learned", "conflict"]
        assert weight(replica, "x11") == 0.0
        await replica.stop(2)

    play(tmp_path, scene)


def test_what_a_quarantined_source_sends_to_a_frozen_model_is_not_learned_afterwards(
    tmp_path: Path,
) -> None:
    """Nobody judges it, neither when it comes nor when it is released."""

    async def scene(world: World) -> None:
        replica = await world.replica(build=half, filters=by_label)
        serving = world.serving(replica)
        for i in range(SOURCES_MIN):
            await sent(serving, f"h{i}", TRUTH, source=f"h{i}")
        for n in range(8):
            await sent(serving, f"x{n}", LIE, source="x")
        assert replica.filters is not None
        assert replica.filters.reputations.quarantined == ["x"]
        await frozen(world, True, replica)
        for source in ("x", "h0"):
            assert (await sent(serving, f"late-{source}", LIE, source=source))[1].status == "frozen"
        await frozen(world, False, replica)
        done = await asked_of(replica).relearn("m", "frozen", None, 100)
        assert (done["learned"], done["banned"], done["duplicate"]) == (1, 1, 0)
        assert (weight(replica, "late-x"), weight(replica, "late-h0")) == (0.0, LIE / 2.0)
        replica.filters.reputations.release("x")
        done = await asked_of(replica).relearn("m", "frozen", None, 100)
        assert (done["learned"], done["banned"], done["duplicate"]) == (1, 0, 1)
        await replica.stop(2)

    play(tmp_path, scene)


async def _by_token(serving: Serving, label: float, **more: Any) -> Any:
    given = serving.predict(PredictRequest(features={"t": 1.0})).id  # type: ignore[union-attr]
    first = FeedbackRequest(id=given, label=LIE, provisional=True)
    assert (await serving.feedback(first))[1].status == "learned"  # type: ignore[union-attr]
    return FeedbackRequest(id=given, label=label, **more)


@pytest.mark.parametrize("by_token", [False, True])
def test_a_final_label_weighs_no_more_than_another_event(tmp_path: Path, by_token: bool) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(build=half, limits=Limits(feedback_wait_s=60))
        serving = world.serving(replica)
        if by_token:
            heavy = await _by_token(serving, TRUTH, weight=1e6)
        else:
            await guess(serving, "t", LIE)
            heavy = event("t", TRUTH, weight=1e6)
        before = weight(replica, "t")
        error = await refused(serving, heavy)
        assert (error.code, error.field) == ("weight_over", "weight")
        assert weight(replica, "t") == before
        heavy.weight = MOST
        assert (await serving.feedback(heavy))[1].status == "learned"  # type: ignore[union-attr]
        heavy.weight = 1e6
        again = (await serving.feedback(heavy))[1]
        assert again.status == "duplicate", "a repeat is answered first"  # type: ignore[union-attr]
        await replica.stop(2)

    play(tmp_path, scene)


def test_a_provisional_label_s_repeat_is_answered_whatever_it_weighs(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(build=half)
        serving = world.serving(replica)
        await guess(serving, "t", LIE)
        assert (await guess(serving, "t", LIE, weight=1e6))[1].status == "duplicate"
        with pytest.raises(RequestError):
            await guess(serving, "u", LIE, weight=1e6)
        await replica.stop(2)

    play(tmp_path, scene)


def test_a_repeat_s_weight_is_none_for_another_prediction_of_that_id(tmp_path: Path) -> None:
    """Of an id that an application and the source both predict with, one has its label."""
    senders = {"app": Grant(), "s": Grant("s")}
    settings = ModelSettings(name="m", task="binary", learner="logreg")

    async def scene() -> None:
        async with inside(tmp_path, settings, senders, 1) as desk:
            heavy = {"id": "visit-1", "label": True, "weight": 1e6}
            await desk.predict("app", {"a": 1.0}, "visit-1", 0)
            assert await desk.label("s", {**heavy, "weight": 1.0}, 0) == "learned"
            await desk.predict("s", {"a": 1.0}, "visit-1", 0)
            assert await desk.label("s", heavy, 0) == "duplicate"
            assert await desk.label("s", {**heavy, "weight": 1.0}, 0) == "learned"

    asyncio.run(scene())


def test_an_event_says_as_much_of_its_source_as_it_weighs_among_its_others() -> None:
    """Two true rows that weigh nothing do not make up for one lie that weighs twice as much."""
    chain = Chain([ByLabel()], credit=5.0)
    for n in range(90):
        lie = n % 3 == 2
        for name, light, heavy in (("light", 0.01, MOST), ("usual", 1.0, 1.0)):
            judged = Judged(
                name,
                f"{name}{n}".encode(),
                label=str(LIE if lie else TRUTH),
                weight=heavy if lie else light,
            )
            chain.observe(judged, chain.decide(judged))
    assert chain.sources.get("light").quarantined
    assert not chain.sources.get("usual").quarantined
    assert chain.sources.get("usual").standing > 1.0


def test_a_source_whose_rows_all_weigh_alike_is_judged_as_any_other() -> None:
    nats = set()
    for weight_ in (0.01, 1.0, MOST):
        chain = Chain([ByLabel()], credit=5.0)
        for n in range(3):
            judged = Judged("a", bytes([n]), label=str(TRUTH), weight=weight_)
            chain.observe(judged, chain.decide(judged))
        nats.add(round(chain.sources.get("a").standing, 12))
    assert nats == {3.0}


def test_new_sources_together_weigh_a_share_however_heavy_their_events_are() -> None:
    """Twice the weight of an established source's events is learned as once, and counts twice."""
    learned = {}
    for heavy in (1.0, MOST):
        new = Newcomers()
        for _ in range(40):
            new.count(new=False, hit=False)
        learned[heavy] = 0.0
        for _ in range(40):
            learned[heavy] += heavy * new.most(heavy) * new.weight(0.2, hit=True, compared=True)
            new.count(new=True, hit=True, weight=heavy)
    assert learned[MOST] <= learned[1.0]
    assert new.most(1.0) == 1.0
    assert Newcomers().most(MOST) == 1.0, "there is nobody to compare with"


def test_true_rows_that_weigh_nothing_hide_no_lies_of_new_sources() -> None:
    new = Newcomers()
    for n in range(300):
        new.count(new=False, hit=False)
        lie = n % 6 == 0
        new.count(new=True, hit=lie, weight=MOST if lie else 0.01)
    assert new.weight(0.5, hit=True, compared=True) < 1.0


DOORS = ("features", "body", "token", "prediction first", "label first", "provisional")


async def _sent_by(door: str, serving: Serving, own: str, features: Any, label: bool) -> None:
    """Send one event by a door; the sender is that of the context."""
    if door in ("features", "provisional"):
        given: Any = {"features": features, "event_id": own, "provisional": door == "provisional"}
        await serving.feedback(FeedbackRequest(label=label, **given))
        return
    if door == "body":
        events = [Event(label, features=features, event_id=own)]
        await serving.feedback(FeedbackRequest(events=events))
        return
    if door == "label first":
        await serving.feedback(FeedbackRequest(label=label, id=own))
    asked = PredictRequest(features=features, id=None if door == "token" else own)
    given = serving.predict(asked).id  # type: ignore[union-attr]
    await asyncio.sleep(0)
    if door != "label first":
        await serving.feedback(FeedbackRequest(label=label, id=given))
    while not serving.replica.writer.idle:
        await asyncio.sleep(0.001)


async def _fates(folder: Path, door: str, rows: int = 240) -> tuple[list[Any], Any]:
    """Verdict and weight of each row, three of twelve sources lying from a third on; evidence."""
    names = [f"s{i:02}" for i in range(12)]
    senders = {name: Grant(name) for name in names}
    model = ModelSettings(name="m", task="binary", learner="logreg")
    draw = Random(3)
    async with inside(folder, model, senders, 1) as desk:
        (serving,) = desk.servings
        for n in range(rows):
            source, x = draw.choice(names), draw.gauss(0.0, 2.0)
            lies = source < "s03" and n > rows // 3
            sender.set(senders[source])
            await _sent_by(door, serving, f"e{n}", {"x": x, "y": draw.random()}, (x > 0.0) != lies)
        journal, filters = serving.replica.store.journal, serving.replica.filters
        assert filters is not None
        found = [r for p in journal.partitions("m") for r in journal.read(p.id, 1, 9_999)]
        rows_by_seq = sorted(found, key=lambda row: row.seq)
        fates = [(row.source, row.verdict, row.factor) for row in rows_by_seq]
        return fates, {one.name: one.evidence for one in filters.chain.sources}


def test_rows_get_the_same_verdicts_by_every_door(tmp_path: Path) -> None:
    played = []
    for door in DOORS:
        (tmp_path / door).mkdir()
        played.append(asyncio.run(_fates(tmp_path / door, door)))
    fates, evidence = played[0]
    verdicts = {verdict.value for _, verdict, _ in fates}
    assert verdicts == {"accepted", "clipped", "quarantined"}
    for door, (its_fates, its_evidence) in zip(DOORS, played, strict=True):
        assert its_fates == fates, door
        assert its_evidence.keys() == evidence.keys(), door
        for source, counts in evidence.items():  # sums may be rounded in another order
            assert its_evidence[source] == pytest.approx(counts, abs=1e-12), (door, source)


def test_defaults_that_no_source_sent_are_no_flood_of_one(tmp_path: Path) -> None:
    """Most choices get no reward, and all defaults have the source that asked, or none."""
    told = Choose(default_reward=0.0, reward_wait=60.0)
    model = ModelSettings(name="m", task="choose", learner="auto", choose=told)
    names = [f"s{i:02}" for i in range(12)]
    senders = {"app": Grant(), **{name: Grant(name) for name in names}}

    async def scene() -> None:
        async with inside(tmp_path, model, senders, 1) as desk:
            (serving,) = desk.servings
            replica, limits, draw = serving.replica, Limits(), Random(1)
            validator = Validator(model, limits, numeric_only=False)
            choosing, rule = Choosing(serving, validator, limits, told), DefaultRewards(told)
            for _ in range(400):
                sender.set(senders["app"])
                asked = ChooseRequest([Action(str(i)) for i in range(3)], {"x": draw.random()})
                answer = await choosing.choose(asked)
                while not replica.writer.idle:
                    await asyncio.sleep(0.001)
                if draw.random() < 0.3:
                    sender.set(senders[draw.choice(names)])
                    await choosing.rewards.take(RewardRequest(answer.id, 1.0))
                    continue
                page = replica.store.journal.predicted("m", -math.inf, math.inf, 9)
                rows = [
                    rule.settled(key, half, codec.decode_prediction(half.payload), half.at)
                    for key, half in page.waiting
                ]
                await replica.writer.record([row for row in rows if row is not None])
            journal = replica.store.journal
            found = [r for p in journal.partitions("m") for r in journal.read(p.id, 1, 9_999)]
            defaults = [row for row in found if row.source == "default"]
            assert len(defaults) > 200
            assert {row.verdict for row in defaults} == {Verdict.ACCEPTED}
            counts = replica.learner.tally.counters
            assert counts["n"] == len(found)

    asyncio.run(scene())
