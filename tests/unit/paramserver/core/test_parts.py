"""Values in parts: how many keys each holds, and that they are of one version in the end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import pytest

from online.learning.values_in_parts import ServerView
from paramserver.core import wire
from paramserver.core.applied import PULLS_MAX, PartialPulls
from paramserver.core.blocks import Block, Blocks, from_wire, merge, to_wire
from paramserver.core.parts import PART_KEYS, Parts
from paramserver.core.server import Server
from paramserver.core.tables.rows import Rows

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


def read_after_another() -> None:
    """A reader that begins while another one is in the middle of a block, which has grown since."""
    values = {"w": Block("additive", {f"k{i}": 1.0 for i in range(9)})}
    parts = Parts(4)
    parts.cut(values, None)
    merge(values, {"w": Block("additive", {"k0": 1.0, "new": 1.0})})
    found: dict[str, float] = {}
    for piece in (piece for part in _walk(parts, values) for piece in part):
        found |= piece["w"].data
    assert found == values["w"].data


def test_a_reader_gets_keys_that_came_after_another_one_had_begun() -> None:
    read_after_another()


def test_a_list_that_is_kept_for_the_first_reader_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anew = Parts._list
    monkeypatch.setattr(Parts, "_list", lambda self, name, data, begin: anew(
        self, name, data, begin or int(self._listed is not None)
    ))  # fmt: skip
    with pytest.raises(AssertionError):
        read_after_another()


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

    def __init__(self, name: str = "r") -> None:
        self.name, self.values = name, Blocks()
        self.since: wire.Version | None = None
        self.after: wire.Place | None = None
        self.parts = 0

    def step(self, server: Server) -> bool:
        """Whether all have come."""
        request = _request(since=self.since, after=self.after, replica=self.name)
        data = wire.encode(server.reply(request, [], [], 0.0))
        reply = wire.decode_reply(data)
        if reply.kind == "part":
            self.parts += 1
            if reply.start is None:
                self.values = {}
            for piece in _read(reply.pieces):
                self.put(piece)
            self.put(from_wire(reply.blocks))
            self.since, self.after = reply.reached or reply.since, reply.after
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


def arrives(between: int, *, history: int = 32, rows: int = 200, readers: int = 1) -> None:
    """Many rows come while so many pushes arrive between any two requests, whatever they touch."""
    server, numbers = Server("m", SPEC, "", "sum", 1, history_max=history, part_keys=32), count(1)
    r = random.Random(between)

    def push(n: int) -> None:
        for row in islice(numbers, n):
            ids = np.array(r.sample(range(rows + min(row // 8, 100)), 3), dtype=np.uint64)
            table = Block("rows", Rows(ids, np.ones((3, 2), dtype=np.float32)))
            blocks = to_wire({"t": table, "w": Block("additive", {f"k{row % 7}": 1.0})})
            given = wire.Push(1, SPEC, 1, row, row, 1, (1, 0), blocks)
            assert server.push(given, _Partition).status == "applied"

    every = np.arange(rows, dtype=np.uint64)
    merge(server.values, {"t": Block("rows", Rows(every, np.zeros((rows, 2), dtype=np.float32)))})
    waiting = [_Reader(f"r{i}") for i in range(readers)]
    for _ in range(readers * rows // 8):  # a part holds 32 rows
        push(between)
        reader = waiting.pop(0)
        if not reader.step(server):
            waiting.append(reader)
        else:
            assert reader.values == server.values
        if not waiting:
            return
    raise AssertionError(f"{len(waiting)} of {readers} readers wait for ever")


@pytest.mark.parametrize("between", [0, 3, 31, 40, 200])
def test_many_rows_arrive_whatever_the_rate_of_pushes(between: int) -> None:
    """Not only if all of them come before the server has forgotten what the first push touched."""
    arrives(between)


def test_several_replicas_that_start_at_once_all_get_the_rows() -> None:
    arrives(40, readers=3)


def _no_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialPulls, "touched_since", lambda self, reader, since: None)


def _never_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    _no_pulls(monkeypatch)
    monkeypatch.setattr(Parts, "_brought_up", lambda *given: {})


def _deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialPulls, "note", lambda self, touched: None)


@pytest.mark.parametrize(("spoil", "between"), [(_no_pulls, 40), (_never_reached, 31), (_deaf, 40)])
def test_without_one_of_the_rules_they_do_not_arrive(
    spoil: Callable[[pytest.MonkeyPatch], None], between: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    with pytest.raises(AssertionError):  # they wait for ever, or have other values in the end
        arrives(between)


def test_readers_that_are_gone_are_forgotten() -> None:
    pulls = PartialPulls()
    for i in range(PULLS_MAX + 5):
        pulls.begin(f"r{i}", (1, i))
        pulls.note({"t": [np.array([i], dtype=np.uint64)]})
    assert pulls.touched_since("r0", (1, 0)) is None
    known = pulls.touched_since(f"r{PULLS_MAX + 4}", (1, PULLS_MAX + 4))
    assert known is not None
    assert list(known) == ["t"]
    assert pulls.touched_since(f"r{PULLS_MAX + 4}", (1, 0)) is None, "of another version"
    pulls.ask(f"r{PULLS_MAX + 4}", (1, 99))
    assert pulls.touched_since(f"r{PULLS_MAX + 4}", (1, PULLS_MAX + 4)) is None, "it went on"
    assert pulls.touched_since(f"r{PULLS_MAX + 3}", (1, PULLS_MAX + 3)) is not None


def test_what_was_begun_with_a_replica_that_was_further_begins_anew() -> None:
    """Else values of the newer version would get the older one's clock, and count twice."""
    behind = {"w0": Block("additive", {f"k{i}": 1.0 for i in range(9)})}
    ahead = {"w0": Block("additive", {f"k{i}": 2.0 for i in range(9)})}
    first = Parts(4).reply_fields(_request(), ahead, (1, 5), lambda since: None)
    assert (first["kind"], first["since"]) == ("part", (1, 5))
    for after in (first["after"], None):
        asked = _request(since=first["since"], after=after)
        told = Parts(4).reply_fields(
            asked, behind, (1, 3), lambda since: None if since is None else {}
        )
        assert (told["kind"], told["since"], told["start"]) == ("part", (1, 3), None)
        same = Parts(4).reply_fields(
            asked, ahead, (1, 5), lambda since: None if since is None else {}
        )
        assert same["since"] == (1, 5), "of one that is as far it goes on"


def test_changes_of_a_replica_that_was_not_as_far_complete_nothing() -> None:
    arrival = ServerView(None)
    values = {"w0": Block("additive", {"k": 2.0})}
    part = _reply("part", 5, pieces=[wire.encode_piece(to_wire(values))])
    for _ in arrival.take(part):
        pass
    assert arrival.complete(_reply("changes", 3)) is None
    assert arrival.complete(_reply("changes", 5)) is not None


@pytest.mark.parametrize(("begun", "went_on"), [("", "a"), ("a", "b"), ("a", "")])
def test_what_another_teller_has_begun_is_begun_anew(begun: str, went_on: str) -> None:
    """Also of the same version: the keys before a place are others in the order of each."""
    arrival, place = ServerView(None), ("w0", 1)

    def take(teller: str, key: str, **more: Any) -> None:
        pieces = [wire.encode_piece(to_wire({"w0": Block("additive", {key: 1.0})}))]
        for _ in arrival.take(_reply("part", 5, pieces=pieces, peer=teller, **more)):
            pass

    take(begun, "k", after=place)
    take(went_on, "k", start=place)
    assert arrival.values is None, "where one has stopped another does not go on"
    take(begun, "k", after=place)
    take(went_on, "l", after=place)
    take(went_on, "k", start=place)
    assert arrival.values is not None
    assert arrival.values.whole
    assert arrival.values.pulled.blocks["w0"].data == {"l": 1.0, "k": 1.0}


def _reply(kind: str, count: int, **more: Any) -> wire.SyncReply:
    """An answer of version (1, count), about values of version (1, 5)."""
    return wire.SyncReply(
        wire.FORMAT, SPEC, 1, count, [], kind, {}, {}, [], {}, [], 0.0, since=(1, 5), **more
    )
