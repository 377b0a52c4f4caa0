"""Publishes a server's state as snapshots, and removes old snapshots and journal rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from paramserver.core import rewrites
from paramserver.core.resharding import handed_on
from paramserver.core.server import Server
from paramserver.core.state import SnapshotState
from paramserver.errors import PublishFailed, Superseded
from paramserver.process.lineage import publish
from paramserver.process.running import Running
from paramserver.process.sharing import Sharing
from paramserver.process.status import rows_since, scores
from paramserver.process.trimming import Trimming, contained_in_all
from paramserver.snapshots.history import SnapshotHistory
from paramserver.store import Store

_log: Final = logging.getLogger(__name__)


class Publishing:
    """Publishes and retains the snapshots of one running server."""

    def __init__(self, running: Running, sharing: Sharing) -> None:
        self._running, self._sharing = running, sharing
        sharing.publish = self.snapshot_if_begun
        settings, host = running.settings, running.host
        self._trimming = Trimming(
            settings.keep_rows_s, settings.halves_keep_s, settings.running_s,
            host.wall, host.monotonic,
        )  # fmt: skip

    def snapshot_if_due(self) -> None:
        """Publish what is due: tables to replicas, a snapshot each ``interval_s``, running time."""
        running = self._running
        server, store, _ = running.serving()
        if running.shared is not None:
            running.shared.publish_if_due(server, running.lock)
        try:
            self._trimming.count(store, running.lineage.model, running.lineage.spec, server.epoch)
        except Exception as error:  # any store's error; ``confirm`` checks the epoch
            _log.warning("the running time could not be counted: %r", error)
        interval_s = running.settings.interval_s * (2 if self._sharing.follows else 1)
        if running.chosen or running.host.monotonic() - running.published_s >= interval_s:
            self.snapshot()

    def snapshot_if_begun(self) -> None:
        """Publish the snapshot that shard 0 has made this shard begin."""
        if self._running.chosen is not None:
            self.snapshot()

    def snapshot_of_all(self, pin: bool = False) -> dict[str, Any]:
        """Publish as :meth:`snapshot`, and make the other shards publish matching snapshots."""
        row = self.snapshot(pin)
        self._sharing.have_published(row["name"] if pin else None)
        return row

    def pin(self, name: str, on: bool) -> None:
        """Exempt a snapshot from retention, or no longer.  Raises SnapshotMissing."""
        with self._running.publishing:
            self._running.serving().history.pin(name, on)
        self._sharing.have_published(name, on)

    def snapshot(self, pin: bool = False) -> dict[str, Any]:
        """Publish the present state unless the head holds it; return a description of the head.

        Files that somebody removed are noticed first, so a removed head is published again.

        Raises:
            NotReady: Definite.
            PublishFailed: The head was not moved.
        """
        running = self._running
        with running.publishing:
            server, store, history = running.serving()
            history.drop_vanished(running.parent)
            head_gone = running.parent is not None and not history.knows(running.parent)
            chosen = running.chosen is not None
            state = self._begun(server, history, head_gone=head_gone)
            if state is not None:
                try:
                    name = publish(store, history, state, running.base)
                except Superseded as error:
                    running.end(error)
                    raise
                except PublishFailed as error:
                    running.unpublished = str(error)
                    raise
                running.unpublished = None
                running.published, running.parent = state.version[1], name
                with running.lock:
                    server.note_durable(state)
                self._sharing.published(name, chosen=chosen)
                self._retain(server, store, history, name)
            running.published_s = running.host.monotonic()
            if pin and running.parent is not None:
                history.pin(running.parent, True)
            described = next(row for row in history.listed() if row.name == running.parent)
            row: dict[str, Any] = msgspec.to_builtins(described)
            return row

    def _begun(
        self, server: Server, history: SnapshotHistory, *, head_gone: bool
    ) -> SnapshotState | None:
        """Return the state to publish, or None if the head holds it."""
        running = self._running
        chosen, running.chosen = running.chosen, None
        if chosen is not None:
            return chosen
        if server.count == running.published and not head_gone:
            self._sharing.complete(server)
            return None
        with self._sharing.at_one_moment(server):
            parent = None if head_gone else running.parent
            metrics = {**running.replicas.metrics(), **scores(server)}
            base = history.base_for_next()
            return server.begin_snapshot(running.host.wall(), parent, metrics, base)

    def withdraw(self, names: list[str]) -> list[str]:
        """Remove snapshots permanently, with their pins; return the names that were removed.

        The newest snapshot, and those that a start may need, are not removed.  Leftovers of
        unfinished snapshots are removed, too.  After an OSError some may have been removed.
        """
        running = self._running
        with running.publishing:
            _, _, history = running.serving()
            names_needed = running.parent, running.needed and running.needed.snapshot
            stay = history.needed_for(name for name in names_needed if name is not None)
            gone = [name for name in names if name not in stay]
            for name in gone:
                history.withdraw_for_good(name)
            history.remove_leftovers()
            running.asides.difference_update(gone)
            return gone

    def snapshots(self) -> list[dict[str, Any]]:
        """Return all valid snapshots, newest first, as plain dicts of ``history.Listed``.

        Each has a field ``since``: the number of rows learned after it, which a rollback would
        undo.
        """
        running = self._running
        with running.publishing:
            server, _, history = running.serving()
            listed, contained = history.listed(), history.contained()
            with running.lock:
                since = {
                    name: rows_since(server, running.partitions, one)
                    for name, one in contained.items()
                }
            return [{**msgspec.to_builtins(row), "since": since.get(row.name)} for row in listed]

    def _retain(self, server: Server, store: Store, history: SnapshotHistory, head: str) -> None:
        running = self._running
        positions = [contained.control for contained in self._sharing.kept]
        held = rewrites.held(running.needed, positions) | self._sharing.cut
        try:
            remaining = history.retain(head, held)
            for name in running.asides - held:
                history.withdraw(name)
            running.asides &= held
        except OSError as error:
            _log.warning("old snapshots could not be removed yet: %s", error)
            return
        self._sharing.kept = remaining
        with running.lock:
            for partition in running.waiting:
                server.close(partition, remaining)
            running.waiting = [p for p in running.waiting if p.id not in server.closed]
            upto = contained_in_all(remaining, running.partitions.values())
        self._trim(server, store, upto)

    def _trim(self, server: Server, store: Store, upto: Mapping[int, int]) -> None:
        model, spec = self._running.lineage.model, self._running.lineage.spec
        try:
            if handed_on(store.controls(model, 0), spec):
                # A server that starts after the request takes a new epoch, which makes its lineage
                # the newest one again; but the lineage that replaces it lacks rows that it has.
                return
            upto = self._sharing.rows_of_all(upto)
            self._trimming.run(store, model, spec, server.epoch, upto)
        except Exception as error:  # any store's error: the head shows whether we lost the epoch
            newest = store.head(model, spec).epoch
            if newest != server.epoch:
                lost = Superseded(server.epoch, newest)
                self._running.end(lost)
                raise lost from error
            _log.warning("old rows could not be removed yet: %r", error)
