"""Continues without events that a journal has lost, after an operator has accepted the loss.

A journal that is older than the snapshots beside it (a restored backup, a truncated file) is
refused at the start.  After acceptance the newest snapshots are continued, and the journal is
brought to a state in which nothing written later can be mistaken for what is lost:

1. Its control rows are filled up to the highest number that a snapshot knows.  The last of these
   rows records that the procedure has begun; until it is complete no start takes place.
2. Partitions are sealed at the highest clock of a snapshot.  Each lost row is replaced by a
   placeholder; an unknown partition is created with all its rows missing.  New partitions and the
   commit order continue behind them.
3. Each lineage gets an epoch beyond all snapshots' epochs, under which its newest good snapshot is
   published again.
4. Bans and a freeze that the snapshot knows are decided again.
5. A control row per lineage records what was lost, and by how much the digest of its values exceeds
   that of the journal's rows, so that ``online fsck`` can compare again.

Each step can be repeated.  No clock, no HTTP, no Ray.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from online.errors import StartRefused
from online.learning.counters import digest_of
from online.rebuild.holdings import difference
from online.rows.prediction_ids import event_key
from paramserver.core import rewrites
from paramserver.core.state import SnapshotState
from paramserver.errors import SnapshotCorrupt, SnapshotFormat, SnapshotMissing
from paramserver.process import shortfall
from paramserver.process.lineage import Lineage, begin_epoch, publish
from paramserver.process.shortfall import LOSS_ACCEPTED, LOST, Accepted, Lost, Shortfall
from paramserver.snapshots.history import SnapshotHistory
from replay import codec
from replay.errors import JournalDamaged
from replay.example import Example
from replay.journal.base import Control, Journal, NewRow, Partition, Verdict

_STEP_ROWS: Final = 500


def without_a_trace(journal: Journal) -> str | None:
    """Describe how many committed rows the journal lacks, per the note beside its file."""
    if not (lost := journal.lost):
        return None
    return (
        f"the journal lacks its newest {lost:,} rows: it was written further, and an older copy "
        "was put in its place, or its write-ahead log was removed or cut"
    )


@dataclass(frozen=True, slots=True)
class _LineageLoss:
    """A lineage's newest good snapshot, and what the journal lacks that snapshots contain."""

    history: SnapshotHistory
    name: str
    state: SnapshotState
    missing: Shortfall


def accept(
    journal: Journal, model: str, histories: Mapping[str, SnapshotHistory], now_s: float
) -> list[Accepted]:
    """Let the lineages of a model continue without lost rows; returns a note for each lineage.

    Parameters:
        histories: Snapshots of each lineage, by spec hash.
        now_s: POSIX seconds.

    Raises:
        StartRefused: The available state can't be continued.
    """
    lineages = _look(journal, model, histories)
    journal.accept_lost()
    controls = journal.controls(model, 0)
    if not any(_needed(controls, spec, one) for spec, one in lineages.items()):
        return []
    lost = _all_lost(journal, controls, model, lineages)
    seq = _fill(journal, controls, model, lineages, lost)
    _seal(journal, model, lineages, lost, now_s)
    knows_most = max((one.state for one in lineages.values()), key=lambda state: state.control)
    _decide_anew(journal, knows_most, controls, lost, seq)
    notes = []
    for one in lineages.values():
        note = _go_on(journal, model, one, lost, seq, now_s)
        key = f"{LOSS_ACCEPTED}:{note.spec}:{note.version[0]}"
        journal.write_control(model, LOSS_ACCEPTED, key, msgspec.json.encode(note))
        notes.append(note)
    return notes


def give_up(
    journal: Journal,
    model: str,
    histories: Mapping[str, SnapshotHistory],
    places: Sequence[tuple[int, int]],
    now_s: float,
) -> list[Accepted]:
    """Replace damaged rows by placeholders, which teach nothing, and let the model continue.

    Rows behind them in their partitions can be learned again.  A snapshot that has learned a
    damaged row keeps it; the lineage's note records the difference.  An interrupted call can be
    repeated.

    Parameters:
        places: Partition and offset of each row: all damaged rows of the model.

    Raises:
        StartRefused: A row is not damaged or not the model's, or the journal lacks rows that
            snapshots have.
        JournalDamaged: Further rows are damaged.
    """
    for place in places:
        _check_damaged(journal, model, *place)
    state = _look(journal, model, histories)
    for one in state.values():
        if one.missing:
            raise shortfall.refusal(model, one.missing)
    lost, seq = Lost(), 0
    if state:
        controls = journal.controls(model, 0)
        spans = _spans(places)
        for spec in state:
            if (loss := shortfall.accepted(controls, spec)) is not None:
                spans = _joined(spans, loss.note.rows)
        lost = Lost(list(state), spans, controls[-1].seq if controls else 0)
        key = f"{LOST}:{lost.known + 1}"
        seq = journal.write_control(model, LOST, key, msgspec.json.encode(lost))[0].seq
    for p, offset in places:
        journal.stand_in(p, offset, _stands_for(p, offset, now_s))
    notes = []
    for one in state.values():
        controls = journal.controls(model, 0)
        loss = shortfall.accepted(controls, one.state.spec)
        events = len(places) + (0 if loss is None else loss.note.events)
        note = _go_on(journal, model, one, lost, seq, now_s, events)
        key = f"{LOSS_ACCEPTED}:{note.spec}:{note.version[0]}"
        journal.write_control(model, LOSS_ACCEPTED, key, msgspec.json.encode(note))
        notes.append(note)
    return notes


def _check_damaged(journal: Journal, model: str, p: int, offset: int) -> None:
    partition, place = journal.partition(p), f"row {p}:{offset}"
    if partition is None or partition.model != model or not 0 < offset <= partition.end:
        raise StartRefused(f"model {model} has no {place}", "`online fsck` names damaged rows")
    with contextlib.suppress(JournalDamaged):
        rows = journal.read(p, offset, 1)
        if not rows:
            raise StartRefused(f"{place} is not there any more", "Nothing has to be given up")
        if rows[0].verdict is not Verdict.LOST:
            raise StartRefused(f"{place} is as it was written", "Nothing has to be given up")


def _spans(places: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """The smallest span of each partition that covers its rows, as in :class:`Accepted`."""
    spans: dict[int, tuple[int, int]] = {}
    for p, offset in places:
        spans = _joined(spans, {p: (offset - 1, offset)})
    return spans


def _joined(
    one: Mapping[int, tuple[int, int]], other: Mapping[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    out = dict(one)
    for p, (after, upto) in other.items():
        at = out.get(p, (after, upto))
        out[p] = min(after, at[0]), max(upto, at[1])
    return dict(sorted(out.items()))


def _look(
    journal: Journal, model: str, histories: Mapping[str, SnapshotHistory]
) -> dict[str, _LineageLoss]:
    """Examine each lineage with a good snapshot; StartRefused if rows are lost and none is good."""
    lineages = {}
    for spec, history in histories.items():
        missing = shortfall.shortfall(journal, history, model, spec)
        newest = _newest(journal, history, model, spec)
        if newest is not None:
            lineages[spec] = _LineageLoss(history, *newest, missing)
        elif missing:
            raise StartRefused(
                f"no snapshot of {model!r} can be used, and {shortfall.refusal(model, missing)}",
                "Put a good copy of a snapshot back",
            )
    return lineages


def _newest(
    journal: Journal, history: SnapshotHistory, model: str, spec: str
) -> tuple[str, SnapshotState] | None:
    """The newest good snapshot since the lineage was last begun; None without one."""
    history.index()
    since = shortfall.begun(journal.controls(model, 0), spec)
    for row in history.listed():
        if row.version[0] < since:
            break
        try:
            state = history.load(row.name)
        except (SnapshotCorrupt, SnapshotFormat, SnapshotMissing):
            continue
        if (state.model, state.spec) == (model, spec):
            return row.name, state
    return None


def _needed(controls: Sequence[Control], spec: str, one: _LineageLoss) -> bool:
    loss = shortfall.accepted(controls, spec)
    older = loss is not None and one.state.version < loss.note.version
    return bool(one.missing or older or shortfall.unfinished(controls, spec))


def _all_lost(
    journal: Journal, controls: Sequence[Control], model: str, lineages: Mapping[str, _LineageLoss]
) -> Lost:
    """Return losses now, losses of unfinished runs, and losses that were accepted before.

    Raises StartRefused if the snapshots belong to another journal.
    """
    known = controls[-1].seq if controls else 0
    rows: dict[int, tuple[int, int]] = {}

    def add(p: int, after: int, upto: int) -> None:
        rows.update(_joined(rows, {p: (after, upto)}))

    for spec, one in lineages.items():
        before = shortfall.unfinished(controls, spec)
        known = min([known, *(begun.known for begun in before)])
        loss = shortfall.accepted(controls, spec)
        earlier = [begun.rows for begun in before] + ([loss.note.rows] if loss else [])
        for p, (after, upto) in (item for lost in earlier for item in lost.items()):
            add(p, after, upto)
        for p, (end, upto) in one.missing.rows.items():
            _check_partition(journal.partition(p), model, end, upto)
            add(p, end, upto)
        for p in one.missing.unsealed:
            if (partition := journal.partition(p)) is None:
                add(p, 0, 0)
            else:
                _check_partition(partition, model, partition.end, 0)
    return Lost(list(lineages), dict(sorted(rows.items())), known)


def _check_partition(partition: Partition | None, model: str, end: int, upto: int) -> None:
    if partition is None or (partition.model == model and not (partition.sealed and upto > end)):
        return
    raise StartRefused(
        f"partition {partition.id} of {partition.model!r} was sealed at {end} in the journal, and "
        f"a snapshot of {model!r} has learned {upto} rows of it",
        "These snapshots are of another journal: name the right places in the settings",
    )


def _fill(
    journal: Journal,
    controls: Sequence[Control],
    model: str,
    lineages: Mapping[str, _LineageLoss],
    lost: Lost,
) -> int:
    """Fill up the control rows, and write the one that records the begin; returns its number."""
    seq = controls[-1].seq if controls else 0
    upto = max(seq, *(one.missing.controls[1] for one in lineages.values()))
    while seq <= upto:
        note = Lost() if seq < upto else lost
        key = f"{LOST}:{seq + 1}"
        seq = journal.write_control(model, LOST, key, msgspec.json.encode(note))[0].seq
    return seq


def _seal(
    journal: Journal, model: str, lineages: Mapping[str, _LineageLoss], lost: Lost, now_s: float
) -> None:
    """Seal every partition, after filling lost rows up to the highest clock of a snapshot."""
    position = max(one.missing.position for one in lineages.values())
    for p, (_, upto) in lost.rows.items():
        journal.register_lost(model, lost.specs[0], p, upto, position)
        partition = journal.partition(p)
        end = upto if partition is None else partition.end
        while end < upto:
            n = min(upto - end, _STEP_ROWS, journal.batch_rows_max)
            end = journal.append(p, end, [_stands_for(p, end + i + 1, now_s) for i in range(n)]).end
    partitions = journal.partitions(model)
    for partition in partitions:
        journal.seal(partition.id)
    if partitions and position:  # continue the commit order behind the lost rows
        journal.register_lost(model, lost.specs[0], partitions[0].id, 0, position)


def _stands_for(partition: int, offset: int, now_s: float) -> NewRow:
    """The placeholder of a lost or damaged row."""
    name = f"{partition}:{offset}"
    payload = codec.encode(Example({}, False))
    return NewRow(event_key(LOST, name), f"{LOST}:{name}", "", Verdict.LOST, payload, now_s)


def _go_on(
    journal: Journal, model: str, one: _LineageLoss, lost: Lost, seq: int, now_s: float,
    events: int | None = None,
) -> Accepted:  # fmt: skip
    """Publish the lineage's newest good snapshot under an epoch beyond all others.

    Parameters:
        events: Number of lost events; None: as many as lost rows.
    """
    state = one.state
    lineage = Lineage(model, state.spec, state.spec_text, "sum")
    epochs = journal.head(model, state.spec).epoch, one.history.newest_epoch()
    while (epoch := begin_epoch(journal, lineage)) <= epochs[1]:
        pass
    partitions = {p.id: p for p in journal.partitions(model)}
    clock = dict(state.clock)
    for p in lost.rows:
        if p not in state.closed and partitions[p].trimmed == partitions[p].end:
            clock[p] = partitions[p].end  # all of its rows are gone
    freezes = [c.seq for c in journal.controls(model, 0) if c.kind == rewrites.FREEZE]
    state = replace(
        state,
        version=(epoch, state.version[1] + 1),
        clock=clock,
        control=seq,
        frozen=state.frozen if state.frozen in freezes else 0,  # else the freeze is decided again
        parent=one.name,
        created_at=now_s,
    )
    name = publish(journal, one.history, state, one.state.version)
    return Accepted(
        spec=state.spec,
        at=now_s,
        base=one.name,
        snapshot=name,
        version=state.version,
        rows={p: span for p, span in lost.rows.items() if span[1] > span[0]},
        events=sum(upto - after for after, upto in lost.rows.values())
        if events is None
        else events,
        decisions=(lost.known, max(lost.known, one.state.control)),
        epochs=(epochs[0], max(epochs)),
        control=seq,
        clock=clock,
        closed=sorted(state.closed),
        trimmed={p.id: p.trimmed for p in partitions.values()},
        digest=digest_of(state.values),
        difference=difference(journal, state),
    )


def _decide_anew(
    journal: Journal, state: SnapshotState, controls: Sequence[Control], lost: Lost, seq: int
) -> None:
    """Repeat bans and a freeze that the snapshot knows and the journal has lost."""
    if state.control <= lost.known:
        return

    def decide(kind: str, what: str, note: msgspec.Struct) -> None:
        key = f"{kind}:{LOST}:{seq}:{what}"
        journal.write_control(state.model, kind, key, msgspec.json.encode(note))

    known = frozenset(rewrites.banned(controls))
    then = known if state.banned is None else state.banned
    for source in sorted(then ^ known):
        decide(rewrites.SOURCE, source, rewrites.Source(source, source in then))
    frozen = rewrites.frozen_by(controls)
    if state.frozen and not frozen:
        freeze = rewrites.Freeze(dict(state.clock), sorted(state.closed))
        decide(rewrites.FREEZE, "", freeze)
    elif frozen and not state.frozen:
        decide(rewrites.UNFREEZE, "", rewrites.Unfreeze())
