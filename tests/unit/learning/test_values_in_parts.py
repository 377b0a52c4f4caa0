"""A replica meets a restarted server with many values: pieces, turns of the loop, pushes first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

from online.learning import values_in_parts
from online.models.adapters.linear import Linear
from paramserver.core import wire
from paramserver.core.parts import PART_KEYS
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage

SPEC, play, row, until = worlds.SPEC, worlds.play, worlds.row, worlds.until

KEYS = 70_000
PIECE = PART_KEYS // 32
PIECES = -(-KEYS // PIECE)


class Watched(Linear):
    """Notes how many numbers it takes or lets go of at a time, since it is watched."""

    taken: list[int]
    dropped: list[int]

    def rebase(self, values: Any) -> None:
        self.taken.append(sum(len(block.data) for block in values.values()))
        super().rebase(values)

    def reset(self, values: Any) -> None:
        self.taken.append(sum(len(block.data) for block in values.values()))
        super().reset(values)

    def forget(self, values: Any) -> None:
        assert not self.answers(), "the copy that answers"
        self.dropped.append(sum(len(block.data) for block in values.values()))
        super().forget(values)

    def answers(self) -> bool:
        raise NotImplementedError


class Turns:
    """Counts the turns of the loop."""

    def __init__(self) -> None:
        self.n = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.n += 1

    def stop(self) -> None:
        self._task.cancel()


def _fill(world: Any) -> None:
    """Many values in the server, and a snapshot of them."""
    journal = world.journal()
    partition = journal.register("m", "filler", SPEC, 0.0).id
    journal.append(partition, 0, [row("fill")])
    journal.close()
    server = world.server
    block = wire.WireBlock("additive", {f"key {i}": 2.0**-10 for i in range(KEYS)})
    epoch = server.status()["epoch"]
    push = wire.Push(epoch, SPEC, partition, 1, 1, 1, (epoch, 0), {"weights": block})
    request = wire.SyncRequest(wire.FORMAT, "filler", partition, [push], None, False, [])
    reply = wire.decode_reply(server.sync(wire.encode(request)))
    assert reply.acks[0].status == "applied"
    server.snapshot()


def _restart(world: Any) -> None:
    """A new server from the last snapshot, under a new epoch."""
    lineage = Lineage("m", SPEC, "{}", "sum")
    place = str(world.folder / "snapshots")
    server = ParameterServer(lineage, world.journal, place, ServerSettings(), background=False)
    assert server.restore()
    world.server = world.client.server = server


class Link:
    """The way to the server: what each reply was, and how far the server's clock was then."""

    def __init__(self, world: Any) -> None:
        self._world, self.kinds, self.clocks = world, list[str](), list[dict[int, int]]()

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        reply: wire.SyncReply = await self._world.client.sync(request, timeout_s)
        self.kinds.append(reply.kind)
        self.clocks.append(reply.clock)
        return reply


def keys_in(data: Any) -> int:
    return len(data[3]) // 4 if isinstance(data, list) else len(data)


def test_many_values_never_hold_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []  # turn, keys

    async def scene(world: Any) -> None:
        _fill(world)
        taken: list[int] = []
        dropped: list[int] = []
        holder: list[Any] = []

        def build() -> Watched:
            model = Watched(worlds.counting().estimator)
            model.taken, model.dropped = taken, dropped
            model.answers = lambda: holder[0].learner.serving is model  # type: ignore[method-assign]
            return model

        replica = await world.replica(build=build)
        holder.append(replica)
        assert world.weight(replica, "key 7") == 1
        assert taken.count(PIECE) == PIECES - 1
        assert max(taken) == PIECE
        await replica.writer.record([row("before")])
        await until(lambda: replica.learner.own == 0)

        answered: list[Any] = []
        turns, link = Turns(), Link(world)
        real = values_in_parts.decode_piece

        def counted(data: bytes) -> Any:
            blocks = real(data)
            decoded.append((turns.n, sum(keys_in(block.data) for block in blocks.values())))
            answered.append(replica.learner.serving)
            return blocks

        monkeypatch.setattr(values_in_parts, "decode_piece", counted)
        taken.clear()
        dropped.clear()
        replica.exchange.client = link
        _restart(world)  # from before the row above
        serving = replica.learner.serving
        await replica.writer.record([row("meanwhile")])
        assert world.weight(replica, "meanwhile") == 1, "whichever copy answers"
        await until(lambda: replica.learner.serving is not serving, 240.0)

        partition = replica.writer.partition
        assert link.kinds.count("part") == -(-KEYS // PART_KEYS)
        first, last = link.kinds.index("part"), len(link.kinds) - link.kinds[::-1].index("part") - 1
        assert link.clocks[first].get(partition, 0) == 0, "it had lost what was pushed"
        assert link.clocks[last].get(partition, 0) >= 1, "pushed before the values were here"
        assert len(decoded) == PIECES
        assert set(answered) == {serving}, "the first copy answers until all are here"
        assert max(size for _, size in decoded) == PIECE
        assert len({turn for turn, _ in decoded}) == PIECES, "one piece a turn"
        assert max(taken) == PIECE, "no step takes more, the last one included"

        await until(lambda: not replica.learner.server._left, 240.0)
        assert sum(dropped) >= KEYS
        assert max(dropped) <= PIECE
        for feature in ("key 7", f"key {KEYS - 1}", "before", "meanwhile"):
            assert world.weight(replica, feature) == 1
        turns.stop()
        await replica.stop(5)

    play(tmp_path, scene)
