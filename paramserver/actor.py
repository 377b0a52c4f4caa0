"""The parameter server as its callers see it: sync, snapshots, and what operators decide.

This class knows no Ray: :mod:`paramserver.ray_client` makes an actor of it, tests use it as it
is.  It imports neither river nor torch, so that a killed server is back within seconds.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from paramserver import rewrites, wire
from paramserver.blocks import ADDITIVE, DENSE, Blocks, array_of
from paramserver.errors import (
    BanRefused,
    DecisionUncertain,
    ForgetRefused,
    PromoteRefused,
    RollbackRefused,
    SnapshotCorrupt,
    SnapshotFormat,
    SnapshotMissing,
    StoreUnavailable,
    Superseded,
)
from paramserver.lineage import decide, needed, replayed
from paramserver.process import (
    SERVING,
    FindGone,
    Host,
    ServerProcess,
    ServerSettings,
    identity,
)
from paramserver.server import Server
from paramserver.shown import epochs, numbers
from paramserver.snapshots.format import SCHEMA
from paramserver.snapshots.history import ASIDE, SnapshotHistory
from paramserver.state import SnapshotState
from paramserver.store import Store

__all__ = ["FindGone", "Host", "ParameterServer", "ServerSettings", "identity"]

REWRITING: Final = "rewriting"
GROWN: Final = 10.0
"""Times that weights have to be longer than before for a model to count as diverged."""


class ParameterServer(ServerProcess):
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

    def rollback(self, name: str) -> dict[str, Any]:
        """Back to the values of a snapshot: what was learned since is undone, and stays so.

        Meanwhile ``sync`` raises NotReady.  The next periodic snapshot publishes the new state.

        Returns
        -------
        dict
            ``snapshot``, ``version`` of the new state, ``undone`` (rows, whatever their verdict),
            ``control`` (number of the row that holds the decision).

        Raises
        ------
        NotReady, RollbackRefused, Superseded
            Definite: nothing was changed.
        DecisionUncertain
            Indefinite.  The process ends, and the next one acts on the row if it stands.
        """
        with self._publishing, self._deciding:
            server, store, history = self._serving()
            return self._back(server, store, history, name, self._target(history, name))

    def retreat(self, rewrite: int, before: float) -> dict[str, Any]:
        """Roll back to the newest snapshot of ``before``, for a model whose error has risen.

        Parameters, answers and errors as of :meth:`recover`; what was learned since is undone.
        """
        with self._publishing, self._deciding:
            server, store, history = self._serving()
            if rewrite != server.rewrite:
                return {"snapshot": None, "version": list(server.version), "undone": 0}
            name, target = self._newest_of(server, history, before)
            return self._back(server, store, history, name, target)

    def _back(
        self,
        server: Server,
        store: Store,
        history: SnapshotHistory,
        name: str,
        target: SnapshotState,
    ) -> dict[str, Any]:
        try:
            ends = {p.id: p.end for p in store.partitions(server.model)}
            since = store.controls(server.model, target.control)
        except Exception as error:
            raise self._refusal(history, name, f"no answer of the store: {error!r}") from error
        if (source := rewrites.brings_back(target, ends, since)) is not None:
            reason = f"it holds events of {source!r}, which was forgotten since"
            raise self._refusal(history, name, reason)
        with self._rewriting():
            note = rewrites.roll_back(server.state(0.0, None, {}), name, target, ends)
            return self._rewrite(server, store, history, note, target)

    def recover(self, rewrite: int, before: float) -> dict[str, Any]:
        """Back to the newest snapshot of ``before`` (POSIX seconds), with half the learning rate.

        For a model that has diverged.  The rows since are learned again, so no event is lost.
        ``rewrite`` is the newest one that the caller has seen: of several callers the first is
        heard, and the others get ``snapshot`` None.

        Answers and errors otherwise as of :meth:`rollback`; RollbackRefused also if no snapshot
        since the last rewrite is old enough, or the weights are less than :data:`GROWN` times as
        long as there: a stream that has changed makes a bad model too, and a halved rate would
        keep it one for longer.
        """
        with self._publishing, self._deciding:
            server, store, history = self._serving()
            if rewrite != server.rewrite:
                return {"snapshot": None, "version": list(server.version), "undone": 0}
            name, target = self._newest_of(server, history, before)
            with self._rewriting():
                grown = _length(server.values) / max(_length(target.values), 1e-300)
                if grown < GROWN:
                    reason = f"its weights are {grown:.3g} times as long: the stream has changed"
                    raise self._refusal(history, name, reason)
                note = rewrites.learn_again(server.state(0.0, None, {}), name, target)
                return self._rewrite(server, store, history, note, target)

    def _newest_of(
        self, server: Server, history: SnapshotHistory, before: float
    ) -> tuple[str, SnapshotState]:
        """The newest snapshot of ``before`` and since the last rewrite; RollbackRefused."""
        rows = [row for row in history.listed() if row.created_at <= before]
        if not rows:
            raise self._refusal(history, "none", "all are of a time when it was bad already")
        target = self._target(history, rows[0].name)
        if target.rewrite != server.rewrite:
            reason = "it is from before the last time that the values were rewritten"
            raise self._refusal(history, rows[0].name, reason)
        return rows[0].name, target

    def forget(
        self,
        name: str,
        source: str,
        since: float | None,
        base: str | None,
        undone: dict[int, list[int]],
    ) -> dict[str, Any]:
        """Go on with a state that was built aside without the rows of a banned source.

        It was published as ``name``, from the snapshot ``base`` on (None: from nothing), without
        the rows ``undone`` (see :func:`paramserver.rewrites.packed`).  What it has not learned is
        learned on top.  Answers and errors otherwise as of :meth:`rollback`; ForgetRefused if it
        can't take the place of what is served.
        """
        with self._publishing, self._deciding:
            server, store, history = self._serving()
            if not name.startswith(ASIDE):
                raise ForgetRefused(source, f"{name!r} is no state that was built aside")
            try:
                built = history.load(name)
                partitions = store.partitions(server.model)
                controls = store.controls(server.model, 0)
            except Exception as error:
                raise ForgetRefused(source, f"{type(error).__name__}: {error}") from error
            asked = rewrites.Forget(server.spec, source, since, base, name, 0, {}, [], undone)
            with self._rewriting():
                now = server.state(0.0, None, {})
                note = rewrites.forget(now, built, partitions, controls, asked)
                answer = self._rewrite(server, store, history, note, built)
            self._asides.add(name)
            return answer

    @contextlib.contextmanager
    def _rewriting(self) -> Iterator[None]:
        with self._lock:  # who syncs now has been answered
            self._state = REWRITING
        try:
            yield
        finally:
            if self._state == REWRITING:
                self._state = SERVING

    def _rewrite(
        self,
        server: Server,
        store: Store,
        history: SnapshotHistory,
        note: rewrites.Rollback | rewrites.Forget,
        target: SnapshotState,
    ) -> dict[str, Any]:
        name = note.snapshot
        kind = rewrites.ROLLBACK if isinstance(note, rewrites.Rollback) else rewrites.FORGET
        key = f"{kind}:{server.spec}:{server.epoch}:{server.count}:{name}"
        try:
            controls = decide(store, server, kind, key, msgspec.json.encode(note))
        except Superseded as error:
            self._end(error)
            raise
        except DecisionUncertain as error:  # nothing may be learned that it might undo
            self._end(error, "ended")
            raise
        try:
            state = replayed(
                server.state(0.0, None, {}),
                controls,
                lambda wanted: target if wanted == name else needed(history, wanted),
            )
            # of this epoch and no other: a server that came between has acted on the row
            epoch = store.begin_epoch(server.model, server.spec, server.epoch)
        except Exception as error:  # the row stands: the next process acts on it
            uncertain = DecisionUncertain(kind, key, f"written, but {error!r}")
            self._end(uncertain, "ended")
            raise uncertain from error
        seq = controls[-1].seq
        self._needed = rewrites.Needed(seq, name)
        settings = self._settings
        restored = Server.restored(
            state, server.rule, epoch,
            history_max=settings.history_max, part_keys=settings.part_keys,
        )  # fmt: skip
        self._serve(restored)
        return {
            "snapshot": name,
            "version": [epoch, state.version[1]],
            "undone": rewrites.Undone(note.taken()).count,
            "control": seq,
        }

    def _target(self, history: SnapshotHistory, name: str) -> SnapshotState:
        try:
            state = history.load(name)
        except (SnapshotCorrupt, SnapshotFormat, SnapshotMissing, OSError) as error:
            raise self._refusal(history, name, str(error)) from error
        if (state.model, state.spec) != (self._lineage.model, self._lineage.spec):
            raise self._refusal(history, name, f"it is of model {state.model!r}, another spec")
        if state.version[0] < self._begun:
            raise self._refusal(history, name, "it is from before the model began anew")
        return state

    def _refusal(self, history: SnapshotHistory, name: str, reason: str) -> RollbackRefused:
        usable = [row.name for row in history.listed() if row.version[0] >= self._begun]
        return RollbackRefused(name, reason, tuple(n for n in usable if n != name))

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
            }


def _length(values: Blocks) -> float:
    """Length of all weights as one vector."""
    total = 0.0
    for block in values.values():
        if block.kind == DENSE:
            numbers = array_of(block.data)
            total += float(numbers @ numbers)
        elif block.kind == ADDITIVE:
            total += sum(value * value for value in block.data.values())
    return math.sqrt(total)
