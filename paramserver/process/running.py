"""The state of one server's process, and the locks that guard it.

The components of the server share one :class:`Running`: requests of replicas and restoring
(:mod:`paramserver.process.actor`), snapshots (:mod:`paramserver.process.publishing`), replacing the
values (:mod:`paramserver.process.swapping`), and other decisions
(:mod:`paramserver.process.decisions`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from paramserver.core import rewrites, wire
from paramserver.core.replicas import Replicas
from paramserver.core.server import IN_ORDER, MergeRule, Server
from paramserver.core.state import SnapshotState
from paramserver.core.wire import Mark, Version
from paramserver.errors import NotReady
from paramserver.process.leases import Leases
from paramserver.process.lineage import Lineage, Recovered
from paramserver.process.settings import Host, ServerSettings
from paramserver.process.shared_tables import SharedTables
from paramserver.snapshots.history import SnapshotHistory, parse_name
from paramserver.snapshots.views import lineage_folder
from paramserver.store import PartitionInfo, Store

MARKS_MAX: Final = 64
"""Number of marks that are kept, the newest ones, and so of marks in a message."""
CONTEXT_MAX: Final = 64
"""Characters of a mark's context; marks with longer ones are ignored."""


class Marks:
    """The newest marks, each with the version that first contains its row."""

    def __init__(self) -> None:
        self._held: deque[tuple[Version, Mark]] = deque(maxlen=MARKS_MAX)

    def note(self, marks: Iterable[Mark], version: Version, clock: Mapping[int, int]) -> None:
        """Add the marks of rows that the values of this version contain, by the clock."""
        places = {(held.partition, held.offset) for _, held in self._held}
        for mark in marks:
            if (mark.partition, mark.offset) in places or len(mark.context) > CONTEXT_MAX:
                continue
            if mark.offset <= clock.get(mark.partition, 0):
                self._held.append((version, mark))

    def since(self, since: Version | None, partition: int) -> list[Mark]:
        """Return marks of other partitions' rows that were applied after version ``since``."""
        if since is None:
            return []
        return [
            mark
            for version, mark in self._held
            if version[0] == since[0] and version > since and mark.partition != partition
        ]


_log: Final = logging.getLogger(__name__)

SERVING: Final = "serving"
REWRITING: Final = "rewriting"


class Serving(NamedTuple):
    """The parts of a server that is ready."""

    server: Server
    store: Store
    history: SnapshotHistory


class Running:
    """The shared state of one lineage's server process.

    Attributes:
        lock: Guards the server, leases, replicas and partitions.
        publishing, deciding: Locks that are taken in this order and before ``lock``.  They admit
            one snapshot or decision at a time, and no check of the epoch while it may change.
        state, reason: ``restoring``, ``serving``, ``rewriting``, ``refused``, ``superseded`` or
            ``ended``, and the reason for one of the last three.
        server, store, history: None until restored.
        base, parent, published: Version and name of the newest snapshot, and the version count
            that it holds.
        unpublished: Error of the newest attempt to write a snapshot; None if it succeeded.
        needed: The newest rewrite or backfill, whose snapshot a start may need, or None.
        begun: Epoch in which the lineage last started afresh.
        asides: Names of separately built states whose files are in the snapshot directory.
        chosen: A begun snapshot that shard 0 asked for and that is to be published, or None.
        partitions: All partitions of the model by number.
        waiting: Those that are not closed.
        open: Those of ``waiting`` that are not sealed or not fully applied.
        gone: Partitions whose owner is known to be dead.
        marks: Trace contexts that are passed on to other replicas.
        shared: Publishes the tables to replicas of this host; None: each replica has its own.
        confirmed_s, published_s, restored_s: Monotonic times at which the epoch was last confirmed
            to be ours, a snapshot was published, the state was restored.
    """

    def __init__(self, lineage: Lineage, settings: ServerSettings, host: Host) -> None:
        self.lineage, self.settings, self.host = lineage, settings, host
        self.lock = threading.Lock()
        self.publishing = threading.Lock()
        self.deciding = threading.Lock()
        self.state, self.reason = "restoring", ""
        self.server: Server | None = None
        self.store: Store | None = None
        self.history: SnapshotHistory | None = None
        self.base: wire.Version | None = None
        self.parent: str | None = None
        self.published: int | None = None
        self.unpublished: str | None = None
        self.needed: rewrites.Needed | None = None
        self.begun = 0
        self.asides: set[str] = set()
        self.chosen: SnapshotState | None = None
        self.partitions: dict[int, PartitionInfo] = {}
        self.waiting: list[PartitionInfo] = []
        self.open: list[PartitionInfo] = []
        self.gone: frozenset[int] = frozenset()
        now_s = host.monotonic()
        self.leases = Leases(settings.lease_s, settings.adopt_max, now_s)
        self.replicas = Replicas(settings.report_keep_s)
        self.marks = Marks()
        shared = settings.shared and lineage_folder(settings.shared, lineage.model, lineage.spec)
        self.shared = SharedTables(shared) if shared else None
        self.confirmed_s = self.published_s = self.restored_s = now_s

    def begin(
        self,
        recovered: Recovered,
        history: SnapshotHistory,
        asides: set[str],
        partitions: Sequence[PartitionInfo],
        gone: frozenset[int],
    ) -> None:
        """Serve the state that a start has recovered."""
        self._set_up(recovered.server)
        with self.lock:
            now_s = self.host.monotonic()
            self.server, self.history = recovered.server, history
            self.base, self.parent = recovered.base, recovered.snapshot
            # started from an ancestor because the head is damaged: publish at once
            self.published = recovered.server.count if recovered.at_head else None
            self.needed, self.begun, self.asides = recovered.needed, recovered.begun, asides
            self.confirmed_s = self.published_s = self.restored_s = now_s
            self.leases = Leases(self.settings.lease_s, self.settings.adopt_max, now_s)
            self.note_partitions(recovered.server, partitions, gone)
            self.state, self.reason = SERVING, ""

    def switch_to(self, state: SnapshotState, rule: MergeRule, epoch: int) -> None:
        """Serve another state from now on, under an epoch that was just taken."""
        settings = self.settings
        server = Server.restored(
            state, rule, epoch, history_max=settings.history_max, part_keys=settings.part_keys
        )
        self._set_up(server)
        with self.lock:
            parent = None if self.parent is None else parse_name(self.parent)
            self.server, self.published, self.chosen = server, None, None
            self.base = None if parent is None else parent[0]
            self.confirmed_s = self.host.monotonic()
            self.published_s = self.confirmed_s - self.settings.interval_s  # due at once
            self.note_partitions(server, list(self.partitions.values()), self.gone)
            self.state, self.reason = SERVING, ""

    def _set_up(self, server: Server) -> None:
        """Apply the bounds to a server before it takes requests, and publish its tables."""
        server.sources_max, server.holdings.most = self.settings.sources_max, self.settings.held_max
        if server.rule not in IN_ORDER:  # else replicas keep rows that a restart would remove here
            server.bound(self.settings.tables)
        if self.shared is not None:
            self.shared.take(server)

    def note_partitions(
        self, server: Server, partitions: Sequence[PartitionInfo], gone: frozenset[int]
    ) -> None:
        """Update the partitions from the store.  The caller holds ``lock``."""
        self.partitions = {p.id: p for p in partitions}
        self.gone = gone
        finished = server.note_partitions(partitions)
        self.waiting = [p for p in partitions if p.id not in server.closed]
        self.open = [p for p in self.waiting if p.id not in finished]

    def serving(self) -> Serving:
        """Return server, store and history.  Raises NotReady if not serving."""
        server, store, history = self.server, self.store, self.history
        if self.state != SERVING or server is None or store is None or history is None:
            raise NotReady(self.state, self.reason)
        return Serving(server, store, history)

    @contextlib.contextmanager
    def decision(self) -> Iterator[Serving]:
        """Exclude other snapshots, decisions and epoch checks meanwhile.  Raises NotReady."""
        with self.publishing, self.deciding:
            yield self.serving()

    @contextlib.contextmanager
    def rewriting(self) -> Iterator[None]:
        """Refuse all requests meanwhile, because the values are about to be replaced."""
        with self.lock:  # wait until the request in progress is answered
            self.state = REWRITING
        try:
            yield
        finally:
            if self.state == REWRITING:
                self.state = SERVING

    def end(self, error: Exception, state: str = "superseded") -> None:
        """End this process: another one has the epoch, or a decision's outcome is unknown."""
        _log.error("%s", error)
        self.state, self.reason = state, str(error)
        self.host.die()
