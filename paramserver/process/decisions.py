"""Decisions of operators that leave the values as they are: freeze, promote, ban, who answers."""

from __future__ import annotations

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
    """Operators decide about one running server."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def freeze(self) -> dict[str, Any]:
        """From now on new events are kept and not learned; answers go on, the version stands.

        Replicas hear of it with their next sync.  What they had accepted before is learned and
        pushed still, so the version moves until ``complete``; afterwards it moves only when the
        rows of a replica that has died are found, which were acknowledged, and learned by
        another one.  A repeat changes nothing.

        Returns:
            dict: ``frozen`` (number of the control row, 0: not frozen), ``control``, ``version``,
                ``complete`` (every live replica acts on it, and has pushed what was before).

        Raises:
            NotReady, HandedOn, NothingDecided, Superseded: Definite: nothing was changed.
            DecisionUncertain: Indefinite: ask again, the same row is written.
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
        """New events are learned again; what was kept while frozen stays as it is.

        Answers and errors as of :meth:`freeze`.
        """
        with self._running.decision() as now:
            server = now.server
            if server.frozen:
                key = f"{rewrites.UNFREEZE}:{server.frozen}"
                note = rewrites.Unfreeze()
                self._decide(now, rewrites.UNFREEZE, key, note)
            return self._learning(server)

    def promote(self, note: bytes) -> dict[str, Any]:
        """Let another lineage of the model serve; this one goes on until it is replaced.

        Parameters:
            note: :class:`paramserver.core.rewrites.Promote` as JSON.

        Returns:
            dict: ``control`` (number of the row), ``before`` and ``after``.  A repeat changes
                nothing.

        Raises:
            NotReady, HandedOn, NothingDecided, PromoteRefused, Superseded: Definite: nothing was
                changed.
            DecisionUncertain: Indefinite: ask again, the same row is written.
        """
        wanted = msgspec.json.decode(note, type=rewrites.Promote)
        with self._running.decision() as now:
            server = now.server
            if wanted.before != server.spec or wanted.after == server.spec:
                raise PromoteRefused(wanted.before, wanted.after, server.spec)
            done = rewrites.promoted(_controls(now))
            seq = 0 if done is None else done[0]
            if done is None or done[1].after != wanted.after:
                key = f"{rewrites.PROMOTE}:{server.spec}:{seq}"
                decided = msgspec.structs.replace(wanted, epoch=server.epoch)
                self._decide(now, rewrites.PROMOTE, key, decided)
                try:
                    done = rewrites.promoted(_controls(now))
                except NothingDecided as error:  # the row stands, its number is not known
                    raise DecisionUncertain(rewrites.PROMOTE, key, error.reason) from error
                assert done is not None
            return {"control": done[0], "before": done[1].before, "after": done[1].after}

    def answers(self, note: bytes) -> dict[str, Any]:
        """Let the model answer by itself from now on, or those again whom it learns from.

        Parameters:
            note: :class:`paramserver.core.standing_decisions.Answers` as JSON.

        Returns:
            dict: ``answers`` (``model`` or ``caller``), ``control`` (number of the row by which it
                is so; of the newest row if nothing was ever decided), ``version``.  A repeat
                changes nothing.

        Raises:
            NotReady, HandedOn, NothingDecided, Superseded: Definite: nothing was changed.
            DecisionUncertain: Indefinite: ask again, the same row is written.
        """
        wanted = msgspec.json.decode(note, type=Answers)
        with self._running.decision() as now:
            server = now.server
            last = newest(_controls(now), ANSWERS, Answers)
            seq = 0 if last is None else last[0]
            if wanted.itself != (last is not None and last[1].itself):
                self._decide(now, ANSWERS, f"{ANSWERS}:{seq}", wanted)
                seq = server.control
            said, version = "model" if wanted.itself else "caller", list(server.version)
            return {"answers": said, "control": seq or server.control, "version": version}

    def upgrade(self, note: bytes) -> dict[str, Any]:
        """Have a model of today's defaults beside this one, or no longer.

        Parameters:
            note: :class:`paramserver.core.standing_decisions.Upgrade` as JSON.

        Returns:
            dict: ``control`` (number of the row by which it is so; of the newest row if nothing was
                ever decided) and ``on``.  A repeat changes nothing.

        Raises:
            NotReady, HandedOn, NothingDecided, Superseded: Definite: nothing was changed.
            DecisionUncertain: Indefinite: ask again, the same row is written.
        """
        wanted = msgspec.json.decode(note, type=Upgrade)
        with self._running.decision() as now:
            last = newest(_controls(now), UPGRADE, Upgrade)
            seq, stands = last or (0, Upgrade(on=False))
            if wanted != stands:
                self._decide(now, UPGRADE, f"{UPGRADE}:{seq}", wanted)
                seq = now.server.control
            return {"control": seq or now.server.control, "on": wanted.on}

    def ban(self, source: str, banned: bool) -> dict[str, Any]:
        """From now on the rows of a source are quarantined, or no longer.

        Replicas hear of it with their next sync, and report the control row once every row that
        they write is judged by it.  A repeat changes nothing.

        Returns:
            dict: ``source``, ``banned``, ``control`` (number of the row by which it is so; of the
                newest row if nothing was ever decided about the source), ``version``.

        Raises:
            NotReady, HandedOn, NothingDecided, Superseded, BanRefused: Definite: nothing was
                changed.
            DecisionUncertain: Indefinite: ask again.
        """
        with self._running.decision() as now:
            server = now.server
            controls = _controls(now)
            known = rewrites.banned(controls)
            control = rewrites.decided_about(controls, source) or server.control
            if banned != (source in known):
                if banned and len(known) >= self._running.settings.banned_max:
                    raise BanRefused(source, self._running.settings.banned_max)
                note = rewrites.Source(source, banned)
                key = f"{rewrites.SOURCE}:{server.control}:{len(controls)}"
                self._decide(now, rewrites.SOURCE, key, note)
                control = server.control
            version = list(server.version)
            return {"source": source, "banned": banned, "control": control, "version": version}

    def _decide(self, now: Serving, kind: str, key: str, note: msgspec.Struct) -> None:
        """Write a row that leaves the values as they are, and act on it."""
        server, store, history = now
        try:
            controls = decide(store, server, kind, key, msgspec.json.encode(note))
            state = server.state(0.0, None, {})
            state = replayed(state, controls, lambda name: needed(history, name))
        except Superseded as error:
            self._running.end(error)
            raise
        if state.rewrite != server.rewrite:  # another lineage's: only a start takes it in
            uncertain = DecisionUncertain(kind, key, f"control row {state.rewrite} rewrote values")
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
        """Whether all that live act on the freeze; unknown for a lease after a start."""
        running = self._running
        server, lease_s = running.server, running.settings.lease_s
        if server is None or not server.frozen or now_s - running.restored_s < lease_s:
            return False
        return running.replicas.all_act_on(server.frozen, now_s - lease_s)


def _controls(now: Serving) -> list[ControlInfo]:
    """All control rows of the model.  Raises NothingDecided."""
    try:
        return list(now.store.controls(now.server.model, 0))
    except Exception as error:
        raise NothingDecided(f"{type(error).__name__}: {error}") from error
