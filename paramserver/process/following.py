"""Another shard takes in what shard 0 has decided: for itself, under an epoch of its own."""

from __future__ import annotations

from functools import partial

from paramserver.core import rewrites
from paramserver.process.lineage import needed, replayed
from paramserver.process.running import Running
from paramserver.process.sharing import Sharing


class Following:
    """The decisions of shard 0, as another one follows them."""

    def __init__(self, running: Running, sharing: Sharing) -> None:
        self._running, self._sharing = running, sharing

    def take(self) -> None:
        """Take in what was decided since the last time.

        Its clock is then what the decision says, though its own may have been further: rows beyond
        are learned again.  Raises StartRefused: it can't be taken in; the shard stays as it is, and
        the next time asks again.
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
                except Exception as error:  # it may be taken: the next process goes on
                    self._running.end(error, "ended")
                    raise
                newest = rewrites.needed(controls, server.spec)
                self._running.needed = newest or self._running.needed
                self._running.go_over(state, server.rule, epoch)
            self._sharing.followed(None if newest is None else newest.snapshot)
            history.drop_asides(set() if newest is None else {newest.snapshot})
