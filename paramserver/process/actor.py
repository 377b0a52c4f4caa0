"""The public methods of a parameter server: sync, snapshots, and operators' decisions.

The class does not depend on Ray: :mod:`paramserver.clients.ray_client` runs it as an actor, tests
use it directly.  It imports neither river nor torch, so that a killed server restarts within
seconds.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from paramserver.core import wire
from paramserver.errors import (
    FormatRefused,
    NotReady,
    RequestRefused,
    StartRefused,
    StoreUnavailable,
    Superseded,
)
from paramserver.process.acting import acting
from paramserver.process.attempts import Attempts
from paramserver.process.decisions import Decisions
from paramserver.process.following import Following
from paramserver.process.lineage import Lineage, recover
from paramserver.process.local_socket import LocalSocketServer
from paramserver.process.publishing import Publishing
from paramserver.process.running import Running
from paramserver.process.settings import FindGone, Host, ServerSettings, again_s, identity
from paramserver.process.sharing import Shard, Sharing
from paramserver.process.status import epochs, numbers
from paramserver.process.swapping import Swapping
from paramserver.snapshots.format import SCHEMA
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Disk
from paramserver.store import PartitionInfo, Store

__all__ = ["FindGone", "Host", "ParameterServer", "ServerSettings", "identity"]

_log: Final = logging.getLogger(__name__)


class ParameterServer:
    """Serves the values of one lineage: restores them, syncs replicas, publishes snapshots.

    The constructor neither raises nor blocks, because an exception in a restart would end a Ray
    actor for good.  A thread restores the state; until then :meth:`sync` raises ``NotReady``.

    Parameters:
        lineage: The model, its spec, and the merge rule.
        open_store: Opens the store behind the journal; called in this process.
        directory: Path or URI of all lineages' snapshots; this lineage's are in ``MODEL/SPEC[:16]``
            below it.
        find_gone: Returns partitions of dead owners, which are adopted without waiting for a lease.
        background: False: no threads are started; the owner calls :meth:`restore`, :meth:`confirm`
            and :meth:`snapshot_if_due`.
        shard: Which of several servers of the model this is; None: the only one.
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
        shard: Shard | None = None,
    ) -> None:
        settings = ServerSettings() if settings is None else settings
        if settings.umask is not None:
            os.umask(settings.umask)
        if shard is not None:
            open_store, directory = shard.own(open_store, directory)
        self._open_store, self._place, self._find_gone = open_store, directory, find_gone
        self._running = Running(lineage, settings, host or Host(disk=Disk(settings.stall_s)))
        self._sharing = Sharing(self._running, shard)
        self._following = Following(self._running, self._sharing)
        self._publishing = Publishing(self._running, self._sharing)
        self._swapping = Swapping(self._running, self._sharing)
        self._decisions = Decisions(self._running)
        self.local_socket, self._refused = LocalSocketServer(self.sync), dict[str, str]()
        self._identity = ""  # computed in the thread, because it reads files
        self._started_s = self._running.host.monotonic()
        self._restore_s: float | None = None
        if background:
            threading.Thread(target=self._run, name="parameter-server", daemon=True).start()

    def _run(self) -> None:
        pause, settings = threading.Event(), self._running.settings
        while not self.restore():
            pause.wait(again_s(settings, self._running.state))
        # separate threads: writing a large snapshot must not delay the check of the epoch
        often = (self.snapshot_if_due, settings.confirm_s)
        threading.Thread(target=_repeat, args=often, name="snapshots", daemon=True).start()
        _repeat(self.confirm, settings.confirm_s)

    # -- start -------------------------------------------------------------------------------

    def restore(self) -> bool:
        """Try to become ready; False if not (``status`` says why)."""
        running = self._running
        try:
            self._restore()
        except StartRefused as error:
            if running.reason != str(error):  # log it once, not at every attempt
                _log.error("the server of %s refuses to start: %s", running.lineage.model, error)
            running.state, running.reason = "refused", str(error)
            return False
        except Exception as error:  # whatever it is, a later attempt may succeed
            running.reason = f"{type(error).__name__}: {error}"
            _log.warning("the server of %s can't restore yet: %r", running.lineage.model, error)
            return False
        return True

    def _restore(self) -> None:
        running = self._running
        lineage, settings, foreign = running.lineage, running.settings, self._sharing.foreign
        self._identity = identity(lineage, self._place, settings)
        running.store = running.store or self._open_store()
        place = lineage_place(self._place, lineage.model, lineage.spec)
        snapshots = open_snapshots(place, running.host.disk)
        history = SnapshotHistory(snapshots, settings.retention, foreign, in_arrays=True)
        self._refused = history.refused
        state = recover(running.store, history, lineage, settings.history_max, settings.part_keys)
        history.index()
        asides = self._sharing.drop_asides(history, state.needed)
        looked = _looked(running.store, lineage.model, self._find_gone)
        running.begin(state, history, asides, *looked)
        self._restore_s = running.restored_s - self._started_s

    # -- replicas ----------------------------------------------------------------------------

    def sync(self, request: bytes) -> bytes:
        """Apply pushes and return the state after them, all of one version.

        Raises:
            NotReady, FormatRefused, RequestRefused, BlockError, PushRefused: Definite; pushes
                before the refused one are applied.
            StoreUnavailable: Indefinite.
        """
        try:
            message = wire.decode_request(request)
        except msgspec.DecodeError as error:
            raise RequestRefused(str(error)) from error
        if message.format != wire.FORMAT:
            raise FormatRefused(message.format, wire.FORMAT)
        running = self._running
        with running.lock:
            server, replicas, leases = running.serving().server, running.replicas, running.leases
            now_s = running.host.monotonic()
            replicas.note(message, now_s)
            leases.touch(message.replica, message.partition, message.adopting, now_s)
            acks = [server.push(push, self._lookup) for push in message.pushes]
            orphans = [] if not message.adopts else leases.orphans(
                running.open, server.clock, server.closed,
                message.replica, message.partition, now_s, running.gone, message.waits,
            )  # fmt: skip
            if message.state is not None:
                server.take(message.state, self._lookup)
            replicas.wrote(server.epoch, server.learned(), now_s)
            keeper = message.replica == replicas.keeper(
                message.role, now_s - running.settings.lease_s
            )
            to_adopt = [p for p in orphans if p not in message.adopting]
            age_ms = 1000.0 * (now_s - running.confirmed_s)
            passed = None if running.shared is None else running.shared.passed(server, message)
            reply = server.reply(message, acks, to_adopt, age_ms, keeper=keeper, passed=passed)
            if message.marks:
                running.marks.note(message.marks, server.version, server.clock)
            if marks := running.marks.since(message.since, message.partition):
                reply = msgspec.structs.replace(reply, marks=marks)
            return wire.encode(self._sharing.with_ends(reply))  # under the lock: it shares blocks

    def _lookup(self, partition: int) -> PartitionInfo | None:
        running = self._running
        if (known := running.partitions.get(partition)) is not None:
            return known
        if running.store is None:
            raise NotReady(running.state, running.reason)
        try:
            return running.store.partition(partition)
        except Exception as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error

    def confirm(self) -> None:
        """Check that this server's epoch is still the newest (else exit); refresh partitions."""
        running = self._running
        with running.deciding:
            server, store, _ = running.serving()
            asked_s = running.host.monotonic()
            newest = store.head(running.lineage.model, running.lineage.spec).epoch
            if newest != server.epoch:
                running.end(Superseded(server.epoch, newest))
                return
            partitions, gone = _looked(store, running.lineage.model, self._find_gone)
            with running.lock:
                running.confirmed_s = asked_s
                running.leases.tick(asked_s)
                running.note_partitions(server, partitions, gone)
                running.replicas.drop_old(asked_s)
        self._following.take()

    def shared(self, method: str, *args: Any) -> Any:
        """Answer another shard's call of a method of :class:`Sharing`."""
        return getattr(self._sharing, method)(*args)

    def near(self) -> tuple[bytes, bytes]:
        """Return address and key of the local socket for ``sync``."""
        return self.local_socket.way()

    # -- snapshots ---------------------------------------------------------------------------

    def snapshot_if_due(self) -> None:
        """Publish a periodic snapshot, see :meth:`Publishing.snapshot_if_due`."""
        self._publishing.snapshot_if_due()

    def snapshot(self, pin: bool = False) -> dict[str, Any]:
        """Publish the state, see :meth:`Publishing.snapshot_of_all`."""
        return self._publishing.snapshot_of_all(pin)

    def snapshots(self) -> list[dict[str, Any]]:
        """List all valid snapshots, see :meth:`Publishing.snapshots`."""
        return self._publishing.snapshots()

    def withdraw(self, names: list[str]) -> list[str]:
        """Remove snapshots permanently, see :meth:`Publishing.withdraw`."""
        return self._publishing.withdraw(names)

    def pin(self, name: str, on: bool = True) -> None:
        """Exempt a snapshot from retention, or no longer.  Raises SnapshotMissing."""
        self._publishing.pin(name, on)

    # -- decisions of operators and replicas -------------------------------------------------

    def asked_by(self, who: str, method: str, *args: Any) -> Any:
        """Call another method on behalf of ``who`` (see :mod:`paramserver.process.acting`)."""
        token = acting.set(who)
        try:
            return getattr(self, method)(*args)
        finally:
            acting.reset(token)

    def freeze(self) -> dict[str, Any]:
        """Stop learning new events, see :meth:`Decisions.freeze`."""
        return self._decisions.freeze()

    def unfreeze(self) -> dict[str, Any]:
        """Learn new events again, see :meth:`Decisions.unfreeze`."""
        return self._decisions.unfreeze()

    def promote(self, note: bytes) -> dict[str, Any]:
        """Make another lineage serve, see :meth:`Decisions.promote`."""
        return self._decisions.promote(note)

    def answers(self, note: bytes) -> dict[str, Any]:
        """Let the model choose by itself, or no longer, see :meth:`Decisions.answers`."""
        return self._decisions.answers(note)

    def upgrade(self, note: bytes) -> dict[str, Any]:
        """Add a challenger with today's defaults, or not, see :meth:`Decisions.upgrade`."""
        return self._decisions.upgrade(note)

    def ban(self, source: str, banned: bool) -> dict[str, Any]:
        """Quarantine a source's rows, or no longer, see :meth:`Decisions.ban`."""
        return self._decisions.ban(source, banned)

    def rollback(self, name: str) -> dict[str, Any]:
        """Roll back to a snapshot, see :meth:`Swapping.rollback`."""
        return self._swapping.rollback(name)

    def retreat(self, rewrite: int, before: float) -> dict[str, Any]:
        """Roll back after the error has risen, see :meth:`Swapping.retreat`."""
        return self._swapping.retreat(rewrite, before)

    def recover(self, rewrite: int, before: float) -> dict[str, Any]:
        """Roll back after the model has diverged, see :meth:`Swapping.recover`."""
        return self._swapping.recover(rewrite, before)

    def forget(self, *arguments: Any) -> dict[str, Any]:
        """Switch to a state without a source, see :meth:`Swapping.forget`."""
        return self._swapping.forget(*arguments)

    def may_relearn(self, rewrite: int, pause_s: float) -> bool:
        """Return whether the caller may build a state, see :meth:`Swapping.may_relearn`."""
        return self._swapping.may_relearn(rewrite, pause_s)

    def relearn(
        self, name: str, since: float, undone: dict[int, list[int]], evidence: dict[str, float]
    ) -> dict[str, Any]:
        """Switch to a state learned from recent rows, see :meth:`Swapping.relearn`."""
        return self._swapping.relearn(name, since, undone, evidence)

    def backfill(self, name: str, lesson: bytes) -> dict[str, Any]:
        """Switch to a state learned from tables, see :meth:`Swapping.backfill`."""
        return self._swapping.backfill(name, lesson)

    # -- answers -----------------------------------------------------------------------------

    def ping(self) -> str:
        """Return the name of the server's state; works as soon as the process runs."""
        return self._running.state

    def reports(self) -> dict[str, dict[str, float]]:
        """Return the newest counters of each replica in contact within ``report_keep_s``."""
        with self._running.lock:
            return self._running.replicas.reports(self._running.host.monotonic())

    def status(self) -> dict[str, Any]:
        """Return the server's status for operators, as plain data."""
        running = self._running
        history, lineage = running.history, running.lineage
        listed, reach = ([], None) if history is None else (history.listed(), history.reach())
        wall_s = running.host.wall()
        with running.lock:
            now_s, server = running.host.monotonic(), running.server
            return {
                "state": running.state,
                "reason": running.reason,
                "identity": self._identity,
                "model": lineage.model,
                "spec": lineage.spec,
                "merge": lineage.rule,
                "format": wire.FORMAT,
                "schema": SCHEMA,
                "pid": os.getpid(),
                "restore_s": self._restore_s,
                "confirmed_s": now_s - running.confirmed_s,
                **numbers(server, running.shared),
                "epochs": epochs(listed, server),
                "freeze_complete": self._decisions.freeze_complete(now_s),
                "replicas": running.replicas.summary(now_s),
                "snapshots": len(listed),
                "snapshot": running.parent,
                "snapshot_age_s": wall_s - listed[0].created_at if listed else None,
                "reach_s": None if reach is None else wall_s - reach,
                "refused": dict(self._refused),
                "vanished": 0 if history is None else history.vanished.files,
                "incident": (history and history.vanished.incident) or running.unpublished,
            }


def _looked(
    store: Store, model: str, find_gone: FindGone | None
) -> tuple[Sequence[PartitionInfo], frozenset[int]]:
    """Return the model's partitions, and the ids of those whose owner is known to be dead."""
    partitions = store.partitions(model)
    return partitions, frozenset(find_gone(partitions) if find_gone else ())


def _repeat(step: Callable[[], None], pause_s: float) -> None:
    pause, attempts = threading.Event(), Attempts(step.__qualname__)
    while True:
        pause.wait(pause_s)
        attempts(step)
