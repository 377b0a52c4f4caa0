"""One model in one replica: the shell around the learner.  No Ray and no HTTP.

Three loops share the replica's event loop, so the learner needs no lock:

* *commit* writes the rows that wait, many in one step (:mod:`online.replica.writer`);
* *learn* learns committed rows in the order of their offsets (:mod:`online.replica.follower`);
* *sync* pushes deltas to the parameter server and pulls what others did
  (:mod:`online.replica.exchange`).

A handler only waits for its row; if it is cancelled nothing else changes.

A slow model is learned in the background: another process holds a :class:`ModelReplica` that
follows this one's partition and pushes, and here the learn loop does not run: what is learned
comes back from the parameter server.

A frozen model goes on answering.  Rows are written as ``frozen``, answered at their commit and
learned by nobody; what was written before is learned and pushed, and only then does the replica
report the freeze as acted on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from evaluation.drift.alarm import Alarm
from online.learning.merged import Learner
from online.learning.ordered import OrderedLearner
from online.learning.overlay import OverlayLearner
from online.models.base import Trainable
from online.replica.backlog import Owed
from online.replica.exchange import Exchange, ParameterServerClient
from online.replica.follower import Follower
from online.replica.journal_threads import JournalThreads
from online.replica.memory import Remembering
from online.replica.ordered_follower import OrderedFollower
from online.replica.pace import Pace
from online.replica.peers import Peer
from online.replica.writer import Writer
from online.rows.prediction_ids import forward_clock
from online.settings.config import Limits
from online.settings.model import ModelSettings
from online.telemetry import Durations
from online.trust.filtering import Filtering
from online.trust.trigger_watch import Looked, TriggerWatch
from online.watch.canary import Canary
from online.watch.divergence import Watch
from online.watch.drift import Judge
from online.watch.on_rise import Relearn, Rise
from replay.errors import JournalUnavailable, ReplayError
from replay.example import Label
from replay.journal.base import Journal

log = logging.getLogger("online.replica")

_CATCH_UP_S = 5.0  # that a replica which starts waits for the rows since the snapshot
_SLOW_S = 1.0  # between two looks at the gauges that take a walk
_WATCH_S = 1.0  # between two looks whether the model has diverged


class ModelReplica:
    """Local model, journal writer and exchange of one model.

    Parameters
    ----------
    replica
        Name of this process; a new one a start.
    client, journal
        The parameter server and the store.
    learns
        False: another process learns what is written here (see :meth:`follow`).
    now_s, monotonic_s
        Wall clock (POSIX seconds) and monotonic clock.  The wall clock may be set back: this
        process's time goes on.
    cpu_s
        What tells the cost of writing down and loading a model; by default the monotonic clock.
    ask
        Has the parameter server do what it is asked by name (``recover``, ``freeze``) when the
        model has diverged (:mod:`online.watch.divergence`) or its error has risen; None: nothing
        acts.
    filters
        Judge feedback before it is written; None: nothing does.
    canary
        Watches the loss on rows that an operator vouches for; None: there are none.
    peers
        Other replicas, asked for values by one that starts while the server can't be reached.
    relearn
        Has a fresh model taught by recent rows (:mod:`online.rebuild.relearn`); None: nobody does.
    search
        Has triggers searched for (:mod:`online.service.trigger_task`); None: nobody does.
    """

    def __init__(
        self,
        settings: ModelSettings,
        limits: Limits,
        learner: Learner | OrderedLearner,
        journal: Journal,
        client: ParameterServerClient,
        *,
        replica: str,
        spec: str,
        learns: bool = True,
        now_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] | None = None,
        ask: Callable[..., Awaitable[Mapping[str, Any]]] | None = None,
        filters: Filtering | None = None,
        canary: Canary | None = None,
        peers: ParameterServerClient | None = None,
        relearn: Relearn | None = None,
        search: Callable[[], Awaitable[Looked]] | None = None,
    ) -> None:
        self.settings, self.limits, self.learner = settings, limits, learner
        self.replica = replica
        self.counts: Counter[str] = Counter()
        self.durations = Durations()
        self._newest_target: Label | None = None
        self.store = JournalThreads(journal)
        self.now_s, self._monotonic_s = forward_clock(now_s, monotonic_s), monotonic_s
        self.writer = Writer(
            settings.name,
            spec,
            limits,
            self.store,
            self.counts,
            stamp=self.stamp,
            frozen=lambda: learner.frozen,
            moved=self._on_commit,
            sealed=self._on_sealed,
            follows=None if learns else learner,
            filters=filters,
            seen=lambda: learner.version[0],
            now_s=self.now_s,
            label_life_s=settings.token_lifetime,
        )
        self.filters = filters
        if filters is not None:
            learner.evidence.heard = filters
        self._memory = Remembering(settings, learner, self.writer, self.store, self.counts, filters)
        self._learns, self.owed = learns, Owed(learner, self.writer, learns=learns)
        self._unexpected: str | None = None
        self.spec = spec
        self._pace = Pace(settings.sync.interval_ms / 1e3)
        self.judge = self._new_judge(canary)
        self._follower = self._new_follower()
        self.exchange = Exchange(
            learner,
            self.writer,
            self._follower,
            self.owed,
            self.store,
            client,
            self._pace,
            self.counts,
            replica=replica,
            spec=spec,
            interval_s=settings.snapshots.interval_s,
            learns=learns,
            report=self.report,
            rewritten=self._on_rewrite,
            monotonic_s=monotonic_s,
            cpu_s=cpu_s or monotonic_s,
            peers=peers,
        )
        self.tell = Peer(learner, replica, spec, lambda: self.age_ms).sync
        self._served = 0
        self._slow: dict[str, float] = {}
        self._slow_due_s = -math.inf
        self._rise = Rise(settings.name, settings.drift, learner, ask, relearn)
        self._triggers: TriggerWatch | None = None
        if search is not None and settings.triggers.every:
            self._triggers = TriggerWatch(
                settings.name, settings.triggers, lambda: self.counts["learned"], search,
                self.counts, monotonic_s,
            )  # fmt: skip
        self._watch, self._watch_due_s = None, 0.0
        guarded = settings.training.guard and getattr(learner.serving, "halves", False)
        if ask is not None and guarded and isinstance(learner, Learner):
            self._watch = Watch(settings.task, learner, partial(ask, "recover"), self.now_s)
        self._tasks: list[asyncio.Task[None]] = []

    def _new_follower(self) -> Follower:
        learner, settings = self.learner, self.settings
        parts = (self.writer, self.store, self.counts, self._pace)
        if isinstance(learner, OrderedLearner) and not isinstance(learner, OverlayLearner):
            return OrderedFollower(
                learner,
                *parts,
                stamp=self.stamp,
                updates=settings.sync.updates,
                judge=self.judge,
                model=settings.name,
                interval_s=settings.sync.interval_ms / 1e3,
                monotonic_s=self._monotonic_s,
            )
        return Follower(
            learner, *parts, stamp=self.stamp, updates=settings.sync.updates, judge=self.judge
        )

    def _new_judge(self, canary: Canary | None) -> Judge | None:
        if not (self.settings.drift.watch and self._learns):
            return None
        drift, task = self.settings.drift, self.settings.task
        return Judge(drift, task, self._on_rise, self.store.aside, canary)

    def _on_rise(self, alarm: Alarm, since: float) -> None:
        """The error has risen: what is kept of before is of another stream."""
        self._memory.alarm()
        self._rise.rang(alarm, since)

    # -- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take a partition and the newest values; returns when the replica can answer."""
        self.writer.partition = await self._register()
        while not self.learner.ready:
            if not await self.exchange.once([]):
                await asyncio.sleep(0.1)
        if self._learns:
            await self._memory.fill()
        loops = [self.writer.run, self._follower.run, self._sync_loop]
        if not self._learns:
            loops.remove(self._follower.run)
        if self._triggers is not None:
            loops.append(self._triggers.run)
        self._tasks = [asyncio.create_task(self._forever(loop)) for loop in loops]
        if isinstance(self._follower, OrderedFollower):  # the rows since the last snapshot
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CATCH_UP_S):
                    await self._follower.caught_up.wait()

    async def _on_rewrite(self) -> None:
        if self.judge is not None and self.settings.drift.on_rise != "relearn":  # a fresh model's
            self.judge.rewritten()  # loss is another one
        if self._tasks and self._learns:
            await self._memory.fill()

    async def stop(self, timeout_s: float) -> None:
        """Commit and push what is there, as far as the time allows, and seal the partition."""
        writer = self.writer
        writer.stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                while not writer.idle or self.owed.left(self.exchange.control):
                    self._pace.now.set()
                    await asyncio.sleep(0.01)
                await self.store.write(self.store.journal.seal, writer.partition)
        except (TimeoutError, ReplayError) as error:
            log.warning("stopped with rows that another replica has to learn: %r", error)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._rise.stop()
        await self._follower.stop()
        self.store.close()

    def follow(self, partition: int) -> None:
        """Learn what another process writes into this partition, and no longer into one before.

        Its owner does not learn, and its seal is not waited for; after a start, or a restart, it
        goes on from the server's clock.  Idempotent.
        """
        if isinstance(self.learner, OrderedLearner):  # all partitions, always
            self.exchange.publishes = True
            return
        for other, track in list(self.learner.tracks.items()):
            if track.end is None and other not in (partition, self.writer.partition):
                self.learner.abandon(other)
        if partition not in self.learner.tracks:
            self.learner.adopt(partition, None)
            self._pace.now.set()

    async def _forever(self, loop: Callable[[], Any]) -> None:
        """A loop that outlives what it did not expect; what happened is logged and shown."""
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

    async def _register(self) -> int:
        """Number of a new partition of this process."""
        while True:
            try:
                partition = await self.store.write(
                    self.store.journal.register,
                    self.settings.name,
                    self.replica,
                    self.spec,
                    self.now_s(),
                )
                break
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await asyncio.sleep(0.2)
        if self._learns:
            self.learner.open_partition(partition.id)
        return int(partition.id)

    async def _on_sealed(self, partition: int) -> int:
        """Somebody else learns the rest of the partition: drop what is held of it, take another."""
        self.learner.abandon(partition)
        if self.filters is not None:
            self.filters.standings.leave(partition)
        return await self._register()

    def _on_commit(self, new_server: bool) -> None:
        self._follower.wake.set()
        if new_server:  # do not wait to meet it
            self._pace.now.set()

    # -- what answers are made of ------------------------------------------------------------

    @property
    def version(self) -> str:
        """``epoch.count`` of the values that the local model stands on."""
        return f"{self.learner.version[0]}.{self.learner.version[1]}"

    def stamp(self) -> str:
        """``epoch.count+own``: the local model with its own rows on top."""
        return f"{self.version}+{self.learner.own}"

    @property
    def incident(self) -> str | None:
        """Return what an operator has to look at; None if there is nothing."""
        watched = None if self._watch is None else self._watch.incident
        acted = watched or self._rise.incident
        if acted is None and self._triggers is not None:
            acted = self._triggers.incident
        damaged = self._follower.incident
        return self.exchange.refused or self.writer.incident or damaged or self._unexpected or acted

    @property
    def age_ms(self) -> float | None:
        """Since the sending of the last pull that was confirmed as current; None: never.

        Of a model learned in order: since the journal was read to its end.
        """
        follower = self._follower
        fresh_at = self.exchange.fresh_at
        if isinstance(follower, OrderedFollower):
            fresh_at = follower.fresh_s
        return None if fresh_at is None else (self._monotonic_s() - fresh_at) * 1e3

    @property
    def updates_behind(self) -> int | None:
        """Versions that the server is ahead; None without contact.

        Of a model learned in order: rows of the store that may be missing here.
        """
        if isinstance(self._follower, OrderedFollower):
            return self._follower.behind
        return self.exchange.versions_behind

    def report(self) -> dict[str, float]:
        """Counters and gauges of this replica; disposable."""
        gauges: dict[str, float] = {"waiting": self.writer.waiting, "own": self.learner.own}
        gauges["joins_waiting"] = self.writer.halves
        gauges |= {"behind_rows": self.owed.rows, "relearned": self.learner.relearned}
        gauges |= self._follower.cost.report()
        gauges["from_peer"] = self.exchange.peer is not None
        gauges |= {"names": len(self.learner.vocabulary), "classes": len(self.learner.tally.seen)}
        gauges |= {"served_events": self.served, "served_epoch": self.learner.version[0]}
        if (memory := self.learner.memory) is not None:
            gauges |= {"replay_fill": len(memory.buffer), "replay_rows": memory.replayed}
        if self._monotonic_s() >= self._slow_due_s:  # a walk over alarms, and one over weights
            self._slow, self._slow_due_s = self._slow_gauges(), self._monotonic_s() + _SLOW_S
        gauges |= self._slow
        gauges |= {} if self.filters is None else self.filters.report()
        if self._triggers is not None:
            gauges |= self._triggers.report()
        if (age := self.age_ms) is not None:
            gauges["age_ms"] = round(age, 1)
        reported = {**self.counts, **gauges, **self.durations.report()}
        return {name: float(value) for name, value in reported.items()}

    def _slow_gauges(self) -> dict[str, float]:
        found: dict[str, float] = {}
        if (judge := self.judge) is not None:
            found = judge.report()
        serving = self.learner.serving
        if isinstance(serving, Trainable) and (gap := serving.gap) is not None:
            found["average_gap"] = gap
        return found

    @property
    def served(self) -> int:
        """Events in the model that answers."""
        if self.learner.up_to_date:  # until the copy that learns has them all, the old one answers
            self._served = self.learner.tally.digest[0]
        return self._served

    def answered(self, action: str, seconds: float) -> None:
        """Count how long the answer to a request took, and how old the model was that predicted."""
        self.durations.note(action, seconds)
        if action == "predict" and (age := self.age_ms) is not None:
            self.durations.note("freshness", age / 1e3)

    def note_label(self, label: Label) -> None:
        """A label has come (regression: the tally does not keep targets)."""
        if self.settings.task == "regression":
            self._newest_target = label

    @property
    def newest_label(self) -> Label | None:
        """Newest label known here: learned anywhere; in regression, sent to this replica."""
        return self.learner.tally.newest() if self._newest_target is None else self._newest_target

    # -- exchange with the parameter server --------------------------------------------------

    async def _sync_loop(self) -> None:
        while True:
            await self.exchange.turn()
            self.durations.note("exchange", self.exchange.took_s)
            await self._act()

    async def _act(self) -> None:
        """Do what the model's state asks for, now and then."""
        self._memory.look()
        await self._rise.act()
        if self._watch is not None and self._monotonic_s() >= self._watch_due_s:
            self._watch_due_s = self._monotonic_s() + _WATCH_S
            await self._watch.look()
