"""The parameter server as a pure state machine: no actor, no I/O, no clock.

Values, clock and version always change together and are read together, so the caller guards
every method with one lock.  The clock alone makes a delta count at most once, whoever sends it:
a push is applied only if its rows begin right after the partition's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from typing import Final, Literal, Self

from paramserver.core import wire
from paramserver.core.admission import Keeper, TableBounds, taken_out
from paramserver.core.applied import Applied, AppliedPushes
from paramserver.core.blocks import (
    DEFAULT_LIMITS,
    DIGEST,
    ROWS,
    Block,
    Blocks,
    Limits,
    Touched,
    add_touched,
    copy_block,
    from_wire,
    merge,
    put,
)
from paramserver.core.changes import Changes
from paramserver.core.compensation import compensated, effective_learners
from paramserver.core.parts import PART_KEYS, WalkedParts
from paramserver.core.state import Base, Contained, SnapshotState
from paramserver.errors import PushRefused
from paramserver.filters.losses import Newest
from paramserver.filters.sources import SOURCES_MAX, keep_bounds
from paramserver.store import PartitionInfo

MergeRule = Literal["sum", "average", "compensated", "ordered", "overlay", "lagging"]
"""How additive blocks of a push are scaled: by 1; by 1 / (1 + pushes by others since); or
corrected for what others did since, where the push tells its curvature, and averaged elsewhere.
See :mod:`paramserver.core.compensation`.

The others push nothing: one process sends what it has learned of all rows in order.  With
``ordered`` each replica learns like that, with ``overlay`` its own rows on top of what was sent,
with ``lagging`` nothing.
"""

Lookup = Callable[[int], PartitionInfo | None]
"""The store's partition, or None if the store does not know it."""

HISTORY_MAX: Final = 4096
_BEHIND: Final = 16  # of the history: so much may parts of the values be behind one another


class Server:
    """Values and clock of one lineage under one epoch.

    Parameters:
        model, spec, spec_text: Whose parameters they are.  A push of another spec hash is refused.
        rule: see :data:`MergeRule`.
        epoch: This server's epoch, taken from the store by compare-and-set.
        history_max: Applied pushes of which the touched keys are kept.  A replica that is further
            behind gets all values, and the staleness is counted no further back.
        limits: Bounds on one push.
        part_keys: Many values are sent in parts of so many keys.

    Attributes:
        sources_max: Sources of which evidence is kept.
        sources_left: Those that had to leave.
    """

    def __init__(
        self,
        model: str,
        spec: str,
        spec_text: str,
        rule: MergeRule,
        epoch: int,
        *,
        history_max: int = HISTORY_MAX,
        limits: Limits = DEFAULT_LIMITS,
        part_keys: int = PART_KEYS,
    ) -> None:
        self.model = model
        self.spec = spec
        self.spec_text = spec_text
        self.rule: MergeRule = rule
        self.epoch = epoch
        self.count = 0
        self.control = 0
        self.rewrite = 0
        self.frozen = 0
        self.banned: frozenset[str] | None = None
        self.position = 0
        self.values: Blocks = {}
        self.clock: dict[int, int] = {}
        self.closed: set[int] = set()
        self.durable: dict[int, int] = {}
        self.sources_max = SOURCES_MAX
        self.sources_left = 0
        self.keeper: Keeper | None = None
        self._kept: Blocks = {}  # what a snapshot has of one
        self._limits = limits
        self._parts = WalkedParts(part_keys, history_max // _BEHIND)
        self._applied = AppliedPushes(history_max)
        self._shared: set[str] = set()  # blocks that a snapshot holds too: copied before a change
        self._finished: frozenset[int] = frozenset()
        self._changes = Changes()
        self._newest = Newest()

    @classmethod
    def restored(
        cls,
        state: SnapshotState,
        rule: MergeRule,
        epoch: int,
        *,
        history_max: int = HISTORY_MAX,
        limits: Limits = DEFAULT_LIMITS,
        part_keys: int = PART_KEYS,
    ) -> Self:
        """A server that goes on from a snapshot, under a new epoch."""
        server = cls(
            state.model, state.spec, state.spec_text, rule, epoch,
            history_max=history_max, limits=limits, part_keys=part_keys,
        )  # fmt: skip
        server.count = state.version[1]
        server.position = state.position
        server.note_decided(state)
        server.values = _laid_out(state.values)
        server._kept = taken_out(server.values)
        server._shared = set(server.values)
        server.clock = dict(state.clock)
        server.closed = set(state.closed)
        server.durable = dict(state.clock)
        return server

    def bound(self, bounds: TableBounds | None) -> None:
        """Keep tables within these bounds; None: there are none.  Before anybody is answered."""
        if bounds is not None:
            self.keeper = Keeper(bounds, self._kept)
            self.keeper.fit(self.values, self.count)

    @property
    def version(self) -> wire.Version:
        """``(epoch, count)``; no two states of a lineage have the same."""
        return (self.epoch, self.count)

    def push(self, push: wire.Push, lookup: Lookup) -> wire.Ack:
        """Apply a delta if it is the next one of its partition, and say what became of it.

        Raises:
            BlockError, PushRefused: The push is malformed.  Nothing was changed.
        """
        partition = push.partition
        if push.spec != self.spec:
            return wire.Ack("spec", partition, self.clock.get(partition, 0), 0.0)
        if push.epoch != self.epoch:
            return wire.Ack("epoch", partition, self.clock.get(partition, 0), 0.0)
        _check_bounds(push)
        clock = self.clock.get(partition)
        if clock is None:
            info = lookup(partition)
            if info is None:  # its rows could never be found again
                return wire.Ack("gap", partition, 0, 0.0)
            if partition in self.closed:
                return wire.Ack("repeat", partition, info.end, 0.0)
            clock = 0
        if push.last <= clock:
            return wire.Ack("repeat", partition, clock, 0.0)
        if push.first != clock + 1:
            return wire.Ack("gap", partition, clock, 0.0)
        pushed = delta = from_wire(push.blocks, self._limits)
        base = push.base[1] if push.base[0] == self.epoch else 0
        if self.keeper is not None:
            delta = self.keeper.admitted(self.values, pushed, base)
        others: list[Applied] = []
        if self.rule != "sum":  # versions of another epoch don't compare: all that this one knows
            others = self._applied.by_others(partition, base)
        scale = 1.0 / (1 + len(others))
        whole: Blocks = {}
        if others and self.rule == "compensated":
            learners = _learners(push, others)
            whole = compensated(self.values, delta, push.curved, learners, scale)
        _unshare(self.values, self._shared, delta)
        touched = merge(self.values, {**delta, **whole}, scale, whole=whole)
        self.sources_left += keep_bounds(self.values, touched, self.sources_max, self._newest)
        self.count += 1
        if self.keeper is not None:
            add_touched(touched, self.keeper.settle(self.values, pushed, base, self.count))
        self.clock[partition] = push.last
        self._applied.note(Applied(self.count, partition, push.n, touched))
        self._parts.note(touched)
        return wire.Ack("applied", partition, push.last, scale)

    def take(self, state: wire.OrderedState, lookup: Lookup) -> bool:
        """Become what a replica has learned in commit order, if it is more than what is here.

        Whoever has learned the same rows in the same order has the same values, so it does not
        matter who sends them, or how often.

        Raises:
            BlockError, PushRefused: The state is malformed.  Nothing was changed.
        """
        if state.spec != self.spec or state.epoch != self.epoch:
            return False
        if state.position <= self.position or not 0 <= state.base <= self.position:
            return False
        clock = {p: last for p, last in state.clock.items() if p not in self.closed}
        for partition, last in clock.items():
            if last < self.clock.get(partition, 0) or last < 0:
                raise PushRefused(partition, f"a clock of {last} lies before the server's")
            if partition not in self.clock and lookup(partition) is None:
                return False  # its rows could never be found again
        blocks = from_wire(state.blocks, self._limits)
        _unshare(self.values, self._shared, blocks)
        rows = sum(last - self.clock.get(p, 0) for p, last in clock.items())
        touched = put(self.values, blocks)
        self.sources_left += keep_bounds(self.values, touched, self.sources_max, self._newest)
        self.count += 1
        self.position = state.position
        self.clock.update(clock)
        self._applied.note(Applied(self.count, 0, rows, touched))
        self._parts.note(touched)
        return True

    def changes_since(self, since: wire.Version | None) -> Touched | None:
        """Return what was touched after ``since``, or None if that is not known any more."""
        if since is None or since[0] != self.epoch:
            return None
        return self._applied.touched_since(since[1], self.count)

    def reply(
        self,
        request: wire.SyncRequest,
        acks: list[wire.Ack],
        orphans: list[int],
        confirmed_ms: float,
        *,
        keeper: bool = False,
    ) -> wire.SyncReply:
        """State after the pushes.  It shares blocks: encode it before the next push."""
        named = {request.partition, *request.adopting, *request.waits, *orphans}
        named.update(push.partition for push in request.pushes)
        if request.role and request.values:  # what is hidden is in the values, too
            named |= self.clock.keys() | self.closed
        # finished ones stay in the clock until the oldest kept snapshot has them too: weeks
        hidden = self._finished - named
        return wire.SyncReply(
            format=wire.FORMAT,
            spec=self.spec,
            epoch=self.epoch,
            count=self.count,
            acks=acks,
            clock=_without(self.clock, hidden),
            closed=sorted(named & self.closed),
            durable=_without(self.durable, hidden),
            orphans=orphans,
            confirmed_ms=confirmed_ms,
            rewrite=self.rewrite,
            control=self.control,
            frozen=self.frozen > 0,
            position=self.position,
            learned=self.learned(),
            keeper=keeper,
            **self._parts.reply_fields(request, self.values, self.version, self.changes_since),
        )

    def learned(self) -> int:
        """Events in the values."""
        digests = [b.data["count"] for b in self.values.values() if b.kind == DIGEST]
        return int(sum(digests))

    def note_partitions(self, partitions: Iterable[PartitionInfo]) -> frozenset[int]:
        """Learn from the store which partitions are finished: sealed, and all in the clock."""
        self._finished = frozenset(
            p.id for p in partitions if p.sealed and self.clock.get(p.id, 0) >= p.end
        )
        return self._finished

    def close(self, partition: PartitionInfo, kept: Iterable[Contained]) -> bool:
        """Move a sealed partition from the clock to ``closed``, if every kept snapshot has it.

        Returns whether it is closed now.  What is closed stands in the state itself: a server
        that restarts from an older snapshot does not believe to have it.
        """
        p, end = partition.id, partition.end
        if p in self.closed:
            return True
        clocks = [self.clock, *(s.clock for s in kept if p not in s.closed)]
        if not partition.sealed or any(clock.get(p, 0) < end for clock in clocks):
            return False
        self.clock.pop(p, None)
        self.durable.pop(p, None)
        self.closed.add(p)
        return True

    def begin_snapshot(
        self,
        created_at: float,
        parent: str | None,
        metrics: Mapping[str, float],
        base: tuple[wire.Version, Base] | None = None,
    ) -> SnapshotState:
        """State of this version, which later pushes leave alone, and which may lean on a base.

        Not on one of its own version, of which the head was not moved: it takes that one's name.
        """
        state, self._shared = self.state(created_at, parent, metrics), set(self.values)
        if base is not None and base[0] == self.version:
            base = None
        if self._changes.few_since(base, state.values):
            return replace(state, base=base and base[1])
        self._shared -= self._changes.begin(self.values, self.version, self.keeper)
        return state

    def state(
        self, created_at: float, parent: str | None, metrics: Mapping[str, float]
    ) -> SnapshotState:
        """State of this version, whose values the next push changes."""
        return SnapshotState(
            model=self.model,
            spec=self.spec,
            spec_text=self.spec_text,
            version=self.version,
            values=_shallow(self.values) | (self.keeper.blocks() if self.keeper else {}),
            clock=dict(self.clock),
            closed=frozenset(self.closed),
            control=self.control,
            rewrite=self.rewrite,
            frozen=self.frozen,
            position=self.position,
            metrics=dict(metrics),
            parent=parent,
            created_at=created_at,
            banned=self.banned,
        )

    def note_decided(self, state: SnapshotState) -> None:
        """Control rows were applied, which left the values as they were."""
        self.control, self.rewrite, self.frozen = state.control, state.rewrite, state.frozen
        self.banned = state.banned

    def note_durable(self, state: SnapshotState) -> None:
        """``state`` was published and the head points to it."""
        self.durable = {p: c for p, c in state.clock.items() if p not in self.closed}


def _without(clock: Mapping[int, int], hidden: Set[int]) -> dict[int, int]:
    return {p: c for p, c in clock.items() if p not in hidden}


def _learners(push: wire.Push, others: Iterable[Applied]) -> float:
    rows = {push.partition: push.n}
    for applied in others:
        rows[applied.partition] = rows.get(applied.partition, 0) + applied.rows
    return effective_learners(rows.values())


def _unshare(values: Blocks, shared: set[str], delta: Blocks) -> None:
    """Have blocks of the server's own that the delta changes."""
    for name in shared.intersection(delta):
        if name in values:
            values[name] = copy_block(values[name])
        shared.discard(name)


def _shallow(blocks: Blocks) -> Blocks:
    return {name: Block(block.kind, block.data) for name, block in blocks.items()}


def _laid_out(blocks: Blocks) -> Blocks:
    """The same, ready to be asked: by whoever restores, so that no push waits for it."""
    for block in blocks.values():
        if block.kind == ROWS:
            block.data.lay_out()
    return _shallow(blocks)


def _check_bounds(push: wire.Push) -> None:
    rows = push.last - push.first + 1
    if push.partition < 0 or push.first < 1 or rows < 1:
        raise PushRefused(
            push.partition, f"rows {push.first} … {push.last}: offsets count up from 1"
        )
    if not 0 <= push.n <= rows:
        raise PushRefused(push.partition, f"n = {push.n} of {rows} rows: must be in 0 … {rows}")
