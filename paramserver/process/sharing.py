"""Coordination of the servers of one model's shards, which call each other.

Shard 0 decides for all shards.  So it must know that the others can apply the decision: that they
have a snapshot of the same rows, or the separately built state.  It removes only those rows of the
journal that all snapshots of every shard contain.  When it publishes a snapshot, it tries to do so
at a moment when all shards have applied the same rows, and the others then publish theirs of that
moment.
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
_PIN_S: Final = 10.0  # time in which the others must publish the snapshot to pin
_PIN_LOOKS: Final = 20  # pauses between two requests, because a publishing shard is busy


def _pause() -> None:
    time.sleep(0.005)  # about as long as a push to all shards takes


Moment: TypeAlias = tuple[dict[int, int], int]
"""Last row of each partition, and the control position."""


def _nothing() -> None:
    """Do nothing, because no snapshot was begun that could be published."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The place of one server among several of a model.

    Attributes:
        number, of: Index of this shard, and the number of shards.
        ask: Calls another shard: its number, a method of :class:`Sharing`, then the arguments.  It
            may raise anything, and takes no longer than a second.
        tries: How often to check whether all shards have applied the same rows.
        pause: Waits between two checks.
    """

    number: int
    of: int
    ask: Callable[..., Any]
    tries: int = 40
    pause: Callable[[], None] = _pause

    @property
    def others(self) -> range:
        """The shards other than 0."""
        return range(1, self.of)

    def own(
        self, open_store: Callable[[], Store], directory: str
    ) -> tuple[Callable[[], Store], str]:
        """Return this shard's view of the store and place of snapshots, given shard 0's."""
        if self.number == 0:
            return open_store, directory
        return lambda: ShardStore(open_store(), self.number), self.place(directory)

    def place(self, directory: str) -> str:
        """Return the place of this shard's snapshots, given that of shard 0's."""
        return shard_place(directory, self.number)


class ShardedRollback(Rollback, frozen=True):
    """A rollback of several shards; ``parts`` names each shard's snapshot, all with equal rows."""

    parts: list[str] = msgspec.field(default_factory=list)


class Sharing:
    """One shard's calls to the other shards, and its answers to theirs; no-ops with one server."""

    def __init__(self, running: Running, shard: Shard | None) -> None:
        self._running, self._shard = running, shard
        self._aligned = True  # all shards have begun a snapshot that matches shard 0's newest
        self.kept: list[Contained] = []  # contents of the kept snapshots
        self.cut: set[str] = set()  # snapshots that match the other shards', or may match them
        self._whole: Moment | None = None  # the newest moment published by all shards
        self._promised: set[str] = set()  # snapshots pinned for a decision of shard 0
        self.publish: Callable[[], None] = _nothing  # publishes a snapshot that shard 0 made begin

    @property
    def leads(self) -> bool:
        """Whether this is shard 0 of several."""
        return self._shard is not None and self._shard.number == 0

    @property
    def follows(self) -> bool:
        """Whether this is a shard other than 0."""
        return self._shard is not None and self._shard.number > 0

    def foreign(self, values: Blocks) -> str | None:
        """Return why the values cannot be this shard's, or None if they can."""
        one = self._shard
        return None if one is None else Cut(one.of).foreign(values, one.number)

    def with_ends(self, reply: SyncReply) -> SyncReply:
        """Report closed partitions by their ends if other shards may not have closed them."""
        if self._shard is None or not reply.closed:
            return reply
        ends = {p: self._running.partitions[p].end for p in reply.closed}
        clock, durable = {**reply.clock, **ends}, {**reply.durable, **ends}
        return msgspec.structs.replace(reply, clock=clock, durable=durable, closed=[])

    def published(self, name: str, *, chosen: bool) -> None:
        """Note that a snapshot was published; ``chosen``: shard 0 chose its moment.

        Matching snapshots of all shards, a state of the whole model, are kept until the next such
        set.  One chosen by shard 0 is kept, too, since another shard may not have begun its own.
        """
        if chosen or (self.leads and self._aligned):
            self._keep(name)

    def _keep(self, name: str) -> None:
        self.cut = {name}
        if self._whole is not None:
            before = self._with_rows(self._running.serving().history, *self._whole)
            self.cut |= {before or name}

    def _newest_whole(self) -> Moment | None:
        """Return rows and control position of shard 0's newest snapshot that all others match."""
        for name in self.cut:
            one = self._running.serving().history.contained().get(name)
            return None if one is None else (self._of(one), one.control)
        return None

    # -- called by shard 0 -----------------------------------------------------------------------

    def begin_cut(self, rows: Mapping[int, int], control: int, whole: Moment | None = None) -> bool:
        """Begin a snapshot if the values contain exactly these rows; return whether they do.

        Parameters:
            whole: The newest moment of which all shards have published a snapshot.
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
        """Pin the snapshot with these rows and return its name, or None if there is none."""
        running = self._running
        with running.publishing:
            _, _, history = running.serving()
            name = self._with_rows(history, rows, control)
            if name is not None and not any(r.pinned for r in history.listed() if r.name == name):
                history.pin(name, True)
                self._promised.add(name)
            return name

    def _with_rows(
        self, history: SnapshotHistory, rows: Mapping[int, int], control: int
    ) -> str | None:
        for name, one in history.contained().items():
            if one.control == control and self._of(one) == dict(rows):
                return name
        return None

    def pin_same(self, rows: Mapping[int, int], control: int, on: bool) -> bool | None:
        """Pin (or unpin) the snapshot with these rows; return whether there is one.

        None: a snapshot is being published, and it may be that one.
        """
        running = self._running
        if not running.publishing.acquire(blocking=False):
            return None
        try:
            history = running.serving().history
            if (name := self._with_rows(history, rows, control)) is not None:
                history.pin(name, on)
                return True
            return False if running.chosen is None else None
        finally:
            running.publishing.release()

    def holds(self, name: str) -> bool:
        """Return whether the separately built state of that name is here and can be read."""
        history = self._running.serving().history
        try:
            history.load(name)
        except Exception as error:
            _log.warning("%s can't be taken: %s", name, error)
            return False
        return True

    def contained(self) -> dict[int, int]:
        """Return by partition the last row that all kept snapshots contain."""
        return contained_in_all(self.kept, self._running.partitions.values())

    # -- calls of shard 0 ------------------------------------------------------------------------

    @contextlib.contextmanager
    def at_one_moment(self, server: Server) -> Iterator[None]:
        """Hold the server's lock, if possible at a moment when all shards have the same rows.

        Shard 0 then makes the others begin their snapshots.  If one does not answer, there is no
        further attempt, because replicas wait for the lock meanwhile.
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
        """Make the others begin the snapshot that shard 0 has published, if they have not."""
        if self.leads and not self._aligned:
            with self._running.lock:
                self._aligned = self._all_begin(server) is True
            if self._aligned:
                self._head_goes_with_others()

    def _head_goes_with_others(self) -> None:
        """Note that the newest snapshot, published alone, is now matched by the others."""
        if self._running.parent is not None:
            self._keep(self._running.parent)

    def _all_begin(self, server: Server) -> bool | None:
        """Ask all others to begin a snapshot of the rows that this shard has; under the lock.

        Returns whether all did; None: one does not answer.
        """
        assert self._shard is not None
        rows, control, whole = self._rows(server), server.control, self._newest_whole()
        try:
            return all(
                self._shard.ask(other, "begin_cut", rows, control, whole)
                for other in self._shard.others
            )
        except Exception as error:  # it does not answer: shard 0 publishes alone
            _log.info("no snapshot at one moment: %s", error)
            return None

    def have_published(self, pinned: str | None = None, on: bool = True) -> None:
        """Make the others publish the snapshots begun, and pin those matching ``pinned``.

        Raises PinIncomplete if not all could.
        """
        if not self.leads:
            return
        assert self._shard is not None
        history = self._running.serving().history
        one = None if pinned is None else history.contained().get(pinned)
        for other in self._shard.others:
            try:
                self._shard.ask(other, "publish")
            except Exception as error:  # if it is alive, it publishes later by itself
                _log.info("shard %d has not published yet: %s", other, error)
        if pinned is not None and one is not None:
            self._have_pinned(pinned, one, on)

    def _have_pinned(self, name: str, one: Contained, on: bool) -> None:
        """Make the others pin (or unpin) their matching snapshots, waiting until published."""
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
        """Lower the offsets to those that the snapshots of all shards contain; may raise."""
        if self._shard is None or self._shard.number:
            return dict(upto)
        out = dict(upto)
        for other in self._shard.others:
            has = self._shard.ask(other, "contained")
            out = {p: min(last, has[p]) for p, last in out.items() if p in has}
        return out

    def rollback(self, note: Rollback, name: str, target: Contained) -> Rollback:
        """Return the decision for all shards.  Raises RollbackRefused if one cannot follow."""
        if not self.leads:
            return note
        assert self._shard is not None
        parts, rows = [name], self._of(target)
        for other in self._shard.others:
            try:
                partner = self._shard.ask(other, "partner", rows, target.control)
            except Exception as error:
                reason = f"shard {other} does not answer: {error}"
                raise RollbackRefused(name, reason, ()) from error
            if partner is None:
                reason = f"shard {other} has no snapshot of the same rows; take another one"
                raise RollbackRefused(name, reason, ())
            parts.append(partner)
        return ShardedRollback(**msgspec.structs.asdict(note), parts=parts)

    def lacks(self, name: str) -> str | None:
        """Return why not all shards can use the state of this name, or None if they can."""
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
        """Remove separately built states that no decision needs; return those that remain.

        Shards other than 0 remove none, since shard 0 may be about to decide for one.
        """
        names = set() if held is None else {held.snapshot}
        if self.follows:
            return {name for name in names if name.startswith(ASIDE)}
        return history.drop_asides(names)

    def followed(self, name: str | None) -> None:
        """Unpin the snapshot of an applied decision, which is now kept because a start needs it.

        Other promised snapshots stay pinned for decisions that may still come.
        """
        if name in self._promised:
            with contextlib.suppress(Exception):
                self._running.serving().history.pin(name, False)
                self._promised.remove(name)

    # -- which rows ------------------------------------------------------------------------------

    def _rows(self, server: Server) -> dict[int, int]:
        return self._of(Contained(server.clock, frozenset(server.closed)))

    def _of(self, one: Contained) -> dict[int, int]:
        """Return the last offset of each partition, see :meth:`Contained.rows`."""
        known = self._running.partitions
        return one.rows({p: known[p].end for p in one.closed if p in known})
