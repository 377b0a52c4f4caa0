"""The server's rules one by one, its leases, and its errors across processes."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from paramserver import errors
from paramserver.core import wire
from paramserver.core.blocks import Block
from paramserver.core.server import MergeRule, Server
from paramserver.core.state import Contained
from paramserver.process.leases import Leases
from paramserver.snapshots.format import equal

SPEC = "s" * 64


@dataclass(frozen=True)
class Info:
    id: int
    end: int = 1000
    sealed: bool = False
    replica: str = "r"
    trimmed: int = 0


def lookup(partition: int) -> Info | None:
    return Info(partition) if partition < 100 else None


def server(rule: MergeRule = "sum", epoch: int = 3, history_max: int = 100) -> Server:
    return Server("prices", SPEC, "LR()", rule, epoch, history_max=history_max)


def push(
    partition: int, first: int, last: int, key: str = "k", x: float = 1.0, **changes: Any
) -> wire.Push:
    fields: dict[str, Any] = {
        "epoch": 3,
        "spec": SPEC,
        "partition": partition,
        "first": first,
        "last": last,
        "n": last - first + 1,
        "base": (3, 0),
        "blocks": {"w": wire.WireBlock("additive", {key: x})},
    }
    return wire.Push(**(fields | changes))


def request(**changes: Any) -> wire.SyncRequest:
    fields: dict[str, Any] = {
        "format": wire.FORMAT,
        "replica": "r",
        "partition": 1,
        "pushes": [],
        "since": None,
        "values": True,
        "adopting": [],
    }
    return wire.SyncRequest(**(fields | changes))


@pytest.mark.parametrize(
    ("sent", "status", "clock"),
    [
        (push(1, 6, 8), "applied", 8),
        (push(1, 1, 5), "repeat", 5),
        (push(1, 2, 4), "repeat", 5),
        (push(1, 7, 8), "gap", 5),
        (push(1, 5, 8), "gap", 5),
        (push(2, 1, 1), "applied", 1),
        (push(2, 2, 2), "gap", 0),
        (push(100, 1, 1), "gap", 0),
        (push(1, 6, 8, epoch=2), "epoch", 5),
        (push(1, 6, 8, epoch=4), "epoch", 5),
        (push(1, 6, 8, spec="t" * 64), "spec", 5),
    ],
)
def test_what_becomes_of_a_push(sent: wire.Push, status: str, clock: int) -> None:
    s = server()
    assert s.push(push(1, 1, 5), lookup).status == "applied"
    ack = s.push(sent, lookup)
    assert (ack.status, ack.clock) == (status, clock)
    applied = status == "applied"
    assert s.count == (2 if applied else 1)
    assert s.values["w"].data == {"k": 2.0 if applied else 1.0}


def test_malformed_push_changes_nothing() -> None:
    s = server()
    s.push(push(1, 1, 5), lookup)
    before = s.begin_snapshot(0.0, None, {})
    bad_block = {"w": wire.WireBlock("additive", {"k": float("nan")})}
    other_kind = {"w": wire.WireBlock("count", {"k": 1})}
    for changes in ({"blocks": bad_block}, {"blocks": other_kind}, {"n": 4}, {"n": -1}):
        with pytest.raises(errors.ParamServerError):
            s.push(push(1, 6, 8, **changes), lookup)
    for first, last in ((6, 5), (0, 3)):
        with pytest.raises(errors.PushRefused):
            s.push(push(1, first, last, n=0), lookup)
    assert s.version == before.version
    assert s.clock == before.clock
    assert equal(s.values, before.values)


def test_empty_push_moves_clock_and_count() -> None:
    s = server()
    ack = s.push(push(1, 1, 4, n=0, blocks={}), lookup)
    assert (ack.status, s.clock, s.count, s.values) == ("applied", {1: 4}, 1, {})


def test_average_divides_by_the_pushes_of_others_since_the_base() -> None:
    s = server("average")
    scales = [
        s.push(push(1, 1, 1), lookup).scale,  # nobody else
        s.push(push(1, 2, 2), lookup).scale,  # its own push does not count
        s.push(push(2, 1, 1), lookup).scale,  # two by the other
        s.push(push(2, 2, 2, base=(3, 2)), lookup).scale,  # it has seen these
        s.push(push(3, 1, 1, n=0), lookup).scale,
        s.push(push(1, 3, 3, base=(3, 2)), lookup).scale,  # two by 2; the one without rows not
        s.push(push(4, 1, 1, base=(2, 99)), lookup).scale,  # older epoch: all of this one
    ]
    assert scales == [1.0, 1.0, 1 / 3, 1.0, 1 / 5, 1 / 3, 1 / 6]
    assert s.values["w"].data["k"] == pytest.approx(sum(scales))


def test_average_leaves_exact_blocks_alone() -> None:
    s = server("average")
    digest = {"d": wire.WireBlock("digest", {"count": 1, "sum": 2**64 - 1})}
    for partition in (1, 2, 3):
        s.push(push(partition, 1, 1, blocks=digest), lookup)
    assert s.values["d"].data == {"count": 3, "sum": 2**64 - 3}


def test_compensated_corrects_for_what_others_did_by_the_curvature_used_up() -> None:
    s = server("compensated")
    everything = 1e9  # of the curvature is used up: exp(-4e9) is 0
    s.push(push(1, 1, 8, x=4.0, curved={"w": {"k": (0.0, everything)}}), lookup)
    assert s.values["w"].data == {"k": 4.0}  # nobody else: as it is
    ack = s.push(push(2, 1, 8, x=2.0, curved={"w": {"k": (0.0, everything)}}), lookup)
    # two learners of 8 rows each: (1 + 1/2) / 2 of the delta is kept, half of 4 - 0 taken back
    assert s.values["w"].data == {"k": 4.0 + 0.75 * 2.0 - 0.5 * 4.0}
    assert ack.scale == 0.5  # of what has no curvature
    s.push(push(1, 9, 9, x=1.0, base=(3, 1), curved={"w": {"k": (4.0, 0.0)}}), lookup)
    assert s.values["w"].data == {"k": 4.5}  # no curvature used up: a sum
    s.push(push(2, 9, 9, key="new", base=(3, 0), curved={"w": {"k": (0.0, 1.0)}}), lookup)
    assert s.values["w"].data["new"] == 1 / 3  # a key of unknown curvature: averaged


@pytest.mark.parametrize(
    "curved",
    [
        {"w": {"k": (float("nan"), 1.0)}},
        {"w": {"k": (0.0, float("inf"))}},
        {"w": {"k": (0.0, -1.0)}},
        {"v": {"k": (0.0, 1.0)}},
    ],
)
def test_compensated_refuses_what_is_no_curvature(curved: wire.Curved) -> None:
    s = server("compensated")
    s.push(push(1, 1, 5), lookup)
    with pytest.raises(errors.ParamServerError):
        s.push(push(2, 1, 5, curved=curved), lookup)
    assert (s.version, s.clock, s.values["w"].data) == ((3, 1), {1: 5}, {"k": 1.0})


def test_push_without_curvature_can_be_read() -> None:
    """One of a replica that is older than the rule."""
    new = wire.encode(wire.SyncRequest(wire.FORMAT, "r", 1, [push(1, 1, 1)], None, True, []))
    fields = msgspec.msgpack.decode(new)
    del fields[3][0][8:]
    assert wire.decode_request(msgspec.msgpack.encode(fields)).pushes[0].curved == {}


def test_reply_holds_what_changed() -> None:
    s = server()
    for i in range(1, 6):
        s.push(push(1, i, i, key=f"k{i}"), lookup)

    def keys(since: wire.Version | None) -> tuple[str, set[str]]:
        reply = s.reply(request(since=since), [], [], 0.0)
        return reply.kind, set(reply.blocks["w"].data) if reply.blocks else set()

    everything = {f"k{i}" for i in range(1, 6)}
    assert keys((3, 3)) == ("changes", {"k4", "k5"})
    assert keys((3, 5)) == ("changes", set())
    assert keys((3, 0)) == ("changes", everything)
    assert keys(None) == ("all", everything)
    assert keys((2, 4)) == ("all", everything)
    assert keys((3, 6)) == ("all", everything)
    assert s.reply(request(values=False), [], [], 0.0).kind == "none"


def test_history_is_bounded_and_then_all_is_answered() -> None:
    s = server(history_max=3)
    for i in range(1, 6):
        s.push(push(1, i, i), lookup)
    kinds = {n: s.reply(request(since=(3, n)), [], [], 0.0).kind for n in range(6)}
    assert kinds == {0: "all", 1: "all", 2: "changes", 3: "changes", 4: "changes", 5: "changes"}


def test_snapshot_is_left_alone_by_later_pushes() -> None:
    s = server()
    s.push(push(1, 1, 1), lookup)
    state = s.begin_snapshot(12.5, "3-0", {"replicas": 1.0})
    opaque = wire.WireBlock("opaque", b"x")
    both = {"w": wire.WireBlock("additive", {"k": 1.0}), "o": opaque}
    s.push(push(1, 2, 2, blocks=both), lookup)
    assert equal(state.values, {"w": Block("additive", {"k": 1.0})})
    assert (state.version, state.clock) == ((3, 1), {1: 1})
    later = s.begin_snapshot(13.0, "3-1", {})
    s.push(push(1, 3, 3), lookup)
    assert state.values["w"].data == {"k": 1.0}
    assert later.values["w"].data == {"k": 2.0}
    assert s.values["w"].data == {"k": 3.0}


def test_restored_server_goes_on() -> None:
    s = server()
    s.push(push(1, 1, 3), lookup)
    state = s.begin_snapshot(0.0, None, {})
    again = Server.restored(state, "sum", 4)
    assert again.version == (4, 1)
    assert again.durable == {1: 3}
    assert again.push(push(1, 1, 3, epoch=4), lookup).status == "repeat"
    assert again.push(push(1, 4, 4, epoch=4), lookup).status == "applied"
    assert state.values["w"].data == {"k": 1.0}
    assert again.reply(request(since=(3, 1)), [], [], 0.0).kind == "all"


def test_closed_partition_is_never_zero() -> None:
    s = server()
    s.push(push(1, 1, 5), lookup)
    sealed = Info(1, end=5, sealed=True)
    has, lacks = Contained({1: 5}, frozenset()), Contained({1: 4}, frozenset())
    assert not s.close(Info(1, end=5), [has])
    assert not s.close(Info(1, end=6, sealed=True), [has])
    assert not s.close(sealed, [has, lacks])
    assert s.clock == {1: 5}
    assert s.close(sealed, [has, Contained({}, frozenset({1}))])
    assert (s.clock, s.durable) == ({}, {})
    ack = s.push(push(1, 1, 5), lambda _: sealed)
    assert (ack.status, ack.clock) == ("repeat", 5)
    assert s.values["w"].data == {"k": 1.0}
    reply = s.reply(request(adopting=[1], partition=2), [], [], 0.0)
    assert (reply.clock, reply.closed) == ({}, [1])
    assert s.reply(request(partition=2), [], [], 0.0).closed == []
    # the closure is in the state, so it comes back with it and only with it
    assert Server.restored(s.begin_snapshot(0.0, None, {}), "sum", 4).closed == {1}


def test_finished_partitions_are_told_only_to_who_names_them() -> None:
    s = server()
    s.push(push(1, 1, 5), lookup)
    s.push(push(2, 1, 5), lookup)
    s.note_durable(s.begin_snapshot(0.0, None, {}))
    s.note_partitions([Info(1, end=5, sealed=True), Info(2, end=5)])
    unnamed = s.reply(request(partition=2), [], [], 0.0)
    assert (unnamed.clock, unnamed.durable) == ({2: 5}, {2: 5})
    for named in (request(partition=1), request(partition=2, adopting=[1])):
        assert s.reply(named, [], [], 0.0).clock == {1: 5, 2: 5}
    assert s.reply(request(partition=2), [], [1], 0.0).clock == {1: 5, 2: 5}


class Adoption:
    """Leases with a fixed set of partitions, asked by name."""

    def __init__(self, *partitions: Info, adopt_max: int = 2) -> None:
        self.leases = Leases(lease_s=9.0, adopt_max=adopt_max, now_s=0.0)
        self.partitions = partitions
        self.clock: dict[int, int] = {}

    def ask(self, replica: str, own: int, now_s: float, *, gone: Any = (), **kw: Any) -> list[int]:
        self.leases.touch(replica, own, kw.get("adopting", ()), now_s)
        return self.leases.orphans(self.partitions, self.clock, (), replica, own, now_s, gone)

    def pass_time(self, start_s: float, end_s: float, *alive: tuple[str, int]) -> None:
        for i in range(int(start_s), int(end_s) + 1):
            self.leases.tick(float(i))
            for replica, own in alive:
                self.leases.touch(replica, own, (), float(i))


def test_nothing_is_adopted_for_one_lease_after_the_start() -> None:
    a = Adoption(Info(1), Info(2))
    assert a.ask("b", 2, 0.0) == []
    a.pass_time(1, 9, ("b", 2))
    assert a.ask("b", 2, 9.0) == []
    assert a.ask("b", 2, 10.0) == [1]


def test_owner_known_to_be_gone_is_not_waited_for() -> None:
    a = Adoption(Info(1), Info(2), Info(3))
    assert a.ask("b", 2, 0.0, gone={1}) == [1]
    assert a.ask("c", 3, 1.0, gone={1}) == []  # it is given to one
    assert a.ask("b", 2, 1.0, gone={1}) == [1]  # and told again, should the answer be lost


def test_contact_keeps_owner_and_adopter() -> None:
    a = Adoption(Info(1), Info(2), Info(3))
    a.ask("b", 2, 0.0)
    a.pass_time(1, 10, ("a", 1), ("b", 2), ("c", 3))
    assert a.ask("b", 2, 10.0) == []
    a.pass_time(11, 20, ("b", 2), ("c", 3))
    assert a.ask("b", 2, 20.0) == [1]
    for i in range(21, 60):
        assert a.ask("b", 2, float(i), adopting=[1]) == [1]
        assert a.ask("c", 3, float(i)) == []
    a.pass_time(60, 69, ("c", 3))  # the adopter dies too
    assert a.ask("c", 3, 69.0) == [1, 2]


def test_own_stall_renews_every_lease() -> None:
    a = Adoption(Info(1), Info(2))
    a.ask("b", 2, 0.0)
    a.ask("a", 1, 0.0)
    assert a.ask("b", 2, 100.0) == []  # nobody could reach us meanwhile
    a.pass_time(101, 109, ("b", 2))
    assert a.ask("b", 2, 110.0) == [1]


def test_adoptions_of_one_replica_are_bounded() -> None:
    a = Adoption(*(Info(i) for i in range(1, 7)))
    gone = {1, 2, 3, 4}
    assert a.ask("e", 5, 0.0, gone=gone) == [1, 2]
    assert a.ask("f", 6, 0.0, gone=gone) == [3, 4]


def test_finished_partition_is_no_orphan_but_an_unsealed_one_is() -> None:
    a = Adoption(Info(1, end=5, sealed=True), Info(2, end=5), Info(3, end=0), Info(4))
    a.clock = {1: 5, 2: 5}
    assert a.ask("d", 4, 0.0, gone={1, 2, 3}) == [2, 3]


def error_samples() -> Mapping[str, errors.ParamServerError]:
    kinds = [c for c in vars(errors).values() if inspect.isclass(c)]
    samples = {}
    for kind in kinds:
        if issubclass(kind, errors.ParamServerError) and kind is not errors.ParamServerError:
            takes = list(inspect.signature(kind).parameters.values())
            samples[kind.__name__] = kind(*(7 if p.annotation == "int" else "t" for p in takes))
    return samples


@pytest.mark.parametrize("name", error_samples())
def test_errors_survive_pickling(name: str) -> None:
    error = error_samples()[name]
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error) != ""
    assert vars(back) == vars(error)
    assert isinstance(back.definite, bool)


def test_a_partition_that_a_replica_waits_for_is_adopted_beside_others() -> None:
    """Else it would learn them one after the other, and what it waits for may come last."""
    a = Adoption(*(Info(n) for n in range(1, 6)))
    gone = {1, 2, 3, 4}
    assert a.ask("r", 5, 0.0, gone=gone) == [1, 2]
    asked = a.partitions, a.clock, (), "r", 5, 1.0, gone
    assert a.leases.orphans(*asked) == [1, 2]
    assert a.leases.orphans(*asked, waits=[4]) == [1, 2, 4]
