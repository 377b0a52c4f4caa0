"""The state of one server's process, and the locks under which its parts are read and changed.

Everything that acts on the server shares one :class:`Running`: what answers replicas and restores
(:mod:`paramserver.process.actor`), snapshots (:mod:`paramserver.process.publishing`), values that
are replaced (:mod:`paramserver.process.swapping`), decisions that leave them as they are
(:mod:`paramserver.process.decisions`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from paramserver.core import rewrites, wire
from paramserver.core.marks import Marks
from paramserver.core.replicas import Replicas
from paramserver.core.server import MergeRule, Server
from paramserver.core.state import SnapshotState
from paramserver.errors import NotReady
from paramserver.process.leases import Leases
from paramserver.process.lineage import Lineage, Recovered
from paramserver.process.settings import Host, ServerSettings
from paramserver.snapshots.history import SnapshotHistory, parse_name
from paramserver.store import PartitionInfo, Store

_log: Final = logging.getLogger(__name__)

SERVING: Final = "serving"
REWRITING: Final = "rewriting"


class Serving(NamedTuple):
    """The parts of a server that is ready."""

    server: Server
    store: Store
    history: SnapshotHistory


class Running:
    """One lineage's server in its process.

    Attributes:
        lock: The server, leases, replicas and partitions are read and changed under it.
        publishing, deciding: Taken in this order, and before the lock: one snapshot or decision at
            a time, and while the epoch may change nobody looks at it.
        state, reason: ``restoring``, ``serving``, ``rewriting``, or why it does not go on.
        server, store, history: None until it is restored.
        base, parent, published: Version of the snapshot that the next one follows, its name, and
            the count that it holds.
        unpublished: Why the newest snapshot that was tried could not be written; None: it was.
        needed: By a start from before the last rewrite; None: nothing.
        begun: Epoch in which the lineage began anew.
        asides: States built aside whose files are here.
        chosen: A snapshot of a moment that other shards have chosen, to be published; None: none.
        partitions, waiting, open, gone: All by number; those that are not closed; of these the ones
            that are not sealed, or not fully in the clock; those whose owner is known not to live.
        marks: Those that go with the values to other replicas.
        confirmed_s, published_s, restored_s: When (monotonic) the epoch was last seen to be ours, a
            snapshot published, the state restored.
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
        self.confirmed_s = self.published_s = self.restored_s = now_s

    def begin(
        self,
        found: Recovered,
        history: SnapshotHistory,
        asides: set[str],
        partitions: Sequence[PartitionInfo],
        gone: frozenset[int],
    ) -> None:
        """Serve what a start has found."""
        found.server.sources_max = self.settings.sources_max
        found.server.bound(self.settings.tables)
        with self.lock:
            now_s = self.host.monotonic()
            self.server, self.history = found.server, history
            self.base, self.parent = found.base, found.snapshot
            # after a start from an ancestor the head is bad: publish whatever the count is
            self.published = found.server.count if found.at_head else None
            self.needed, self.begun, self.asides = found.needed, found.begun, asides
            self.confirmed_s = self.published_s = self.restored_s = now_s
            self.leases = Leases(self.settings.lease_s, self.settings.adopt_max, now_s)
            self.note_partitions(found.server, partitions, gone)
            self.state, self.reason = SERVING, ""

    def go_over(self, state: SnapshotState, rule: MergeRule, epoch: int) -> None:
        """Serve another state from now on, under the epoch just taken."""
        settings = self.settings
        server = Server.restored(
            state, rule, epoch, history_max=settings.history_max, part_keys=settings.part_keys
        )
        server.sources_max = self.settings.sources_max
        server.bound(self.settings.tables)
        with self.lock:
            parent = None if self.parent is None else parse_name(self.parent)
            self.server, self.published, self.chosen = server, None, None
            self.base = None if parent is None else parent[0]
            self.confirmed_s = self.host.monotonic()
            self.published_s = self.confirmed_s - self.settings.interval_s  # publish it soon
            self.note_partitions(server, list(self.partitions.values()), self.gone)
            self.state, self.reason = SERVING, ""

    def note_partitions(
        self, server: Server, partitions: Sequence[PartitionInfo], gone: frozenset[int]
    ) -> None:
        """Take in what the store knows of partitions; under the lock."""
        self.partitions = {p.id: p for p in partitions}
        self.gone = gone
        finished = server.note_partitions(partitions)
        self.waiting = [p for p in partitions if p.id not in server.closed]
        self.open = [p for p in self.waiting if p.id not in finished]

    def serving(self) -> Serving:
        """The parts.  Raises NotReady."""
        server, store, history = self.server, self.store, self.history
        if self.state != SERVING or server is None or store is None or history is None:
            raise NotReady(self.state, self.reason)
        return Serving(server, store, history)

    @contextlib.contextmanager
    def decision(self) -> Iterator[Serving]:
        """Nobody else publishes, decides, or looks at the epoch meanwhile.  Raises NotReady."""
        with self.publishing, self.deciding:
            yield self.serving()

    @contextlib.contextmanager
    def rewriting(self) -> Iterator[None]:
        """Nobody is answered meanwhile: the values are about to be replaced."""
        with self.lock:  # who syncs now has been answered
            self.state = REWRITING
        try:
            yield
        finally:
            if self.state == REWRITING:
                self.state = SERVING

    def end(self, error: Exception, state: str = "superseded") -> None:
        """End this process: another one has the epoch, or it is not known what was decided."""
        _log.error("%s", error)
        self.state, self.reason = state, str(error)
        self.host.die()
