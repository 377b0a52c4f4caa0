"""Steps on which server and store must agree: taking an epoch, recovering, moving the head.

Errors of the store are not distinguished by type.  After any error the head is read to find out
what was done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Final

from paramserver.core import rewrites
from paramserver.core.blocks import COUNT, Block, Blocks
from paramserver.core.parts import PART_KEYS
from paramserver.core.resharding import handed_on
from paramserver.core.server import MergeRule, Server
from paramserver.core.state import SnapshotState
from paramserver.core.wire import Version
from paramserver.errors import (
    DecisionUncertain,
    HandedOn,
    NothingDecided,
    PublishFailed,
    SnapshotCorrupt,
    SnapshotFormat,
    SnapshotMissing,
    StartRefused,
    Superseded,
)
from paramserver.process import bases, shortfall
from paramserver.snapshots.history import SnapshotHistory, snapshot_name
from paramserver.store import ControlInfo, HeadInfo, PartitionInfo, Store

_log: Final = logging.getLogger(__name__)

_EPOCH_TRIES: Final = 100
_DECIDE_TRIES: Final = 3
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Lineage:
    """A model's name, the hash of its spec, the spec, and the merge rule."""

    model: str
    spec: str
    spec_text: str
    rule: MergeRule


@dataclass(frozen=True, slots=True)
class Recovered:
    """A server that is ready to serve, and the snapshot that it started from.

    Attributes:
        server: The server.
        base, snapshot: Version and name of the snapshot; None: started from an empty model.
        at_head: Whether the head holds exactly this state.
        needed: See :func:`paramserver.core.rewrites.needed`.
        begun: Epoch in which the lineage last started afresh; older snapshots are not its past.
    """

    server: Server
    base: Version | None
    snapshot: str | None
    at_head: bool
    needed: rewrites.Needed | None
    begun: int


def begin_epoch(store: Store, lineage: Lineage) -> int:
    """Take the next epoch; servers with earlier epochs cannot publish any more."""
    for attempt in range(_EPOCH_TRIES):
        expected = store.head(lineage.model, lineage.spec).epoch
        try:
            return store.begin_epoch(lineage.model, lineage.spec, expected)
        except Exception:
            newest = store.head(lineage.model, lineage.spec).epoch
            if newest == expected or attempt == _EPOCH_TRIES - 1:
                raise  # no race was lost: the store itself fails
    raise AssertionError("the loop returns or raises")


def recover(
    store: Store,
    history: SnapshotHistory,
    lineage: Lineage,
    history_max: int,
    part_keys: int = PART_KEYS,
) -> Recovered:
    """Start a server from the head or its nearest valid ancestor, under a new epoch.

    Raises:
        StartRefused: The state on disk must not be served.
        Superseded: Another server took a newer epoch meanwhile; try again.
    """
    shortfall.check(store, history, lineage.model, lineage.spec)
    epoch = begin_epoch(store, lineage)
    # read the head only now: with the new epoch no earlier server can move it or decide
    head = store.head(lineage.model, lineage.spec)
    if head.epoch != epoch:
        raise Superseded(epoch, head.epoch)
    history.remove_leftovers()
    plan = _plan(store, history, lineage, head)
    server = Server.restored(
        plan.state, lineage.rule, epoch, history_max=history_max, part_keys=part_keys
    )
    return Recovered(
        server=server,
        base=None if plan.name is None else plan.base.version,
        snapshot=plan.name,
        at_head=plan.name is not None
        and plan.name == head.snapshot
        and plan.state.rewrite == plan.base.rewrite,
        needed=rewrites.needed(plan.controls, lineage.spec),
        begun=shortfall.begun(plan.controls, lineage.spec),
    )


def check_start(store: Store, history: SnapshotHistory, lineage: Lineage) -> None:
    """Check that a server could start on this store and these snapshots; changes nothing.

    Raises StartRefused if it could not, and other errors as :func:`recover`.
    """
    shortfall.check(store, history, lineage.model, lineage.spec)
    _plan(store, history, lineage, store.head(lineage.model, lineage.spec))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The outcome of a start: snapshot name and state, and the state after the control rows."""

    name: str | None
    base: SnapshotState
    state: SnapshotState
    controls: Sequence[ControlInfo]


def _plan(store: Store, history: SnapshotHistory, lineage: Lineage, head: HeadInfo) -> _Plan:
    controls = store.controls(lineage.model, 0)
    partitions = store.partitions(lineage.model)
    restored = history.restore(head.snapshot, lineage.model, lineage.spec)
    name, base = (None, _nothing(lineage, partitions)) if restored is None else restored
    if base.version[0] < shortfall.begun(controls, lineage.spec):
        raise StartRefused(
            f"{lineage.model!r} was to begin anew, and that was interrupted",
            "give the command again: online serve --relearn, or --fresh",
        )
    if base.banned is None:  # of an older release
        before = (control for control in controls if control.seq <= base.control)
        base = replace(base, banned=frozenset(rewrites.banned(before)))
    shortfall.check_accepted(base, controls)
    after = [control for control in controls if control.seq > base.control]
    state = replayed(base, after, partial(needed, history))
    _check_clocks(state, partitions)
    _check_rows(state, partitions)
    return _Plan(name, base, state, controls)


def _nothing(lineage: Lineage, partitions: Iterable[PartitionInfo]) -> SnapshotState:
    """Return the state of a lineage without snapshots: it starts at the oldest rows kept."""
    gone = {p.id: p.trimmed for p in partitions if p.trimmed}
    if gone:
        _log.warning(
            "%s, spec %s, begins without the %d oldest rows: the journal has no longer got them",
            lineage.model, lineage.spec[:12], sum(gone.values()),
        )  # fmt: skip
    return SnapshotState(lineage.model, lineage.spec, lineage.spec_text, (0, 0), {}, gone)


def replayed(
    state: SnapshotState, controls: Sequence[ControlInfo], load: Callable[[str], SnapshotState]
) -> SnapshotState:
    """Return the state after these control rows; used for new decisions and in recovery.

    A rewrite or backfill replaces the whole state by the snapshot that its row names.  So only the
    snapshot of the newest one is loaded.

    Parameters:
        load: Reads a snapshot of the lineage by name.

    Raises:
        StartRefused: A control row cannot be applied to the state.
    """
    newest = rewrites.needed(controls, state.spec)
    for control in controls:
        if control.kind in rewrites.REWRITES:
            note = rewrites.note_of(control)
            if note.spec != state.spec or newest is None or newest.seq == control.seq:
                state = _rewritten(state, control.seq, note, load)
            else:
                state = replace(state, rewrite=control.seq)
        elif control.kind == rewrites.BACKFILL:
            base = bases.backfill_of(control)
            if base.spec == state.spec and newest is not None:
                state = _backfilled(state, control.seq, base, load, newest)
        elif control.kind == rewrites.SOURCE:
            state = replace(state, banned=rewrites.banned_after(state.banned or (), control))
        frozen = state.frozen
        if control.kind == rewrites.FREEZE:
            frozen = frozen or control.seq
        elif control.kind == rewrites.UNFREEZE:
            frozen = 0
        state = replace(state, control=control.seq, frozen=frozen)
    return state


def _rewritten(
    state: SnapshotState, seq: int, note: rewrites.Note, load: Callable[[str], SnapshotState]
) -> SnapshotState:
    back = note if isinstance(note, rewrites.Rollback) else None
    if note.spec == state.spec:
        target = load(note.snapshot)
        count = max(state.version[1], target.version[1]) + 1
        return replace(
            state,
            version=(state.version[0], count),
            values=_halved(target.values, back.halved if back else 0),
            clock=note.clock,
            closed=frozenset(note.closed),
            rewrite=seq,
            position=note.position,
        )
    if back and back.again:
        return state
    if state.values:
        raise StartRefused(
            f"control row {seq} of {state.model!r} undoes events that this model has learned: it "
            f"was made for the model with the spec {note.spec[:12]}, whose place it took",
            "learn the journal again without them: online serve --relearn",
        )
    return replace(state, rewrite=seq)


def _backfilled(
    state: SnapshotState,
    seq: int,
    note: bases.Backfill,
    load: Callable[[str], SnapshotState],
    newest: rewrites.Needed,
) -> SnapshotState:
    if newest.seq != seq:  # a later row replaces the whole state
        return replace(state, rewrite=seq)
    base = load(note.snapshot)
    return replace(
        state,
        version=(state.version[0], max(state.version[1], base.version[1]) + 1),
        values=base.values,
        clock=note.clock,
        closed=frozenset(note.closed),
        rewrite=seq,
        position=note.position,
    )


def _halved(values: Blocks, n: int) -> Blocks:
    return {**values, rewrites.HALVED: Block(COUNT, {"n": n})} if n else values


def needed(history: SnapshotHistory, name: str) -> SnapshotState:
    """Load a snapshot that a control row names.

    Raises:
        StartRefused: The snapshot cannot be used, so the row cannot be applied.
    """
    try:
        return history.load(name)
    except (SnapshotCorrupt, SnapshotFormat, SnapshotMissing) as error:
        raise StartRefused(
            f"the model was taken to the snapshot {name!r}, which can't be used ({error})",
            "put a good copy of the file back, "
            "or learn the journal again without what was undone: online serve --relearn",
        ) from error


def decide(
    store: Store, server: Server, kind: str, key: str, payload: bytes
) -> Sequence[ControlInfo]:
    """Write a control row unless a newer server has taken over; return the new rows up to it.

    The first row with a key is final, so the write is repeated until its outcome is known.

    Raises:
        HandedOn: Another lineage replaces this one and would miss the row.  Nothing was written.
        NothingDecided: The store failed.  Nothing was written.
        Superseded: A newer server has the epoch.  Nothing was written.
        DecisionUncertain: The row may have been written.
    """
    try:
        known = store.controls(server.model, 0)
    except Exception as error:
        raise NothingDecided(f"{type(error).__name__}: {error}") from error
    check_decides(known, server)
    fence = (server.spec, server.epoch)
    for attempt in range(_DECIDE_TRIES):
        try:
            row, _ = store.write_control(server.model, kind, key, payload, fence)
            return [c for c in store.controls(server.model, server.control) if c.seq <= row.seq]
        except Exception as error:
            lost = _superseded(store, server, key)
            if lost is not None:
                raise lost from error
            if attempt == _DECIDE_TRIES - 1:
                reason = f"{type(error).__name__}: {error}"
                raise DecisionUncertain(kind, key, reason) from error
    raise AssertionError("the loop returns or raises")


def check_decides(known: Sequence[ControlInfo], server: Server) -> None:
    """Raise HandedOn if the server may no longer decide; ``known``: all its model's rows."""
    if handed_on(known, server.spec):
        raise HandedOn(server.model)


def _superseded(store: Store, server: Server, key: str) -> Superseded | None:
    """Return Superseded if a newer server prevents the row from being written, else None."""
    try:
        newest = store.head(server.model, server.spec).epoch
        stands = any(c.key == key for c in store.controls(server.model, server.control))
    except Exception:
        return None
    return Superseded(server.epoch, newest) if newest != server.epoch and not stands else None


def _check_clocks(state: SnapshotState, partitions: Iterable[PartitionInfo]) -> None:
    """Raise StartRefused if the model contains rows that the journal does not have."""
    known = {p.id: p for p in partitions}
    beyond = [
        f"partition {p}: {clock} learned, {known[p].end if p in known else 0} in the journal"
        for p, clock in sorted(state.clock.items())
        if clock > (known[p].end if p in known else 0)
    ]
    beyond += [
        f"partition {p}: closed, but not sealed in the journal"
        for p in sorted(state.closed)
        if p not in known or not known[p].sealed
    ]
    if beyond:
        raise StartRefused(
            f"the journal is older than the model {state.model!r} ({_first(beyond)})",
            "put the journal's newest copy back, "
            "or learn what it has again from the start with: online serve --relearn",
        )


def _check_rows(state: SnapshotState, partitions: Iterable[PartitionInfo]) -> None:
    """Raise StartRefused if the journal lacks rows that the model has not learned yet."""
    gone = [
        f"partition {p.id}: rows {state.clock.get(p.id, 0) + 1} … {p.trimmed}"
        for p in partitions
        if p.id not in state.closed and state.clock.get(p.id, 0) < p.trimmed
    ]
    if gone:
        raise StartRefused(
            f"the snapshot that is left of {state.model!r} does not contain rows that the "
            f"journal has no longer got ({_first(gone)})",
            "put a newer snapshot back, or learn what is left of the journal with: "
            "online serve --relearn, or begin without it with: online serve --fresh",
        )


def _first(problems: list[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if problems[_SHOWN:] else ""
    return "; ".join(problems[:_SHOWN]) + more


def _log_of(store: Store) -> tuple[tuple[int, str] | None, Exception | None]:
    """Return the newest line of the log of decisions, or the error; snapshots do not fail on it."""
    try:
        newest = store.newest_line()
    except Exception as error:
        return None, error
    return None if newest is None else (newest.number, sha256(newest.text).hexdigest()), None


def publish(
    store: Store, history: SnapshotHistory, state: SnapshotState, base: Version | None
) -> str:
    """Write the state as a snapshot and move the head to it; return its name.

    Raises:
        Superseded: A newer server has the epoch; the file is removed again.
        PublishFailed: Disk or store failed; the head was not moved.
    """
    name = snapshot_name(state.version, base)
    try:
        line, unread = _log_of(store)
        history.publish(name, replace(state, log=line))
    except OSError as error:
        raise PublishFailed(name, str(error)) from error
    epoch = state.version[0]
    try:
        store.move_head(state.model, state.spec, epoch, name)
    except Exception as error:
        try:
            head = store.head(state.model, state.spec)
        except Exception:
            raise PublishFailed(name, f"{type(error).__name__}: {error}") from error
        if head.epoch != epoch:
            history.withdraw(name)
            raise Superseded(epoch, head.epoch) from error
        if head.snapshot != name:  # otherwise the head was moved and only the reply was lost
            raise PublishFailed(name, f"{type(error).__name__}: {error}") from error
    if unread is not None:
        _log.warning("snapshot %s does not tell of the log of decisions: %r", name, unread)
    return name
