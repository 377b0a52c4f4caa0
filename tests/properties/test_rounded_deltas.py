"""Replicas that round their deltas add the numbers that the server adds, and lose nothing to it."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from online.learning.merged import Learner
from online.models import fm
from online.models.fm import Fm, FmTable
from online.models.state import factors
from online.models.state.factors import TABLE, TableLines
from paramserver.core import wire
from paramserver.core.blocks import Blocks, from_wire, merge
from paramserver.core.server import Server
from paramserver.core.state import SnapshotState
from paramserver.core.tables.rows import Rows
from replay import codec
from replay.example import Example, Features
from replay.journal.base import Row, Verdict

SPEC = "s" * 64
EXACT = 3  # columns that are not rounded: those of the weight, and the vector's s
Numbers = dict[int, Any]


class Info:
    id, end, sealed, replica, trimmed = 1, 10_000, False, "r", 0


def build(*, rounds: bool = True) -> FmTable:
    model = Fm(4, ["film"], table=True).model_for("regression")
    assert isinstance(model, FmTable)
    if rounds:
        model.round_deltas()
    return model


def row(partition: int, offset: int, user: int, film: int, label: float) -> Row:
    features: Features = {"user": f"u{user}", "film": film}
    key = f"{partition}:{offset}".encode().ljust(16)
    payload = codec.encode(Example(features, label))
    return Row(0, partition, offset, key, "", "", Verdict.ACCEPTED, 1.0, payload, 1.0)


def add(into: Numbers, rows: Rows) -> None:
    """Add float32 rows, one after the other."""
    for i, numbers in zip(rows.ids.tolist(), rows.numbers, strict=True):
        into[i] = into[i] + numbers if i in into else numbers


def numbers_of(blocks: Blocks) -> Numbers:
    """Return the rows of the table by id."""
    if TABLE not in blocks:
        return {}
    rows = blocks[TABLE].data
    return dict(zip(rows.ids.tolist(), rows.numbers, strict=True))


def same(one: Numbers, other: Numbers) -> bool:
    """Whether both have the same rows, to the bit; a row that is missing has zeros."""
    nothing = np.zeros(EXACT + 4, np.float32)
    return all(
        np.array_equal(one.get(i, nothing), other.get(i, nothing)) for i in one.keys() | other
    )


def lines_of(learner: Learner) -> TableLines:
    model = learner._training
    assert isinstance(model, FmTable)
    return model._table


def known_by(learner: Learner) -> Numbers:
    """Return the model's rows without its open delta."""
    lines = lines_of(learner)
    hot = {i: lines._base[at].copy() for i, at in lines._hot.items()}
    return numbers_of({TABLE: factors.Block("rows", lines._table)}) | hot


def rests_of(learner: Learner) -> Numbers:
    """Return what rounding has left over, by id, when no row is open."""
    lines = lines_of(learner)
    return {i: lines._moved[at].astype(np.float64) for i, at in lines._hot.items()}


class Replica:
    """A learner with a journal of its own."""

    def __init__(self, partition: int) -> None:
        self.partition, self.rows = partition, list[Row]()
        self.learner = Learner(
            build, task="regression", spec=SPEC, retain_bytes=1 << 24, rows_max=5
        )
        self.learner.open_partition(partition)

    def step(self, draw: random.Random) -> None:
        """Write a row, and learn all that are wanted."""
        user, film = draw.randrange(5), draw.randrange(4)
        label = draw.gauss(0.0, 3.0) + user - film
        self.rows.append(row(self.partition, len(self.rows) + 1, user, film, label))
        self.catch_up()

    def catch_up(self) -> None:
        while True:
            wanted = [at for _, at in self.learner.wanted() if at <= len(self.rows)]
            if not wanted:
                return
            self.learner.learn(self.rows[wanted[0] - 1])


class World:
    """Three replicas, a server, and what was sent."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.server = Server("m", SPEC, "", "sum", 1)
        self.replicas = [Replica(partition) for partition in (1, 2, 3)]
        self.summed: Numbers = {}  # what was applied, added up
        self.bodies: dict[tuple[int, int, int], bytes] = {}  # content of each push, when first sent
        self.repeats = self.restarts = 0
        self.saved: tuple[SnapshotState, Numbers] = self._state()
        for replica in self.replicas:
            self.exchange(replica)

    def _state(self) -> tuple[SnapshotState, Numbers]:
        return self.server.begin_snapshot(0.0, None, {}), dict(self.summed)

    def exchange(self, replica: Replica, *, lost: bool = False) -> None:
        learner = replica.learner
        pushes = learner.pushes(9)
        if learner.up_to_date:
            self._check_known(learner)
        for push in pushes:
            self._check_sent(learner, push)
        request = wire.decode_request(
            wire.encode(
                wire.SyncRequest(
                    wire.FORMAT, "r", replica.partition, pushes, learner.since, True, []
                )
            )
        )
        acks = []
        for push in request.pushes:
            acks.append(self.server.push(push, lambda _: Info))  # type: ignore[arg-type,return-value]
            if acks[-1].status == "applied" and TABLE in push.blocks:
                add(self.summed, from_wire(push.blocks)[TABLE].data)
        reply = wire.encode(self.server.reply(request, acks, [], 0.0))
        assert same(numbers_of(self.server.values), self.summed), "the sum of what was sent"
        if not lost:
            learner.on_reply(wire.decode_reply(reply))
            replica.catch_up()
            if learner.up_to_date:
                self._check_known(learner)

    def _check_sent(self, learner: Learner, push: wire.Push) -> None:
        """The own delta has the numbers that are sent, each time the same ones."""
        body = msgspec.msgpack.encode(push.blocks)
        key = (push.epoch, push.partition, push.first)
        self.repeats += key in self.bodies
        assert self.bodies.setdefault(key, body) == body, "a repeat is equal to the bit"
        own = next(d for d in learner._deltas._kept
                   if (d.partition, d.first) == (push.partition, push.first))  # fmt: skip
        sent = from_wire(msgspec.msgpack.decode(body, type=dict[str, wire.WireBlock]))
        assert same(numbers_of(own.blocks), numbers_of(sent)), "the own delta is what is sent"
        for numbers in numbers_of(sent).values():
            rounded = numbers[EXACT:].astype(np.float16).astype(np.float32)
            assert np.array_equal(rounded, numbers[EXACT:])

    def _check_known(self, learner: Learner) -> None:
        """The model is the server's values with the own deltas on top, to the bit."""
        assert same(known_by(learner), numbers_of(learner._values()))

    def restart(self) -> None:
        """Start the server again from the last snapshot."""
        state, summed = self.saved
        self.server = Server.restored(state, "sum", self.server.epoch + 1)
        self.summed = dict(summed)
        self.restarts += 1

    def run(self, steps: int = 120, *, faults: bool) -> None:
        for _ in range(steps):
            replica = self.draw.choice(self.replicas)
            what = self.draw.randrange(12)
            if what < 7:
                replica.step(self.draw)
            elif what < 10:
                self.exchange(replica, lost=what == 9)
            elif what == 10:
                self.saved = self._state()
            elif faults:
                self.restart()
        for _ in range(3):
            for replica in self.replicas:
                self.exchange(replica)


def check_nothing_is_lost(seed: int) -> None:
    """All that was learned was sent, or is still to be sent."""
    learned: Numbers = {}
    put = TableLines.put

    def noted(self: Any, keys: Any, lines: Any, before: Any) -> None:
        put(self, keys, lines, before)
        for key, change in zip(keys, lines - before, strict=True):
            i, numbers = factors._id(key), change[: EXACT + 4]
            total, size = learned.get(i, (0.0, 0.0))
            learned[i] = total + numbers, size + abs(numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fm.TableLines, "put", noted)
        world = World(seed)
        world.run(faults=False)
    rests = [rests_of(replica.learner) for replica in world.replicas]
    assert any(x.any() for rest in rests for x in rest.values()), "something is left over"
    for i, (total, size) in learned.items():
        rest = sum(rest.get(i, 0.0) for rest in rests)
        lost = np.abs(total - world.summed[i].astype(np.float64) - rest)
        assert (lost <= 1e-6 * size + 1e-9).all(), f"row {i}: {lost}"


def check_all_add_the_same(seed: int) -> None:
    """Whatever is repeated, lost and restarted; ``World`` checks each exchange."""
    world = World(seed)
    world.run(faults=True)
    assert world.repeats
    counts = [world.server.values["digest"].data["count"], sum(len(r.rows) for r in world.replicas)]
    assert counts[0] == counts[1], "each event counts once"


@pytest.mark.parametrize("seed", range(8))
def test_nothing_that_rounding_leaves_over_is_lost(seed: int) -> None:
    check_nothing_is_lost(seed)


@pytest.mark.parametrize("seed", range(8))
def test_replicas_and_server_add_the_same_numbers(seed: int) -> None:
    check_all_add_the_same(seed)


def _changed(old: str, new: str) -> type[TableLines]:
    source = inspect.getsource(factors)
    assert source.count(old) == 1, old
    made = ModuleType(factors.__name__)
    exec(compile(source.replace(old, new), "<mutant>", "exec"), vars(made))
    lines: type[TableLines] = made.TableLines
    return lines


SUBTRACTED = "self._moved[at] -= delta"
ROUNDED = "delta[:, exact:] = moved[:, exact:].astype(HALF)"


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        pytest.param(check_nothing_is_lost, SUBTRACTED, "self._moved[at] = 0.0", id="no rest"),
        pytest.param(check_all_add_the_same, ROUNDED, ROUNDED.replace(".astype(HALF)", ""),
                     id="the own delta is not rounded"),
        pytest.param(check_all_add_the_same, "self._base[at] += delta",
                     "self._base[at] += delta + self._moved[at]", id="the rest counts at once"),
        pytest.param(check_nothing_is_lost, "self._base[at] += delta",
                     "self._base[at] += delta; self._moved[at] += self._moved[at]",
                     id="the rest counts twice"),
    ],
)  # fmt: skip
def test_a_table_that_breaks_a_promise_is_noticed(
    check: Callable[[int], None], old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fm, "TableLines", _changed(old, new))
    with pytest.raises(AssertionError):
        check(0)


def test_what_is_left_over_is_sent_with_its_own_partition_only() -> None:
    """The other partition's rows may be learned again, with all of their effect."""
    learner = Learner(build, task="regression", spec=SPEC, retain_bytes=1 << 24, rows_max=5)
    learner.open_partition(1)
    learner.adopt(2, 3)
    server = Server("m", SPEC, "", "sum", 1)
    request = wire.SyncRequest(wire.FORMAT, "r", 1, [], None, True, [2])
    learner.on_reply(server.reply(request, [], [], 0.0))
    for offset in range(1, 5):
        learner.learn(row(1, offset, offset % 2, 3, 1.0 + offset))
    first = learner.pushes(9)
    assert any(x.any() for x in rests_of(learner).values())
    other = build()
    values: Blocks = {}
    for push in first:
        merge(values, from_wire(push.blocks))
    other.reset(values)
    for offset in range(1, 4):
        learner.learn(row(2, offset, offset % 2, 3, 2.0 * offset))
        other.learn({"user": f"u{offset % 2}", "film": 3}, 2.0 * offset, 1.0)
    second = from_wire(learner.pushes(9)[-1].blocks)
    assert same(numbers_of(second), numbers_of(other.cut()))


def test_a_row_that_fails_leaves_what_is_left_over() -> None:
    models = [build(), build()]
    values: Blocks = {}
    for model in models:
        for i in range(20):
            model.learn({"user": f"u{i % 3}", "film": i % 4}, float(i % 5), 1.0)
        values = model.cut()
    failing, clean = models
    rest = failing._table._moved.copy()
    failing.learn({"user": "u1", "film": 2}, 3.0, 1.0)
    failing.mend(values, ["user", "film"])
    assert np.array_equal(failing._table._moved, rest)
    assert rest[:, EXACT:].any()
    assert not rest[:, :EXACT].any(), "sums of weights are sent as they are"
    for model in models:
        model.learn({"user": "u2", "film": 1}, 1.0, 1.0)
    assert same(numbers_of(failing.cut()), numbers_of(clean.cut()))


def test_numbers_beyond_float16_are_sent_as_they_are() -> None:
    lines = TableLines(EXACT + 1, factors.Starts(0, 1, 0.1))
    lines.round_from(EXACT)
    before, _ = lines.held(["7", "8"])
    after = before.copy()
    after[:, :4] += [[1.0, 2.0, 3.0, 1e5], [1.0, 2.0, 3.0, 0.1]]
    lines.put(["7", "8"], after, before)
    sent = lines.cut()[TABLE].data
    assert sent.rounded == 0
    assert sent.numbers[:, 3].tolist() == [1e5, np.float32(0.1)]
    assert not lines._moved.any()


def test_the_rest_of_a_removed_row_goes_with_it() -> None:
    model = build()
    model.learn({"user": "u1", "film": 2}, 3.0, 1.0)
    model.cut()
    keys = list(model.numbers({"user": "u1", "film": 2}))
    gone = Rows.empty(EXACT + 4)
    gone.gone = np.array([factors._id(key) for key in keys], dtype=np.uint64)
    model.rebase({TABLE: factors.Block("rows", gone)})
    held, learned = model._table.held(keys)
    assert not held[:, : EXACT + 4].any()
    assert not learned.any()
