"""Replaces the served values in one step: rollback, recovery, forget, relearn, backfill.

First the control row is written; then the state that it names is served, under the next epoch.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np

from paramserver.core import rewrites
from paramserver.core.blocks import ADDITIVE, DENSE, ROWS, Blocks, array_of
from paramserver.core.state import Contained, SnapshotState
from paramserver.errors import (
    DecisionUncertain,
    HandedOn,
    NothingDecided,
    RollbackRefused,
    SnapshotCorrupt,
    SnapshotFormat,
    SnapshotMissing,
    Superseded,
)
from paramserver.process import aside, shortfall
from paramserver.process.bases import Backfill, Lesson, publish_pinned, withdraw_pinned
from paramserver.process.lineage import check_decides, decide, needed, replayed
from paramserver.process.running import Running, Serving
from paramserver.process.sharing import Sharing
from paramserver.snapshots.history import ASIDE, SnapshotHistory, parse_name, snapshot_name

GROWN: Final = 10.0
"""Growth of the norm of the weights from which on a model counts as diverged."""


class Swapping:
    """Replaces the values of one running server, on request of operators or replicas."""

    def __init__(self, running: Running, sharing: Sharing) -> None:
        self._running, self._sharing = running, sharing
        self._relearn_from_s = -math.inf

    def rollback(self, name: str) -> dict[str, Any]:
        """Return to the values of a snapshot; rows learned since are excluded from the model.

        Meanwhile ``sync`` raises NotReady.  The next periodic snapshot publishes the new state.

        Returns:
            dict: ``snapshot``, ``version`` of the new state, ``undone`` (number of excluded rows,
                whatever their verdict), ``control`` (number of the control row).

        Raises:
            NotReady, RollbackRefused, Superseded: Definite: nothing was changed.
            DecisionUncertain: Indefinite.  The process ends, and the next one acts on the row if it
                was written.
        """
        with self._running.decision() as now:
            return self._roll_back_to(now, name, self._target(now.history, name))

    def retreat(self, rewrite: int, before: float) -> dict[str, Any]:
        """Roll back to the newest snapshot before ``before``, because the error has risen.

        Parameters, result and errors as for :meth:`recover`, but the rows since are excluded.  If
        poisoned feedback continues after a rollback, there may be no later snapshot that is old
        enough; then the snapshot of that rollback is used again.
        """
        with self._running.decision() as now:
            server, store, history = now
            if rewrite != server.rewrite:
                return {"snapshot": None, "version": list(server.version), "undone": 0}
            try:
                controls = store.controls(server.model, 0)
            except Exception as error:
                raise self._refusal(
                    history, "none", f"no answer of the store: {error!r}"
                ) from error
            again = rewrites.rolled_back_to(controls, server.spec)
            name, target = self._newest_of(now, before, again)
            return self._roll_back_to(now, name, target)

    def _roll_back_to(self, now: Serving, name: str, target: SnapshotState) -> dict[str, Any]:
        server, store, history = now
        try:
            ends = {p.id: p.end for p in store.partitions(server.model)}
            known = store.controls(server.model, 0)
        except Exception as error:
            raise self._refusal(history, name, f"no answer of the store: {error!r}") from error
        check_decides(known, server)  # before the other shards pin snapshots for it
        since = [control for control in known if control.seq > target.control]
        if any(clock > ends.get(p, 0) for p, clock in target.clock.items()):
            reason = "it has learned rows that the journal does not have"
            raise self._refusal(history, name, reason)
        if (source := rewrites.brings_back(target, ends, since)) is not None:
            reason = f"it holds events of {source!r}, which was forgotten since"
            raise self._refusal(history, name, reason)
        with self._running.rewriting():
            note = rewrites.roll_back(server.state(0.0, None, {}), name, target, ends)
            return self._rewrite(now, self._for_all_shards(note, target), target)

    def recover(self, rewrite: int, before: float) -> dict[str, Any]:
        """Roll back a diverged model and learn the rows since again at half the learning rate.

        Parameters:
            rewrite: Number of the newest rewrite that the caller has seen.  If it is not the
                newest, nothing is done and ``snapshot`` is None: another caller was first.
            before: The newest snapshot made at or before this time is used (POSIX seconds).

        Returns:
            dict: As :meth:`rollback`.

        Raises:
            RollbackRefused: As :meth:`rollback`; also if no snapshot since the last rewrite is old
                enough, or the norm of the weights has grown by a factor below :data:`GROWN`.  Then
                the stream has probably changed, and a halved rate would slow the adaptation.
        """
        with self._running.decision() as now:
            server, store, history = now
            if rewrite != server.rewrite:
                return {"snapshot": None, "version": list(server.version), "undone": 0}
            name, target = self._newest_of(now, before)
            try:
                known = store.controls(server.model, 0)
            except Exception as error:
                raise self._refusal(history, name, f"no answer of the store: {error!r}") from error
            check_decides(known, server)
            loss = shortfall.accepted(known, server.spec)
            if loss is not None and target.version < loss.note.version:
                reason = f"{loss.note.events:,} events since are lost from the journal"
                raise self._refusal(history, name, reason)
            with self._running.rewriting():
                grown = _length(server.values) / max(_length(target.values), 1e-300)
                if grown < GROWN:
                    reason = f"its weights are {grown:.3g} times as long: the stream has changed"
                    raise self._refusal(history, name, reason)
                note = rewrites.learn_again(server.state(0.0, None, {}), name, target)
                return self._rewrite(now, self._for_all_shards(note, target), target)

    def _for_all_shards(self, note: rewrites.Rollback, target: SnapshotState) -> rewrites.Rollback:
        contained = Contained(target.clock, target.closed, target.control)
        return self._sharing.rollback(note, note.snapshot, contained)

    def _newest_of(
        self, now: Serving, before: float, again: str | None = None
    ) -> tuple[str, SnapshotState]:
        """Return the newest snapshot before ``before`` and after the last rewrite.

        If that rewrite was a rollback to ``again``, that snapshot may be returned again.  Raises
        RollbackRefused.
        """
        server, _, history = now
        rows = [row for row in history.listed() if row.created_at <= before]
        if not rows:
            raise self._refusal(
                history, "none", "all of them were made after the model had diverged"
            )
        target = self._target(history, rows[0].name)
        if target.rewrite != server.rewrite and again in [row.name for row in rows]:
            return str(again), self._target(history, str(again))
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
        digests: tuple[rewrites.Digest, rewrites.Digest] | None = None,
    ) -> dict[str, Any]:
        """Switch to a state that was built separately without the rows of a banned source.

        Replicas learn the rows after its clock on top.  Result and errors otherwise as for
        :meth:`rollback`; ForgetRefused if it cannot replace the served state.

        Parameters:
            name: Name under which the state was published.
            base: The snapshot that it was built from; None: built from an empty model.
            undone: Excluded rows, encoded by :func:`paramserver.core.rewrites.packed`.
            digests: Digests of the events with and without these rows, recorded with the decision.
        """
        at = self._running.host.wall()
        request = rewrites.Forget(
            "", source, since, base, name, 0, {}, [], undone, at=at, digests=digests
        )
        return self._switch_to(request)

    def may_relearn(self, rewrite: int, pause_s: float) -> bool:
        """Return whether the caller may build a state for :meth:`relearn`.

        One caller in ``pause_s`` seconds may, and only if ``rewrite``, the newest rewrite that it
        has seen, is the newest.  Only this process records it: after its end two callers may build
        a state, and the second one's is refused.
        """
        with self._running.lock:
            server, _, _ = self._running.serving()
            now_s = self._running.host.monotonic()
            if server.frozen or rewrite != server.rewrite or now_s < self._relearn_from_s:
                return False
            self._relearn_from_s = now_s + pause_s
            return True

    def relearn(
        self, name: str, since: float, undone: dict[int, list[int]], evidence: dict[str, float]
    ) -> dict[str, Any]:
        """Switch to a state that was built separately from recent rows only.

        It was published as ``name`` and lacks the rows ``undone``; ``evidence`` holds its scores.
        Result and errors as for :meth:`forget`, with RelearnRefused.
        """
        return self._switch_to(rewrites.Relearn("", name, 0, {}, [], undone, since, evidence))

    def backfill(self, name: str, lesson: bytes) -> dict[str, Any]:
        """Switch to a separately built state that learned tables; it becomes a pinned base.

        It was published as ``name``; ``lesson`` is a :class:`paramserver.process.bases.Lesson` as
        JSON.  Result (``snapshot`` is the base) and errors as for :meth:`forget`, with
        BackfillRefused, and PublishFailed: nothing was changed.
        """
        running = self._running
        learned = msgspec.json.decode(lesson, type=Lesson)
        request = Backfill(
            "", name, 0, {}, [], 0,
            list(learned.files), learned.learned, learned.quarantined, learned.known, learned.label,
        )  # fmt: skip
        with running.decision() as now:
            server, store, history = now
            with running.rewriting():
                note, built = self._decision_and_state(now, request)
                version = server.epoch, server.count + 1
                base = snapshot_name(version, running.base)
                state = replace(built, version=version, parent=running.parent)
                publish_pinned(history, base, state)
                note = msgspec.structs.replace(note, snapshot=base)
                try:
                    answer = self._rewrite(now, note, state)
                except (HandedOn, NothingDecided, Superseded):  # no control row names it
                    withdraw_pinned(history, base)
                    raise
            with contextlib.suppress(Exception):  # a start finds the base through the row, too
                store.move_head(server.model, server.spec, answer["version"][0], base)
                running.base, running.parent = version, base
            history.withdraw(name)
            return answer

    def _switch_to(self, request: rewrites.Forget | rewrites.Relearn) -> dict[str, Any]:
        with self._running.decision() as now:
            with self._running.rewriting():
                note, built = self._decision_and_state(now, request)
                answer = self._rewrite(now, note, built)
            self._running.asides.add(request.snapshot)
            return answer

    def _decision_and_state(
        self, now: Serving, request: aside.Asked
    ) -> tuple[aside.Asked, SnapshotState]:
        """Return the decision to switch to a separately built state, and that state."""
        (server, store, history), name = now, request.snapshot
        if not name.startswith(ASIDE):
            raise aside.refusal(request, f"there is no separately built state {name!r}")
        if (why := self._sharing.lacks(name)) is not None:
            raise aside.refusal(request, why)
        try:
            built = history.load(name)
            partitions = store.partitions(server.model)
            controls = store.controls(server.model, 0)
        except Exception as error:
            raise aside.refusal(request, f"{type(error).__name__}: {error}") from error
        return aside.decided(
            server.state(0.0, None, {}), built, partitions, controls, request
        ), built

    def _rewrite(
        self, now: Serving, note: rewrites.Note | Backfill, target: SnapshotState
    ) -> dict[str, Any]:
        server, store, history = now
        name = note.snapshot
        kind = rewrites.BACKFILL if isinstance(note, Backfill) else rewrites.kind_of(note)
        key = f"{kind}:{server.spec}:{server.epoch}:{server.count}:{name}"
        try:
            controls = decide(store, server, kind, key, msgspec.json.encode(note))
        except Superseded as error:
            self._running.end(error)
            raise
        except DecisionUncertain as error:  # learning on could learn rows that it excludes
            self._running.end(error, "ended")
            raise
        try:
            state = replayed(
                server.state(0.0, None, {}),
                controls,
                lambda wanted: target if wanted == name else needed(history, wanted),
            )
            # only from this epoch: a server that took one in between has acted on the row
            epoch = store.begin_epoch(server.model, server.spec, server.epoch)
        except Exception as error:  # the row is written: the next process acts on it
            uncertain = DecisionUncertain(kind, key, f"written, but {error!r}")
            self._running.end(uncertain, "ended")
            raise uncertain from error
        seq = controls[-1].seq
        self._running.needed = rewrites.Needed(seq, name)
        self._running.switch_to(state, server.rule, epoch)
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
        if (state.model, state.spec) != (self._running.lineage.model, self._running.lineage.spec):
            raise self._refusal(history, name, f"it is of model {state.model!r} with another spec")
        if state.version[0] < self._running.begun:
            raise self._refusal(history, name, "it is older than the newest rewrite of the model")
        return state

    def _refusal(self, history: SnapshotHistory, name: str, reason: str) -> RollbackRefused:
        usable = [row for row in history.listed() if row.version[0] >= self._running.begun]
        if (version := parse_name(name)) is not None:  # the nearest one before it, and so on
            after = [row for row in usable if row.version > version[0]]
            usable = [*usable[len(after) :], *reversed(after)]
        return RollbackRefused(name, reason, tuple(row.name for row in usable if row.name != name))


def _length(values: Blocks) -> float:
    """Return the Euclidean norm of all weights as one vector."""
    total = 0.0
    for block in values.values():
        if block.kind == DENSE:
            numbers = array_of(block.data)
            total += float(numbers @ numbers)
        elif block.kind == ROWS:
            rows = block.data.numbers
            total += float(np.einsum("ij,ij->", rows, rows, dtype=np.float64))
        elif block.kind == ADDITIVE:
            total += sum(value * value for value in block.data.values())
    return math.sqrt(total)
