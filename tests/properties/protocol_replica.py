"""A replica for ``protocol_world.py``: the real learner in a shell that does one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from paramserver.core.wire import FORMAT, SyncReply, SyncRequest, decode_reply, encode
from replay.errors import PartitionSealed
from replay.journal.base import NewRow, Row, Verdict

LEARNED = (Verdict.ACCEPTED, Verdict.CLIPPED)
SPEC = "5" * 64
NOTHING: frozenset[tuple[int, int]] = frozenset()


class Replica:
    """What the shell in ``online.replica.replica`` does, one step at a time."""

    def __init__(self, world: Any) -> None:
        self.world, self.alive = world, True
        n, size = world.r.randint(1, 5), world.retain_bytes
        self.learner = world.learner_class(
            world.build, task="binary", spec=SPEC, retain_bytes=size, rows_max=n
        )
        self.name = f"replica {next(world.numbers)}"
        self.queue, self.batch = list[Any](), list[tuple[Any, NewRow]]()
        self.page = list[Row]()
        self.skip, self.learned = set[bytes](), dict[str, tuple[int, bool]]()
        self.asked = self.paused = self.acts_on = 0
        self.register()

    def register(self) -> None:
        self.partition = self.world.journal.register(self.world.model, self.name, SPEC, 0.0).id
        self.known = 0
        self.learned.clear()
        self.learner.open_partition(self.partition)

    def commit(self) -> None:
        world = self.world
        if not self.batch:
            k = world.r.randint(1, 3)
            taken, self.queue = self.queue[:k], self.queue[k:]
            self.batch = [(event, event.row(frozen=self.learner.frozen)) for event in taken]
        if not self.batch or world.chance(0.12):
            return  # no answer, nothing was written: the same batch again
        before = world.journal.partition(self.partition)
        try:
            rows = [row for _, row in self.batch]
            appended = world.journal.append(self.partition, self.known, rows)
        except PartitionSealed:
            world.stats["sealed alive"] += 1
            self.page.clear()
            self.learner.abandon(self.partition)
            self.register()
            return
        if world.chance(0.15):
            return  # written, and the answer lost: the same batch again
        for (event, _), outcome in zip(self.batch, appended.outcomes, strict=True):
            if outcome.new and before and outcome.row.offset <= before.end and world.own_is_repeat:
                self.skip.add(event.key)
            world.acked.add(event.name)
        self.known, self.batch = appended.end, []

    def learn(self) -> None:
        if not self.page:
            wanted = self.learner.wanted()
            self.world.r.shuffle(wanted)
            for partition, offset in wanted:
                n = self.world.r.randint(1, 4)
                if partition == self.partition:
                    n = min(n, self.known - offset + 1)
                if n > 0 and (page := self.world.journal.read(partition, offset, n)):
                    self.page = list(page)
                    break
        row = self.page.pop(0) if self.page else None
        if row is None or (row.partition, row.offset) not in self.learner.wanted():
            self.page.clear()
            return
        event = self.world.events[row.event_id]
        skipped = row.key in self.skip
        failed = self.learner.learn(replace(row, verdict=Verdict.FROZEN) if skipped else row)
        self.world.stats["failed"] += failed is not None
        asked = row.verdict in LEARNED and not skipped
        poisoned = event.poison and asked and not self._is_undone(row.partition, row.offset)
        assert (failed is not None) == poisoned, f"{event} failed: {failed}"
        if row.partition == self.partition:
            self.learned[event.name] = row.offset, event.counts(row)

    def _is_undone(self, partition: int, offset: int) -> bool:
        return bool(self.learner.undone.has(partition, offset))

    def ask(self) -> None:
        """Exchange once; when all has to heal, as often as the values take to come."""
        self._ask()
        for _ in range(400):
            if not (self.world.calm and self.learner.catching_up):
                return
            self._ask()
        raise AssertionError(f"{self.name}: the values do not come")

    def _ask(self) -> None:
        served, learner = self.world.resolve(), self.learner
        if served is None:
            return
        push = self.world.chance(0.6, 1.0)
        pushes = learner.pushes(self.world.r.randint(1, 6)) if push else []
        values = learner.mergeable or learner.catching_up
        adopting = [p for p, t in learner.tracks.items() if t.end is not None]
        if learner.control > self.acts_on and not (self.batch or self._owes()):
            self.acts_on = self.acts_on if learner.pushes(1) else learner.control
        request = SyncRequest(
            FORMAT, self.name, self.partition, pushes, learner.since, values, adopting,
            control=self.acts_on, after=learner.server.after,
        )  # fmt: skip
        self.asked = next(self.world.numbers)
        self.world.send(Message(self, served, self.asked, encode(request), None))

    def _owes(self) -> bool:
        """Whether own rows are not learned yet."""
        track = self.learner.tracks.get(self.partition)
        return track is not None and track.next <= self.known

    def hear(self, number: int, named: set[int], data: bytes) -> None:
        if not named.issuperset(self.learner.tracks):
            return  # the clock of one that is not named may be left out
        if self.world.whole and number != self.asked:
            return  # the shell takes no late answers; a model that merges could
        reply = decode_reply(data)
        version, rewrite = self.learner.version, self.learner.rewrite
        self.world.stats["old replies"] += reply.epoch < version[0]
        if reply.kind == "part":
            self._take(reply)
        else:
            self.learner.on_reply(reply)
        if self.learner.rewrite != rewrite:
            self._on_rewrite()
        assert self.learner.version >= version, f"{self.learner.version} after {version}"
        for partition in reply.orphans:
            if partition not in self.learner.tracks:
                self.learner.adopt(partition, self.world.journal.seal(partition))
                self.world.stats["adopted"] += 1

    def _take(self, reply: SyncReply) -> None:
        """Piece by piece; it may end before the last one, and be asked for again."""
        serving = self.learner.serving
        self.world.stats["parts"] += 1
        for _ in self.learner.take_part(reply):
            assert self.learner.serving is serving, "half of the values answer"
            if self.world.chance(0.05):
                break

    def _on_rewrite(self) -> None:
        """What the shell does, and own rows that are to be learned again."""
        world, track = self.world, self.learner.tracks.get(self.partition)
        assert self.learner.serving is self.learner._training, "an undone copy goes on answering"
        if world.tells_undone:
            controls = world.journal.controls(world.model, 0)
            known = [c for c in controls if c.seq <= self.learner.control]
            self.learner.undone = world.undone(known)
        if track is not None:
            self.learned = {e: x for e, x in self.learned.items() if x[0] < track.next}

    def check(self, event: Any, row: Row | None) -> None:
        learner = self.learner
        serving: Any = learner.serving
        training: Any = learner._training
        for name, model in (("serving", serving), ("training", training)):
            most = max(model.counts.values(), default=0)
            assert most <= 1, f"{self.name}: an event counts {most} times in the {name} model"
        counts = serving.counts
        undone = self.world.undone_by.get(learner.rewrite, NOTHING)
        for own, (offset, counted) in self.learned.items():
            wanted = counted and (self.partition, offset) not in undone
            assert counts.get(own, 0) == wanted, f"{self.name}: own {own} counts not {wanted}"
        included = row is not None and learner.includes(row.partition, row.offset)
        if row and (row.partition, row.offset) in undone:
            assert not (self.world.tells_undone and included), f"{event.name} is not included"
            included = False
            assert not training.counts.get(event.name), f"{self.name} holds the undone {event.name}"
        assert learner.tally.digest == self.world.digest(training.counts), "a digest"
        if event.counts(row) and included:
            assert counts.get(event.name), f"{self.name} does not include {event.name}"
        if serving is not training:
            held = any(track.held for track in learner.tracks.values())
            assert learner.wanted() or learner.want_all or held, f"{self.name} waits for nothing"
        n = sum(delta.n for delta in learner._deltas.pending(learner.clock))
        n += len(learner._open.rows) if learner._open else 0
        assert learner.own == n, f"{self.name}: {learner.own} own rows, not {n}"


@dataclass(frozen=True)
class Message:
    """A request, or (with ``named``) the reply to one."""

    replica: Replica
    served: Any
    number: int
    data: bytes
    named: set[int] | None
