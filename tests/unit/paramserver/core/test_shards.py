"""Several servers of one model: keys cut among them, and one client that deals with all."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import ANY

import msgspec
import numpy as np
import pytest

from paramserver.clients import sharded_client
from paramserver.clients.client import Client
from paramserver.clients.sharded_client import ShardedClient, ShardedReply, sharded
from paramserver.core import wire
from paramserver.core.admission import TableBounds
from paramserver.core.blocks import Block, Blocks, from_wire, to_wire
from paramserver.core.server import Server
from paramserver.core.shards import Cut, ShardStore, joined, shard_name, shard_place
from paramserver.core.tables.rows import Rows
from paramserver.errors import RequestRefused, ServerUnavailable, ShardAway

SPEC = "s" * 64


@dataclass
class Partition:
    id: int
    end: int = 10**6
    sealed: bool = False
    trimmed: int = 0
    replica: str = "r"


class Asked(Client):
    """The way to one server in this process."""

    def __init__(self, number: int, *, part_keys: int = 1 << 16) -> None:
        super().__init__(f"shard {number}")
        self.server = Server("m", SPEC, "{}", "sum", 1, part_keys=part_keys)
        self.away, self.still = False, False
        self.incident: str | None = None
        self.asked: list[wire.SyncRequest] = []

    def restart(self, epoch: int, values: Blocks, clock: dict[int, int]) -> None:
        state = replace(self.server.state(0.0, None, {}), values=values, clock=clock)
        self.server = Server.restored(state, "sum", epoch)

    async def _call(self, method: str, args: tuple[object, ...]) -> Any:
        if self.still:
            await asyncio.Event().wait()
        if self.away:
            raise ServerUnavailable("it", "away")
        if method == "status":
            server = self.server
            return {
                "state": "serving", "reason": "", "snapshot": None, "pid": 1, "vanished": 1,
                "epoch": server.epoch, "count": server.count, "clock": dict(server.clock),
                "refused": {"1-1": "torn"}, "incident": self.incident,
            }  # fmt: skip
        assert isinstance(args[0], bytes), method
        request = wire.decode_request(args[0])
        self.asked.append(request)
        acks = [self.server.push(push, Partition) for push in request.pushes]
        return wire.encode(self.server.reply(request, acks, [], 0.0))


def request(**given: Any) -> wire.SyncRequest:
    made = wire.SyncRequest(wire.FORMAT, "r", 1, [], None, True, [])
    return msgspec.structs.replace(made, **given)


def push(first: int, last: int, blocks: Blocks, epoch: int = 2) -> wire.Push:
    base = (epoch, 0)
    return wire.Push(epoch, SPEC, 1, first, last, last - first + 1, base, to_wire(blocks))


def words(**more: float) -> Blocks:
    return {"w": Block("additive", dict(more)), "n": Block("count", {"rows": len(more)})}


def ask(client: Client, wanted: wire.SyncRequest) -> wire.SyncReply:
    return asyncio.run(client.sync(wanted, 1.0))


def test_each_key_is_on_one_shard_and_all_together_are_the_blocks() -> None:
    ids = np.arange(200, dtype=np.uint64) * 7
    rows = Rows(ids, np.arange(400, dtype=np.float32).reshape(200, 2))
    blocks: Blocks = {
        "w": Block("additive", {f"k{i}": float(i) for i in range(200)}),
        "t": Block("rows", rows),
        "n": Block("count", {"rows": 3}),
        "digest": Block("digest", {"count": 2, "sum": 5}),
    }
    cut = Cut(3)
    parts = cut.blocks(blocks)
    assert all(40 < len(part["w"].data) < 90 for part in parts)
    assert all(40 < len(part["t"].data) < 90 for part in parts)
    assert [sorted(part.keys() & {"n", "digest"}) for part in parts] == [
        ["digest", "n"], ["digest"], ["digest"],
    ]  # fmt: skip
    again = from_wire(joined(cut.wire(to_wire(blocks))))
    assert again["t"].data == rows
    assert again["w"] == blocks["w"]
    assert (again["n"], again["digest"]) == (blocks["n"], blocks["digest"])
    for part, told in zip(parts, cut.wire(to_wire(blocks)), strict=True):
        assert from_wire(told)["t"].data == part["t"].data


def test_ids_that_are_gone_are_told_by_their_shard() -> None:
    told = Rows(np.arange(1, dtype=np.uint64), np.ones((1, 2), dtype=np.float32))
    told.gone = np.arange(1, 40, dtype=np.uint64)
    parts = Cut(2).wire(to_wire({"t": Block("rows", told)}))
    gone = [set(from_wire(part)["t"].data.gone.tolist()) for part in parts]
    assert gone[0] | gone[1] == set(range(1, 40))
    assert not gone[0] & gone[1]
    assert set(from_wire(joined(parts))["t"].data.gone.tolist()) == set(range(1, 40))


def test_a_push_has_the_same_bounds_on_each_shard() -> None:
    made = push(1, 3, words(a=1.0, b=2.0, c=3.0, d=4.0))
    made = msgspec.structs.replace(made, curved={"w": {k: (0.0, 1.0) for k in "abcd"}})
    parts = Cut(2).push(made)
    assert {(p.partition, p.first, p.last, p.n) for p in parts} == {(1, 1, 3, 3)}
    for part in parts:
        assert part.blocks["w"].data.keys() == part.curved["w"].keys()
    assert parts[0].blocks["w"].data.keys() | parts[1].blocks["w"].data.keys() == set("abcd")
    assert Cut(64).push(push(4, 4, {}))[17].blocks == {}


def test_two_servers_answer_as_one() -> None:
    one, other = Asked(0), Asked(1)
    client = ShardedClient("m", [one, other])
    first = ask(client, request())
    assert (first.kind, first.epoch, first.count) == ("all", 2, 0)
    told = ask(client, request(pushes=[push(1, 4, words(a=1.0, b=2.0, c=3.0, d=4.0))]))
    assert isinstance(told, ShardedReply)
    assert (told.epoch, told.count, told.first, told.clock) == (2, 2, (1, 1), {1: 4})
    assert from_wire(told.blocks)["w"].data == {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert one.server.clock == other.server.clock == {1: 4}
    more = request(since=(2, 2), pushes=[push(5, 5, words(a=1.0))])
    changed = ask(client, more)
    assert (changed.kind, changed.since) == ("changes", (2, 2))
    assert from_wire(changed.blocks)["w"].data == {"a": 2.0}
    assert ask(client, more).clock == {1: 5}, "a repeat is known to each"
    assert from_wire(ask(client, request()).blocks)["w"].data["a"] == 2.0


def test_a_shard_that_was_away_is_behind_until_it_is_pushed_to() -> None:
    one, other = Asked(0), Asked(1)
    client = ShardedClient("m", [one, other])
    ask(client, request())
    pushes = [push(1, 2, words(a=1.0, b=1.0)), push(3, 4, words(c=1.0, d=1.0))]
    other.away = True
    with pytest.raises(ServerUnavailable):
        ask(client, request(pushes=pushes))
    assert (one.server.clock, other.server.clock) == ({1: 4}, {})
    other.away = False
    told = ask(client, request())
    assert isinstance(told, ShardedReply)
    assert told.clock == {1: 0}, "the lowest, for whoever asks for it"
    assert told.clocks == ({1: 4}, {})
    told = ask(client, request(pushes=pushes))
    assert told.clock == {1: 4}
    assert set(from_wire(told.blocks)["w"].data) == set("abcd")


def test_what_shard_0_has_decided_is_told_while_another_is_away() -> None:
    one, other = Asked(0), Asked(1)
    client = ShardedClient("m", [one, other])
    one.server.control, one.server.frozen, one.server.rewrite = 7, True, 3
    other.away = True
    with pytest.raises(ShardAway) as told:
        ask(client, request())
    assert (told.value.control, told.value.frozen, told.value.rewrite) == (7, True, 3)
    one.away = True
    with pytest.raises(ServerUnavailable) as told:
        ask(client, request())
    assert not isinstance(told.value, ShardAway), "nobody says what is decided"


def test_a_push_for_an_earlier_server_is_not_taken_by_the_next() -> None:
    one, other = Asked(0), Asked(1)
    client = ShardedClient("m", [one, other])
    ask(client, request())
    other.restart(2, {}, {})
    told = ask(client, request(since=(2, 0), pushes=[push(1, 1, words(a=1.0))]))
    assert (told.epoch, told.kind) == (3, "part"), "all values come again"
    assert (one.server.clock, other.server.clock) == ({1: 1}, {})


def test_a_delta_begun_on_a_forgotten_version_counts_as_no_newer_than_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a row that was removed since its begin would come back with this delta alone."""
    monkeypatch.setattr(sharded_client, "_VERSIONS_MAX", 4)
    servers = [Asked(0), Asked(1)]
    for one in servers:
        one.server.bound(TableBounds(1))
    client = ShardedClient("m", servers)
    own = np.array([i for i in range(100) if Cut(2).of_ids(np.array([i]))[0] == 1][:2], np.uint64)

    def table(*ids: int) -> Blocks:
        rows = Rows(np.array(ids, np.uint64), np.ones((len(ids), 2), np.float32))
        return {"t": Block("rows", rows)}

    def others(first: int, *ids: int) -> None:
        """Another replica's push, and a reply to this one."""
        pushed = msgspec.structs.replace(push(first, first, table(*ids)), partition=2)
        for one, part in zip(servers, Cut(2).push(pushed), strict=True):
            epoch = one.server.epoch
            one.server.push(msgspec.structs.replace(part, epoch=epoch, base=(epoch, 0)), Partition)
        ask(client, request())

    first, second = own.tolist()
    others(1, first)
    reply = ask(client, request())
    begun = [one.server.count for one in servers]
    others(2, second)  # the first row leaves
    assert servers[1].server.values["t"].data.ids.tolist() == [second]
    for i in range(3, 9):
        others(i, second)
    base = (reply.epoch, reply.count)
    late = msgspec.structs.replace(push(1, 1, table(first), reply.epoch), base=base)
    for _ in range(2):  # the reply to the first is lost
        got = ask(client, request(pushes=[late]))
    for one, count in zip(servers, begun, strict=True):
        (sent,) = one.asked[-1].pushes
        assert sent.base[1] <= count
    assert got.acks[0].status == "repeat"
    assert got.clock == {1: 1, 2: 8}
    server = servers[1].server
    assert server.keeper is not None
    assert (server.values["t"].data.ids.tolist(), server.keeper.late) == ([second], 1)


def test_a_shard_that_stands_still_is_waited_for_briefly_but_now_and_then() -> None:
    """What the first one says is decided is heard once the others have been waited for."""
    waited: list[tuple[str, float]] = []

    class Timed(Asked):
        async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
            waited.append((self._name, timeout_s))
            return await super().sync(request, timeout_s)

    parts = [Timed(0), Timed(1)]
    client = ShardedClient("m", parts)
    parts[1].away = True
    for _ in range(6):
        with pytest.raises(ShardAway):
            asyncio.run(client.sync(request(), 5.0))
    parts[1].away = False
    for _ in range(2):
        asyncio.run(client.sync(request(), 5.0))
    assert [s for name, s in waited if name == "shard 0"] == [5.0] * 8
    assert [s for name, s in waited if name == "shard 1"] == [5.0, *[1.0] * 4, 5.0, 1.0, 5.0]


def test_an_older_server_of_a_shard_is_nobodys_answer() -> None:
    one, other = Asked(0), Asked(1)
    client, old = ShardedClient("m", [one, other]), other.server
    ask(client, request())
    other.restart(2, {}, {})
    ask(client, request())
    other.server = old
    with pytest.raises(ServerUnavailable, match="shard 1: an older server"):
        ask(client, request())


def test_a_decision_that_one_shard_lacks_is_no_answer() -> None:
    one, other = Asked(0), Asked(1)
    client = ShardedClient("m", [one, other])
    one.server.rewrite = one.server.control = 7
    with pytest.raises(ServerUnavailable, match="newest decision"):
        ask(client, request())
    other.server.rewrite = other.server.control = 7
    assert ask(client, request()).rewrite == 7
    one.server.control, one.server.frozen = 8, 8
    assert (ask(client, request()).control, ask(client, request()).frozen) == (7, False)


def fetched(client: Client, wanted: wire.SyncRequest) -> tuple[dict[str, float], wire.SyncReply]:
    """All values that come in parts, as a replica asks for them."""
    found: Blocks = {}
    reply = ask(client, wanted)
    since, after = reply.since, reply.after
    assert (reply.kind, reply.start, reply.pieces) == ("part", None, [])
    while True:
        reply = ask(client, request(since=since, after=after))
        if reply.kind == "changes":
            break
        assert (reply.kind, reply.since, reply.start) == ("part", since, after)
        for piece in reply.pieces:
            for name, block in from_wire(wire.decode_piece(piece)).items():
                found.setdefault(name, Block(block.kind, {})).data.update(block.data)
        after = reply.after
    for name, block in from_wire(reply.blocks).items():
        found.setdefault(name, Block(block.kind, {})).data.update(block.data)
    return found["w"].data, reply


def test_many_values_come_in_parts_shard_after_shard() -> None:
    shards = [Asked(number, part_keys=4) for number in range(3)]
    client = ShardedClient("m", shards)
    ask(client, request())
    many = {f"k{i}": float(i) for i in range(60)}
    ask(client, request(pushes=[push(1, 1, {"w": Block("additive", many)}, 3)]))
    values, last = fetched(client, request())
    assert values == many
    assert (last.epoch, last.count, last.clock) == (3, 3, {1: 1})


def test_parts_begin_anew_when_a_shard_has_restarted() -> None:
    shards = [Asked(number, part_keys=4) for number in range(2)]
    client = ShardedClient("m", shards)
    ask(client, request())
    many = {f"k{i}": float(i) for i in range(40)}
    ask(client, request(pushes=[push(1, 1, {"w": Block("additive", many)})]))
    begun = ask(client, request())
    part = ask(client, request(since=begun.since, after=begun.after))
    shards[1].restart(2, dict(shards[1].server.values), {1: 1})
    again = ask(client, request(since=part.since, after=part.after))
    assert (again.kind, again.start, again.since) == ("part", None, (3, 2))
    values, _ = fetched(client, request())
    assert values == many


def test_questions_are_shard_0s_and_a_status_tells_of_all() -> None:
    one, other = Asked(0), Asked(1)
    client = ShardedClient("m", [one, other])
    told = asyncio.run(client.call("status", 1.0))
    assert [shard["state"] for shard in told["shards"]] == ["serving", "serving"]
    other.away = True
    told = asyncio.run(client.call("status", 1.0))
    assert [shard["state"] for shard in told["shards"]] == ["serving", "away"]
    other.away, other.still = False, True
    told = asyncio.run(client.call("status", 0.01))
    assert told["shards"][1] == {"state": "away", "reason": ANY}, "it names who stands still"
    other.still, one.still = False, True
    with pytest.raises(ServerUnavailable, match="none within"):
        asyncio.run(client.call("status", 0.01))
    one.still = False
    with pytest.raises(RequestRefused, match="2 shards"):
        asyncio.run(client.call("relearn", 1.0))
    assert sharded("m", [one]) is one


def test_a_status_tells_what_is_wrong_with_any_shard() -> None:
    one, other = Asked(0), Asked(1)
    client = ShardedClient("m", [one, other])
    ask(client, request())
    ask(client, request(pushes=[push(1, 4, words(a=1.0))]))
    one.server.push(push(5, 7, {}, 1), Partition)
    other.incident = "snapshots whose files are gone"
    told = asyncio.run(client.call("status", 1.0))
    assert told["incident"] == "shard 1: snapshots whose files are gone"
    assert (told["vanished"], told["refused"]) == (2, {"1-1": "torn", "+1/1-1": "torn"})
    assert told["shards"][1]["lacks_rows"] == 3
    one.incident, other.incident = "its own", None
    assert asyncio.run(client.call("status", 1.0))["incident"] == "its own"


def test_keys_of_another_shard_are_found_out() -> None:
    ids = np.arange(40, dtype=np.uint64)
    whole: Blocks = {
        "w": Block("additive", {f"k{i}": 1.0 for i in range(40)}),
        "t": Block("rows", Rows(ids, np.ones((40, 2), dtype=np.float32))),
        "n": Block("count", {"rows": 3}),
    }
    cut = Cut(2)
    for shard, part in enumerate(cut.blocks(whole)):
        assert cut.foreign(part, shard) is None
        for name in "wt":
            found = cut.foreign({name: part[name]}, 1 - shard)
            assert (
                found == f"{name!r} in it has keys of shard {shard}, and this is shard {1 - shard}"
            )


@dataclass
class Control:
    seq: int
    kind: str
    key: str
    payload: bytes


class Told:
    """A store that tells control rows."""

    def __init__(self, controls: list[Control]) -> None:
        self._controls = controls

    def controls(self, model: str, after: int) -> list[Control]:
        return [control for control in self._controls if control.seq > after]


def test_a_decision_names_the_snapshot_of_each_shard() -> None:
    both = msgspec.json.encode({"spec": SPEC, "snapshot": "1-5", "parts": ["1-5", "2-5"]})
    aside = msgspec.json.encode({"spec": SPEC, "snapshot": "aside-1"})
    rows = [Control(1, "rollback", "a", both), Control(2, "forget", "b", aside)]
    store: Any = ShardStore(Told(rows), 1)  # type: ignore[arg-type]
    names = [msgspec.json.decode(row.payload)["snapshot"] for row in store.controls("m", 0)]
    assert names == ["2-5", "aside-1"]
    with pytest.raises(PermissionError):
        store.write_control("m", "rollback", "c", b"")


def test_shard_0_has_the_names_that_one_server_has() -> None:
    assert (shard_name("m", 0), shard_place("/s", 0)) == ("m", "/s")
    assert shard_name("m", 2) != "m"
    assert shard_place("s3://b/p?region=x", 1) == "s3://b/p/+1?region=x"
