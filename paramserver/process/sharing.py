"""The servers of one model's shards ask each other, and answer.

Shard 0 decides for all, so it has to know that the others can follow: that they have a snapshot of
the same rows, or the state that was built aside.  It removes rows of the journal that each of them
has in all of its snapshots.  And when it publishes one it does so, if it can, at a moment when all
have the same rows, and they then publish theirs of that moment.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

from paramserver.core.blocks import Blocks
from paramserver.core.rewrites import Needed, Rollback
from paramserver.core.server import Server
from paramserver.core.shards import Cut, ShardStore, shard_place
from paramserver.core.state import Contained
from paramserver.core.wire import SyncReply
from paramserver.errors import PinIncomplete, RollbackRefused
from paramserver.process.running import Running
from paramserver.process.trimming import contained_in_all
from paramserver.snapshots.history import ASIDE, SnapshotHistory
from paramserver.store import Store

_log: Final = logging.getLogger(__name__)
_PIN_S: Final = 10.0  # in which the others publish what is to be kept
_PIN_LOOKS: Final = 20  # pauses between two questions: who publishes is busy


def _pause() -> None:
    time.sleep(0.005)  # a push to all takes about as long


Moment: TypeAlias = tuple[dict[int, int], int]
"""Last row of each partition, and the control position."""


def _nothing() -> None:
    """Nothing was begun that could be published."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several servers of a model.

    Attributes:
        number, of: It is this one of so many.
        ask: Asks another one: its number, a method of :class:`Sharing`, then the arguments.  It may
            raise anything, and takes no longer than a second.
        tries, pause: How often it is looked whether all have the same rows, and what is done
            between two times.
    """

    number: int
    of: int
    ask: Callable[..., Any]
    tries: int = 40
    pause: Callable[[], None] = _pause

    @property
    def others(self) -> range:
        """Those that follow shard 0."""
        return range(1, self.of)

    def own(
        self, open_store: Callable[[], Store], directory: str
    ) -> tuple[Callable[[], Store], str]:
        """The store as this one sees it, and the place of its snapshots, from those of shard 0."""
        if self.number == 0:
            return open_store, directory
        return lambda: ShardStore(open_store(), self.number), self.place(directory)

    def place(self, directory: str) -> str:
        """The place of its snapshots, from that of shard 0's."""
        return shard_place(directory, self.number)


class ShardedRollback(Rollback, frozen=True):
    """A rollback of several shards; ``parts``: the snapshot of each, whose rows are the same."""

    parts: list[str] = msgspec.field(default_factory=list)


class Sharing:
    """One shard's questions to the others, and answers to theirs; with one server: nothing."""

    def __init__(self, running: Running, shard: Shard | None) -> None:
        self._running, self._shard = running, shard
        self._aligned = True  # whether all have published what shard 0 has
        self.kept: list[Contained] = []  # snapshots from which a start may go on
        self.cut: set[str] = set()  # snapshots that go with others' of the same rows, or may
        self._whole: Moment | None = None  # the newest of which all have published theirs
        self._promised: set[str] = set()
        self.publish: Callable[[], None] = _nothing  # what shard 0 has had this one begin

    @property
    def leads(self) -> bool:
        """Whether this is shard 0 of several."""
        return self._shard is not None and self._shard.number == 0

    @property
    def follows(self) -> bool:
        """Whether another one decides."""
        return self._shard is not None and self._shard.number > 0

    def foreign(self, values: Blocks) -> str | None:
        """Why values can't be those of this shard; None: they can."""
        one = self._shard
        return None if one is None else Cut(one.of).foreign(values, one.number)

    def with_ends(self, reply: SyncReply) -> SyncReply:
        """The reply of one of several says where closed partitions end: others may not be there."""
        if self._shard is None or not reply.closed:
            return reply
        ends = {p: self._running.partitions[p].end for p in reply.closed}
        clock, durable = {**reply.clock, **ends}, {**reply.durable, **ends}
        return msgspec.structs.replace(reply, clock=clock, durable=durable, closed=[])

    def published(self, name: str, *, chosen: bool) -> None:
        """A snapshot is published; ``chosen``: shard 0 has said when.

        Those of one moment stay until the next of one moment: without them nobody can put the
        model together.  One that was chosen stays beside them: another shard may not have begun.
        """
        if chosen or (self.leads and self._aligned):
            self._keep(name)

    def _keep(self, name: str) -> None:
        self.cut = {name}
        if self._whole is not None:
            before = self._with_rows(self._running.serving().history, *self._whole)
            self.cut |= {before or name}

    def _newest_whole(self) -> Moment | None:
        """Rows and control position of the snapshot of shard 0 that goes with all others'."""
        for name in self.cut:
            one = self._running.serving().history.contained().get(name)
            return None if one is None else (self._of(one), one.control)
        return None

    # -- asked by shard 0 ------------------------------------------------------------------------

    def begin_cut(self, rows: Mapping[int, int], control: int, whole: Moment | None = None) -> bool:
        """Begin a snapshot if these are the rows that the values have; it is published soon.

        ``whole``: the newest moment of which all have one.
        """
        running = self._running
        self._whole = whole or self._whole
        if not running.publishing.acquire(blocking=False):
            return False
        try:
            server, _, history = running.serving()
            with running.lock:
                if server.control != control or self._rows(server) != dict(rows):
                    return False
                if server.count == running.published:  # the head holds it
                    self._head_goes_with_others()
                    return True
                base = history.base_for_next()
                running.chosen = server.begin_snapshot(
                    running.host.wall(), running.parent, {}, base
                )
            return True
        finally:
            running.publishing.release()

    def partner(self, rows: Mapping[int, int], control: int) -> str | None:
        """Name of a snapshot with these rows, which is kept from now on; None: there is none."""
        running = self._running
        with running.publishing:
            _, _, history = running.serving()
            found = self._with_rows(history, rows, control)
            if found is not None and not any(r.pinned for r in history.listed() if r.name == found):
                history.pin(found, True)
                self._promised.add(found)
            return found

    def _with_rows(
        self, history: SnapshotHistory, rows: Mapping[int, int], control: int
    ) -> str | None:
        for name, one in history.contained().items():
            if one.control == control and self._of(one) == dict(rows):
                return name
        return None

    def pin_same(self, rows: Mapping[int, int], control: int, on: bool) -> bool | None:
        """Keep the snapshot with these rows, or no longer; whether there is one.

        None: one is being published, and it may be that.
        """
        running = self._running
        if not running.publishing.acquire(blocking=False):
            return None
        try:
            history = running.serving().history
            if (found := self._with_rows(history, rows, control)) is not None:
                history.pin(found, on)
                return True
            return False if running.chosen is None else None
        finally:
            running.publishing.release()

    def holds(self, name: str) -> bool:
        """Whether the state that was built aside under the name is here, and good."""
        history = self._running.serving().history
        try:
            history.load(name)
        except Exception as error:
            _log.warning("%s can't be taken: %s", name, error)
            return False
        return True

    def contained(self) -> dict[int, int]:
        """By partition the last row that every snapshot has from which a start may go on."""
        return contained_in_all(self.kept, self._running.partitions.values())

    # -- shard 0 asks ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def at_one_moment(self, server: Server) -> Iterator[None]:
        """The lock; of shard 0 when all have the same rows and begin their snapshots, if it can.

        One that does not answer is waited for once: replicas wait for the lock meanwhile.
        """
        shard, running = self._shard, self._running
        if shard is None or shard.number:
            with running.lock:
                yield
            return
        self._aligned = False
        for left in reversed(range(shard.tries)):
            with running.lock:
                begun = self._all_begin(server)
                self._aligned = begun is True
                if begun is not False or not left:
                    yield
                    return
            shard.pause()

    def complete(self, server: Server) -> None:
        """Have the others publish what shard 0 has published, if they did not."""
        if self.leads and not self._aligned:
            with self._running.lock:
                self._aligned = self._all_begin(server) is True
            if self._aligned:
                self._head_goes_with_others()

    def _head_goes_with_others(self) -> None:
        """The newest snapshot was published alone, and the others have theirs of its rows now."""
        if self._running.parent is not None:
            self._keep(self._running.parent)

    def _all_begin(self, server: Server) -> bool | None:
        """Whether all others begin a snapshot of the rows that this one has; under the lock.

        None: one does not answer.
        """
        assert self._shard is not None
        rows, control, whole = self._rows(server), server.control, self._newest_whole()
        try:
            return all(
                self._shard.ask(other, "begin_cut", rows, control, whole)
                for other in self._shard.others
            )
        except Exception as error:  # it is away: this one is published alone
            _log.info("no snapshot at one moment: %s", error)
            return None

    def have_published(self, pinned: str | None = None, on: bool = True) -> None:
        """Have the others publish what they have begun, and keep what goes with a name of ours.

        Raises PinIncomplete: not all keep it.
        """
        if not self.leads:
            return
        assert self._shard is not None
        history = self._running.serving().history
        one = None if pinned is None else history.contained().get(pinned)
        for other in self._shard.others:
            try:
                self._shard.ask(other, "publish")
            except Exception as error:  # it will, if it lives: it has begun
                _log.info("shard %d has not published yet: %s", other, error)
        if pinned is not None and one is not None:
            self._have_pinned(pinned, one, on)

    def _have_pinned(self, name: str, one: Contained, on: bool) -> None:
        """Have the others keep what goes with a snapshot, once they have published it."""
        assert self._shard is not None
        monotonic, rows, missing = self._running.host.monotonic, self._of(one), []
        deadline = monotonic() + _PIN_S
        for other in self._shard.others:
            while True:
                done, reason = None, f"has published none in {_PIN_S:g} s"
                try:
                    done = self._shard.ask(other, "pin_same", rows, one.control, on)
                except Exception as error:
                    reason = f"does not answer: {error}"
                if done is not None or monotonic() > deadline:
                    break
                for _ in range(_PIN_LOOKS):
                    self._shard.pause()
            if done is False and on:
                missing.append(f"shard {other} has no snapshot of the same rows")
            elif done is None:
                missing.append(f"shard {other} {reason}")
        if missing:
            raise PinIncomplete(name, on, "; ".join(missing))

    def rows_of_all(self, upto: Mapping[int, int]) -> dict[int, int]:
        """Return what the snapshots of all contain of this; raises what comes."""
        if self._shard is None or self._shard.number:
            return dict(upto)
        out = dict(upto)
        for other in self._shard.others:
            has = self._shard.ask(other, "contained")
            out = {p: min(last, has[p]) for p, last in out.items() if p in has}
        return out

    def rollback(self, note: Rollback, name: str, target: Contained) -> Rollback:
        """The same decision for all.  Raises RollbackRefused: one can't follow."""
        if not self.leads:
            return note
        assert self._shard is not None
        parts, rows = [name], self._of(target)
        for other in self._shard.others:
            try:
                found = self._shard.ask(other, "partner", rows, target.control)
            except Exception as error:
                reason = f"shard {other} does not answer: {error}"
                raise RollbackRefused(name, reason, ()) from error
            if found is None:
                reason = f"shard {other} has no snapshot of the same rows; take another one"
                raise RollbackRefused(name, reason, ())
            parts.append(found)
        return ShardedRollback(**msgspec.structs.asdict(note), parts=parts)

    def lacks(self, name: str) -> str | None:
        """Why not all can go on with the state of this name; None: they can."""
        if self.leads:
            assert self._shard is not None
            for other in self._shard.others:
                try:
                    if not self._shard.ask(other, "holds", name):
                        return f"shard {other} does not have it"
                except Exception as error:
                    return f"shard {other} does not answer: {error}"
        return None

    def drop_asides(self, history: SnapshotHistory, held: Needed | None) -> set[str]:
        """Remove states that were built aside and that nothing leads to; those that stay.

        Not those of a shard that follows: shard 0 may be about to decide for one.
        """
        names = set() if held is None else {held.snapshot}
        if self.follows:
            return {name for name in names if name.startswith(ASIDE)}
        return history.drop_asides(names)

    def followed(self, name: str | None) -> None:
        """A decision was taken in: the snapshot that it names is needed, and so stays by itself.

        Others were promised for decisions that may come still.
        """
        if name in self._promised:
            with contextlib.suppress(Exception):
                self._running.serving().history.pin(name, False)
                self._promised.remove(name)

    # -- which rows ------------------------------------------------------------------------------

    def _rows(self, server: Server) -> dict[int, int]:
        return self._of(Contained(server.clock, frozenset(server.closed)))

    def _of(self, one: Contained) -> dict[int, int]:
        """Last offset of each partition: see :meth:`Contained.rows`."""
        known = self._running.partitions
        return one.rows({p: known[p].end for p in one.closed if p in known})
