"""A model that has diverged is found, and goes back without losing an event."""

from __future__ import annotations

import contextlib
import math
import time
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import replica_world as world
import server_world as server
from river import linear_model, optim

from online.models.adapters.linear import Linear
from online.models.network import Network
from online.rows.prediction_ids import event_key
from online.settings.model import Drift
from online.watch.divergence import WINDOW_ROWS, DivergenceMonitor
from paramserver.core import rewrites
from paramserver.core.blocks import ADDITIVE, COUNT, Block
from paramserver.core.rewrites import HALVED
from paramserver.errors import RollbackRefused
from paramserver.process.swapping import GROWN
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict

# -- suspicion -------------------------------------------------------------------------------------


class Counted:
    """Counters of a binary model whose answers cost so much each."""

    def __init__(self) -> None:
        self.guard, self.at_s = DivergenceMonitor("binary"), 0.0
        self.counters = {"label/true": 0.0, "label/false": 0.0, "log_n": 0.0, "log_loss": 0.0}

    def look(self, loss: float, rows: int = WINDOW_ROWS) -> float | None:
        self.at_s += 1
        self.counters["log_n"] += rows
        self.counters["log_loss"] += rows * loss
        return self.guard.look(self.counters, self.at_s)


def test_two_windows_of_answers_that_are_worse_than_none() -> None:
    one = Counted()
    assert [one.look(0.3) for _ in range(10)] == [None] * 10
    assert one.look(20.0) is None
    assert one.look(20.0) == 10.0
    assert one.look(20.0) == 10.0


@pytest.mark.parametrize("loss", [1.1, 2.7])
def test_what_is_not_much_worse_than_no_model_is_let_be(loss: float) -> None:
    one = Counted()
    assert [one.look(x) for x in (0.1, 0.1, *[loss] * 20)] == [None] * 22


def test_one_bad_window_is_chance() -> None:
    one = Counted()
    assert [one.look(x) for x in (0.3, 0.3, 20, 0.3, 20, 0.3)] == [None] * 6


def test_a_window_has_many_rows() -> None:
    one = Counted()
    for _ in range(5):
        one.look(0.3)
    assert [one.look(30.0, rows=WINDOW_ROWS // 5 - 1) for _ in range(10)] == [None] * 10


def test_no_number_at_all_is_bad() -> None:
    one = Counted()
    one.look(0.3)
    one.look(0.3)
    assert one.look(math.nan) is None
    assert one.look(0.3) == 2.0  # the sum stays no number


def test_values_that_were_rewritten_begin_a_new_count() -> None:
    one = Counted()
    for _ in range(5):
        one.look(0.3)
    one.look(20.0)
    one.counters |= {"log_n": 100.0, "log_loss": 30.0}
    assert one.guard.look(one.counters, 99.0) is None
    assert one.look(20.0) is None
    assert one.look(20.0) == 5.0


def test_regression_is_beside_the_mean() -> None:
    guard, counters = (
        DivergenceMonitor("regression"),
        {"n": 0.0, "abs_error": 0.0, "mean_abs_error": 0.0},
    )
    found = []
    for error in (0.5, 0.5, 3.9, 3.9, 50.0, 50.0):
        for name, value in (("n", 1), ("abs_error", error), ("mean_abs_error", 1.0)):
            counters[name] += WINDOW_ROWS * value
        found.append(guard.look(counters, float(len(found))))
    assert found == [None, None, None, None, None, 3.0]


# -- halving ---------------------------------------------------------------------------------------


def _linear() -> Any:
    return Linear(linear_model.LogisticRegression(optim.SGD(0.1), intercept_lr=0.2))


def _network() -> Any:
    import torch

    torch.manual_seed(1)
    return Network(torch.nn.Linear(2, 1).double(), ["a", "b"], scale=False).model_for("binary")


@pytest.mark.parametrize("build", [_linear, _network])
def test_a_halved_rate_learns_half(build: Any) -> None:
    def step(halved: int | None) -> float:
        model = build()
        model.reset({} if halved is None else {HALVED: Block(COUNT, {"n": halved})})
        before = _logit(model)
        model.learn({"a": 1.0, "b": 2.0}, True, 1.0)
        return _logit(model) - before

    full = step(None)
    assert full > 0
    assert step(0) == full
    for times in (1, 2, 5):
        assert step(times) == pytest.approx(full / 2**times, rel=1e-9)


def _logit(model: Any) -> float:
    p = model.predict({"a": 1.0, "b": 2.0}).probabilities[True]
    return math.log(p / (1 - p))


def test_a_model_put_back_to_values_without_it_learns_at_the_full_rate() -> None:
    model, plain = _linear(), _linear()
    model.rebase({HALVED: Block(COUNT, {"n": 3})})
    model.reset({})
    for one in (model, plain):
        one.learn({"a": 1.0}, True, 1.0)
    assert model.predict({"a": 1.0}) == plain.predict({"a": 1.0})


# -- at the server ---------------------------------------------------------------------------------


def _pushed(process: Any, first: int, last: int, weight: float) -> None:
    blocks = {"w": server.wire.WireBlock(ADDITIVE, {"x": weight})}
    server.sync(process, (1, first, last), blocks=blocks)


@pytest.fixture
def diverged(tmp_path: Path) -> Any:
    """A server with a snapshot from second 10, weights a hundred times as long, and the world."""
    one = server.World(tmp_path / "snapshots")
    process = one.serving()
    server.sync(process, (1, 1, 4))
    one.now_s += 10
    process.snapshot()
    return one, process


def test_it_goes_back_and_the_rows_since_are_to_be_learned_again(diverged: Any) -> None:
    one, process = diverged
    at = process.snapshots()[0]["created_at"]
    for i in range(5, 5 + 80):
        server.sync(process, (1, i, i))
    one.now_s += 10
    answer = process.recover(0, at + 1)
    assert answer["snapshot"] == "1-1"
    assert answer["undone"] == 0
    reply = server.sync(process)
    assert reply.clock == {1: 4}
    assert reply.rewrite == answer["control"]
    assert reply.blocks[HALVED].data == {"n": 1}
    assert server.sync(process, (1, 5, 5)).acks[0].status == "applied"
    assert process.recover(0, at + 1)["snapshot"] is None  # somebody was faster


def test_a_restart_goes_back_too(diverged: Any) -> None:
    one, process = diverged
    at = process.snapshots()[0]["created_at"]
    for i in range(5, 5 + 80):
        server.sync(process, (1, i, i))
    answer = process.recover(0, at + 1)
    again = one.serving()
    reply = server.sync(again)
    assert (reply.clock, reply.rewrite) == ({1: 4}, answer["control"])
    assert reply.blocks[HALVED].data == {"n": 1}


def test_weights_that_have_not_grown_are_a_changed_stream(diverged: Any) -> None:
    _, process = diverged
    at = process.snapshots()[0]["created_at"]
    for i in range(5, 5 + int(GROWN) - 3):
        server.sync(process, (1, i, i))
    with pytest.raises(RollbackRefused, match="the stream has changed"):
        process.recover(0, at + 1)
    assert server.sync(process).rewrite == 0


def test_without_a_snapshot_from_before_nothing_is_done(diverged: Any) -> None:
    _, process = diverged
    at = process.snapshots()[0]["created_at"]
    with pytest.raises(RollbackRefused, match="after the model had diverged"):
        process.recover(0, at - 1)


def test_a_decision_of_an_operator_is_not_taken_back(diverged: Any) -> None:
    _, process = diverged
    at = process.snapshots()[0]["created_at"]
    for i in range(5, 5 + 80):
        server.sync(process, (1, i, i))
    rewrite = process.rollback("1-1")["control"]
    with pytest.raises(RollbackRefused, match="before the last time that the values were"):
        process.recover(rewrite, at + 1)


# -- in a replica ----------------------------------------------------------------------------------


def _steep() -> Any:
    """Learns slope 2 of inputs below 1; larger ones are too much for its rate."""
    return Linear(linear_model.LinearRegression(optim.SGD(0.3), intercept_lr=0.0))


def _event(i: int, x: float) -> NewRow:
    example = Example({"x": x}, 2.0 * x, score={"": 0.0})
    key = event_key("event", "test", str(i))
    return NewRow(key, str(i), "test", Verdict.ACCEPTED, codec.encode(example), time.time())


def test_a_replica_goes_back_learns_all_again_and_stays_finite(tmp_path: Path) -> None:
    async def scene(w: Any) -> None:
        async def ask(question: str, *args: Any) -> Any:
            return getattr(w.server, question)(*args)

        replica = await w.replica(build=_steep, ask=ask)
        draw, n = Random(1), 0

        async def send(rows: int, low: float, high: float) -> None:
            nonlocal n
            for _ in range(rows):
                n += 1
                x = draw.uniform(low, high)
                event = _event(n, x)
                guess = replica.learner.predict({"x": x}).label
                example = Example({"x": x}, 2.0 * x, score={"": float(guess)})
                await replica.writer.record(
                    [
                        NewRow(
                            event.key, str(n), "test", Verdict.ACCEPTED, codec.encode(example), 1.0
                        )
                    ]
                )

        for i in range(3):
            if i == 2:
                w.server.snapshot()
            await send(WINDOW_ROWS + 5, 0.0, 1.0)
            await world.until(lambda: replica.learner.clock.get(1, 0) >= n)
            await replica._reactions.watch.look()
        rows = 0
        while replica.learner.rewrite == 0 and rows < 1_000:
            await send(10, 2.1, 2.3)
            rows += 10
            await replica._reactions.watch.look()
            if replica._reactions.watch.incident:
                await world.until(lambda: replica.learner.rewrite > 0)
        assert "it had diverged" in str(replica.incidents)
        await world.until(lambda: replica.learner.includes(1, n), 240.0)
        assert replica.learner.tally.digest[0] == n  # each event once
        assert replica.learner.serving._rates[0][0].learning_rate == 0.15
        assert abs(replica.learner.predict({"x": 1.0}).label - 2.0) < 0.01
        await replica.stop(5)

    world.play(tmp_path, scene)


def _learned(replica: Any, n: int) -> bool:
    learned: int = replica.learner.tally.digest[0]
    return learned == n


@pytest.mark.parametrize("before", [True, False])
def test_answers_of_the_model_that_served_before_a_promotion_say_nothing_of_this_one(
    tmp_path: Path, before: bool
) -> None:
    """Labels of its answers come later; control: without the promotion they are its own."""

    async def scene(w: Any) -> None:
        asked = []

        async def ask(question: str, *args: Any) -> Any:
            asked.append(args)
            return {"snapshot": None}

        if before:
            note = rewrites.Promote("a" * 64, world.SPEC, {}, {}, epoch=7)
            with contextlib.closing(w.journal()) as journal:
                journal.write_control("m", rewrites.PROMOTE, "promote:1", msgspec.json.encode(note))
        replica = await w.replica(ask=ask)
        if before:  # a server that starts after the row tells of it; this one runs already
            await replica.control.current()
            await world.until(lambda: replica.learner.tally.others == ((-1, 7),))
        n = 0
        for epoch, answer in ((7, 0.0), (7, 0.0), (8, 90.0), (8, 90.0), (8, 90.0)):
            rows = []
            for _ in range(WINDOW_ROWS + 5):
                n += 1
                example = Example({"x": 1.0}, 2.0, score={"": 2.0 + answer}, version=(epoch, n, 0))
                key = event_key("event", "test", str(n))
                row = (key, str(n), "test", Verdict.ACCEPTED, codec.encode(example), 1.0)
                rows.append(NewRow(*row))
            await replica.writer.record(rows)
            await world.until(partial(_learned, replica, n))
            await replica._reactions.watch.look()
        assert bool(asked) is not before
        await replica.stop(5)

    world.play(tmp_path, scene)


@pytest.mark.parametrize("action", ["tell", "rollback"])
def test_an_error_that_rises_is_rolled_back_once_if_the_settings_say_so(
    tmp_path: Path, action: str
) -> None:
    async def scene(w: Any) -> None:
        async def ask(question: str, *args: Any) -> Any:
            return getattr(w.server, question)(*args)

        replicas = [
            await w.replica(name, ask=ask, drift=Drift(on_rise=action)) for name in ("a", "b")
        ]
        await replicas[0].writer.record([world.row("kept")])
        await world.until(lambda: w.weight(replicas[1], "kept") == 1)
        w.server.snapshot()
        before = time.time()
        await replicas[0].writer.record([world.row("poison")])
        await world.until(lambda: w.weight(replicas[1], "poison") == 1)
        rewrite = w.server.status()["rewrite"]
        for replica in replicas:  # both have seen it, in their own rows
            replica._on_rise("alarm", before)
        if action == "tell":
            await world.until(lambda: all(r.learner.clock for r in replicas))
            assert w.server.status()["rewrite"] == rewrite
        else:
            await world.until(lambda: all(w.weight(r, "poison") == 0 for r in replicas))
            await world.until(lambda: not any(r._reactions.rise.pending for r in replicas))
            [told] = [said for r in replicas for said in r.incidents]
            assert "1 rows undone" in told
            again = w.server.status()["rewrite"]
            assert again > rewrite
            await replicas[0].writer.record([world.row("more poison")])
            await world.until(lambda: w.weight(replicas[1], "more poison") == 1)
            replicas[0]._on_rise("alarm", before)  # no snapshot since: to the same one again
            await world.until(lambda: all(w.weight(r, "more poison") == 0 for r in replicas))
            await world.until(lambda: not replicas[0]._reactions.rise.pending)
            assert w.server.status()["rewrite"] > again
            again = w.server.status()["rewrite"]
            replicas[0]._on_rise("alarm", 1.0)  # nothing is as old
            await world.until(lambda: "left as it is" in str(replicas[0].incidents))
            assert w.server.status()["rewrite"] == again
        assert all(w.weight(r, "kept") == 1 for r in replicas)
        for replica in replicas:
            await replica.stop(5)

    world.play(tmp_path, scene)


def test_what_an_operator_has_learned_again_is_no_sign_of_drift(tmp_path: Path) -> None:
    async def scene(w: Any) -> None:
        replica, seen = await w.replica(), list[int]()
        replica.judge.learned = lambda partition, offset, *rest: seen.append(offset)
        first = world.row("first")
        name = f"again:3:1:1:{first.key.hex()}:first"
        again = msgspec.structs.replace(
            first, key=event_key("again", f"3:{first.key.hex()}"), event_id=name
        )
        for row in (first, again, msgspec.structs.replace(world.row("other"), event_id=name)):
            await replica.writer.record([row], decided=True)
        await world.until(lambda: replica.learner.clock.get(1, 0) == 3)
        assert w.weight(replica, "first") == 2
        assert seen == [1, 3], "a name that a caller made up does not count"
        await replica.stop(5)

    world.play(tmp_path, scene)


def test_rows_of_a_replica_that_has_left_are_learned_again_too(tmp_path: Path) -> None:
    events = [f"e{i}" for i in range(150)]

    async def scene(w: Any) -> None:
        first = await w.replica("first")
        await first.writer.record([world.row("kept")])
        await world.until(lambda: w.weight(first, "kept") == 1 and first.learner.clock)
        w.server.snapshot()
        for event in events:
            await first.writer.record([world.row(event)])
        await first.stop(5)
        second = await w.replica("second")
        await world.until(lambda: w.weight(second, "e149") == 1)
        w.server.confirm()  # the partition is closed: nobody has to adopt it
        assert w.server.recover(0, time.time() + 1)["snapshot"] is not None
        w.server.confirm()

        def again() -> bool:
            return w.weight(second, "kept") == 1 and all(
                w.weight(second, event) == 0.5 for event in events
            )

        await world.until(again, 240.0)
        assert second.learner.tally.digest[0] == len(events) + 1
        await second.stop(5)

    world.play(tmp_path, scene)
