"""The parameter server as its callers see it: sync, snapshots, and what operators decide.

This class knows no Ray: :mod:`paramserver.clients.ray_client` makes an actor of it, tests use it as
it is.  It imports neither river nor torch, so that a killed server is back within seconds.
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
from paramserver.process.near import Near
from paramserver.process.publishing import Publishing
from paramserver.process.running import Running
from paramserver.process.settings import FindGone, Host, ServerSettings, again_s, identity
from paramserver.process.sharing import Shard, Sharing
from paramserver.process.status import epochs, numbers
from paramserver.process.swapping import Swapping
from paramserver.snapshots.format import SCHEMA
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.store import PartitionInfo, Store

__all__ = ["FindGone", "Host", "ParameterServer", "ServerSettings", "identity"]

_log: Final = logging.getLogger(__name__)


class ParameterServer:
    """Values of one lineage: restored, synced with replicas, published, replaced.

    The constructor neither raises nor blocks (a raise in an actor's restart would end it for
    good): a thread restores, and until then :meth:`sync` raises ``NotReady``.

    Parameters:
        lineage: Whose parameters, and how pushes are merged.
        open_store: Opens the store behind the journal; called in this process.
        directory: Path or URI of all lineages' snapshots; this one's: ``MODEL/SPEC[:16]`` there.
        find_gone: Tells partitions whose owner is known not to live, to adopt them without a wait.
        background: False: no threads; the owner has it restored, confirmed and published.
        shard: Which of several servers of the model it is; None: the only one.
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
        self._running = Running(lineage, settings, Host() if host is None else host)
        self._sharing = Sharing(self._running, shard)
        self._following = Following(self._running, self._sharing)
        self._publishing = Publishing(self._running, self._sharing)
        self._swapping = Swapping(self._running, self._sharing)
        self._decisions = Decisions(self._running)
        self._near, self._refused = Near(self.sync), dict[str, str]()
        self._identity = ""  # reads files, so the thread does it
        self._started_s = self._running.host.monotonic()
        self._restore_s: float | None = None
        if background:
            threading.Thread(target=self._run, name="parameter-server", daemon=True).start()

    def _run(self) -> None:
        pause, settings = threading.Event(), self._running.settings
        while not self.restore():
            pause.wait(again_s(settings, self._running.state))
        # apart from each other: writing a large snapshot must not delay the look at the epoch
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
            if running.reason != str(error):  # once, though it looks again and again
                _log.error("the server of %s refuses to start: %s", running.lineage.model, error)
            running.state, running.reason = "refused", str(error)
            return False
        except Exception as error:  # whatever it is, a later attempt may do better
            running.reason = f"{type(error).__name__}: {error}"
            _log.warning("the server of %s can't restore yet: %r", running.lineage.model, error)
            return False
        return True

    def _restore(self) -> None:
        running = self._running
        lineage, settings = running.lineage, running.settings
        self._identity = identity(lineage, self._place, settings)
        running.store = running.store or self._open_store()
        place = lineage_place(self._place, lineage.model, lineage.spec)
        snapshots = open_snapshots(place, running.host.disk)
        history = SnapshotHistory(snapshots, settings.retention, self._sharing.foreign)
        self._refused = history.refused
        found = recover(running.store, history, lineage, settings.history_max, settings.part_keys)
        history.index()
        asides = self._sharing.drop_asides(history, found.needed)
        looked = _looked(running.store, lineage.model, self._find_gone)
        running.begin(found, history, asides, *looked)
        self._restore_s = running.restored_s - self._started_s

    # -- replicas ----------------------------------------------------------------------------

    def sync(self, request: bytes) -> bytes:
        """Apply pushes and answer with the state after them; all of one version.

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
            asked = [p for p in orphans if p not in message.adopting]
            age_ms = 1000.0 * (now_s - running.confirmed_s)
            reply = server.reply(message, acks, asked, age_ms, keeper=keeper)
            reply = self._sharing.with_ends(reply)
            if message.marks:
                running.marks.note(message.marks, server.version, server.clock)
            if marks := running.marks.since(message.since, message.partition):
                reply = msgspec.structs.replace(reply, marks=marks)
            return wire.encode(reply)  # under the lock: it shares its blocks with the server

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
        """Look whether the epoch is still ours (else end), and at the partitions."""
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
        """Answer another shard, see :class:`Sharing`."""
        return getattr(self._sharing, method)(*args)

    def near(self) -> tuple[bytes, bytes]:
        """Tell the way to a kept connection for :meth:`sync` (:mod:`paramserver.process.near`)."""
        return self._near.way()

    # -- snapshots ---------------------------------------------------------------------------

    def snapshot_if_due(self) -> None:
        """Publish now and then, see :meth:`Publishing.snapshot_if_due`."""
        self._publishing.snapshot_if_due()

    def snapshot(self, pin: bool = False) -> dict[str, Any]:
        """Publish the state, see :meth:`Publishing.snapshot_of_all`."""
        return self._publishing.snapshot_of_all(pin)

    def snapshots(self) -> list[dict[str, Any]]:
        """All good snapshots, see :meth:`Publishing.snapshots`."""
        return self._publishing.snapshots()

    def withdraw(self, names: list[str]) -> list[str]:
        """Remove snapshots for good, see :meth:`Publishing.withdraw`."""
        return self._publishing.withdraw(names)

    def pin(self, name: str, on: bool = True) -> None:
        """Keep a snapshot whatever retention says, or no longer; SnapshotMissing."""
        self._publishing.pin(name, on)

    # -- what operators and replicas decide --------------------------------------------------

    def asked_by(self, who: str, method: str, *args: Any) -> Any:
        """Do what another method does, in somebody's name (:mod:`paramserver.process.acting`)."""
        token = acting.set(who)
        try:
            return getattr(self, method)(*args)
        finally:
            acting.reset(token)

    def freeze(self) -> dict[str, Any]:
        """Learn nothing new, see :meth:`Decisions.freeze`."""
        return self._decisions.freeze()

    def unfreeze(self) -> dict[str, Any]:
        """Learn again from now on, see :meth:`Decisions.unfreeze`."""
        return self._decisions.unfreeze()

    def promote(self, note: bytes) -> dict[str, Any]:
        """Let another lineage serve, see :meth:`Decisions.promote`."""
        return self._decisions.promote(note)

    def answers(self, note: bytes) -> dict[str, Any]:
        """Let the model answer by itself, or no longer, see :meth:`Decisions.answers`."""
        return self._decisions.answers(note)

    def upgrade(self, note: bytes) -> dict[str, Any]:
        """Have one of today's defaults beside it, or no longer, see :meth:`Decisions.upgrade`."""
        return self._decisions.upgrade(note)

    def ban(self, source: str, banned: bool) -> dict[str, Any]:
        """Quarantine a source's rows, or no longer, see :meth:`Decisions.ban`."""
        return self._decisions.ban(source, banned)

    def rollback(self, name: str) -> dict[str, Any]:
        """Go back to a snapshot, see :meth:`Swapping.rollback`."""
        return self._swapping.rollback(name)

    def retreat(self, rewrite: int, before: float) -> dict[str, Any]:
        """Go back as the error has risen, see :meth:`Swapping.retreat`."""
        return self._swapping.retreat(rewrite, before)

    def recover(self, rewrite: int, before: float) -> dict[str, Any]:
        """Go back as the model has diverged, see :meth:`Swapping.recover`."""
        return self._swapping.recover(rewrite, before)

    def forget(self, *asked: Any) -> dict[str, Any]:
        """Go on without a source, see :meth:`Swapping.forget`."""
        return self._swapping.forget(*asked)

    def may_relearn(self, rewrite: int, pause_s: float) -> bool:
        """Tell whether the caller may build a state, see :meth:`Swapping.may_relearn`."""
        return self._swapping.may_relearn(rewrite, pause_s)

    def relearn(
        self, name: str, since: float, undone: dict[int, list[int]], evidence: dict[str, float]
    ) -> dict[str, Any]:
        """Go on with what recent rows have taught, see :meth:`Swapping.relearn`."""
        return self._swapping.relearn(name, since, undone, evidence)

    def backfill(self, name: str, lesson: bytes) -> dict[str, Any]:
        """Go on with what tables have taught, see :meth:`Swapping.backfill`."""
        return self._swapping.backfill(name, lesson)

    # -- answers -----------------------------------------------------------------------------

    def ping(self) -> str:
        """The state's name; answers as soon as the process lives."""
        return self._running.state

    def reports(self) -> dict[str, dict[str, float]]:
        """Newest counters of each replica heard of within ``report_keep_s``."""
        with self._running.lock:
            return self._running.replicas.reports(self._running.host.monotonic())

    def status(self) -> dict[str, Any]:
        """Everything about the server that an operator may ask; plain data."""
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
                **numbers(server),
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
    """The model's partitions, and those whose owner is known not to live."""
    partitions = store.partitions(model)
    return partitions, frozenset(find_gone(partitions) if find_gone else ())


def _repeat(step: Callable[[], None], pause_s: float) -> None:
    pause, attempts = threading.Event(), Attempts(step.__qualname__)
    while True:
        pause.wait(pause_s)
        attempts(step)
