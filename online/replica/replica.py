"""Runs one model in one replica: the local model, its journal writer, and its server exchange.

This module knows neither Ray nor HTTP.  Three loops share one event loop, so the learner needs no
lock:

* *commit* writes the waiting rows, many in one journal append (:mod:`online.replica.writer`);
* *learn* learns committed rows in offset order (:mod:`online.replica.follower`);
* *sync* pushes deltas to the parameter server and pulls the changes of other replicas
  (:mod:`online.replica.exchange`).

A request handler only waits for its rows.  Cancelling it changes nothing else.

With ``learn: background`` another process learns a slow model.  It holds a :class:`ModelReplica`
that follows this replica's partition and pushes the deltas.  Here the learn loop does not run; the
learned parameters come back from the parameter server.

A frozen model goes on answering.  New rows are written as ``frozen``, answered when they are
committed, and never learned.  The replica reports the freeze as acted on only after all earlier
rows are learned and pushed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from evaluation.drift.alarm import Alarm
from online.learning.base import BaseLearner
from online.learning.bounds import target_taught
from online.learning.ordered import OrderedLearner
from online.models.base import Trainable
from online.replica.backlog import Backlog
from online.replica.control_log import ControlLog
from online.replica.exchange import Exchange
from online.replica.follower import Follower
from online.replica.journal_threads import JournalThreads
from online.replica.memory_settings import MemoryUpkeep
from online.replica.ordered_follower import OrderedFollower
from online.replica.pace import Pace
from online.replica.peers import Peer
from online.replica.reactions import Reactions
from online.replica.row_arrivals import RowArrivals
from online.replica.shared import ReplicaParts
from online.replica.surroundings import Clocks, Identity, Services
from online.replica.writer import Writer
from online.rows.prediction_ids import forward_clock
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.telemetry.prometheus import Durations
from online.telemetry.trace import current
from online.trust.filtering import Filtering
from online.watch.canary import Canary
from online.watch.drift import DriftMonitor
from replay.errors import ReplayError
from replay.example import Label

log = logging.getLogger(__name__)

_CATCH_UP_S = 5.0  # how long a starting replica waits to learn the rows since the snapshot
_CLOCKS = Clocks()
_SLOW_S = 1.0  # between two readings of the expensive gauges


class ModelReplica:
    """Local model, journal writer and server exchange of one model.

    Parameters:
        who: Identity of this process, and whether it learns or another one does (see
            :meth:`follow`).
        outside: The journal store, the parameter server and the other services that it calls.
        filters: Judge feedback before it is written; None: no filters.
        canary: Watches the loss on rows that an operator has verified; None: no such rows.
    """

    def __init__(
        self,
        settings: ModelSettings,
        limits: Limits,
        learner: BaseLearner,
        who: Identity,
        outside: Services,
        *,
        clocks: Clocks = _CLOCKS,
        filters: Filtering | None = None,
        canary: Canary | None = None,
    ) -> None:
        now_s = forward_clock(clocks.now_s, clocks.monotonic_s)
        clocks = replace(clocks, now_s=now_s)
        self.settings, self.limits, self.learner, self.filters = settings, limits, learner, filters
        self.replica, self.spec, self._learns = who.replica, who.spec, who.learns
        self.now_s, self._monotonic_s = now_s, clocks.monotonic_s
        self.counts: Counter[str] = Counter()
        self.durations = Durations()
        self.store = JournalThreads(outside.journal)
        self._pace = Pace(settings.sync.interval_ms / 1e3, limits.adopt_s, alone=who.alone)
        self.arrivals = RowArrivals(learner, settings.cache, self._pace.now.set)
        self.control = ControlLog(settings.name, who.spec, self.store)
        learner.untaught = self.control.decisions.lacks
        self._shared = ReplicaParts(
            settings, limits, learner, self.store, self.control,
            self.counts, self._pace, self.arrivals, who, clocks, outside.crossing,
        )  # fmt: skip
        self.change_lock = self._shared.change_lock
        self.writer = Writer(self._shared, filters)
        if filters is not None:
            learner.evidence.observer = filters
        self._memory = MemoryUpkeep(self._shared, filters)
        self.backlog = Backlog(learner, self.writer, learns=who.learns)
        self.judge = self._new_judge(canary)
        self._follower = self._new_follower()
        self.exchange = Exchange(
            self._shared, self.writer, self._follower, self.backlog, outside,
            report=self.report,
            rewritten=self._on_rewrite,
        )  # fmt: skip
        self.answer_peer = Peer(learner, who.replica, who.spec, lambda: self.age_ms).sync
        self._reactions = Reactions(settings, learner, outside, self.counts, clocks)
        self._newest_target: Label | None = None
        self._unexpected: str | None = None
        self._served = 0
        self._slow: dict[str, float] = {}
        self._slow_due_s = -math.inf
        self._tasks: list[asyncio.Task[None]] = []

    def _new_follower(self) -> Follower:
        learner = self.learner
        if learner.in_order:
            assert isinstance(learner, OrderedLearner)
            return OrderedFollower(self._shared, self.writer, learner, judge=self.judge)
        return Follower(self._shared, self.writer, judge=self.judge)

    def _new_judge(self, canary: Canary | None) -> DriftMonitor | None:
        if not (self.settings.drift.watch and self._learns):
            return None
        drift, task, rewards = self.settings.drift, self.settings.task, self.settings.reward_range
        aside, share = self.store.background, self.learner.tally.share
        return DriftMonitor(drift, task, self._on_rise, aside, canary, rewards, share)

    def _on_rise(self, alarm: Alarm, since: float) -> None:
        """Handle a rise of the error: the rehearsal memory now holds rows of an outdated stream."""
        self._memory.alarm()
        self._reactions.rang(alarm, since)

    # -- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register a partition and pull the newest values; return when the replica can answer."""
        await self.writer.open()
        while not self.learner.ready:
            if not await self.exchange.once([]):
                await asyncio.sleep(0.1)
        if self._learns:
            await self._memory.fill()
        loops = [self.writer.run, self._sync_loop, *self._reactions.loops]
        if self._learns:
            loops.insert(1, self._follower.run)
        self._tasks = [asyncio.create_task(self._forever(loop)) for loop in loops]
        await self._follower.catch_up(_CATCH_UP_S)

    async def _on_rewrite(self) -> None:
        if self.judge is not None and self.settings.drift.on_rise != "relearn":
            self.judge.rewritten()  # after a relearn the fresh model's loss is a new series
        if self._tasks and self._learns:
            await self._memory.fill()

    async def stop(self, timeout_s: float) -> None:
        """Commit and push pending rows within ``timeout_s`` seconds, then seal the partition."""
        writer = self.writer
        writer.stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                while not writer.idle or self.backlog.left(self.exchange.control):
                    self._pace.now.set()
                    await asyncio.sleep(0.01)
                await self.store.write(self.store.journal.seal, writer.partition)
        except (TimeoutError, ReplayError) as error:
            log.warning("stopped with rows that another replica has to learn: %r", error)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reactions.stop()
        await self._follower.stop(timeout_s)
        # In a thread: the last journal steps may wait for a lock, and other models go on.
        await asyncio.to_thread(self.store.close)

    def follow(self, partition: int) -> None:
        """Learn the rows that another process writes into ``partition``; drop any earlier one.

        The owner of the partition does not learn, and the partition need not be sealed.  After a
        start or a restart this process continues from the server's clock.  Idempotent.
        """
        self.exchange.publishes = self.learner.in_order
        if self.learner.follow(partition, self.writer.partition):
            self._pace.now.set()

    async def _forever(self, loop: Callable[[], Any]) -> None:
        """Run a loop for ever: an unexpected exception is logged and shown, and it restarts."""
        while True:
            try:
                await loop()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self.counts["internal_errors"] += 1
                self._unexpected = f"{loop.__qualname__}: {error!r}"
                log.exception("model %s", self.settings.name)
                await asyncio.sleep(0.2)

    # -- state that answers and metrics report ------------------------------------------------

    @property
    def version(self) -> str:
        """Version of the pulled values under the local model, as ``epoch.count``."""
        return "{}.{}".format(*self.learner.answer_version)

    @property
    def incidents(self) -> list[str]:
        """Everything that needs an operator's attention, without duplicates."""
        unwritten, damaged = self.writer.answers.incident, self._follower.incident
        surprises = [self.writer.unjudged, self._unexpected]
        incidents = [self.exchange.refused, unwritten, damaged, *surprises]
        return list(dict.fromkeys(filter(None, [*incidents, *self._reactions.incidents])))

    @property
    def age_ms(self) -> float | None:
        """Milliseconds since the last confirmed-current pull was sent; None: there was none.

        For a model learned in order: since the journal was last read to its end.
        """
        fresh_s = self._follower.fresh_at_s(self.exchange.fresh_at)
        return None if fresh_s is None else (self._monotonic_s() - fresh_s) * 1e3

    @property
    def updates_behind(self) -> int | None:
        """Versions that the server is ahead; None without contact.

        For a model learned in order: rows of the store that may not be learned here yet.
        """
        return self._follower.updates_behind(self.exchange.versions_behind)

    def report(self) -> dict[str, float]:
        """Counters and gauges of this replica; disposable, so not derived from the journal."""
        gauges: dict[str, float] = {"waiting": self.writer.waiting, "own": self.learner.own}
        gauges["joins_waiting"] = self.writer.halves
        gauges |= {"behind_rows": self.backlog.rows, "relearned": self.learner.relearned}
        gauges |= self._follower.cost.report()
        gauges["from_peer"] = self.exchange.peer is not None
        gauges |= {"names": len(self.learner.vocabulary), "classes": len(self.learner.tally.seen)}
        gauges |= {"served_events": self.served, "served_epoch": self.learner.answer_version[0]}
        if (cache := self.learner.cache) is not None:
            gauges |= cache.report()
        if (memory := self.learner.memory) is not None:
            gauges |= {"replay_fill": len(memory.buffer), "replay_rows": memory.replayed}
        if self._monotonic_s() >= self._slow_due_s:  # these walk all alarms and all weights
            self._slow, self._slow_due_s = self._slow_gauges(), self._monotonic_s() + _SLOW_S
        gauges |= self._slow
        gauges |= {} if self.filters is None else self.filters.report()
        gauges |= self._reactions.report()
        if (age := self.age_ms) is not None:
            gauges["age_ms"] = round(age, 1)
        reported = {**self.counts, **gauges, **self.durations.report()}
        return {name: float(value) for name, value in reported.items()}

    def _slow_gauges(self) -> dict[str, float]:
        gauges: dict[str, float] = {}
        if (judge := self.judge) is not None:
            gauges = judge.report()
        serving = self.learner.serving
        if isinstance(serving, Trainable) and (gap := serving.gap) is not None:
            gauges["average_gap"] = gap
        return gauges

    @property
    def served(self) -> int:
        """Number of events counted in the model that answers predictions."""
        if self.learner.up_to_date:  # while a second copy catches up, the old one answers
            self._served = self.learner.tally.digest[0]
        return self._served

    def answered(self, action: str, seconds: float) -> None:
        """Record how long a request took and, for a prediction, how old the model was."""
        trace = current.get()
        self.durations.note(action, seconds, None if trace is None else trace.id)
        if action == "predict" and (age := self.age_ms) is not None:
            self.durations.note("freshness", age / 1e3)

    def note_label(self, label: Label) -> None:
        """Record a received label (regression only: the tally keeps no targets)."""
        if self.settings.task == "regression":
            bounded = self.settings.purpose.bounded
            self._newest_target = (
                target_taught(self.learner.bounds, float(label)) if bounded else label
            )

    @property
    def newest_label(self) -> Label | None:
        """Newest known label: learned by any replica or, for regression, sent to this one."""
        return self.learner.tally.newest() if self._newest_target is None else self._newest_target

    # -- exchange with the parameter server --------------------------------------------------

    async def _sync_loop(self) -> None:
        while True:
            await self.exchange.turn()
            self.durations.note("exchange", self.exchange.took_s)
            self._memory.look()
            await self._reactions.act()
