"""A server's process for ``protocol_world.py``, and what must be undone, told by sets of rows.

``undone`` of a server, a snapshot and a decision is the set of rows that its values lack though its
clock has passed them.  It is kept here row by row, and shares nothing with the ranges and control
positions by which the code tells the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

from paramserver.core import rewrites
from paramserver.core.server import Server
from paramserver.core.state import Contained, SnapshotState
from paramserver.core.wire import decode_request, encode
from paramserver.process.trimming import contained_in_all
from paramserver.snapshots import format as snapshot_format
from replay.errors import EpochLost

SPEC = "5" * 64
NOTHING: frozenset[tuple[int, int]] = frozenset()


class Served:
    """A server's process: it restores under a new epoch, publishes and decides in two steps."""

    def __init__(self, world: Any) -> None:
        journal, self.world, self.alive = world.journal, world, True
        expected = journal.head(world.model, SPEC).epoch
        epoch = journal.begin_epoch(world.model, SPEC, expected)
        n = world.r.choice((1, 3, 40))
        self.draft: tuple[SnapshotState, frozenset[tuple[int, int]]] | None = None
        self.decided: tuple[SnapshotState, int] | None = None  # a rollback whose row stands
        self.skipped: str | None = None  # a newer snapshot than the one started from
        self.parent = self._choose(journal.head(world.model, SPEC).snapshot)
        base = SnapshotState(world.model, SPEC, "", (0, 0), {}, {})
        self.undone = NOTHING
        if self.parent is not None:
            base = world.load(self.parent)
            self.undone = world.undone_in[self.parent]
        state = base
        if world.replays:
            controls = journal.controls(world.model, base.control)
            state = world.replayed(base, controls, world.load)
        for seq in sorted(world.undone_by):
            if seq > base.control:
                self.undone = world.undone_by[seq]
        self.server: Server = world.server_class.restored(
            state, "sum", epoch, history_max=n, part_keys=world.part_keys
        )
        for partition in journal.partitions(world.model):
            p, gone = partition.id, world.gone.get(partition.id, 0)
            has = p in self.server.closed or self.server.clock.get(p, 0) >= gone
            assert has, f"rows of partition {p} up to {gone} are needed, and may be gone"
        self.confirm()
        world.stats["epochs"] += epoch > 1

    def _choose(self, head: str | None) -> str | None:
        """The head or an ancestor: its file may be bad, or can't be read just now."""
        world = self.world
        found = world.ancestors(head)
        needed = rewrites.needed(world.journal.controls(world.model, 0), SPEC)
        named = needed is not None and needed.snapshot in found[:1]
        if len(found) > 1 and not named and world.chance(0.25):
            del world.snapshots[found[0]]
            found.pop(0)
        elif len(found) > 1 and world.operators and world.chance(0.2):
            world.stats["skipped"] += 1
            self.skipped = found.pop(0)
        return found[0] if found else None

    def confirm(self) -> None:
        self.server.note_partitions(self.world.journal.partitions(self.world.model))

    # -- snapshots -----------------------------------------------------------------------------

    def publish(self) -> None:
        """Begin a snapshot, or finish the one begun: pushes come in between."""
        world = self.world
        if self.decided is not None:
            return
        if self.draft is None:
            self.draft = self.server.begin_snapshot(0.0, self.parent, {}), self.undone
            return
        (state, undone), self.draft = self.draft, None
        name = f"snapshot {next(world.numbers)}"
        try:
            world.journal.move_head(world.model, SPEC, state.version[0], name)
        except EpochLost:
            self.alive = False
            return
        world.snapshots[name] = snapshot_format.encode(state)
        world.parents[name], world.undone_in[name] = self.parent, undone
        self.parent = name
        self.server.note_durable(state)
        self._retain()

    def _retain(self) -> None:
        world = self.world
        names = list(world.snapshots)[-world.kept :]
        states = list(map(world.load, names))
        controls = world.journal.controls(world.model, 0)
        needed = rewrites.needed(controls, SPEC)
        held = world.held(needed, [state.control for state in states])
        world.startable = set(names)
        world.stats["held"] += bool(held.difference(names))
        if world.operators:  # birth is kept, but not to be started from
            held |= set(list(world.parents)[:1])
        world.snapshots = {n: x for n, x in world.snapshots.items() if n in names or n in held}
        kept = [Contained(state.clock, state.closed, state.control) for state in states]
        partitions = world.journal.partitions(world.model)
        for partition in partitions:
            world.stats["closed"] += self.server.close(partition, kept)
        for p, upto in contained_in_all(kept, partitions).items():
            world.gone[p] = max(world.gone.get(p, 0), upto)

    # -- decisions -----------------------------------------------------------------------------

    def roll_back(self) -> None:
        """Write the row; the next step is to serve.  The process may die between."""
        world, server = self.world, self.server
        if not world.snapshots or self.draft or self.decided:
            return
        names = list(world.snapshots)
        name = world.r.choice(names[: len(names) // 2 + 1] if world.chance(0.5) else names)
        if self.skipped in names and world.chance(0.5):
            name = self.skipped
        target, now = world.load(name), server.state(0.0, None, {})
        ends = {p.id: p.end for p in world.journal.partitions(world.model)}
        note = world.roll_back(now, name, target, ends)
        key = f"rollback:{server.epoch}:{server.count}:{name}"
        if not self._write(rewrites.ROLLBACK, key, note):
            return
        seq = world.journal.controls(world.model, 0)[-1].seq
        lost = {(p, i) for p, end in ends.items()
                for i in range(_last(target, p, end) + 1, _last(now, p, end) + 1)}  # fmt: skip
        world.undone_by[seq] = world.undone_in[name] | lost
        world.stats["rollbacks"] += 1
        world.stats["undone"] += len(lost)
        world.stats["back to newer"] += bool(self.undone - world.undone_by[seq])
        self.decided = target, seq
        if world.chance(0.2):
            self.alive = False
        elif world.chance(0.5, 1.0):
            self.serve()

    def serve(self) -> None:
        """Serve what was decided, under the next epoch."""
        assert self.decided is not None
        world, server, (target, seq) = self.world, self.server, self.decided
        self.decided = None
        try:
            epoch = world.journal.begin_epoch(world.model, SPEC, server.epoch)
        except EpochLost:
            self.alive = False
            return
        controls = world.journal.controls(world.model, server.control)
        now = server.state(0.0, None, {})
        state = world.replayed(now, controls, lambda name: target)
        self.server = world.server_class.restored(state, "sum", epoch, part_keys=world.part_keys)
        self.undone = world.undone_by[seq]
        self.confirm()
        if world.chance(0.2):
            self.roll_back()  # again, from what was just gone back to

    def freeze_or_not(self) -> None:
        server, world = self.server, self.world
        if self.decided:
            return
        if server.frozen:
            written = self._write(
                rewrites.UNFREEZE, f"unfreeze:{server.frozen}", rewrites.Unfreeze()
            )
        else:
            note = rewrites.Freeze(dict(server.clock), sorted(server.closed))
            written = self._write(rewrites.FREEZE, f"freeze:{server.control}", note)
        if written and world.chance(0.2):
            self.alive = False
        elif written:
            controls = world.journal.controls(world.model, server.control)
            state = world.replayed(server.state(0.0, None, {}), controls, world.load)
            server.note_decided(state)
            world.stats["freezes"] += state.frozen > 0

    def _write(self, kind: str, key: str, note: msgspec.Struct) -> bool:
        world, payload = self.world, msgspec.json.encode(note)
        fence = (SPEC, self.server.epoch) if world.fenced else None
        try:
            world.journal.write_control(world.model, kind, key, payload, fence)
        except EpochLost:
            self.alive = False
        return self.alive

    # -- exchange ------------------------------------------------------------------------------

    def answer(self, data: bytes) -> tuple[set[int], bytes]:
        """Encoded reply, and the partitions that it tells the clock of."""
        message = decode_request(data)
        acks = [self.server.push(push, self.world.journal.partition) for push in message.pushes]
        orphans = self.world.orphans(self.server, message)
        named = {message.partition, *message.adopting}
        return named, encode(self.server.reply(message, acks, orphans, 0.0))


def _last(state: SnapshotState, partition: int, end: int) -> int:
    return end if partition in state.closed else state.clock.get(partition, 0)
