"""Feedback is judged before it is written: in order, once, by all replicas together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import replica_world as worlds
from replica_world import World, play, until

import online.replica.filtered
from online.errors import RequestError
from online.learning.source_evidence import effects_of, judged_of
from online.messages.sender import sender
from online.messages.structs import Event as MessageEvent
from online.messages.structs import FeedbackRequest, Receipt
from online.models.adapters.linear import Linear
from online.models.loading.load import logreg
from online.replica.memory_settings import memory_for
from online.replica.pending import Recorded
from online.replica.replica import ModelReplica
from online.rows import history
from online.rows.prediction_ids import event_key
from online.settings.limits import Limits
from online.settings.model import ModelSettings, Replay
from online.settings.tokens import Grant
from online.trust.event_facts import loss_of, reported_label
from online.trust.filtering import SOURCES_MIN, Filtering, filtering_for
from online.trust.sources import Reputations
from paramserver.core.blocks import COUNT, EXTREMA, Block, Blocks, merge
from paramserver.core.server import Server
from paramserver.filters import sources as tables
from paramserver.filters.base import Event, Filter, Opinion, Source
from paramserver.filters.chain import Chain
from paramserver.filters.sources import EVIDENCE, OFFENCES, TAKEN, Effects, keep_bounds
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict

SURPRISE = tuple(
    f"surprise{of}" for of in ("", " at true", " at false", " about true", " about false")
)
HONEST = tuple(f"h{i}" for i in range(SOURCES_MIN))


@dataclass
class Told(Filter):
    """A test that is told what to find: one nat for an honest source, ``against`` a hostile one."""

    against: float = -1.0
    name: str = "told"

    def judge(self, event: Event, source: Source) -> Opinion:
        return Opinion(evidence=self.against if event.source.startswith("x") else 1.0)


def told(learner: Any, against: float = -1.0) -> Filtering:
    return Filtering(
        Chain([Told(against)], credit=5.0),
        model=lambda: learner.serving,
        clock=lambda: learner.clock,
        count=lambda: learner.version[1],
    )


def rows_of(source: str, n: int, start: int = 0) -> list[NewRow]:
    return [worlds.row(f"{source}-{i}", source=source) for i in range(start, start + n)]


async def opened(replica: ModelReplica) -> None:
    """Eight honest sources: from here on there is somebody to be compared with."""
    tag = replica.replica
    await replica.writer.record([worlds.row(f"{tag}-{source}", source=source) for source in HONEST])


def nats(replica: ModelReplica, source: str = "x") -> float:
    assert replica.filters is not None
    return replica.filters.chain.sources.get(source).evidence.get("told", 0.0)


def counted(found: Sequence[Recorded]) -> dict[str, int]:
    out: dict[str, int] = {}
    for one in found:
        out[one.status] = out.get(one.status, 0) + 1
    return out


def test_nobody_chooses_by_its_id_which_label_counts_as_not_said() -> None:
    """The same id, after rows of others that nobody foresees: it is another label each time."""
    score = {'"a"': 0.4, '"b"': 0.3, '"c"': 0.2, '"d"': 0.1}
    found = set[str]()
    for turn in range(12):
        learner = SimpleNamespace(serving=None, clock={}, version=(0, 0))
        filtering, example = told(learner), Example({"x": 1.0}, "a", score=score)
        row = msgspec.structs.replace(worlds.row("chosen"), payload=codec.encode(example))
        filtering.judge([worlds.row(f"{turn}-{name}", source=name) for name in HONEST])
        event = filtering._event(row, example)
        assert event.other is not None
        assert event.other == filtering._event(row, example).other
        found.add(event.other[0])
    assert found == {'"b"', '"c"', '"d"'}


# -- one replica ---------------------------------------------------------------------------------


@pytest.mark.parametrize("blind", [False, True])
def test_a_thousand_events_in_one_request_are_no_thousand_free_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blind: bool
) -> None:
    if blind:  # the mutant: each is judged by what was known before the request
        monkeypatch.setattr(Chain, "observe", lambda *args: None)

    async def scene(world: World) -> None:
        replica = await world.replica(filters=told)
        await opened(replica)
        found = counted(await replica.writer.record(rows_of("x", 1000)))
        taken = found.get("learned", 0) + found.get("clipped", 0)
        assert taken == 1000 if blind else taken == 6
        if not blind:
            assert found["quarantined"] == 994
            assert replica.filters is not None
            assert replica.filters.reputations.quarantined == ["x"]
            assert world.weight(replica, "x-999") == 0
        await replica.stop(2)

    play(tmp_path, scene)


@pytest.mark.parametrize("at_once", [False, True])
def test_predictions_have_a_turn_while_a_large_batch_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    if at_once:  # the mutant
        monkeypatch.setattr(online.replica.filtered, "_JUDGED_ROWS", 10_000)
    turns, seen = [0], set[int]()

    class Counting(Told):
        def judge(self, event: Event, source: Source) -> Opinion:
            seen.add(turns[0])
            return super().judge(event, source)

    def counting(learner: Any) -> Filtering:
        made = told(learner)
        made.chain.filters = (Counting(),)  # type: ignore[assignment]
        return made

    async def ticks() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def scene(world: World) -> None:
        replica = await world.replica(filters=counting)
        await opened(replica)
        seen.clear()
        ticking = asyncio.create_task(ticks())
        await replica.writer.record(rows_of("h", 400))
        ticking.cancel()
        assert (len(seen) >= 50) is not at_once
        await replica.stop(2)

    play(tmp_path, scene)


@pytest.mark.parametrize("pumped", [False, True])
def test_a_repeat_says_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pumped: bool
) -> None:
    if pumped:  # the mutant
        monkeypatch.setattr(Filtering, "_is_repeat", lambda self, row: False)
        # what is never taken back stays: a sum made anew would drop what only lost its key
        monkeypatch.setattr(Reputations, "take_back", lambda self, key: None)

    async def scene(world: World) -> None:
        one, two = [await world.replica(name, filters=told) for name in "ab"]
        for replica in (one, two):
            await opened(replica)
        same = rows_of("x", 1)
        await one.writer.record(same * 3)
        for _ in range(3):
            await one.writer.record(same)
        await two.writer.record(same)  # which does not know the key
        await until(lambda: nats(two) != 0.0 and one.learner.own == 0)
        await until(lambda: two.learner.own == 0)
        assert (nats(one) == -1.0) is not pumped
        if not pumped:
            await until(lambda: nats(two) == -1.0)
        for replica in (one, two):
            await replica.stop(2)

    play(tmp_path, scene)


def test_what_was_not_written_is_taken_back() -> None:
    filters = alone(told)
    filters.judge([worlds.row(s, source=s) for s in HONEST])
    filters.judge(rows_of("x", 20))
    assert filters.reputations.quarantined == ["x"]
    filters.dropped()
    assert filters.reputations.quarantined == []
    assert filters.chain.sources.get("x").evidence["told"] == 0.0
    assert filters.chain.sources.get("x").taken == 0


def alone(make: Callable[[Any], Filtering]) -> Filtering:
    learner: Any = SimpleNamespace(serving=worlds.counting(), clock={}, version=(1, 0))
    return make(learner)


def test_few_sources_are_not_judged_and_a_flood_keeps_nobody_out() -> None:
    filters = alone(told)
    row = rows_of("x", 1)[0]
    few = [worlds.row(s, source=s) for s in HONEST[:-2]]
    assert filters.judge([*few, row]) == [*few, row]
    filters.judge([worlds.row("last", source=HONEST[-1])])
    assert filters.active
    filters.judge(rows_of("x", 5000, 1))
    assert filters.active
    later = msgspec.structs.replace(row, key=bytes(16), at=row.at + 90_000.0)
    assert filters.judge([later]) == [later], "nobody else has been heard of for a day"


def test_rows_that_are_not_to_be_judged() -> None:
    filters = alone(told)
    filters.judge([worlds.row(s, source=s) for s in HONEST])
    filters.judge(rows_of("x", 20))
    event_id = f"again:7:1:2:{bytes(16).hex()}:x-1"
    again = msgspec.structs.replace(
        rows_of("x", 1, 30)[0], event_id=event_id, key=event_key("again", f"7:{bytes(16).hex()}")
    )
    assert history.is_again(again)
    assert filters.judge([again]) == [again]
    banned = msgspec.structs.replace(again, event_id="b", verdict=Verdict.QUARANTINED)
    assert filters.judge([banned]) == [banned], "an operator has decided"
    forged = msgspec.structs.replace(again, key=bytes(16))
    assert filters.judge([forged])[0].verdict is Verdict.QUARANTINED


def test_models_without_weights_learn_whole_what_would_weigh_less() -> None:
    for weighs, verdict in ((True, Verdict.CLIPPED), (False, Verdict.ACCEPTED)):
        filters = alone(told)
        filters._weighs = weighs
        filters.judge([worlds.row(s, source=s) for s in HONEST])
        last = filters.judge(rows_of("x", 5))[-1]
        assert last.verdict is verdict
        assert (last.factor == 1.0) is not weighs


def test_a_source_in_quarantine_is_not_rehearsed(tmp_path: Path) -> None:
    settings = ModelSettings(
        name="m", task="regression", learner="linreg", replay=Replay(policy="reservoir")
    )

    async def scene(world: World) -> None:
        replica = await world.replica(filters=told)
        replica.learner.memory = memory_for(settings, worlds.counting(), "sum")
        await opened(replica)
        await replica.writer.record(rows_of("x", 3))
        memory = replica.learner.memory
        assert memory is not None
        assert memory.shares()["sources"]["x"] > 0
        await replica.writer.record(rows_of("x", 5, 3))
        assert "x" not in memory.shares()["sources"]
        assert replica.counts["replay_purged"] > 0
        await replica.stop(2)

    play(tmp_path, scene)


def test_a_token_s_source_is_the_event_s(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica()
        serving = world.serving(replica)
        sender.set(Grant("shop"))
        event = {"features": {"a": 1.0}, "label": 1.0}
        code, _ = await serving.feedback(FeedbackRequest(**event, event_id="1"))
        assert code == 200
        with pytest.raises(RequestError, match="that of source shop") as error:
            await serving.feedback(FeedbackRequest(**event, event_id="2", source="other"))
        assert (error.value.status, error.value.code) == (403, "source_fixed")
        rows = world.journal().read(replica.writer.partition, 1, 9)
        assert [row.source for row in rows] == ["shop"]
        sender.set(Grant())
        await serving.feedback(FeedbackRequest(**event, event_id="3", source="other"))
        assert world.journal().read(replica.writer.partition, 2, 9)[0].source == "other"
        await replica.stop(2)

    play(tmp_path, scene)


def test_receipts_say_what_was_decided_and_why(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(filters=told, now_s=lambda: 1.0)
        await opened(replica)
        serving = world.serving(replica)
        events = [
            MessageEvent(features={"a": 1.0}, label=1.0, event_id=str(i), source="x")
            for i in range(9)
        ]
        receipts = await serving.record(events)
        statuses = [receipt.status for receipt in receipts]
        assert statuses == ["learned"] * 2 + ["clipped"] * 4 + ["quarantined"] * 3
        assert "standing" in str(receipts[3].reason)
        assert receipts[-1].reason == "told: the source is quarantined"
        assert receipts[-1].seen is msgspec.UNSET
        again = FeedbackRequest(features={"a": 1.0}, label=1.0, event_id="8", source="x")
        code, receipt = await serving.feedback(again)
        assert isinstance(receipt, Receipt)
        assert (code, receipt.status, receipt.first_outcome) == (202, "duplicate", "quarantined")
        assert replica.counts["feedback_quarantined"] == 3
        assert replica.counts["learned"] == SOURCES_MIN + 6
        report = replica.report()
        assert (report["filter_quarantined"], report["filter_quarantined_sources"]) == (3.0, 1.0)
        assert replica.filters is not None
        shown = replica.filters.summary()
        assert shown["quarantined"] == [{"source": "x", "evidence": {"told": -8.0}}]
        await replica.stop(2)

    play(tmp_path, scene)


def test_frozen_rows_are_not_judged(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(filters=told)
        await opened(replica)
        world.server.freeze()
        await until(lambda: replica.learner.frozen)
        found = counted(await replica.writer.record(rows_of("x", 20)))
        assert found == {"frozen": 20}
        assert nats(replica) == 0.0
        await replica.stop(2)

    play(tmp_path, scene)


# -- what stands in a row, and what a server keeps -----------------------------------------------


def test_what_a_row_says_comes_back_from_it() -> None:
    more = {
        EVIDENCE + "direction": Block(COUNT, {"y": -7.5}),
        OFFENCES: Block(EXTREMA, {"z": (0.0, 2.0)}),
    }
    effects = Effects("x", {"surprise": -1.25, "direction": 0.1}, 1, more)
    assert effects.blocks() == {
        EVIDENCE + "surprise": Block(COUNT, {"x": -1.25}),
        EVIDENCE + "direction": Block(COUNT, {"x": 0.1, "y": -7.5}),
        TAKEN: Block(COUNT, {"x": 1}),
        OFFENCES: Block(EXTREMA, {"z": (0.0, 2.0)}),
    }
    judged = judged_of(effects, 0.5, "why")
    example = Example({"a": 1.0}, True, judged=judged)
    again = codec.decode(codec.encode(example)).judged
    assert again == judged
    assert effects_of(judged, "x", Verdict.CLIPPED) == effects
    assert TAKEN not in effects_of(judged, "x", Verdict.QUARANTINED).blocks()


def test_a_server_keeps_evidence_and_sources_in_bounds() -> None:
    values: Blocks = {}
    server = Server("m", "f" * 64, "{}", "sum", 1)
    server.sources_max = 32
    for i in range(32):
        merge(values, {TAKEN: Block(COUNT, {f"s{i}": i + 1})})
    assert keep_bounds(values, {}, 32) == 0, "at the bound nobody leaves"
    quarantined: Blocks = {
        OFFENCES: Block(EXTREMA, {"bad": (0.0, 1.0)}),
        EVIDENCE + "told": Block(COUNT, {"bad": -20.0}),
    }
    touched = merge(values, quarantined)
    old = values[TAKEN].data
    assert keep_bounds(values, touched, 32) == 0, "one block has 32 at most"
    assert values[EVIDENCE + "told"].data["bad"] == -8.0
    touched = merge(values, {TAKEN: Block(COUNT, {"new": 1})})
    held = dict(old)
    gone = keep_bounds(values, touched, 32)
    assert gone == 4
    assert values[OFFENCES].data.keys() == {"bad"}, "names made up free nobody"
    assert "s31" in values[TAKEN].data
    assert "s0" not in values[TAKEN].data
    assert dict(old) == held, "a snapshot that holds the block is left alone"
    assert Limits().sources_max == tables.SOURCES_MAX


# -- real tests on a stream ----------------------------------------------------------------------


@pytest.mark.parametrize("filters", ["default", "none"])
def test_flipped_labels_are_learned_without_filters_and_not_with_them(filters: Any) -> None:
    draw = random.Random(1)
    model = Linear(logreg())
    learner: Any = SimpleNamespace(serving=model, clock={}, version=(1, 0))
    settings = ModelSettings(name="m", task="binary", learner="logreg", filters=filters)
    made = filtering_for(settings, learner, None, sources_max=100, vouched=True)
    assert (made is None) is (filters == "none")
    names = [*(f"h{i}" for i in range(10)), *(f"x{i}" for i in range(5))]

    def row(source: str, n: int) -> tuple[NewRow, Example, bool]:
        x = {name: draw.gauss(0, 1) for name in "abcd"}
        true = sum(x.values()) > 0
        label = not true if source.startswith("x") and n > 300 else true
        share = model.predict(x).probabilities
        assert share is not None
        example = Example(x, label, score={"true": share[True], "false": share[False]})
        key = n.to_bytes(16, "little")
        return (
            NewRow(key, str(n), source, Verdict.ACCEPTED, codec.encode(example), 1.0),
            example,
            true,
        )

    right, set_aside = 0, dict.fromkeys(names, 0)
    for n in range(2000):
        source = names[draw.randrange(len(names))]
        new, example, true = row(source, n)
        right += n >= 1500 and (model.predict(example.features).label is true)
        if made is not None:
            (new,) = made.judge([new])
            stored = SimpleNamespace(key=new.key, source=source, partition=1, offset=n + 1)
            made.committed([new], [SimpleNamespace(new=True, row=stored)])  # type: ignore[list-item]
            made.passed(stored, None)  # type: ignore[arg-type]
        if new.verdict is Verdict.QUARANTINED:
            set_aside[source] += 1
        else:
            model.learn(example.features, example.label, new.factor)
    if made is None:
        assert right < 480
        return
    assert right >= 480
    assert set(made.reputations.quarantined) == {f"x{i}" for i in range(5)}
    assert not any(n for source, n in set_aside.items() if source.startswith("h"))


def test_losses() -> None:
    assert loss_of(Example({}, True)) is None
    assert loss_of(Example({}, "c", score={'"a"': 1.0})) is None, "the model does not know it"
    assert loss_of(Example({}, True, score={"true": 1.0})) == 0.0
    assert loss_of(Example({}, True, score={"true": 0.0})) == pytest.approx(34.5, abs=0.1)
    assert loss_of(Example({}, 1e300, score={"": -1e300})) == pytest.approx(691, abs=1)
    assert loss_of(Example({}, "a", score={"": 2.5})) is None, "its task was another one"
    assert reported_label(Example({}, "a", score={"": 2.5}), numbers=True) is None


# -- labels that change --------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_said_of_a_source_for_a_provisional_label_is_taken_back_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    if kept:  # the mutant
        monkeypatch.setattr(Chain, "take_back", lambda *args: None)

    async def scene(world: World) -> None:
        replica = await world.replica(filters=told)
        await opened(replica)

        async def label(source: str, *, provisional: bool, event: str = "e") -> Recorded:
            example = Example({"a": 1.0}, 1e9, provisional=provisional)
            key = event_key("event", "web", event)
            row = NewRow(key, event, source, Verdict.ACCEPTED, codec.encode(example), 1.0)
            (found,) = await replica.writer.record([row], [example])
            return found

        before = nats(replica, "h0")
        assert not (await label("x", provisional=True)).repeat
        assert nats(replica) == -1.0
        last = await label("h0", provisional=False)
        assert last.row is not None
        assert not last.repeat
        assert (nats(replica), nats(replica, "h0")) == (-1.0 if kept else 0.0, before + 1.0)
        await label("x", provisional=True, event="f")
        await label("x", provisional=False, event="f")
        assert nats(replica) == (-3.0 if kept else -1.0), "of the final label alone"
        await replica.stop(2)

    play(tmp_path, scene)


def test_a_number_without_an_answer_has_no_side_and_no_label() -> None:
    """A class has its label all the same."""
    told = Example({"x": 1.0}, 12.5)
    assert reported_label(told, numbers=True) is None
    assert reported_label(told, numbers=False) == "12.5"
    answered = Example({"x": 1.0}, 12.5, score={"": 13.0})
    assert reported_label(answered, numbers=True) == "-12.5"
