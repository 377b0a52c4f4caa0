"""Values in parts: how many keys each holds, and that they are of one version in the end."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from online.learning.values_in_parts import Arrival
from paramserver import wire
from paramserver.blocks import Block, Blocks, from_wire, merge, to_wire
from paramserver.parts import PART_KEYS, Parts
from paramserver.server import Server

SPEC = "c" * 64


@dataclass(frozen=True)
class _Partition:
    id: int
    replica: str = "r"
    end: int = 10**9
    sealed: bool = False
    trimmed: int = 0


def _request(**changes: Any) -> wire.SyncRequest:
    fields = {"format": wire.FORMAT, "replica": "r", "partition": 1, "pushes": []}
    rest: dict[str, Any] = {"since": None, "values": True, "adopting": []}
    return wire.SyncRequest(**(fields | rest | changes))


def _read(pieces: list[bytes]) -> list[Blocks]:
    return [from_wire(wire.decode_piece(piece)) for piece in pieces]


def _keys(blocks: Blocks) -> int:
    return sum(1 if b.kind in ("digest", "opaque") else len(b.data) for b in blocks.values())


def _walk(parts: Parts, values: Blocks) -> list[list[Blocks]]:
    found, place = [], None
    while True:
        pieces, place = parts.cut(values, place)
        found.append(_read(pieces))
        if place is None:
            return found


def test_parts_and_pieces_are_bounded_and_hold_everything_once() -> None:
    values = {
        "a": Block("additive", {f"a{i}": float(i) for i in range(1_000)}),
        "none": Block("additive", {}),
        "sum": Block("digest", {"count": 3, "sum": 9}),
        "state": Block("opaque", b"x" * 100),
        "m": Block("moments", {f"m{i}": (1.0, 2.0, 3.0) for i in range(77)}),
    }
    parts = _walk(Parts(320), values)
    assert [sum(map(_keys, part)) for part in parts] == [320, 320, 320, 119]
    assert max(_keys(piece) for part in parts for piece in part) == 10
    out: Blocks = {}
    for piece in (piece for part in parts for piece in part):
        for name, block in piece.items():
            if name in out:
                assert not out[name].data.keys() & block.data.keys(), "each key once"
                out[name].data.update(block.data)
            else:
                out[name] = block
    assert out == values
    assert list(out) == list(values)


def test_few_values_are_one_message() -> None:
    server = Server("m", SPEC, "", "sum", 1, part_keys=64)
    for n, kind in ((2, "all"), (3, "part")):
        server.values = {"w": Block("additive", {str(i): 1.0 for i in range(n)})}
        assert server.reply(_request(), [], [], 0.0).kind == kind
    assert PART_KEYS // 32 == 2048


def test_a_million_keys_are_pieces_of_two_thousand() -> None:
    server = Server("m", SPEC, "", "sum", 1)
    server.values = {"w": Block("additive", {f"key {i}": 0.5 for i in range(200_000)})}
    reply = server.reply(_request(), [], [], 0.0)
    sizes = [[_keys(piece) for piece in _read(reply.pieces)]]
    while reply.after is not None:
        reply = server.reply(_request(since=reply.since, after=reply.after), [], [], 0.0)
        assert reply.blocks == {}
        sizes.append([_keys(piece) for piece in _read(reply.pieces)])
    assert [len(part) for part in sizes] == [32, 32, 32, 2]
    assert {size for part in sizes for size in part} == {2048, 200_000 - 97 * 2048}


class _Reader:
    """Fetches parts while others push, as ``online.learning.values_in_parts`` does; shares no code
    with it."""

    def __init__(self) -> None:
        self.values: Blocks = {}
        self.since: wire.Version | None = None
        self.after: wire.Place | None = None
        self.parts = 0

    def step(self, server: Server) -> bool:
        """Whether all have come."""
        request = _request(since=self.since, after=self.after)
        data = wire.encode(server.reply(request, [], [], 0.0))
        reply = wire.decode_reply(data)
        if reply.kind == "part":
            self.parts += 1
            if reply.start is None:
                self.values = {}
            self.since, self.after = reply.since, reply.after
            for piece in _read(reply.pieces):
                self.put(piece)
            return False
        if reply.kind == "all":
            self.values = {}
        self.put(from_wire(reply.blocks))
        return True

    def put(self, blocks: Blocks) -> None:
        for name, block in blocks.items():
            if name in self.values and block.kind not in ("digest", "opaque"):
                self.values[name].data.update(block.data)
            else:
                self.values[name] = Block(block.kind, block.data)


@pytest.mark.parametrize("history", [3, 1000])
def test_parts_and_the_changes_since_are_the_values_of_one_version(history: int) -> None:
    parts = 0
    for seed in range(60):
        r = random.Random(seed)
        server = Server("m", SPEC, "", "sum", 2, history_max=history, part_keys=r.choice((1, 3, 9)))
        merge(server.values, {"w0": Block("additive", {"k": 1.0})})
        clock, reader = 0, _Reader()

        def push(server: Server, r: random.Random, row: int) -> None:
            names = {r.choice(("w0", "w1", "w2")): {f"k{r.randrange(40)}": 0.5} for _ in range(2)}
            blocks = {name: wire.WireBlock("additive", data) for name, data in names.items()}
            blocks["sum"] = wire.WireBlock("digest", {"count": 1, "sum": row})
            given = wire.Push(2, SPEC, 1, row, row, 1, (2, 0), blocks)
            assert server.push(given, _Partition).status == "applied"

        for _ in range(r.randrange(40)):
            push(server, r, clock := clock + 1)
        left = r.randrange(30)
        while not reader.step(server):
            if left and r.random() < 0.7:
                left -= 1
                push(server, r, clock := clock + 1)
        assert reader.values == server.values, f"seed {seed}"
        parts += reader.parts
    assert parts > 60


def test_what_was_begun_with_a_replica_that_was_further_begins_anew() -> None:
    """Else values of the newer version would get the older one's clock, and count twice."""
    behind = {"w0": Block("additive", {f"k{i}": 1.0 for i in range(9)})}
    ahead = {"w0": Block("additive", {f"k{i}": 2.0 for i in range(9)})}
    first = Parts(4).told(_request(), ahead, (1, 5), lambda since: None)
    assert (first["kind"], first["since"]) == ("part", (1, 5))
    for after in (first["after"], None):
        asked = _request(since=first["since"], after=after)
        told = Parts(4).told(asked, behind, (1, 3), lambda since: None if since is None else {})
        assert (told["kind"], told["since"], told["start"]) == ("part", (1, 3), None)
        same = Parts(4).told(asked, ahead, (1, 5), lambda since: None if since is None else {})
        assert same["since"] == (1, 5), "of one that is as far it goes on"


def test_changes_of_a_replica_that_was_not_as_far_complete_nothing() -> None:
    arrival = Arrival(None)
    values = {"w0": Block("additive", {"k": 2.0})}
    part = _reply("part", 5, pieces=[wire.encode_piece(to_wire(values))])
    for _ in arrival.take(part):
        pass
    assert arrival.complete(_reply("changes", 3)) is None
    assert arrival.complete(_reply("changes", 5)) is not None


def _reply(kind: str, count: int, **more: Any) -> wire.SyncReply:
    """An answer of version (1, count), about values of version (1, 5)."""
    return wire.SyncReply(
        wire.FORMAT, SPEC, 1, count, [], kind, {}, {}, [], {}, [], 0.0, since=(1, 5), **more
    )
