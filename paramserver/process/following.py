"""Applies shard 0's decisions on another shard, under that shard's own epoch."""

from __future__ import annotations

from functools import partial

from paramserver.core import rewrites
from paramserver.process.lineage import needed, replayed
from paramserver.process.running import Running
from paramserver.process.sharing import Sharing


class Following:
    """Applies the decisions of shard 0 on one of the other shards."""

    def __init__(self, running: Running, sharing: Sharing) -> None:
        self._running, self._sharing = running, sharing

    def take(self) -> None:
        """Apply the control rows written since the last call.

        After a rewrite the shard's clock is the one in the decision, even if its own was further
        ahead: replicas learn the rows beyond again.  Raises StartRefused if a row cannot be
        applied; the shard stays unchanged, and the next call tries again.
        """
        if not self._sharing.follows:
            return
        with self._running.decision() as now:
            server, store, history = now
            controls = store.controls(server.model, server.control)
            if not controls:
                return
            load = partial(needed, history)
            if not any(control.kind in rewrites.REWRITES for control in controls):
                state = replayed(server.state(0.0, None, {}), controls, load)
                with self._running.lock:
                    server.note_decided(state)
                return
            with self._running.rewriting():
                state = replayed(server.state(0.0, None, {}), controls, load)
                try:
                    epoch = store.begin_epoch(server.model, server.spec, server.epoch)
                except Exception as error:  # the epoch may be taken: the next process goes on
                    self._running.end(error, "ended")
                    raise
                newest = rewrites.needed(controls, server.spec)
                self._running.needed = newest or self._running.needed
                self._running.switch_to(state, server.rule, epoch)
            self._sharing.followed(None if newest is None else newest.snapshot)
            history.drop_asides(set() if newest is None else {newest.snapshot})
