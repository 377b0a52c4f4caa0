"""The process around the state machine: restoring, one lock, snapshots, the epoch's guard."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from paramserver import rewrites, wire
from paramserver.contacts import Contacts
from paramserver.errors import (
    FormatRefused,
    NotReady,
    RequestRefused,
    StartRefused,
    StoreUnavailable,
    Superseded,
)
from paramserver.filters.sources import SOURCES_MAX
from paramserver.leases import Leases
from paramserver.lineage import Lineage, publish, recover
from paramserver.parts import PART_KEYS
from paramserver.server import HISTORY_MAX, Server
from paramserver.snapshots.history import SnapshotHistory, parse_name
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import DAY_S, Disk, Retention
from paramserver.state import Contained
from paramserver.store import PartitionInfo, Store
from paramserver.trimming import Trimming, contained_in_all

_log: Final = logging.getLogger(__name__)

SERVING: Final = "serving"

FindGone = Callable[[Sequence[PartitionInfo]], Collection[int]]
"""Partitions whose owner is known not to live (an empty answer is always right)."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a parameter server works.

    Attributes
    ----------
    interval_s
        Seconds between periodic snapshots (none is made of an unchanged state).
    retention
        Which snapshots are kept.
    lease_s, adopt_max
        See :class:`paramserver.leases.Leases`.
    history_max
        Pushes of which the touched keys are remembered.
    part_keys
        Values that are many are sent in parts of so many keys.
    confirm_s
        Seconds between two looks at the store: is the epoch still ours, what is sealed.
    report_keep_s
        Replicas not heard of for so long leave ``reports`` and ``status``.
    retry_s
        Seconds between two attempts to restore.
    keep_rows_s
        The journal's rows are kept for so many seconds at least, so that a repeat is known.
    halves_keep_s
        Halves of rows whose other half does not come are kept for so many seconds.
    running_s
        Seconds between two additions to the running time in the store, by which both are counted.
    banned_max
        Sources that may be banned at once.
    sources_max
        Sources of which evidence is kept.
    umask
        Permissions that files of the server's process do not get; None: as it was started.
    """

    interval_s: float = 10.0
    retention: Retention = field(default_factory=Retention)
    lease_s: float = 5.0
    adopt_max: int = 2
    history_max: int = HISTORY_MAX
    part_keys: int = PART_KEYS
    sources_max: int = SOURCES_MAX
    confirm_s: float = 1.0
    report_keep_s: float = 60.0
    retry_s: float = 0.5
    keep_rows_s: float = 8 * DAY_S
    halves_keep_s: float = 8 * DAY_S
    running_s: float = 15.0
    banned_max: int = 1_000
    umask: int | None = None


def _die() -> None:
    """End this process at once; Ray starts it again, and it takes a new epoch."""
    logging.shutdown()
    os._exit(1)


@dataclass(frozen=True, slots=True)
class Host:
    """The machine as the server sees it: two clocks (seconds), the disk, and how to end."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    die: Callable[[], None] = _die
    disk: Disk = field(default_factory=Disk)


class ServerProcess:
    """Values of one lineage: restored, synced with replicas, published as snapshots.

    The constructor neither raises nor blocks (a raise in an actor's restart would end it for
    good): restoring is done by a thread, and until then :meth:`sync` raises ``NotReady``.

    Parameters
    ----------
    lineage
        Whose parameters, and how pushes are merged.
    open_store
        Opens the store behind the journal; called in this process.
    directory
        Path or URI of the snapshots of all lineages; this one's are in ``MODEL/SPEC[:16]`` there.
    find_gone
        Tells partitions whose owner is known not to live, to adopt them without a wait.
    background
        False: no threads; the owner calls :meth:`restore`, :meth:`confirm` and
        :meth:`snapshot_if_due`.
    """

    def __init__(
        self,
        lineage: Lineage,
        open_store: Callable[[], Store],
        directory: str,
        settings: ServerSettings | None = None,
        find_gone: FindGone | None = None,
        *,
        host: Host | None = None,
        background: bool = True,
    ) -> None:
        self._lineage = lineage
        self._open_store = open_store
        self._place = directory
        self._directory = lineage_place(directory, lineage.model, lineage.spec)
        self._settings = ServerSettings() if settings is None else settings
        self._find_gone = find_gone
        self._host = Host() if host is None else host
        if self._settings.umask is not None:
            os.umask(self._settings.umask)
        self._identity = ""  # reads files, so the thread does it

        now_s = self._host.monotonic()
        self._lock = threading.Lock()  # server, leases, contacts: read and changed under it
        # taken in this order, before the lock above:
        self._publishing = threading.Lock()  # one snapshot or decision at a time
        self._deciding = threading.Lock()  # the epoch may change: no look at it meanwhile
        self._state = "restoring"
        self._reason = ""
        self._server: Server | None = None
        self._store: Store | None = None
        self._history: SnapshotHistory | None = None
        self._base: wire.Version | None = None
        self._parent: str | None = None
        self._published: int | None = None  # count that the head holds
        self._refused: dict[str, str] = {}
        self._needed: rewrites.Needed | None = None  # by a start from before the last rollback
        self._asides: set[str] = set()  # states built aside whose files are here
        self._relearn_from_s = -math.inf
        self._begun = 0  # epoch in which the lineage began anew
        self._kept: list[Contained] = []  # by the last retention
        self._partitions: dict[int, PartitionInfo] = {}
        self._waiting: list[PartitionInfo] = []  # not closed
        self._open: list[PartitionInfo] = []  # of these: not sealed, or not fully in the clock
        self._gone: frozenset[int] = frozenset()
        self._leases = Leases(self._settings.lease_s, self._settings.adopt_max, now_s)
        self._contacts = Contacts(self._settings.report_keep_s)
        self._trimming = Trimming(
            self._settings.keep_rows_s,
            self._settings.halves_keep_s,
            self._settings.running_s,
            self._host.wall,
            self._host.monotonic,
        )
        self._started_s = now_s
        self._confirmed_s = now_s
        self._published_s = now_s
        self._restored_s = now_s
        self._restore_s: float | None = None
        if background:
            threading.Thread(target=self._run, name="parameter-server", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while not self.restore():
            if self._state == "refused":
                return
            pause.wait(self._settings.retry_s)
        # apart from each other: writing a large snapshot must not delay the look at the epoch
        pause_s = self._settings.confirm_s
        threading.Thread(
            target=_repeat, args=(self.snapshot_if_due, pause_s), name="snapshots", daemon=True
        ).start()
        _repeat(self.confirm, pause_s)

    def restore(self) -> bool:
        """Try to become ready; False if not (``status`` says why)."""
        try:
            self._restore()
        except StartRefused as error:
            self._state, self._reason = "refused", str(error)
            _log.error("the server of %s refuses to start: %s", self._lineage.model, error)
            return False
        except Exception as error:  # whatever it is, a later attempt may do better
            self._reason = f"{type(error).__name__}: {error}"
            _log.warning("the server of %s can't restore yet: %r", self._lineage.model, error)
            return False
        return True

    def _restore(self) -> None:
        self._identity = identity(self._lineage, self._place, self._settings)
        if self._store is None:
            self._store = self._open_store()
        snapshots = open_snapshots(self._directory, self._host.disk)
        history = SnapshotHistory(snapshots, self._settings.retention)
        self._refused = history.refused
        bounds = (self._settings.history_max, self._settings.part_keys)
        found = recover(self._store, history, self._lineage, *bounds)
        history.index()
        asides = history.drop_asides(set() if found.needed is None else {found.needed.snapshot})
        partitions, gone = self._look_at_partitions(self._store)
        found.server.sources_max = self._settings.sources_max
        with self._lock:
            now_s = self._host.monotonic()
            self._server, self._history = found.server, history
            self._base, self._parent = found.base, found.snapshot
            # after a start from an ancestor the head is bad: publish whatever the count is
            self._published = found.server.count if found.at_head else None
            self._needed, self._begun, self._asides = found.needed, found.begun, asides
            self._confirmed_s = self._published_s = self._restored_s = now_s
            self._restore_s = now_s - self._started_s
            self._leases = Leases(self._settings.lease_s, self._settings.adopt_max, now_s)
            self._note_partitions(found.server, partitions, gone)
            self._state, self._reason = SERVING, ""

    def _serve(self, server: Server) -> None:
        """Serve another state from now on, under the epoch just taken."""
        server.sources_max = self._settings.sources_max
        with self._lock:
            parent = None if self._parent is None else parse_name(self._parent)
            self._server, self._published = server, None
            self._base = None if parent is None else parent[0]
            self._confirmed_s = self._host.monotonic()
            self._published_s = self._confirmed_s - self._settings.interval_s  # publish it soon
            self._note_partitions(server, list(self._partitions.values()), self._gone)
            self._state, self._reason = SERVING, ""

    def _look_at_partitions(self, store: Store) -> tuple[Sequence[PartitionInfo], frozenset[int]]:
        partitions = store.partitions(self._lineage.model)
        return partitions, frozenset(self._find_gone(partitions) if self._find_gone else ())

    def _note_partitions(
        self, server: Server, partitions: Sequence[PartitionInfo], gone: frozenset[int]
    ) -> None:
        self._partitions = {p.id: p for p in partitions}
        self._gone = gone
        finished = server.note_partitions(partitions)
        self._waiting = [p for p in partitions if p.id not in server.closed]
        self._open = [p for p in self._waiting if p.id not in finished]

    def _serving(self) -> tuple[Server, Store, SnapshotHistory]:
        server, store, history = self._server, self._store, self._history
        if self._state != SERVING or server is None or store is None or history is None:
            raise NotReady(self._state, self._reason)
        return server, store, history

    def sync(self, request: bytes) -> bytes:
        """Apply pushes and answer with the state after them; all of one version.

        Raises
        ------
        NotReady, FormatRefused, RequestRefused, BlockError, PushRefused
            Definite; pushes before the refused one are applied.
        StoreUnavailable
            Indefinite.
        """
        try:
            message = wire.decode_request(request)
        except msgspec.DecodeError as error:
            raise RequestRefused(str(error)) from error
        if message.format != wire.FORMAT:
            raise FormatRefused(message.format, wire.FORMAT)
        with self._lock:
            server, _, _ = self._serving()
            now_s = self._host.monotonic()
            self._contacts.note(message, now_s)
            self._leases.touch(message.replica, message.partition, message.adopting, now_s)
            acks = [server.push(push, self._lookup) for push in message.pushes]
            orphans = [] if not message.adopts else self._leases.orphans(
                self._open, server.clock, server.closed,
                message.replica, message.partition, now_s, self._gone,
            )  # fmt: skip
            if message.state is not None:
                server.take(message.state, self._lookup)
            self._contacts.wrote(server.epoch, server.learned(), now_s)
            lease_s = self._settings.lease_s
            keeper = message.replica == self._contacts.keeper(message.role, now_s - lease_s)
            asked = [p for p in orphans if p not in message.adopting]
            confirmed_ms = 1000.0 * (now_s - self._confirmed_s)
            # encoded under the lock: the reply shares its blocks with the server
            return wire.encode(server.reply(message, acks, asked, confirmed_ms, keeper=keeper))

    def _lookup(self, partition: int) -> PartitionInfo | None:
        known = self._partitions.get(partition)
        if known is not None:
            return known
        if self._store is None:
            raise NotReady(self._state, self._reason)
        try:
            return self._store.partition(partition)
        except Exception as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error

    def confirm(self) -> None:
        """Look whether the epoch is still ours (else end), and at the partitions."""
        with self._deciding:
            server, store, _ = self._serving()
            asked_s = self._host.monotonic()
            newest = store.head(self._lineage.model, self._lineage.spec).epoch
            if newest != server.epoch:
                self._end(Superseded(server.epoch, newest))
                return
            partitions, gone = self._look_at_partitions(store)
            with self._lock:
                self._confirmed_s = asked_s
                self._leases.tick(asked_s)
                self._note_partitions(server, partitions, gone)
                self._contacts.drop_old(asked_s)

    def snapshot_if_due(self) -> None:
        """Publish if ``interval_s`` have passed since the last time; count the running time."""
        server, store, _ = self._serving()
        try:
            self._trimming.count(store, self._lineage.model, self._lineage.spec, server.epoch)
        except Exception as error:  # of whatever store: :meth:`confirm` looks at the epoch
            _log.warning("the running time could not be counted: %r", error)
        if self._host.monotonic() - self._published_s >= self._settings.interval_s:
            self.snapshot()

    def _end(self, error: Exception, state: str = "superseded") -> None:
        _log.error("%s", error)
        self._state, self._reason = state, str(error)
        self._host.die()

    def snapshot(self, pin: bool = False) -> dict[str, Any]:
        """Publish the state as it is now, unless the head holds it, and describe it.

        The files are looked at first: what somebody has removed, the head does not hold.

        Raises
        ------
        NotReady
            Definite.
        PublishFailed
            The head is where it was.
        """
        with self._publishing:
            server, store, history = self._serving()
            head_gone = self._parent in history.drop_vanished(self._parent)
            with self._lock:
                state = None
                if server.count != self._published or head_gone:
                    parent = None if head_gone else self._parent
                    metrics = {**self._contacts.metrics(), **server.scores()}
                    state = server.begin_snapshot(self._host.wall(), parent, metrics)
            if state is not None:
                try:
                    name = publish(store, history, state, self._base)
                except Superseded as error:
                    self._end(error)
                    raise
                self._published, self._parent = state.version[1], name
                with self._lock:
                    server.note_durable(state)
                self._retain(server, store, history, name)
            self._published_s = self._host.monotonic()
            if pin and self._parent is not None:
                history.pin(self._parent, True)
            described = next(row for row in history.listed() if row.name == self._parent)
            row: dict[str, Any] = msgspec.to_builtins(described)
            return row

    def _retain(self, server: Server, store: Store, history: SnapshotHistory, head: str) -> None:
        positions = [contained.control for contained in self._kept]
        held = rewrites.held(self._needed, positions)
        try:
            kept = history.retain(head, held)
            for name in self._asides - held:
                history.withdraw(name)
            self._asides &= held
        except OSError as error:
            _log.warning("old snapshots could not be removed yet: %s", error)
            return
        self._kept = kept
        with self._lock:
            for partition in self._waiting:
                server.close(partition, kept)
            self._waiting = [p for p in self._waiting if p.id not in server.closed]
            upto = contained_in_all(kept, self._partitions.values())
        self._trim(server, store, upto)

    def _trim(self, server: Server, store: Store, upto: Mapping[int, int]) -> None:
        model, spec = self._lineage.model, self._lineage.spec
        try:
            self._trimming.run(store, model, spec, server.epoch, upto)
        except Exception as error:  # of whatever store: its head says what is so
            newest = store.head(model, spec).epoch
            if newest != server.epoch:
                lost = Superseded(server.epoch, newest)
                self._end(lost)
                raise lost from error
            _log.warning("old rows could not be removed yet: %r", error)


def _repeat(step: Callable[[], None], pause_s: float) -> None:
    pause = threading.Event()
    while True:
        pause.wait(pause_s)
        try:
            step()
        except Exception:  # the store or the disk is away: serve on, and try again
            _log.exception("%s failed; it is tried again", step.__qualname__)


def identity(lineage: Lineage, directory: str, settings: ServerSettings) -> str:
    """Hash of all that makes two servers of one name different: spec, rule, settings, code."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    parts = (lineage.spec, lineage.rule, directory, repr(settings), code.hexdigest())
    return hashlib.sha256(repr(parts).encode()).hexdigest()
