"""Changes a model's number of parameter servers, from an aligned cut of the previous ones.

Each number of servers is a lineage of its own over the same journal, with its own epochs, heads and
snapshots.  The new lineage begins with snapshots that are split from the newest aligned ones of the
previous lineage: values, clock and decisions of one moment.  Rows of the journal beyond that clock
are learned on top, as after any start.  Nothing is lost or counted twice, whichever process dies:
until the last step, a control row, the previous lineage is the one that serves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from online.errors import StartRefused
from online.learning.counters import digest_of
from online.models.loaded import Loaded
from online.models.loading.from_settings import load_model, spec_with
from online.rows.prediction_ids import Keys
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.whole import cut_of, histories_of
from paramserver.core import resharding, rewrites
from paramserver.core.resharding import RESHARD, Reshard
from paramserver.core.shards import SHARDS_MAX, Cut, ShardStore
from paramserver.core.state import SnapshotState
from paramserver.process import bases, shortfall
from paramserver.process.lineage import Lineage, begin_epoch, publish, replayed
from paramserver.snapshots.history import SnapshotHistory
from paramserver.store import Store
from replay.journal.base import Control, Journal

_FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Resharded:
    """A lineage has begun with the state of another one.

    Attributes:
        before, after: Numbers of servers.
        snapshot: Name of the cut, as shard 0 of the previous lineage has it.
        learned: Number of events in it.
    """

    model: str
    before: int
    after: int
    snapshot: str
    learned: int

    def __str__(self) -> str:
        return (
            f"model {self.model}: {self.after} parameter servers instead of {self.before}, from "
            f"snapshot {self.snapshot} with {self.learned:,} events"
        )


def specs_of(model: ModelSettings, settings: Settings) -> dict[str, int]:
    """Map from spec hash to number of servers, for every number that the model could have."""
    keys = Keys.from_file(settings.key_path)
    one = model.model_copy(update={"shards": 1})
    loaded = load_model(one, settings, keys.secret, keys.old_secrets)
    more = {spec_with(loaded.spec_text, n)[0]: n for n in range(2, SHARDS_MAX + 1)}
    return {loaded.spec_hash: 1, **more}


def saying(
    specs: Mapping[str, int], given: int, before: int, shards: int, *, done: bool, why: str
) -> Reshard:
    """Make the control row with a model's old and new number of servers.

    Parameters:
        specs: As returned by :func:`specs_of`.
    """
    spec = {n: spec for spec, n in specs.items()}
    return Reshard(spec[1], given, before, shards, done, why, spec[before], spec[shards])


def served(journal: Journal, model: str, specs: Mapping[str, int]) -> int | None:
    """The model's number of servers according to the journal; None: it never was served.

    Parameters:
        specs: As returned by :func:`specs_of`.
    """
    if (entry := newest_done(journal, model, next(iter(specs)))) is not None:
        return entry.shards
    written = [p for p in journal.partitions(model) if p.spec in specs]
    return specs[max(written, key=lambda p: p.id).spec] if written else None


def newest_done(journal: Journal, model: str, spec: str) -> Reshard | None:
    """Return the newest completed or abandoned change; None: there is none.

    Parameters:
        spec: Hash of the spec with one server.
    """
    newest = resharding.newest(journal.controls(model, 0), spec, done=True)
    return None if newest is None else newest[1]


def note(journal: Journal, model: str, entry: Reshard, request: int | None = None) -> int:
    """Write a request or a result to the journal; returns the number of its control row.

    Parameters:
        request: Number of the request that it answers; None: it may follow any other row.

    Raises:
        StartRefused: Another row came first.
    """
    if (after := request) is None:
        known = resharding.newest(journal.controls(model, 0), entry.spec, done=False)
        after = 0 if known is None else known[0]
    key = f"{RESHARD}:{entry.spec[:16]}:{after}"
    payload = msgspec.json.encode(entry)
    row, _ = journal.write_control(model, RESHARD, key, payload)
    if row.payload != payload:
        raise StartRefused(
            f"model {model}: another request has just changed its number of parameter servers",
            "Try again",
        )
    return row.seq


def record_request(journal: Journal, model: str, entry: Reshard) -> int:
    """Write a request unless the same one is pending already; returns the number of its row.

    Raises StartRefused if another row came first.
    """
    known = resharding.newest(journal.controls(model, 0), entry.spec, done=False)
    if known is not None and known[1] == entry:
        return known[0]
    return note(journal, model, entry)


def claim(journal: Journal, model: str, entry: Reshard) -> int:
    """Write the request of a start whose settings name another number; return its row's number.

    From that row on, servers of the previous lineage that start neither decide nor trim.  Those
    that run may have begun a decision before it, so they are superseded.

    Parameters:
        entry: The control row to write once the lineage has begun.

    Raises:
        StartRefused: Another row came first.
    """
    before = newest_done(journal, model, entry.spec)
    given = entry.before if before is None else before.given
    seq = record_request(journal, model, msgspec.structs.replace(entry, given=given, done=False))
    begin_epoch(journal, Lineage(model, entry.was, "", "sum"))
    return seq


def withdraw(journal: Journal, model: str, spec: str, request: int | None = None) -> int | None:
    """Withdraw a pending request; returns the requested number of servers, None without one.

    Parameters:
        spec: Hash of the spec with one server.
        request: Number of the request; None: the pending one.

    Raises:
        StartRefused: It is being answered at this moment.
    """
    newest = resharding.newest(journal.controls(model, 0), spec, done=False)
    if newest is None or newest[1].done or request not in (None, newest[0]):
        return None
    seq, entry = newest
    note(journal, model, failed(entry, entry.before), seq)
    return entry.shards


def failed(entry: Reshard, back: int) -> Reshard:
    """Make the row that cancels what was requested or has begun; ``back``: the valid number."""
    return Reshard(
        entry.spec, entry.given, entry.shards, back, True, "failed", entry.serves, entry.was
    )  # fmt: skip


def check_can(controls: Sequence[Control], model: str, spec: str) -> None:
    """Raise StartRefused if a lineage's state can't be passed to another lineage."""
    remedy = "Learn the journal again with the new number: online serve --relearn"
    if bases.backfills(controls, spec):
        raise StartRefused(
            f"model {model} has learned tables, and its number of parameter servers has changed",
            f"{remedy}; or put the number back",
        )
    if shortfall.accepted(controls, spec) is not None:
        raise StartRefused(
            f"model {model} goes on without events that the journal has lost, and its number of "
            "parameter servers has changed",
            f"{remedy}; or put the number back",
        )


def reshard(
    journal: Journal,
    settings: Settings,
    model: ModelSettings,
    loaded: Loaded,
    before: int,
    entry: Reshard,
    request: int | None = None,
) -> Resharded:
    """Begin the model's lineage with the state that it had with another number of servers.

    Parameters:
        model, loaded: With the new number of servers.
        before: The previous number.
        entry: The control row to write once the lineage has begun.
        request: Number of the request that this fulfils; None: there is none.

    Raises:
        StartRefused: There is no cut, its state can't be passed on, or the request was withdrawn.
    """
    was = model.model_copy(update={"shards": before})
    spec = next(s for s, n in specs_of(model, settings).items() if n == before)
    check_can(journal.controls(model.name, 0), model.name, spec)
    name, state = cut_of(settings, was, spec)
    lineage = Lineage(model.name, loaded.spec_hash, loaded.spec_text, "sum")
    begin(journal, lineage, state, histories_of(settings, model, loaded.spec_hash))
    note(journal, model.name, entry, request)
    return Resharded(model.name, before, model.shards, name, digest_of(state.values)[0])


def begin(
    journal: Journal, lineage: Lineage, state: SnapshotState, histories: Sequence[SnapshotHistory]
) -> None:
    """Begin a lineage with the state of another one at one moment.

    Parameters:
        state: State of an aligned cut of the other lineage.
        histories: Snapshots of each server of the new lineage.

    Raises:
        StartRefused: The cut can't be used.
    """
    model, before = lineage.model, state.spec
    controls = journal.controls(model, 0)
    if any(c.kind in rewrites.REWRITES and c.seq > state.control for c in controls):
        raise StartRefused(
            f"model {model}: a decision has taken events out since its newest snapshots of the "
            "same rows",
            "Start it with the number of parameter servers that it had, and make some: online "
            "snapshot create",
        )
    stores: list[Store] = [
        journal, *(ShardStore(journal, shard) for shard in range(1, len(histories)))
    ]  # fmt: skip
    epochs = [begin_epoch(store, lineage) for store in stores]
    epoch = max(journal.head(model, before).epoch + 1, *epochs)
    for store in stores:
        while store.head(model, lineage.spec).epoch < epoch:
            begin_epoch(store, lineage)
    _check_rows(journal, state)  # from here on only the new lineage trims rows
    _copy_failed(journal, controls, state, lineage.spec)
    skipped = [b for c in controls if (b := bases.begun_by(c, before)) is not None]
    begun = rewrites.Begun(lineage.spec, dict(skipped[-1].clock) if skipped else {})
    key = f"{rewrites.BEGUN}:{lineage.spec}:{epoch}"
    row, _ = journal.write_control(model, rewrites.BEGUN, key, msgspec.json.encode(begun))
    after = [c for c in journal.controls(model, state.control) if c.seq <= row.seq]
    begins = replace(
        replayed(state, after, _none),
        spec=lineage.spec, spec_text=lineage.spec_text, version=(epoch, 0), parent=None,
    )  # fmt: skip
    parts = Cut(len(histories)).blocks(begins.values) if len(histories) > 1 else [begins.values]
    for store, history, values in reversed(list(zip(stores, histories, parts, strict=True))):
        publish(store, history, replace(begins, values=values), None)


def _none(name: str) -> Any:
    """Refuse to load a snapshot: no decision since the cut may name one, as was checked before."""
    raise StartRefused(f"snapshot {name} is asked for", "Try again: something was decided just now")


def _check_rows(journal: Journal, state: SnapshotState) -> None:
    gone = [
        p.id
        for p in journal.partitions(state.model)
        if p.id not in state.closed and state.clock.get(p.id, 0) < p.trimmed
    ]
    if gone:
        raise StartRefused(
            f"model {state.model}: rows of partition {gone[0]} that its newest snapshots of the "
            "same rows do not have are no more in the journal",
            "Start it with the number of parameter servers that it had",
        )


def _copy_failed(
    journal: Journal, controls: Collection[Control], state: SnapshotState, after: str
) -> None:
    """Copy failures of rows, so that the new lineage does not learn them either."""
    mark = f"{_FAILED}:{state.spec[:16]}:"
    for control in controls:
        if control.kind == _FAILED and control.key.startswith(mark):
            key = f"{_FAILED}:{after[:16]}:{control.key.removeprefix(mark)}"
            journal.write_control(state.model, _FAILED, key, control.payload)
