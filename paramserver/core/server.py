"""The parameter server as a pure state machine: no actor, no I/O, no wall clock.

The values, the clock (partition → last applied offset) and the version change and are read
together, so the caller guards every method with one lock.  The clock ensures that each delta
counts at most once, whichever process sends it: a push is applied only if its first row follows
the partition's clock directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from typing import Final, Literal, Self

from paramserver.core import wire
from paramserver.core.admission import Keeper, TableBounds, taken_out
from paramserver.core.applied import Applied, AppliedPushes
from paramserver.core.array_maps import as_dict
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
from paramserver.core.compensation import compensated, effective_learners
from paramserver.core.parts import PART_KEYS, WalkedParts
from paramserver.core.state import Base, Changes, Contained, SnapshotState
from paramserver.errors import PushRefused
from paramserver.evidence.generations import Newest
from paramserver.evidence.losses import LOSS_BLOCKS
from paramserver.filters.sources import SOURCES_MAX, keep_bounds, of_sources
from paramserver.store import PartitionInfo

MergeRule = Literal["sum", "average", "compensated", "ordered", "overlay", "lagging"]
"""How the additive blocks of a push are scaled.

``sum``: by 1.  ``average``: by 1 / (1 + other partitions' pushes since the push's base version).
``compensated``: keys whose curvature the push carries are corrected for the other pushes, see
:mod:`paramserver.core.compensation`; other keys are averaged.

With the last three rules nothing is pushed.  One process learns all rows in commit order and sends
its whole state.  With ``ordered`` each replica also learns all rows in that order, with ``overlay``
only its own rows on top of the received state, with ``lagging`` none.
"""

IN_ORDER: Final = frozenset({"ordered", "overlay", "lagging"})

Lookup = Callable[[int], PartitionInfo | None]
"""Returns a partition as the store describes it, or None if the store does not know it."""

HISTORY_MAX: Final = 4096
_BEHIND: Final = 16  # history_max / _BEHIND versions: how far apart parts of the values may be


class Server:
    """Holds the values and the clock of one lineage (model and spec) under one epoch.

    Parameters:
        model, spec, spec_text: Model name, hash of its spec, and the spec itself.  A push with
            another spec hash is refused.
        rule: See :data:`MergeRule`.
        epoch: This server's epoch, taken from the store by compare-and-set.
        history_max: Number of applied pushes whose touched keys are remembered.  A replica that is
            further behind receives all values; staleness is counted no further back.
        limits: Bounds on one push.
        part_keys: Number of keys in one part, when the values are too many for one message.

    Attributes:
        sources_max: Number of sources whose evidence is kept.
        sources_left: Number of sources that were evicted because of that bound.
        holdings: Records of what replicas hold that do not hold all rows of a table.
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
        self.model, self.spec, self.spec_text = model, spec, spec_text
        self.rule: MergeRule = rule
        self.epoch = epoch
        self.count = self.control = self.rewrite = self.frozen = self.position = 0
        self.banned: frozenset[str] | None = None
        self.values: Blocks = {}
        self.clock: dict[int, int] = {}
        self.closed: set[int] = set()
        self.durable: dict[int, int] = {}
        self.sources_max = SOURCES_MAX
        self.sources_left = 0
        self.keeper: Keeper | None = None
        self._kept: Blocks = {}  # the keeper's state from a snapshot
        self._limits = limits
        self._parts = WalkedParts(part_keys, history_max // _BEHIND)
        self.holdings = self._parts.holdings
        self.applied = AppliedPushes(history_max)
        self._shared: set[str] = set()  # blocks shared with a snapshot: copied before a change
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
        """Return a server that continues from a snapshot, under a new epoch."""
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
        """Bound the tables of rows; None: no bounds.  Call it before the first request."""
        if bounds is not None:
            self.keeper = Keeper(bounds, self._kept)
            self.keeper.fit(self.values, self.count)

    @property
    def version(self) -> wire.Version:
        """The version ``(epoch, count)``, unique among the states of a lineage."""
        return (self.epoch, self.count)

    def push(self, push: wire.Push, lookup: Lookup) -> wire.Ack:
        """Apply a delta if it is the next one of its partition; return the outcome.

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
            if info is None:  # the store could not supply its rows for a replay
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
        if self.rule != "sum":  # a base of another epoch counts as 0: every known push is newer
            others = self.applied.by_others(partition, base)
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
        self.applied.note(Applied(self.count, partition, push.n, touched))
        self._parts.note(touched)
        return wire.Ack("applied", partition, push.last, scale)

    def take(self, state: wire.OrderedState, lookup: Lookup) -> bool:
        """Adopt a state learned in commit order if it is ahead of this one; return whether it was.

        Replicas that learn the same rows in the same order have the same values, so any of them may
        send its state, any number of times.

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
                return False  # the store could not supply its rows for a replay
        blocks = from_wire(state.blocks, self._limits)
        _unshare(self.values, self._shared, blocks)
        rows = sum(last - self.clock.get(p, 0) for p, last in clock.items())
        touched = put(self.values, blocks)
        self.sources_left += keep_bounds(self.values, touched, self.sources_max, self._newest)
        self.count += 1
        self.position = state.position
        self.clock.update(clock)
        self.applied.note(Applied(self.count, 0, rows, touched))
        self._parts.note(touched)
        return True

    def changes_since(self, since: wire.Version | None) -> Touched | None:
        """Return the keys touched after version ``since``, or None if they are no longer known."""
        if since is None or since[0] != self.epoch:
            return None
        return self.applied.touched_since(since[1], self.count)

    def reply(
        self,
        request: wire.SyncRequest,
        acks: list[wire.Ack],
        orphans: list[int],
        confirmed_ms: float,
        *,
        keeper: bool = False,
        passed: list[wire.Passed] | None = None,
    ) -> wire.SyncReply:
        """Return the state after the pushes, with the given fields of the reply.

        It shares blocks, so encode it before the next push.  With ``passed`` it has changes since a
        version that is remembered, without rows of tables.
        """
        named = {request.partition, *request.adopting, *request.waits, *orphans}
        named.update(push.partition for push in request.pushes)
        if request.role and request.values:  # such a replica needs the whole clock of the values
            named |= self.clock.keys() | self.closed
        # Finished partitions stay in the clock until every kept snapshot contains them, which
        # takes weeks; leave them out of replies to replicas that did not name them.
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
            passed=passed,
            **self._parts.reply_fields(
                request, self.values, self.version, self.changes_since, passed is not None
            ),
        )

    def learned(self) -> int:
        """Return the number of events that the values have learned."""
        digests = [b.data["count"] for b in self.values.values() if b.kind == DIGEST]
        return int(sum(digests))

    def note_partitions(self, partitions: Iterable[PartitionInfo]) -> frozenset[int]:
        """Note and return the partitions that are finished: sealed, and applied to their end."""
        self._finished = frozenset(
            p.id for p in partitions if p.sealed and self.clock.get(p.id, 0) >= p.end
        )
        return self._finished

    def close(self, partition: PartitionInfo, kept: Iterable[Contained]) -> bool:
        """Move a sealed partition from the clock to ``closed`` if all kept snapshots contain it.

        Returns whether it is closed now.  The closed partitions are part of the state, so a server
        that restarts from an older snapshot does not assume that it contains them.
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
        """Return a copy-on-write state of this version, which later pushes do not change.

        If few rows changed since the whole snapshot ``base``, it is incremental to that.  A base of
        the same version is ignored: the head was never moved to it, and the new snapshot replaces
        it under the same name.
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
        """Return the live state of this version; the next push changes its values."""
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
        """Note that control rows were applied that did not change the values."""
        self.control, self.rewrite, self.frozen = state.control, state.rewrite, state.frozen
        self.banned = state.banned

    def note_durable(self, state: SnapshotState) -> None:
        """Note that ``state`` was published and the head points to it."""
        self.durable = {p: c for p, c in state.clock.items() if p not in self.closed}


def shared_values(server: Server, names: Set[str]) -> Blocks:
    """Return these values as they are now: a later push copies a block before it changes it."""
    server._shared |= names
    return _shallow({name: block for name, block in server.values.items() if name in names})


def _without(clock: Mapping[int, int], hidden: Set[int]) -> dict[int, int]:
    return {p: c for p, c in clock.items() if p not in hidden}


def _learners(push: wire.Push, others: Iterable[Applied]) -> float:
    rows = {push.partition: push.n}
    for applied in others:
        rows[applied.partition] = rows.get(applied.partition, 0) + applied.rows
    return effective_learners(rows.values())


def _unshare(values: Blocks, shared: set[str], delta: Blocks) -> None:
    """Copy the blocks that the delta changes and that a snapshot shares."""
    for name in shared.intersection(delta):
        if name in values:
            values[name] = copy_block(values[name])
        shared.discard(name)


def _shallow(blocks: Blocks) -> Blocks:
    return {name: Block(block.kind, block.data) for name, block in blocks.items()}


def _laid_out(blocks: Blocks) -> Blocks:
    """Return the blocks with the tables' indexes built, so that the first push need not wait.

    What is counted of sources is in dicts, because its newest keys are looked for.
    """
    for block in blocks.values():
        if block.kind == ROWS:
            block.data.lay_out()
    made, counted = _shallow(blocks), of_sources(blocks).keys() | LOSS_BLOCKS
    for name in made.keys() & counted:
        made[name].data = as_dict(made[name].data)
    return made


def _check_bounds(push: wire.Push) -> None:
    rows = push.last - push.first + 1
    if push.partition < 0 or push.first < 1 or rows < 1:
        raise PushRefused(
            push.partition, f"rows {push.first} … {push.last}: offsets count up from 1"
        )
    if not 0 <= push.n <= rows:
        raise PushRefused(push.partition, f"n = {push.n} of {rows} rows: must be in 0 … {rows}")
