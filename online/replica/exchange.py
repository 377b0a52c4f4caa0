"""Exchanges one model of one replica with the parameter server: pushes deltas, pulls values."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Final

from msgspec import structs

from online.replica.backlog import Backlog
from online.replica.follower import Follower
from online.replica.shared import ReplicaParts
from online.replica.surroundings import Services
from online.replica.writer import Writer
from paramserver.core.wire import FORMAT, Mark, OrderedState, Push, SyncReply, SyncRequest
from paramserver.errors import (
    BlockError,
    FormatRefused,
    ParamServerError,
    PushRefused,
    RequestRefused,
    ShardAway,
)
from replay.errors import ReplayError

log = logging.getLogger(__name__)

_PUSHES: Final = 64  # deltas in one exchange, at most
_DROPS: Final = 16  # pieces of old copies that are freed after one exchange
_SYNC_TIMEOUT_S: Final = 5.0
_PEER_TIMEOUT_S: Final = 1.0  # short: there may be no peer, or the server may be back meanwhile
_PUBLISH_S: Final = 0.2  # least time between two states of a process that learns for others
_UNREACHED_S: Final = 0.1  # between two attempts to reach the parameter server, at least
_UNREACHED_SHARE: Final = 0.05  # of the time since the last contact; an attempt takes 2 ms of CPU
_UNREACHED_MAX_S: Final = 1.0
_WHOLE_SHARE: Final = (
    0.005  # of the time may go into serializing or loading a model in one blocking step
)
_STEPS_SHARE: Final = 0.05  # the same in steps of a few milliseconds, or where no request waits


def pause_s(away_s: float) -> float:
    """Return the pause before the next attempt to reach a server that was last reached then."""
    return min(max(_UNREACHED_S, _UNREACHED_SHARE * away_s), _UNREACHED_MAX_S)


class Exchange:
    """Pushes learned deltas and pulls the changes of others, at the rate that the pace sets.

    Parameters:
        outside: The parameter server, and the peers that are asked for values while there are none
            here and the server does not answer.
        report: Returns the counters and gauges sent with each request.
        rewritten: Awaited after the learner has taken rewritten values (for example a rollback).

    Attributes:
        control: The newest control row that is acted on.
        fresh_at: Monotonic time at which the last pull confirmed as current was sent; None: never.
        versions_behind: Versions that the server is ahead; None without contact.
        peer: The replica whose copy of the values is used until the server answers; None: none.
        refused: Why the server refuses pushes; None if it does not.
        publishes: Whether this process learns for others, so that no request waits for it.
        took_s: Duration of the newest exchange, in seconds.
    """

    def __init__(
        self,
        shared: ReplicaParts,
        writer: Writer,
        follower: Follower,
        backlog: Backlog,
        outside: Services,
        *,
        report: Callable[[], dict[str, float]],
        rewritten: Callable[[], Awaitable[None]],
    ) -> None:
        self._learner, self._writer, self._store = shared.learner, writer, shared.store
        self._pace, self._counts, self._control = shared.pace, shared.counts, shared.control
        self._wake, self._crossing = shared.wake, shared.crossing
        self._change_lock, self._arrivals = shared.change_lock, shared.arrivals
        self._follower, self._backlog = follower, backlog
        self.client, self._peers = outside.client, outside.peers
        self._tables = outside.tables
        who, clocks = shared.who, shared.clocks
        self._replica, self._spec, self._learns = who.replica, who.spec, who.learns
        self._monotonic_s, self._cpu_s = clocks.monotonic_s, clocks.cpu_s or clocks.monotonic_s
        self._interval_s = shared.settings.snapshots.interval_s
        self._report, self._rewritten = report, rewritten
        self.peer: str | None = None
        self.control = 0
        self.fresh_at: float | None = None
        self.versions_behind: int | None = None
        self.refused: str | None = None
        self.publishes = False
        self.took_s, self._reached_s = 0.0, self._monotonic_s()
        self._take_due_s = 0.0
        self._peer_continues = False  # whether a peer is sending its values in parts
        self._cut_cost_s, self._cut_at, self._reply_cost_s = 0.0, 0.0, 0.0

    async def turn(self) -> None:
        """Wait until the next exchange is due, and do it."""
        await self._pace.wait(self._is_due, self._cut_cost_s + self._reply_cost_s)
        begun_s = self._monotonic_s()
        pushes, state = self._due()
        moved = await self.once(pushes, state)
        self.took_s = self._monotonic_s() - begun_s
        if moved is None:
            await asyncio.sleep(pause_s(begun_s - self._reached_s))
        else:
            self._reached_s = begun_s
        self._pace.idle(not (pushes or moved))

    def _is_due(self) -> bool:
        """Whether there are rows to push, or a control row is not acted on yet.

        The latter may have to wait for a commit; repeating the exchange at once would take the
        processor time that the commit needs.
        """
        undecided = self._learner.control != self.control
        return undecided or self._learner.open_rows + self._writer.queued > 0

    def _due(self) -> tuple[list[Push], OrderedState | None]:
        """Return what is to be sent now: deltas, or the state of a model learned in order."""
        learner = self._learner
        if self._follower.failure_unwritten or not learner.due:
            return [], None
        hurry = learner.mergeable or learner.frozen or self._writer.stopping
        if not hurry and self._monotonic_s() - self._cut_at < self._cut_due_s:
            return [], None
        with self._measure_cut():
            return learner.outgoing(_PUSHES)

    @property
    def _cut_due_s(self) -> float:
        """Least seconds between two sendings of a whole state, by its cost and the snapshots."""
        if self.publishes:  # no request waits for this process
            return max(_PUBLISH_S, self._cut_cost_s / _STEPS_SHARE)
        return max(self._interval_s / 2, self._cut_cost_s / _WHOLE_SHARE)

    @contextlib.contextmanager
    def _measure_cut(self) -> Iterator[None]:
        begun = self._cpu_s()
        yield
        self._cut_at = self._monotonic_s()
        self._cut_cost_s = self._cpu_s() - begun

    async def once(self, pushes: list[Push], state: OrderedState | None = None) -> bool | None:
        """Push and pull once; return None without contact, otherwise whether anything changed."""
        learner = self._learner
        cache = learner.cache
        self._note_acted_on(pushes)
        if learner.want_all:
            await self._begin_with_tables(learner.server.epoch)
        request = SyncRequest(
            format=FORMAT,
            replica=self._replica,
            partition=self._writer.partition,
            pushes=[] if learner.want_all else pushes,
            since=learner.since,
            values=self._wants_values(),
            adopting=[p for p in learner.tracks if p != self._writer.partition],
            report=self._report(),
            control=self.control,
            after=learner.server.after,
            adopts=self._learns,
            role=learner.role,
            state=state,
            marks=self._marks(pushes),
            waits=sorted(learner.waits),
            host="" if self._tables is None else self._tables.host,
            **({} if cache is None else cache.request(learner.server, learner.catching_up)),
        )
        sent_at = self._monotonic_s()
        reply = await self._ask(request)
        if reply is None:
            return None
        part = reply.kind == "part" if cache is None else cache.is_part(reply, learner.server)
        decided = await self._control.upto(reply.control)  # read decisions before acting on them
        if reply.rewrite != learner.rewrite and not part:  # and undone ranges before learning
            decided = await self._control.current()
            learner.undone = decided.undone
        learner.tally.others = decided.others
        await self._change_lock.unlocked()
        if not {request.partition, *request.adopting}.issuperset(learner.tracks):
            self._pace.now.set()
            return True  # the partition is new since the request, so its clock may be missing
        if part:
            await self._take_part(reply)
        rewritten = reply.rewrite != learner.rewrite
        begun_s = self._cpu_s()
        changed = part or learner.on_reply(reply)
        self._reply_cost_s = self._cpu_s() - begun_s
        if self._crossing is not None and not part:
            self._note_crossed(reply)
        if rewritten and reply.rewrite == learner.rewrite:
            await self._rewritten()
        await self._prepare()
        await self._change_lock.unlocked()
        await self._drop_old()
        if learner.catching_up:
            self._pace.now.set()
        else:
            if learner.is_newest(reply):
                self.fresh_at = sent_at - reply.confirmed_ms / 1e3
            self.peer = reply.peer or None
            behind = max(reply.count - learner.version[1], 0)
            self.versions_behind = None if self.peer else behind
        for partition in reply.orphans:
            await self._adopt(partition)
        if len(pushes) == _PUSHES:
            self._pace.now.set()
        self._wake.set()
        self._arrivals.arrived()
        return changed or bool(reply.orphans)

    async def _begin_with_tables(self, epoch: int) -> bool:
        """Begin with tables that a server of this epoch publishes; return whether there are any."""
        before = self._learner.server.values
        if self._tables is not None:
            await self._in_steps(self._tables.begin(epoch))
        return self._learner.server.values is not before

    async def _take_part(self, reply: SyncReply) -> None:
        """Take a part of the values; published tables take the place of the first part."""
        if (cache := self._learner.cache) is not None:
            reply = cache.part_of(reply, self._learner.server)
        first = reply.start is None and not reply.peer
        if first and await self._begin_with_tables(reply.epoch):
            reply = structs.replace(reply, since=None)  # what it says beside values counts
        await self._in_steps(self._learner.take_part(reply))

    async def _drop_old(self) -> None:
        """Take newer published tables, and free old copies."""
        if self._tables is not None:
            await self._in_steps(self._tables.rest())
        await self._in_steps(islice(self._learner.drop_old(), _DROPS))

    async def _in_steps(self, steps: Iterator[None]) -> None:
        """Take the steps one by one; other tasks run in between."""
        for _ in steps:
            await asyncio.sleep(0)
            await self._change_lock.unlocked()

    def _marks(self, pushes: list[Push]) -> list[Mark]:
        """Marks of the rows of traced requests that are sent now."""
        if self._crossing is None or self._learner.want_all:
            return []
        return self._crossing.marks(pushes)

    def _note_crossed(self, reply: SyncReply) -> None:
        """Record which traced rows the server has now, and which rows of others arrived here."""
        assert self._crossing is not None
        self._crossing.pushed(self._learner.clock)
        if reply.kind != "none" and (reply.epoch, reply.count) == self._learner.version:
            self._crossing.arrived(reply.marks)

    async def _ask(self, request: SyncRequest) -> SyncReply | None:
        """Ask the server or, without any local values, a peer; None: neither answered."""
        coming, self._peer_continues = self._peer_continues, False
        if not coming:
            try:
                reply = await self.client.sync(request, _SYNC_TIMEOUT_S)
                self.refused = None
                return reply if self._tables is None else self._tables.with_passed(reply)
            except ParamServerError as error:
                self._counts["server_unreachable"] += 1
                self.versions_behind = None
                if isinstance(error, (BlockError, FormatRefused, PushRefused, RequestRefused)):
                    self.refused = f"the parameter server refuses a push: {error}"
                log.info("parameter server: %s", error)
                if isinstance(error, ShardAway):
                    await self._decide(error)
        if self._learner.ready or self._peers is None or self._learner.cache is not None:
            return None  # peers that hold some rows only have none to give
        try:
            reply = await self._peers.sync(request, _PEER_TIMEOUT_S)
        except ParamServerError as error:
            log.info("peers: %s", error)
            return None
        if reply.spec != self._spec:
            log.info("peers: %s serves another spec", reply.peer)
            return None
        self._peer_continues = reply.kind == "part"  # and so must the next part
        log.info("%s of version %d.%d of %s", reply.kind, reply.epoch, reply.count, reply.peer)
        return reply

    async def _decide(self, known: ShardAway) -> None:
        """Act on a ban or a freeze although a shard is away: neither needs its values."""
        if self._learner.ready and known.rewrite == self._learner.rewrite:
            await self._control.upto(known.control)
            self._learner.decide(known.control, known.frozen)

    def _wants_values(self) -> bool:
        """Whether the next reply should contain values."""
        rested = self._monotonic_s() >= self._take_due_s
        learner = self._learner
        return learner.catching_up or learner.wants_values(learns=self._learns, rested=rested)

    async def _prepare(self) -> None:
        """Load pulled values in steps, not too often, since each step blocks the event loop."""
        learner = self._learner
        version, costs_s, begun_s = learner.version, list[float](), self._cpu_s()
        for _ in learner.prepared():
            costs_s.append(self._cpu_s() - begun_s)
            await asyncio.sleep(0)
            await self._change_lock.unlocked()
            begun_s = self._cpu_s()
        costs_s.append(self._cpu_s() - begun_s)
        if learner.version != version:
            share = min(_WHOLE_SHARE * len(costs_s), _STEPS_SHARE)
            self._take_due_s = self._monotonic_s() + sum(costs_s) / share

    async def _adopt(self, partition: int) -> None:
        if partition == self._writer.partition or partition in self._learner.tracks:
            return
        try:
            end = await self._store.write(self._store.journal.seal, partition)
            await self._control.current()  # learn which of its rows have failed already
        except ReplayError as error:
            log.warning("could not seal partition %d: %s", partition, error)
            return
        self._counts["adopted"] += 1
        log.info("adopting partition %d up to %d", partition, end)
        self._learner.adopt(partition, end)
        self._pace.now.set()

    def _note_acted_on(self, pushes: list[Push]) -> None:
        """Mark the newest decision as acted on, if no row judged before it is still on its way.

        A freeze is acted on only after everything written before it is learned and pushed.
        """
        writer = self._writer
        due = [*pushes, *self._learner.waits]
        unwritten = self._follower.failure_unwritten or writer.committing
        unfinished = due or unwritten or self._backlog.learning
        if self._learner.frozen and unfinished:
            return
        if writer.committing and writer.judged_by < self._learner.control:
            return
        self.control = self._learner.control
