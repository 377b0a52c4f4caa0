"""Detects a store that is older than the snapshots: data that they contain and it lacks.

A row is in the store before a model learns it, and a decision before anybody acts on it.  So a
snapshot can be ahead of the store only if the store was restored from an older copy, truncated, or
exchanged for another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from paramserver.core.rewrites import BEGUN
from paramserver.core.state import SnapshotState
from paramserver.errors import StartRefused
from paramserver.snapshots.format import Manifest
from paramserver.snapshots.history import SnapshotHistory
from paramserver.store import ControlInfo, PartitionInfo, Store

LOST: Final = "lost"
LOSS_ACCEPTED: Final = "accepted"
_ACCEPT: Final = "online serve --accept-loss"
_SHOWN: Final = 3
_NEWEST: Final = 2**62  # greater than every row number of a store


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Data that snapshots of a lineage contain and the store lacks; false if there are none.

    Attributes:
        rows: Partition → (its end in the store, the highest offset in a snapshot); the end is 0 if
            the store does not know the partition.
        unsealed: Partitions that a snapshot has closed and the store has not sealed, or does not
            know.
        controls: Number of the store's last control row, and the highest one in a snapshot.
        epochs: The lineage's newest epoch in the store, and the newest one of a snapshot.
        position: Highest commit number in a snapshot, if it is beyond the store's newest row, or 0.
    """

    rows: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    unsealed: tuple[int, ...] = ()
    controls: tuple[int, int] = (0, 0)
    epochs: tuple[int, int] = (0, 0)
    position: int = 0

    @property
    def events(self) -> int:
        """The number of missing rows.  Missing rows that no snapshot contains are not counted."""
        return sum(upto - end for end, upto in self.rows.values())

    def __bool__(self) -> bool:
        lower = self.controls[0] < self.controls[1] or self.epochs[0] < self.epochs[1]
        return bool(self.rows or self.unsealed or self.position or lower)

    def __str__(self) -> str:
        said = [
            f"partition {p}: {upto} learned, {end} in the journal"
            for p, (end, upto) in sorted(self.rows.items())
        ]
        said += [
            f"partition {p}: closed, but not sealed in the journal"
            for p in self.unsealed
            if p not in self.rows
        ]
        if len(said) > _SHOWN:
            said = [*said[:_SHOWN], f"and {len(said) - _SHOWN} partitions more"]
        for what, (known, upto) in (("decisions", self.controls), ("starts", self.epochs)):
            if known < upto:
                said.append(f"the journal knows {known} {what}, a snapshot knows {upto}")
        if self.position and not self.rows:
            said.append(f"rows up to number {self.position} of the commit order")
        return "; ".join(said)


def begun(controls: Iterable[ControlInfo], spec: str) -> int:
    """Return the epoch in which an operator let the lineage start afresh; 0: never."""
    mark = f"{BEGUN}:{spec}:"
    keys = [c.key for c in controls if c.kind == BEGUN and c.key.startswith(mark)]
    return max((int(key.removeprefix(mark)) for key in keys), default=0)


def shortfall(store: Store, history: SnapshotHistory, model: str, spec: str) -> Shortfall:
    """Compare the store with the manifests of all readable snapshots of a lineage.

    Snapshots from before the lineage started afresh are ignored.  Raises PlaceUnreachable, and any
    error of the store.
    """
    # Read the manifests before the store: the store was always ahead of them.
    manifests = history.manifests().values()
    newest = history.newest_epoch()
    epoch = store.head(model, spec).epoch
    controls = store.controls(model, 0)
    partitions = {p.id: p for p in store.partitions(model)}
    since = begun(controls, spec)
    mine = [m for m in manifests if (m.model, m.spec) == (model, spec) and m.version[0] >= since]
    position = max((m.position for m in mine), default=0)
    if position and position <= store.follow(model, _NEWEST, 1).upto:
        position = 0
    return Shortfall(
        rows=_rows(mine, partitions),
        unsealed=_unsealed(mine, partitions),
        controls=(controls[-1].seq if controls else 0, max((m.control for m in mine), default=0)),
        epochs=(epoch, newest),
        position=position,
    )


def _rows(
    manifests: Iterable[Manifest], partitions: Mapping[int, PartitionInfo]
) -> dict[int, tuple[int, int]]:
    highest: dict[int, int] = {}
    for manifest in manifests:
        for p, clock in manifest.clock.items():
            highest[p] = max(clock, highest.get(p, 0))
    ends = {p: partitions[p].end if p in partitions else 0 for p in highest}
    return {p: (ends[p], clock) for p, clock in sorted(highest.items()) if clock > ends[p]}


def _unsealed(
    manifests: Iterable[Manifest], partitions: Mapping[int, PartitionInfo]
) -> tuple[int, ...]:
    closed: set[int] = set()
    for manifest in manifests:
        closed |= manifest.closed_partitions()
    return tuple(p for p in sorted(closed) if p not in partitions or not partitions[p].sealed)


def check(store: Store, history: SnapshotHistory, model: str, spec: str) -> None:
    """Raise StartRefused if the store is older than a snapshot of the lineage."""
    missing = shortfall(store, history, model, spec)
    if missing:
        raise refusal(model, missing)


def refusal(model: str, missing: Shortfall) -> StartRefused:
    """Return an error that counts what is missing and names the remedies."""
    n = missing.events
    lost = f"it lacks {n:,} event{'s' if n > 1 else ''}" if n else "it lacks what they contain"
    return StartRefused(
        f"the journal is older than the snapshots of {model!r}: {lost} ({missing})",
        "put the journal's newest copy back, or go on from the newest snapshot without what is "
        f"missing: {_ACCEPT}",
    )


class Lost(msgspec.Struct, frozen=True):
    """A placeholder for a lost control row.

    The last placeholder starts the acceptance of a loss, which takes several steps.

    Attributes:
        specs: Lineages that are to continue without the lost rows.
        rows: As in :class:`Accepted`.
        known: Number of the last control row that is not lost.
    """

    specs: list[str] = []
    rows: dict[int, tuple[int, int]] = {}
    known: int = 0


class Accepted(msgspec.Struct, frozen=True):
    """The record that a lineage continues from a snapshot without rows that the store has lost.

    Attributes:
        spec: Hash of the lineage's spec.
        at: Time of the acceptance (POSIX seconds).
        base: The newest valid snapshot.
        snapshot, version: The snapshot made from it to continue from, and its version.
        rows: Partition → range of lost offsets: after its end in the store, up to the highest one
            in a snapshot.
        events: Number of these rows; lost rows that no snapshot contains are not counted.
        decisions, epochs: Number of the last control row, and epoch: in the store, and in the
            snapshots.
        control, clock, closed: Content of the snapshot.
        trimmed: Partition → rows that retention had removed, or that the store never knew.
        digest, difference: Digest of the events in the snapshot, and its excess over the digest of
            the store's rows.
    """

    spec: str
    at: float
    base: str
    snapshot: str
    version: tuple[int, int]
    rows: dict[int, tuple[int, int]]
    events: int
    decisions: tuple[int, int]
    epochs: tuple[int, int]
    control: int
    clock: dict[int, int]
    closed: list[int]
    trimmed: dict[int, int]
    digest: tuple[int, int]
    difference: tuple[int, int]


class Acceptance(NamedTuple):
    """The number of a control row that accepts a loss, and its payload."""

    seq: int
    note: Accepted


def accepted(controls: Iterable[ControlInfo], spec: str) -> Acceptance | None:
    """Return the newest accepted loss since the lineage started afresh, or None."""
    acceptance = None
    for control in controls:
        if control.kind == LOSS_ACCEPTED:
            note = msgspec.json.decode(control.payload, type=Accepted)
            if note.spec == spec:
                acceptance = Acceptance(control.seq, note)
        elif control.kind == BEGUN and control.key.startswith(f"{BEGUN}:{spec}:"):
            acceptance = None
    return acceptance


def unfinished(controls: Iterable[ControlInfo], spec: str) -> list[Lost]:
    """Return the losses whose acceptance an operator began for the lineage but did not finish."""
    begun_: list[Lost] = []
    for control in controls:
        if control.kind == LOST:
            note = msgspec.json.decode(control.payload, type=Lost)
            if spec in note.specs:
                begun_.append(note)
        elif control.key.startswith((f"{LOSS_ACCEPTED}:{spec}:", f"{BEGUN}:{spec}:")):
            begun_ = []
    return begun_


def check_accepted(state: SnapshotState, controls: Iterable[ControlInfo]) -> None:
    """Raise StartRefused unless the snapshot's values contain the rows that the store lost.

    Those rows cannot be learned any more, so an older snapshot would silently lack them.
    """
    controls = tuple(controls)
    if unfinished(controls, state.spec):
        raise StartRefused(
            f"{state.model!r} was to go on without what the journal has lost, and that was "
            "interrupted",
            f"give the command again: {_ACCEPT}",
        )
    loss = accepted(controls, state.spec)
    if loss is not None and state.version < loss.note.version:
        raise StartRefused(
            f"the snapshot that is left of {state.model!r} is from before the journal lost "
            f"{loss.note.events:,} events (control row {loss.seq}), which newer ones contain",
            f"put a newer snapshot back, or go on from this one without them: {_ACCEPT}",
        )
