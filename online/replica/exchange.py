"""The exchange of one model in one replica with the parameter server: deltas out, values in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Final

from online.replica.backlog import Backlog
from online.replica.follower import Follower
from online.replica.shared import Shared
from online.replica.surroundings import Outside
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

_PUSHES: Final = 64  # deltas of one exchange
_DROPS: Final = 16  # pieces of old copies let go of after one
_SYNC_TIMEOUT_S: Final = 5.0
_PEER_TIMEOUT_S: Final = 1.0  # there may be none, and the server may be back meanwhile
_PUBLISH_S: Final = 0.2  # between two states of a process that learns for others, at least
_UNREACHED_S: Final = 0.1  # between two attempts to reach the parameter server
_WHOLE_SHARE: Final = (
    0.005  # of the time may go into writing down or loading a model: that stops it
)
_STEPS_SHARE: Final = 0.05  # the same, in steps of some milliseconds, or where nobody waits


class Exchange:
    """Pushes what was learned and pulls what others did, as often as the pace says.

    Parameters:
        outside: The parameter server, and the peers that are asked for values while there are none
            and the server does not answer.
        report: Counters and gauges that go with each request.
        rewritten: Awaited when the values were rewritten (a rollback), once the learner has them.

    Attributes:
        control: Newest control row that is acted on.
        fresh_at: Monotonic time of the sending of the last pull that was confirmed as current;
            None: never.
        versions_behind: Versions that the server is ahead; None without contact.
        peer: The replica whose copy of the values is here, until the server has answered; None:
            none.
        refused: Why the server takes no push; None if it does.
        publishes: Whether this process learns for others, and nobody waits for it.
        took_s: How long the newest exchange took.
    """

    def __init__(
        self,
        shared: Shared,
        writer: Writer,
        follower: Follower,
        backlog: Backlog,
        outside: Outside,
        *,
        report: Callable[[], dict[str, float]],
        rewritten: Callable[[], Awaitable[None]],
    ) -> None:
        self._learner, self._writer, self._store = shared.learner, writer, shared.store
        self._pace, self._counts, self._control = shared.pace, shared.counts, shared.control
        self._wake, self._crossing, self._still = shared.wake, shared.crossing, shared.still
        self._follower, self._backlog = follower, backlog
        self.client, self._peers = outside.client, outside.peers
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
        self.took_s = 0.0
        self._take_due_s = 0.0
        self._coming = False  # a peer's values
        self._cut_cost_s, self._cut_at, self._reply_cost_s = 0.0, 0.0, 0.0

    async def turn(self) -> None:
        """Wait until it is time, and exchange."""
        await self._pace.wait(self._is_due, self._cut_cost_s + self._reply_cost_s)
        begun_s = self._monotonic_s()
        pushes, state = self._due()
        moved = await self.once(pushes, state)
        self.took_s = self._monotonic_s() - begun_s
        if moved is None:
            await asyncio.sleep(_UNREACHED_S)
        self._pace.idle(not (pushes or moved))

    def _is_due(self) -> bool:
        """Tell whether there are rows to push, or a decision that the server does not know of.

        The latter may have to wait for a commit: asking at once, again and again, would take the
        time that the commit needs.
        """
        undecided = self._learner.control != self.control
        return undecided or self._learner.open_rows + self._writer.queued > 0

    def _due(self) -> tuple[list[Push], OrderedState | None]:
        """Return what is to be sent now: deltas, or what was learned in order."""
        learner = self._learner
        if self._follower.unsaid or not learner.due:
            return [], None
        hurry = learner.mergeable or learner.frozen or self._writer.stopping
        if not hurry and self._monotonic_s() - self._cut_at < self._cut_due_s:
            return [], None
        with self._cutting():
            return learner.outgoing(_PUSHES)

    @property
    def _cut_due_s(self) -> float:
        """A state travels whole: not more often than its cost allows, or the snapshots need."""
        if self.publishes:  # nobody waits for this process
            return max(_PUBLISH_S, self._cut_cost_s / _STEPS_SHARE)
        return max(self._interval_s / 2, self._cut_cost_s / _WHOLE_SHARE)

    @contextlib.contextmanager
    def _cutting(self) -> Iterator[None]:
        begun = self._cpu_s()
        yield
        self._cut_at = self._monotonic_s()
        self._cut_cost_s = self._cpu_s() - begun

    async def once(self, pushes: list[Push], state: OrderedState | None = None) -> bool | None:
        """One push and pull.  None: no contact; otherwise whether anything changed."""
        learner = self._learner
        self._act_on(pushes)
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
            after=learner.arrival.after,
            adopts=self._learns,
            role=learner.role,
            state=state,
            marks=self._marks(pushes),
            waits=sorted(learner.waits),
        )
        sent_at = self._monotonic_s()
        reply = await self._ask(request)
        if reply is None:
            return None
        part = reply.kind == "part"
        decided = await self._control.upto(reply.control)  # know it before it is acted on
        if reply.rewrite != learner.rewrite and not part:  # and what is undone, before learning
            decided = await self._control.current()
            learner.undone = decided.undone
        learner.tally.answers_after = decided.answers_after
        await self._still.moves()
        if not {request.partition, *request.adopting}.issuperset(learner.tracks):
            self._pace.now.set()
            return True  # a new incarnation since: the reply may leave out its clock
        if part:
            for _ in learner.take_part(reply):
                await asyncio.sleep(0)  # whoever waits for the loop has a turn between two pieces
        rewritten = reply.rewrite != learner.rewrite
        begun_s = self._cpu_s()
        changed = part or learner.on_reply(reply)
        self._reply_cost_s = self._cpu_s() - begun_s
        if self._crossing is not None and not part:
            self._note_crossed(reply)
        if rewritten and reply.rewrite == learner.rewrite:
            await self._rewritten()
        await self._prepare()
        await self._still.moves()
        for _ in islice(learner.drop_old(), _DROPS):
            await asyncio.sleep(0)
            await self._still.moves()
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
        return changed or bool(reply.orphans)

    def _marks(self, pushes: list[Push]) -> list[Mark]:
        """Marks of rows of traced requests that are sent now."""
        if self._crossing is None or self._learner.want_all:
            return []
        return self._crossing.marks(pushes)

    def _note_crossed(self, reply: SyncReply) -> None:
        """Tell which traced rows the server has now, and which of others are here."""
        assert self._crossing is not None
        self._crossing.pushed(self._learner.clock)
        if reply.kind != "none" and (reply.epoch, reply.count) == self._learner.version:
            self._crossing.arrived(reply.marks)

    async def _ask(self, request: SyncRequest) -> SyncReply | None:
        """Ask the server or, if there is nothing to begin with, a peer; None: nobody answered."""
        coming, self._coming = self._coming, False
        if not coming:
            try:
                reply = await self.client.sync(request, _SYNC_TIMEOUT_S)
                self.refused = None
                return reply
            except ParamServerError as error:
                self._counts["server_unreachable"] += 1
                self.versions_behind = None
                if isinstance(error, (BlockError, FormatRefused, PushRefused, RequestRefused)):
                    self.refused = f"the parameter server refuses a push: {error}"
                log.info("parameter server: %s", error)
                if isinstance(error, ShardAway):
                    await self._decide(error)
        if self._learner.ready or self._peers is None:
            return None
        try:
            reply = await self._peers.sync(request, _PEER_TIMEOUT_S)
        except ParamServerError as error:
            log.info("peers: %s", error)
            return None
        if reply.spec != self._spec:
            log.info("peers: %s serves another spec", reply.peer)
            return None
        self._coming = reply.kind == "part"  # the next one, too, is this side's to give
        log.info("%s of version %d.%d of %s", reply.kind, reply.epoch, reply.count, reply.peer)
        return reply

    async def _decide(self, known: ShardAway) -> None:
        """Act on a ban or a freeze though a shard is away: neither needs its values."""
        if self._learner.ready and known.rewrite == self._learner.rewrite:
            await self._control.upto(known.control)
            self._learner.decide(known.control, known.frozen)

    def _wants_values(self) -> bool:
        """Whether the next reply should have some."""
        rested = self._monotonic_s() >= self._take_due_s
        learner = self._learner
        return learner.catching_up or learner.wants_values(learns=self._learns, rested=rested)

    async def _prepare(self) -> None:
        """Load the values that have come: each step stops everything else, so not too often."""
        learner = self._learner
        version, costs_s, begun_s = learner.version, list[float](), self._cpu_s()
        for _ in learner.prepared():
            costs_s.append(self._cpu_s() - begun_s)
            await asyncio.sleep(0)
            await self._still.moves()
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
            await self._control.current()  # which rows have failed already
        except ReplayError as error:
            log.warning("could not seal partition %d: %s", partition, error)
            return
        self._counts["adopted"] += 1
        log.info("adopting partition %d up to %d", partition, end)
        self._learner.adopt(partition, end)
        self._pace.now.set()

    def _act_on(self, pushes: list[Push]) -> None:
        """A decision is acted on once no row is on its way that was judged before it.

        A freeze: once all that was written before it is learned and pushed, too.
        """
        writer = self._writer
        due = [*pushes, *self._learner.waits]
        owes = due or self._follower.unsaid or writer.committing or self._backlog.learning
        if self._learner.frozen and owes:
            return
        if writer.committing and writer.judged_by < self._learner.control:
            return
        self.control = self._learner.control
