"""The parameter server as its callers see it: sync, snapshots, and what operators decide.

This class knows no Ray: :mod:`paramserver.ray_client` makes an actor of it, tests use it as it
is.  It imports neither river nor torch, so that a killed server is back within seconds.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from paramserver import rewrites, wire
from paramserver.errors import (
    BanRefused,
    DecisionUncertain,
    PromoteRefused,
    StoreUnavailable,
    Superseded,
)
from paramserver.lineage import decide, needed, replayed
from paramserver.process import FindGone, Host, ServerSettings, identity
from paramserver.server import Server
from paramserver.shown import epochs, numbers
from paramserver.snapshots.format import SCHEMA
from paramserver.snapshots.history import SnapshotHistory
from paramserver.store import Store
from paramserver.swapping import SwappingProcess

__all__ = ["FindGone", "Host", "ParameterServer", "ServerSettings", "identity"]


class ParameterServer(SwappingProcess):
    """A server's process with what operators ask and decide."""

    def snapshots(self) -> list[dict[str, Any]]:
        """All good snapshots, newest first, as plain dicts of ``history.Listed``."""
        with self._publishing:
            _, _, history = self._serving()
            return [msgspec.to_builtins(row) for row in history.listed()]

    def pin(self, name: str, on: bool = True) -> None:
        """Keep a snapshot whatever retention says, or no longer; SnapshotMissing."""
        with self._publishing:
            _, _, history = self._serving()
            history.pin(name, on)

    # -- decisions ---------------------------------------------------------------------------

    def freeze(self) -> dict[str, Any]:
        """From now on new events are kept and not learned; answers go on, the version stands.

        Replicas hear of it with their next sync.  What they had accepted before is learned and
        pushed still, so the version moves until ``complete``; afterwards it moves only when the
        rows of a replica that has died are found, which were acknowledged, and learned by
        another one.  A repeat changes nothing.

        Returns
        -------
        dict
            ``frozen`` (number of the control row, 0: not frozen), ``control``, ``version``,
            ``complete`` (every live replica acts on it, and has pushed what was before).

        Raises
        ------
        NotReady, Superseded
            Definite: nothing was changed.
        DecisionUncertain
            Indefinite: ask again, the same row is written.
        """
        with self._publishing, self._deciding:
            server, store, history = self._serving()
            if not server.frozen:
                with self._lock:
                    note = rewrites.Freeze(dict(server.clock), sorted(server.closed))
                key = f"{rewrites.FREEZE}:{server.control}"
                self._decide(server, store, history, rewrites.FREEZE, key, note)
            return self._learning(server)

    def unfreeze(self) -> dict[str, Any]:
        """New events are learned again; what was kept while frozen stays as it is.

        Answers and errors as of :meth:`freeze`.
        """
        with self._publishing, self._deciding:
            server, store, history = self._serving()
            if server.frozen:
                key = f"{rewrites.UNFREEZE}:{server.frozen}"
                note = rewrites.Unfreeze()
                self._decide(server, store, history, rewrites.UNFREEZE, key, note)
            return self._learning(server)

    def promote(self, note: bytes) -> dict[str, Any]:
        """Let another lineage of the model serve; this one goes on until it is replaced.

        Parameters
        ----------
        note
            :class:`paramserver.rewrites.Promote` as JSON.

        Returns
        -------
        dict
            ``control`` (number of the row), ``before`` and ``after``.  A repeat changes nothing.

        Raises
        ------
        NotReady, PromoteRefused, Superseded
            Definite: nothing was changed.
        DecisionUncertain
            Indefinite: ask again, the same row is written.
        """
        wanted = msgspec.json.decode(note, type=rewrites.Promote)
        with self._publishing, self._deciding:
            server, store, history = self._serving()
            if wanted.before != server.spec or wanted.after == server.spec:
                raise PromoteRefused(wanted.before, wanted.after, server.spec)
            newest = rewrites.promoted(store.controls(server.model, 0))
            seq = 0 if newest is None else newest[0]
            if newest is None or newest[1].after != wanted.after:
                key = f"{rewrites.PROMOTE}:{server.spec}:{seq}"
                decided = msgspec.structs.replace(wanted, epoch=server.epoch)
                self._decide(server, store, history, rewrites.PROMOTE, key, decided)
                newest = rewrites.promoted(store.controls(server.model, 0))
                assert newest is not None
            return {"control": newest[0], "before": newest[1].before, "after": newest[1].after}

    def ban(self, source: str, banned: bool) -> dict[str, Any]:
        """From now on the rows of a source are quarantined, or no longer.

        Replicas hear of it with their next sync, and report the control row once every row that
        they write is judged by it.  A repeat changes nothing.

        Returns
        -------
        dict
            ``source``, ``banned``, ``control`` (number of the row by which it is so; of the newest
            row if nothing was ever decided about the source), ``version``.

        Raises
        ------
        NotReady, Superseded, BanRefused
            Definite: nothing was changed.
        DecisionUncertain
            Indefinite: ask again.
        """
        with self._publishing, self._deciding:
            server, store, history = self._serving()
            try:
                controls = store.controls(server.model, 0)
            except Exception as error:
                raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
            known = rewrites.banned(controls)
            control = known.get(source, server.control)
            if banned != (source in known):
                if banned and len(known) >= self._settings.banned_max:
                    raise BanRefused(source, self._settings.banned_max)
                note = rewrites.Source(source, banned)
                key = f"{rewrites.SOURCE}:{server.control}:{len(controls)}"
                self._decide(server, store, history, rewrites.SOURCE, key, note)
                control = server.control
            version = list(server.version)
            return {"source": source, "banned": banned, "control": control, "version": version}

    def _decide(
        self,
        server: Server,
        store: Store,
        history: SnapshotHistory,
        kind: str,
        key: str,
        note: msgspec.Struct,
    ) -> None:
        """Write a row that leaves the values as they are, and act on it."""
        try:
            controls = decide(store, server, kind, key, msgspec.json.encode(note))
            state = server.state(0.0, None, {})
            state = replayed(state, controls, lambda name: needed(history, name))
        except Superseded as error:
            self._end(error)
            raise
        if state.rewrite != server.rewrite:  # another lineage's: only a start takes it in
            uncertain = DecisionUncertain(kind, key, f"control row {state.rewrite} rewrote values")
            self._end(uncertain, "ended")
            raise uncertain
        with self._lock:
            server.note_decided(state)

    def _learning(self, server: Server) -> dict[str, Any]:
        with self._lock:
            return {
                "frozen": server.frozen,
                "control": server.control,
                "version": list(server.version),
                "complete": self._freeze_complete(self._host.monotonic()),
            }

    def _freeze_complete(self, now_s: float) -> bool:
        """Whether all that live act on the freeze; unknown for a lease after a start."""
        server, lease_s = self._server, self._settings.lease_s
        if server is None or not server.frozen or now_s - self._restored_s < lease_s:
            return False
        return self._contacts.all_act_on(server.frozen, now_s - lease_s)

    # -- answers -----------------------------------------------------------------------------

    def ping(self) -> str:
        """The state's name; answers as soon as the process lives."""
        return self._state

    def reports(self) -> dict[str, dict[str, float]]:
        """Newest counters of each replica heard of within ``report_keep_s``."""
        with self._lock:
            return self._contacts.reports(self._host.monotonic())

    def status(self) -> dict[str, Any]:
        """Everything about the server that an operator may ask; plain data."""
        history = self._history
        listed = [] if history is None else history.listed()
        reach = None if history is None else history.reach()
        wall_s = self._host.wall()
        with self._lock:
            now_s = self._host.monotonic()
            server = self._server
            return {
                "state": self._state,
                "reason": self._reason,
                "identity": self._identity,
                "model": self._lineage.model,
                "spec": self._lineage.spec,
                "merge": self._lineage.rule,
                "format": wire.FORMAT,
                "schema": SCHEMA,
                "pid": os.getpid(),
                "restore_s": self._restore_s,
                "confirmed_s": now_s - self._confirmed_s,
                **numbers(server),
                "epochs": epochs(listed, server),
                "freeze_complete": self._freeze_complete(now_s),
                "replicas": self._contacts.shown(now_s),
                "snapshots": len(listed),
                "snapshot": self._parent,
                "snapshot_age_s": wall_s - listed[0].created_at if listed else None,
                "reach_s": None if reach is None else wall_s - reach,
                "refused": dict(self._refused),
                "vanished": 0 if history is None else history.vanished.files,
                "incident": None if history is None else history.vanished.incident,
            }
