"""Where a server and the store agree: taking an epoch, recovering, moving the head.

Errors of the store are not told apart by type.  After any of them the head says what is so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from paramserver.errors import PublishFailed, StartRefused, Superseded
from paramserver.server import MergeRule, Server
from paramserver.snapshots.history import SnapshotHistory, parse_name, snapshot_name
from paramserver.state import SnapshotState
from paramserver.store import PartitionInfo, Store
from paramserver.wire import Version

REWRITES: Final = frozenset({"rollback", "forget", "promote"})
_EPOCH_TRIES: Final = 100


@dataclass(frozen=True, slots=True)
class Lineage:
    """Whose parameters: the model's name, the hash of its spec, the spec, the merge rule."""

    model: str
    spec: str
    spec_text: str
    rule: MergeRule


@dataclass(frozen=True, slots=True)
class Recovered:
    """A server ready to serve, and the snapshot that it started from (None: from nothing)."""

    server: Server
    base: Version | None
    snapshot: str | None
    at_head: bool


def begin_epoch(store: Store, lineage: Lineage) -> int:
    """Take the next epoch; whoever had one before can publish no more."""
    for attempt in range(_EPOCH_TRIES):
        expected = store.head(lineage.model, lineage.spec).epoch
        try:
            return store.begin_epoch(lineage.model, lineage.spec, expected)
        except Exception:
            newest = store.head(lineage.model, lineage.spec).epoch
            if newest == expected or attempt == _EPOCH_TRIES - 1:
                raise  # not a lost race: the store itself is in trouble
    raise AssertionError("the loop returns or raises")


def recover(
    store: Store, history: SnapshotHistory, lineage: Lineage, history_max: int
) -> Recovered:
    """Start a server from the head or its nearest good ancestor, under a new epoch.

    Raises
    ------
    StartRefused
        What is on disk must not be served.
    Superseded
        Another server was faster; try again.
    """
    epoch = begin_epoch(store, lineage)
    # read after the epoch was taken: from now on no earlier server can move the head
    head = store.head(lineage.model, lineage.spec)
    if head.epoch != epoch:
        raise Superseded(epoch, head.epoch)
    found = history.restore(head.snapshot, lineage.model, lineage.spec)
    if found is None:
        server = Server(
            lineage.model,
            lineage.spec,
            lineage.spec_text,
            lineage.rule,
            epoch,
            history_max=history_max,
        )
        name = None
    else:
        name, state = found
        server = Server.restored(state, lineage.rule, epoch, history_max=history_max)
    _read_controls(store, server)
    _check_clocks(server, store.partitions(lineage.model))
    parsed = None if name is None else parse_name(name)
    return Recovered(server, None if parsed is None else parsed[0], name, name == head.snapshot)


def _read_controls(store: Store, server: Server) -> None:
    for control in store.controls(server.model, server.control):
        if control.kind in REWRITES:
            raise StartRefused(
                f"control row {control.seq} of {server.model!r} is a {control.kind}, "
                "which this release can't apply to its snapshot",
                "start the release that wrote it",
            )
        server.control = control.seq


def _check_clocks(server: Server, partitions: Iterable[PartitionInfo]) -> None:
    """The model must contain no row that the journal does not have."""
    known = {p.id: p for p in partitions}
    beyond = [
        f"partition {p}: {clock} learned, {known[p].end if p in known else 0} in the journal"
        for p, clock in sorted(server.clock.items())
        if clock > (known[p].end if p in known else 0)
    ]
    beyond += [
        f"partition {p}: closed, but not sealed in the journal"
        for p in sorted(server.closed)
        if p not in known or not known[p].sealed
    ]
    if beyond:
        shown = "; ".join(beyond[:3]) + (f"; and {len(beyond) - 3} more" if beyond[3:] else "")
        raise StartRefused(
            f"the journal is older than the model {server.model!r} ({shown})",
            "put the journal's newest copy back, "
            "or learn what it has again from the start with: online serve --relearn",
        )


def publish(
    store: Store, history: SnapshotHistory, state: SnapshotState, base: Version | None
) -> str:
    """Make the state durable and the head point to it; its name.

    Raises
    ------
    Superseded
        A newer server has the epoch; the file is removed again.
    PublishFailed
        Disk or store failed; the head is where it was.
    """
    name = snapshot_name(state.version, base)
    try:
        history.publish(name, state)
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
        if head.snapshot != name:  # else only the answer was lost
            raise PublishFailed(name, f"{type(error).__name__}: {error}") from error
    return name
