"""Is the store older than the snapshots beside it?  What their manifests know that it lacks.

A row is in the store before a model learns it, and so is a decision before anybody acts on it: no
snapshot of a lineage can be ahead of the store, unless the store has come back from an older copy,
was cut, or is another one.
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
_NEWEST: Final = 2**62  # behind every row of a store


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A shortfall is what snapshots of a lineage contain and a store lacks; false if it is nothing.

    Attributes:
        rows: By partition: its end in the store (0: the store does not know it), and the highest
            offset that a snapshot contains.
        unsealed: Partitions that a snapshot has closed and the store has not sealed, or does not
            know.
        controls: Number of the store's last control row, and the highest that a snapshot contains.
        epochs: The lineage's newest epoch in the store, and the newest of a snapshot.
        position: Highest number in the commit order that a snapshot contains, if it is beyond the
            store's newest row; 0: none is.
    """

    rows: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    unsealed: tuple[int, ...] = ()
    controls: tuple[int, int] = (0, 0)
    epochs: tuple[int, int] = (0, 0)
    position: int = 0

    @property
    def events(self) -> int:
        """Rows that are missing.  There may be more: of what no snapshot contains none can tell."""
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
    """The epoch in which an operator let the lineage begin anew; 0: never."""
    mark = f"{BEGUN}:{spec}:"
    keys = [c.key for c in controls if c.kind == BEGUN and c.key.startswith(mark)]
    return max((int(key.removeprefix(mark)) for key in keys), default=0)


def shortfall(store: Store, history: SnapshotHistory, model: str, spec: str) -> Shortfall:
    """Compare the store with the manifests of all snapshots of a lineage that can be read.

    Those from before the lineage began anew are not its past.  Raises PlaceUnreachable, and
    whatever the store raises.
    """
    manifests = history.manifests().values()  # first: what they contain was in the store before
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
        controls=(
            controls[-1].seq if controls else 0,
            max((m.control for m in mine), default=0),
        ),
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
    """StartRefused if the store is older than a snapshot of the lineage."""
    missing = shortfall(store, history, model, spec)
    if missing:
        raise refusal(model, missing)


def refusal(model: str, missing: Shortfall) -> StartRefused:
    """Return an error that counts what is missing and says what can be done about it."""
    n = missing.events
    lacks = f"it lacks {n:,} event{'s' if n > 1 else ''}" if n else "it lacks what they contain"
    return StartRefused(
        f"the journal is older than the snapshots of {model!r}: {lacks} ({missing})",
        "put the journal's newest copy back, or go on from the newest snapshot without what is "
        f"missing: {_ACCEPT}",
    )


class Lost(msgspec.Struct, frozen=True):
    """A row that stands where a decision was, which is lost.

    The last of these rows says that what is lost is accepted from here on, which takes some steps.

    Attributes:
        specs: Lineages that are to go on without it.
        rows: As of :class:`Accepted`.
        known: Number of the last control row that is not lost.
    """

    specs: list[str] = []
    rows: dict[int, tuple[int, int]] = {}
    known: int = 0


class Accepted(msgspec.Struct, frozen=True):
    """A lineage goes on from a snapshot, without what the store has lost.

    Attributes:
        spec: Hash of the lineage's spec.
        at: When it was accepted (POSIX seconds).
        base, snapshot, version: The newest snapshot that was good; the one that was made of it to
            go on from, its version.
        rows: By partition: after its end in the store, up to where a snapshot had learned it.
        events: How many rows these are; of what no snapshot contains none can tell.
        decisions, epochs: What the store knew, and what a snapshot did: number of the last control
            row, and epoch.
        control, clock, closed: What the snapshot says that it contains.
        trimmed: By partition: rows that retention had removed, or that the store never knew.
        digest, difference: The digest of what is in the snapshot, and by how much it is more than
            the store's rows say.
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
    """The number of a control row, and what it says of a loss."""

    seq: int
    note: Accepted


def accepted(controls: Iterable[ControlInfo], spec: str) -> Acceptance | None:
    """The newest loss that the lineage goes on without; None: none since it began anew."""
    found = None
    for control in controls:
        if control.kind == LOSS_ACCEPTED:
            note = msgspec.json.decode(control.payload, type=Accepted)
            if note.spec == spec:
                found = Acceptance(control.seq, note)
        elif control.kind == BEGUN and control.key.startswith(f"{BEGUN}:{spec}:"):
            found = None
    return found


def unfinished(controls: Iterable[ControlInfo], spec: str) -> list[Lost]:
    """Return the losses that an operator has begun to accept for the lineage and not finished."""
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
    """StartRefused unless what is lost is in the snapshot's values.

    Its rows can't be learned any more, so an older snapshot would go on without them, unasked.
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
