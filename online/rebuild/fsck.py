"""Checks that every accepted event of the journal is in the model exactly once, by its digest.

The digest is an integer block: the count of learned events and the sum of their keys' hashes
modulo 2^64.  It is pushed with the deltas and never scaled, so it verifies the set of events, not
only their number, for any model and merge rule.

Rows that retention has removed can't be counted.  In this case the difference between the newest
snapshot and the oldest snapshot that contains the same removed rows is checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from online.audit.log import started_with
from online.challenger.promotion import as_stored
from online.errors import StartRefused
from online.models.loading.from_settings import load_model
from online.rebuild.acceptance import without_a_trace
from online.rebuild.erase import unfinished
from online.rebuild.holdings import (
    Counts,
    Holding,
    Moved,
    base_of,
    holding_of,
    minus,
    of_loss,
    pages,
)
from online.rows.history import Decisions
from online.rows.prediction_ids import Keys
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal, snapshots_of, snapshots_path
from paramserver.core.blocks import Blocks
from paramserver.core.shards import Cut, ShardStore, shard_place
from paramserver.errors import ParamServerError, SnapshotCorrupt, SnapshotFormat, SnapshotMissing
from paramserver.errors import StartRefused as Refused
from paramserver.process.lineage import Lineage, check_start
from paramserver.process.shortfall import shortfall
from paramserver.snapshots.chain import Reader
from paramserver.snapshots.history import Foreign, SnapshotHistory, ancestors, parse_name
from paramserver.snapshots.places import Snapshots
from paramserver.snapshots.store import SUFFIX, ReadingDisk, Retention
from paramserver.store import Store
from replay.journal.base import Journal

_PAGE = 1000
_MASK = 2**64 - 1
_ATTEMPTS = 5  # a running service may remove rows and snapshots during a check

Progress = Callable[[int, int], None]
Digest = tuple[int, int]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """Result of comparing the newest snapshot with the journal up to its clock.

    Attributes:
        snapshot, base: The newest good snapshot, and the one it was compared with if rows were
            removed.
        learned, expected: Events in the snapshot (beyond ``base``), and events per the journal.
        digest_equal: Whether they are the same events; None: no snapshot covers removed rows.
        removed, holes: Rows that retention removed, and rows that are missing otherwise.
        not_yet: Rows after the snapshot; a start learns them.
        failed, undone, frozen, quarantined, waiting: Events that are in no model because the model
            raised; were rolled back or forgotten; came during a freeze; are quarantined and not
            released; are halves of stored joins.  Events that were relearned are not counted.
        refused: Damaged snapshots with the reason.
        heads: Head of every lineage, by a prefix of its spec hash.
        head_missing: Whether the file of the newest snapshot is missing.
        served: Whether a service runs on the folder; it would write a missing file again.
        lacks: Rows that snapshots contain and the journal does not have.
        no_start: Why a start on this state would be refused; None: it would not.
        lost: Placeholder rows for events that the journal has lost or that were given up.
        erasing: Sources whose erasure was decided and is not complete.
        shards: For a model with several servers, the findings on the others.
    """

    model: str
    snapshot: str | None
    base: str | None
    learned: int
    expected: int
    digest_equal: bool | None
    removed: int
    holes: int
    not_yet: int
    failed: int
    undone: int
    frozen: int
    quarantined: int
    waiting: int
    refused: Mapping[str, str]
    heads: Mapping[str, str | None]
    head_missing: bool = False
    served: bool = False
    lacks: int = 0
    no_start: str | None = None
    lost: int = 0
    erasing: tuple[str, ...] = ()
    shards: tuple[Findings, ...] = ()

    @property
    def good(self) -> bool:
        """Whether no event is missing or doubled, no partition has a hole, and a start can succeed.

        Without a running service, a missing head is no fault: its predecessor is used.
        """
        whole = self.digest_equal is not False and self.holes == 0
        able = self.no_start is None and not (self.head_missing and self.served)
        return whole and able and all(shard.good for shard in self.shards)

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as plain data, ``good`` included."""
        return {
            **asdict(self), "good": self.good, "shards": [one.as_dict() for one in self.shards],
        }  # fmt: skip

    def __str__(self) -> str:
        verdict = "good" if self.good else "NOT GOOD"
        if self.digest_equal is None:
            verdict += ", as far as it can be checked"
            outcome = f"not checkable: {self.removed:,} rows were removed by retention"
        else:
            since = f" since snapshot {self.base}" if self.base else ""
            outcome = (
                f"{self.learned:,} events{since}; the journal up to its clock: {self.expected:,}; "
                f"digests {'equal' if self.digest_equal else 'DIFFER'}"
            )
        lines = [
            f"{self.model}: {verdict}",
            f"  snapshot {self.snapshot}: {outcome}",
            f"  {self.not_yet:,} rows after it, {self.holes:,} holes, {self.removed:,} removed",
            f"  not in the model: {self.undone:,} undone, {self.frozen:,} frozen, "
            f"{self.quarantined:,} quarantined, {self.failed:,} failed, "
            f"{self.waiting:,} waiting for their other half",
            *([f"  {self.lost:,} lost or given up, their repeats new"] if self.lost else []),
            *(f"  erasing {s!a} has not ended: run it again" for s in self.erasing),
            *(f"  snapshot {name} is damaged: {why}" for name, why in self.refused.items()),
            *([f"  a start would be refused: {self.no_start}"] if self.no_start else []),
            *(f"  head of lineage {spec}: {head}" for spec, head in self.heads.items()),
            *map(str, self.shards),
        ]
        return "\n".join(lines)


class NeverServed(StartRefused):
    """The journal knows nothing of a model: it is new, renamed, or in another folder."""


def check(
    settings: Settings, model: str, progress: Progress | None = None, *, served: bool = False
) -> Findings:
    """Compare the newest snapshot of the model's lineage with the journal up to its clock.

    Parameters:
        served: Whether a service runs on the folder, on this machine.

    Raises:
        NeverServed: The journal has nothing of this model.
        StartRefused: The journal can't be opened, belongs to other models than the settings name,
            or is changed too fast by the service.
    """
    path = settings.state_dir / "journal.db"
    if settings.journal == "sqlite" and not path.exists():  # opening it would create one
        raise StartRefused(f"there is no journal {path}", "Name its folder with --state-dir")
    chosen = next(m for m in as_stored(settings).models if m.name == model)
    spec = load_model(chosen, settings, *Keys.stored(settings.key_path)).spec_hash
    with contextlib.closing(open_journal(settings)) as journal:
        _check_known(journal.lineages(model), settings, chosen, spec)
        findings = []
        for shard in range(chosen.shards):
            snapshots = snapshots_of(settings, model, spec, shard, ReadingDisk())
            comparison = partial(
                compare, journal, snapshots, model, spec, progress,
                served=served, shard=(shard, chosen.shards),
            )  # fmt: skip
            findings.append(_compared(comparison, model))
    return replace(findings[0], shards=tuple(findings[1:]))


def _compared(compared: Callable[[], Findings], model: str) -> Findings:
    """Retry the comparison if a running service removed what it reads."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(Moved):
            return compared()
    message = f"model {model}: rows and snapshots were removed while they were checked"
    raise StartRefused(message, "Run it again when less is going on")


def _check_known(
    lineages: Sequence[str], settings: Settings, model: ModelSettings, spec: str
) -> None:
    """Refuse a model that the journal does not know."""
    if not lineages:
        message = f"the journal has nothing of a model {model.name!r}"
        if _has_snapshots(settings, model, spec):
            raise StartRefused(
                f"{message}, and there are snapshots of it: the journal is another one, or has "
                "lost it",
                "Put the journal back that they belong to, and keep a copy of both",
            )
        raise NeverServed(message, "Name its settings file with --config")
    if spec not in lineages:
        raise StartRefused(
            f"model {model.name}: its code or settings are not those that any of its events in the "
            "journal was learned with",
            "Name the settings file that it is served with: --config",
        )


def _has_snapshots(settings: Settings, model: ModelSettings, spec: str) -> bool:
    """Whether the model has any snapshots; in an object store, only those of this spec."""
    for shard in range(model.shards):
        place = shard_place(snapshots_path(settings), shard)
        if "://" not in place and any((Path(place) / model.name).glob(f"*/*{SUFFIX}")):
            return True
        if snapshots_of(settings, model.name, spec, shard, ReadingDisk()).names():
            return True
    return False


def unnamed(settings: Settings) -> list[str]:
    """Models that the journal has and the settings do not: removed, renamed or misspelt."""
    place = snapshots_path(settings)
    names = {p.name for p in Path(place).glob("*")} if "://" not in place else set()
    with contextlib.closing(open_journal(settings)) as journal:
        names = (names | started_with(journal)) - {model.name for model in settings.models}
        return sorted(name for name in names if journal.lineages(name))


def compare(
    journal: Journal,
    snapshots: Snapshots,
    model: str,
    spec: str,
    progress: Progress | None = None,
    *,
    served: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Findings:
    """Compare one lineage with the journal, as :func:`check` does.

    Reads every row and every snapshot, and changes nothing.

    Parameters:
        served: Whether a service runs on them.
        shard: Number of the server whose snapshots they are, and number of servers.
    """
    files = _files(journal, snapshots, model, spec, *shard)
    partitions = journal.partitions(model)  # read after the snapshots, so not behind their clocks
    now, views = files.newest, files.views.values()
    base = base_of(
        now, (Holding(None), *of_loss(journal, model, spec, partitions), *views), partitions
    )
    decisions = Decisions(spec)
    decisions.read(journal, model)
    counts = Counts(decisions, now, base or Holding(None))
    rows = sum(p.end - p.trimmed for p in partitions)
    done = holes = 0
    for partition in partitions:
        for page, missing in pages(journal, partition):
            holes += missing
            done += len(page) + missing
            for row in page:
                counts.add(partition, row)
            if progress is not None:
                progress(done, rows)
    learned = minus(now.digest, (base or Holding(None)).digest)
    removed = sum(p.trimmed for p in partitions)
    return Findings(
        model=f"{model}, shard {shard[0]}" if shard[0] else model,
        snapshot=now.name,
        base=None if base is None else base.name,
        learned=learned[0],
        expected=counts.digest[0],
        digest_equal=None if base is None else counts.digest == learned,
        removed=removed,
        holes=holes,
        not_yet=sum(max(p.end - max(now.upto(p), p.trimmed), 0) for p in partitions),
        failed=len(decisions.failed),
        undone=len(counts.undone - counts.standing),
        frozen=len(counts.frozen - counts.standing),
        quarantined=len(counts.quarantined - counts.standing),
        waiting=journal.usage(model).halves,
        refused=files.refused,
        heads=files.heads,
        head_missing=files.head_missing,
        served=served,
        lacks=files.lacks,
        no_start=files.no_start,
        lost=counts.lost,
        erasing=tuple(decision.source for _, decision in unfinished(journal, model)),
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """Snapshots of one server: the newest good one, all good ones, and problems."""

    newest: Holding
    views: Mapping[str, Holding]
    refused: Mapping[str, str]
    heads: Mapping[str, str | None]
    head_missing: bool
    lacks: int
    no_start: str | None


def _files(
    journal: Journal, snapshots: Snapshots, model: str, spec: str, shard: int, of: int
) -> _Files:
    """Read the snapshots of one of several servers.  Raises Moved."""
    store: Store = ShardStore(journal, shard) if shard else journal
    foreign: Foreign = (lambda values: Cut(of).foreign(values, shard)) if of > 1 else _nothing
    head = store.head(model, spec).snapshot
    views, refused = _views(journal, snapshots, model, spec, foreign)
    if head_missing := head is not None and head not in {*views, *refused}:
        if store.head(model, spec).snapshot != head:
            raise Moved
        refused[str(head)] = "it is the head, and its file is missing"
    lacking, no_start = _start(store, SnapshotHistory(snapshots, Retention(), foreign), model, spec)
    no_start = without_a_trace(journal) if no_start is None else no_start
    if no_start is not None and store.head(model, spec).snapshot != head:
        raise Moved
    newest = next((views[name] for name in _line(head, views)), Holding(None))
    heads = {s[:16]: store.head(model, s).snapshot for s in journal.lineages(model)}
    return _Files(newest, views, refused, heads, head_missing, lacking, no_start)


def _nothing(values: Blocks) -> str | None:
    """Return None: no value is foreign to the only server of a model."""
    return None


def _start(store: Store, history: SnapshotHistory, model: str, spec: str) -> tuple[int, str | None]:
    """Number of rows that snapshots have and the journal lacks; why a start would be refused."""
    lacking = shortfall(store, history, model, spec).events
    try:
        check_start(store, history, Lineage(model, spec, "", "sum"))
    except Refused as error:
        return lacking, str(error)
    except (OSError, ParamServerError) as error:  # the disk may recover: the start tries again
        return lacking, f"{type(error).__name__}: {error}"
    return lacking, None


def _line(head: str | None, names: Mapping[str, Holding]) -> list[str]:
    """Good snapshots among the head's ancestors, newest first."""
    return [] if head is None else [name for name in ancestors(head, names) if name in names]


def _views(
    journal: Journal, snapshots: Snapshots, model: str, spec: str, foreign: Foreign
) -> tuple[dict[str, Holding], dict[str, str]]:
    """Every good snapshot, oldest first, and the reason for each bad one."""
    views, refused, reader = {}, {}, Reader(snapshots)
    names = [name for name in snapshots.names() if parse_name(name) is not None]
    for name in sorted(names, key=lambda n: (parse_name(n), n)):
        try:
            state, _ = reader.read(name)
        except SnapshotMissing:
            continue  # retention has just removed it
        except (SnapshotCorrupt, SnapshotFormat) as error:
            refused[name] = str(error)
            continue
        if (why := foreign(state.values)) is not None:
            refused[name] = why
        elif (state.model, state.spec) == (model, spec):
            views[name] = holding_of(journal, name, state)
        else:
            refused[name] = f"it is of model {state.model!r}, spec {state.spec[:12]}"
    return views, refused
