"""Operators' decisions that do not change the values: freeze, promote, ban, and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from paramserver.core import rewrites
from paramserver.core.server import Server
from paramserver.core.standing_decisions import ANSWERS, UPGRADE, Answers, Upgrade, newest
from paramserver.errors import (
    BanRefused,
    DecisionUncertain,
    NothingDecided,
    PromoteRefused,
    Superseded,
)
from paramserver.process.lineage import decide, needed, replayed
from paramserver.process.running import Running, Serving
from paramserver.store import ControlInfo


class Decisions:
    """Writes operators' decisions about one running server as control rows."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def freeze(self) -> dict[str, Any]:
        """Stop learning: from now on new events are stored but not learned; predictions go on.

        Replicas receive the decision with their next sync.  They still learn and push the events
        that they accepted before, so the version changes until ``complete``.  Later it changes only
        when another replica adopts and learns acknowledged rows of a dead replica.  A repeated call
        changes nothing.

        Returns:
            dict: ``frozen`` (number of the control row, 0: not frozen), ``control``, ``version``,
                ``complete`` (every live replica acts on it and has pushed all earlier rows).

        Raises:
            NotReady, HandedOn, NothingDecided, Superseded: Definite: nothing was changed.
            DecisionUncertain: Indefinite: call again, the same row is written.
        """
        with self._running.decision() as now:
            server = now.server
            if not server.frozen:
                with self._running.lock:
                    note = rewrites.Freeze(dict(server.clock), sorted(server.closed))
                key = f"{rewrites.FREEZE}:{server.control}"
                self._decide(now, rewrites.FREEZE, key, note)
            return self._learning(server)

    def unfreeze(self) -> dict[str, Any]:
        """Learn new events again; events stored while frozen stay unlearned.

        Returns and raises as :meth:`freeze`.
        """
        with self._running.decision() as now:
            server = now.server
            if server.frozen:
                key = f"{rewrites.UNFREEZE}:{server.frozen}"
                note = rewrites.Unfreeze()
                self._decide(now, rewrites.UNFREEZE, key, note)
            return self._learning(server)

    def promote(self, note: bytes) -> dict[str, Any]:
        """Make another lineage of the model serve; this one serves until it is replaced.

        Parameters:
            note: :class:`paramserver.core.rewrites.Promote` as JSON.

        Returns:
            dict: ``control`` (number of the row), ``before`` and ``after``.  A repeated call
                changes nothing.

        Raises:
            NotReady, HandedOn, NothingDecided, PromoteRefused, Superseded: Definite: nothing was
                changed.
            DecisionUncertain: Indefinite: call again, the same row is written.
        """
        wanted = msgspec.json.decode(note, type=rewrites.Promote)
        with self._running.decision() as now:
            server = now.server
            if wanted.before != server.spec or wanted.after == server.spec:
                raise PromoteRefused(wanted.before, wanted.after, server.spec)
            done = rewrites.promoted(controls := _controls(now))
            seq = 0 if done is None else done[0]
            self._catch_up(now, controls, seq)
            if done is None or done[1].after != wanted.after:
                key = f"{rewrites.PROMOTE}:{server.spec}:{seq}"
                decided = msgspec.structs.replace(wanted, epoch=server.epoch)
                self._decide(now, rewrites.PROMOTE, key, decided)
                try:
                    done = rewrites.promoted(_controls(now))
                except NothingDecided as error:  # the row was written, its number is unknown
                    raise DecisionUncertain(rewrites.PROMOTE, key, error.reason) from error
                assert done is not None
            return {"control": done[0], "before": done[1].before, "after": done[1].after}

    def answers(self, note: bytes) -> dict[str, Any]:
        """Let the model choose by itself from now on, or the callers whose choices it learns.

        Parameters:
            note: :class:`paramserver.core.standing_decisions.Answers` as JSON.

        Returns:
            dict: ``answers`` (``model`` or ``caller``), ``control`` (number of the deciding row, or
                of the newest row if there was no such decision), ``version``.  A repeated call
                changes nothing.

        Raises:
            NotReady, HandedOn, NothingDecided, Superseded: Definite: nothing was changed.
            DecisionUncertain: Indefinite: call again, the same row is written.
        """
        wanted = msgspec.json.decode(note, type=Answers)
        with self._running.decision() as now:
            server = now.server
            last = newest(controls := _controls(now), ANSWERS, Answers)
            seq = 0 if last is None else last[0]
            self._catch_up(now, controls, seq)
            if wanted.itself != (last is not None and last[1].itself):
                self._decide(now, ANSWERS, f"{ANSWERS}:{seq}", wanted)
                seq = server.control
            chooser, version = "model" if wanted.itself else "caller", list(server.version)
            return {"answers": chooser, "control": seq or server.control, "version": version}

    def upgrade(self, note: bytes) -> dict[str, Any]:
        """Add a challenger with today's defaults beside this model, or remove it.

        Parameters:
            note: :class:`paramserver.core.standing_decisions.Upgrade` as JSON.

        Returns:
            dict: ``control`` (number of the deciding row, or of the newest row if there was no such
                decision) and ``on``.  A repeated call changes nothing.

        Raises:
            NotReady, HandedOn, NothingDecided, Superseded: Definite: nothing was changed.
            DecisionUncertain: Indefinite: call again, the same row is written.
        """
        wanted = msgspec.json.decode(note, type=Upgrade)
        with self._running.decision() as now:
            last = newest(controls := _controls(now), UPGRADE, Upgrade)
            seq, stands = last or (0, Upgrade(on=False))
            self._catch_up(now, controls, seq)
            if wanted != stands:
                self._decide(now, UPGRADE, f"{UPGRADE}:{seq}", wanted)
                seq = now.server.control
            return {"control": seq or now.server.control, "on": wanted.on}

    def ban(self, source: str, banned: bool) -> dict[str, Any]:
        """Quarantine the rows of a source from now on, or no longer.

        Replicas receive the decision with their next sync, and report the control row once they
        apply it to every row that they write.  A repeated call changes nothing.

        Returns:
            dict: ``source``, ``banned``, ``control`` (number of the deciding row, or of the newest
                row if there was no decision about the source), ``version``.

        Raises:
            NotReady, HandedOn, NothingDecided, Superseded, BanRefused: Definite: nothing was
                changed.
            DecisionUncertain: Indefinite: call again.
        """
        with self._running.decision() as now:
            server = now.server
            controls = _controls(now)
            known = rewrites.banned(controls)
            control = rewrites.decided_about(controls, source)
            self._catch_up(now, controls, control)
            control = control or server.control
            if banned != (source in known):
                if banned and len(known) >= self._running.settings.banned_max:
                    raise BanRefused(source, self._running.settings.banned_max)
                note = rewrites.Source(source, banned)
                key = f"{rewrites.SOURCE}:{server.control}:{len(controls)}:{source}"
                self._decide(now, rewrites.SOURCE, key, note)
                control = server.control
            version = list(server.version)
            return {"source": source, "banned": banned, "control": control, "version": version}

    def _decide(self, now: Serving, kind: str, key: str, note: msgspec.Struct) -> None:
        """Write a control row that does not change the values, and act on it."""
        try:
            controls = decide(now.store, now.server, kind, key, msgspec.json.encode(note))
        except Superseded as error:
            self._running.end(error)
            raise
        self._act_on(now, controls)

    def _catch_up(self, now: Serving, controls: Sequence[ControlInfo], seq: int) -> None:
        """Act on row ``seq`` if it was written, but its answer was lost: its repeat writes none."""
        if seq > now.server.control:
            self._act_on(now, [control for control in controls if control.seq > now.server.control])

    def _act_on(self, now: Serving, controls: Sequence[ControlInfo]) -> None:
        server, _, history = now
        state = server.state(0.0, None, {})
        state = replayed(state, controls, lambda name: needed(history, name))
        if state.rewrite != server.rewrite:  # another lineage's rewrite: only a start applies it
            reason = f"control row {state.rewrite} rewrote values"
            uncertain = DecisionUncertain(controls[-1].kind, controls[-1].key, reason)
            self._running.end(uncertain, "ended")
            raise uncertain
        with self._running.lock:
            server.note_decided(state)

    def _learning(self, server: Server) -> dict[str, Any]:
        with self._running.lock:
            return {
                "frozen": server.frozen,
                "control": server.control,
                "version": list(server.version),
                "complete": self.freeze_complete(self._running.host.monotonic()),
            }

    def freeze_complete(self, now_s: float) -> bool:
        """Return whether all live replicas act on the freeze; False for a lease after a start."""
        running = self._running
        server, lease_s = running.server, running.settings.lease_s
        if server is None or not server.frozen or now_s - running.restored_s < lease_s:
            return False
        return running.replicas.all_act_on(server.frozen, now_s - lease_s)


def _controls(now: Serving) -> list[ControlInfo]:
    """Return all control rows of the model.  Raises NothingDecided."""
    try:
        return list(now.store.controls(now.server.model, 0))
    except Exception as error:
        raise NothingDecided(f"{type(error).__name__}: {error}") from error
