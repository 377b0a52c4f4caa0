"""What is fed and what must come of it: events, a ledger for a model, and the oracle.

The oracle keeps what clients were told and compares it with what models and server say.  It
shares no code with what it judges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim_choices import Choices, is_choice
from sim_labels import Journal, Labels

from online.models.base import Before, Prediction
from paramserver.core.blocks import Block, Blocks
from replay import codec
from replay.example import Example, Features, Label
from replay.journal.base import NewRow, Verdict

SOURCES = ("s0", "s1", "s2", "s3")
KEEP_ROWS_S = 8 * 86_400.0
"""How long rows are kept at least."""


@dataclass(frozen=True)
class Event:
    """One piece of feedback.

    ``kept_s``: it is taken as of days ago, so that its row is kept for so many seconds only; then
    nobody must repeat it any more.
    """

    name: str
    weight: float
    factor: float
    poison: bool = False
    deadly: bool = False
    kept_s: float | None = None

    @property
    def key(self) -> bytes:
        return hashlib.blake2b(self.name.encode(), digest_size=16).digest()

    @property
    def source(self) -> str:
        """Who sends it."""
        return SOURCES[self.key[0] % len(SOURCES)]

    @property
    def amount(self) -> float:
        """What it adds to a model that learns it: dyadic, so sums are exact in any order."""
        return 0.0 if self.poison or self.deadly else self.weight * self.factor

    def row(self, at: float) -> NewRow:
        features: Features = {"event": self.name, "poison": self.poison, "deadly": self.deadly}
        payload = codec.encode(Example(features, 1.0, self.weight))
        verdict = Verdict.ACCEPTED if self.factor == 1 else Verdict.CLIPPED
        at -= 0.0 if self.kept_s is None else KEEP_ROWS_S - self.kept_s
        return NewRow(self.key, self.name, self.source, verdict, payload, at, self.factor)


class Ledger:
    """Sums the weights of each event under its name.

    It damages itself before it raises on a poisoned row, and ends its process at a deadly one.
    ``twice`` is told of an event that is learned on top of itself.
    """

    mergeable, learns, numeric_only, structure = True, True, False, "ledger"
    why_not_mergeable: str | None = None
    why_not_revised: str | None = None

    def __init__(
        self,
        die: Callable[[], None],
        twice: Callable[[str], None] | None = None,
        *,
        counts: bool = False,
    ) -> None:
        self._twice, self._counts = twice, counts
        self.seen: dict[str, float] = {}  # the same sums, in a block that stands on one shard
        self._open_seen: dict[str, float] = {}
        self.sums: dict[str, float] = {}
        self._open: dict[str, float] = {}
        self._die = die

    @property
    def torn(self) -> bool:
        """Whether it has other events of one shard than of another."""
        return self._counts and self.seen != self.sums

    def predict(self, features: Features) -> Prediction:
        """The sum of the event that the features name."""
        return Prediction(self.sums.get(str(features["event"]), 0.0), None)

    def predict_many(self, rows: Iterable[Features]) -> list[Prediction]:
        """The same for each row."""
        return [self.predict(features) for features in rows]

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Add the weight."""
        if features["deadly"]:
            self._die()
        event = str(features["event"])
        if self.sums.get(event) and self._twice is not None:
            self._twice(event)
        self._add(features, float(label) * weight)

    def learn_provisional(self, example: Example, weight: float) -> None:
        """Add the label, as often as the weight says."""
        self._add(example.features, float(example.label) * weight)

    def revise(self, example: Example, weight: float, before: Before) -> None:
        """Add the label, and take the one before out."""
        first, its_weight = before
        self._add(example.features, float(example.label) * weight - float(first) * its_weight)

    def _add(self, features: Features, x: float) -> None:
        event = str(features["event"])
        both = (self.sums, self._open, self.seen, self._open_seen)
        for sums in both if self._counts else both[:2]:
            sums[event] = sums.get(event, 0.0) + x
        if features["poison"]:
            self.sums["damage"] = self._open["damage"] = 8.0
            raise ValueError("poison")

    def learn_alike(self, examples: Sequence[Example], weights: Sequence[float]) -> bool:
        """Add the weights of several rows at once, unless one of them is odd."""
        if any(e.features["poison"] or e.features["deadly"] for e in examples):
            return False
        for example, weight in zip(examples, weights, strict=True):
            self.learn(example.features, example.label, weight)
        return True

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        opened, self._open = self._open, {}
        seen, self._open_seen = self._open_seen, {}
        blocks = {"sums": Block("additive", opened)} if opened else {}
        return blocks | ({"seen": Block("count", seen)} if self._counts and seen else {})

    def rebase(self, values: Blocks) -> None:
        """New values, with the open delta on top."""
        for event, x in values["sums"].data.items() if "sums" in values else ():
            self.sums[event] = x + self._open.get(event, 0.0)
        for event, x in values["seen"].data.items() if "seen" in values else ():
            self.seen[event] = x + self._open_seen.get(event, 0.0)

    def reset(self, values: Blocks) -> None:
        """Exactly the values."""
        self.sums, self._open, self.seen, self._open_seen = {}, {}, {}, {}
        self.rebase(values)


class Oracle:
    """What clients were told, and whether everything else agrees with it."""

    def __init__(self, events: Mapping[str, Event]) -> None:
        self.events = events
        self.told: dict[str, tuple[str, int, int]] = {}  # status, partition, offset
        self.queued: set[str] = set()  # on disk, for an adopter to learn
        self.freezes = self.bans = 0
        self.forgets: dict[str, set[str]] = {}  # by the state's name: whose events it is without
        self.rollbacks: dict[tuple[int, int, str], tuple[set[str], set[str]]] = {}
        self.shaken: set[str] = set()  # what a rollback may have taken out or brought back
        self.undone: set[str] = set()
        self.labels: Labels | None = None  # events whose labels change
        self.choices: Choices | None = None
        self.lost: dict[str, int] = {}  # lost from the journal: how often it counts without it
        self._durable: dict[tuple[int, int], int] = {}  # by shard and partition: what was told
        self._durable_since: dict[int, int] = {}  # what servers of earlier epochs have told is void
        self._forgot: dict[int, int] = {}
        self.anew = False  # whether another lineage has begun

    def answer(
        self,
        event: Event,
        status: str,
        place: tuple[int, int],
        *,
        before: tuple[str, int, int] | None,
        early: bool,
    ) -> None:
        """A client got an answer.

        ``before`` is what clients had been told when it asked: that stands.  ``early``: the row
        is another's to learn, so nobody may know yet that it can't be.
        """
        if status == "queued":  # its adopter will tell; what it counts is checked at the end
            first = self.told.get(event.name)
            assert first is None or first[1:] == place, f"{event.name}: {first}, then {place}"
            self.queued.add(event.name)
            return
        fails = event.poison or event.deadly
        learned = "learned" if event.factor == 1 else "clipped"
        allowed = {"failed"} if fails else {learned}
        if fails and early:
            allowed.add(learned)
        if self.rollbacks or self.forgets:
            allowed.add("undone")
        if self.bans:
            allowed.add("quarantined")
        if self.freezes:
            allowed.add("frozen")
        assert status in allowed, f"{event} was answered {status}"
        told = (status, *place)
        if before is not None:
            same = status == before[0] or (before[0] == learned and fails)
            same = same or (self.anew and fails and status == learned)  # it has not come to it yet
            rewritten = bool(self.rollbacks or self.forgets)
            kept = {"frozen", "quarantined"}
            same = same or (rewritten and kept.isdisjoint((status, before[0])))
            changed = f"{event.name} was answered {before}, and then {told}"
            assert same, changed
            assert told[1:] == before[1:], changed
        first = self.told.setdefault(event.name, told)
        assert first[1:] == place, f"{event.name} was answered {first}, and then {told}"
        if status == "failed" and first[0] == learned:
            self.told[event.name] = told

    def told_durable(self, epoch: int, durable: Mapping[int, int], shard: int = 0) -> None:
        """A replica was told that snapshots have so much, and drops what it kept of it."""
        if epoch >= self._durable_since.get(shard, 0):
            for partition, offset in durable.items():
                at = shard, partition
                self._durable[at] = max(offset, self._durable.get(at, 0))

    def restored(
        self,
        epoch: int,
        clock: Mapping[int, int],
        closed: Collection[int],
        *,
        at_head: bool,
        forgot: int,
        shard: int = 0,
    ) -> None:
        """A server has started: from the head (or its snapshot could not be read then).

        ``forgot``: by which row its values are without a source, 0 by none.  They were built from
        less than what was durable, and the rows above are in the journal still.
        """
        if not at_head or forgot != self._forgot.get(shard, 0):
            self._durable = {at: last for at, last in self._durable.items() if at[0] != shard}
            self._durable_since[shard], self._forgot[shard] = epoch, forgot
        for (of, partition), offset in self._durable.items():
            if of != shard:
                continue
            has = offset if partition in closed else clock.get(partition, 0)
            assert has >= offset, f"{offset} rows of {partition} were durable, a start has {has}"

    def begin_anew(self) -> None:
        """Another lineage serves: it learns again what it has not got."""
        self._durable.clear()
        self.anew = True

    def roll_back(self, key: tuple[int, int, str], now: set[str], target: set[str]) -> None:
        """Somebody wants to go back: what counts now, and what did in the snapshot."""
        self.rollbacks[key] = now, target
        if self.choices is not None:
            self.choices.decided.add("undone")
        self.shaken |= now ^ target

    def forget(self, name: str, events: set[str]) -> None:
        """Somebody wants to go on with the state of this name, which is without these events."""
        self.forgets[name] = events
        self.shaken |= events

    def lose(self, names: set[str], learned: set[str]) -> None:
        """The journal has lost these events; those that are ``learned`` are in the values.

        A repeat is learned again.  What it has lost of decisions, too, is not known any more.
        """
        for name in names:
            self.told.pop(name, None)
            self.queued.discard(name)
            self.lost[name] = int(name in learned)
        for name, event in self.events.items():
            if event.poison:
                self.told.pop(name, None)
        self._durable, self._durable_since = {}, {}

    def decided(self, keys: Iterable[tuple[int, int, str]]) -> None:
        """The rollbacks and forgets that stand in the journal, in their order."""
        undone: set[str] = set()
        for key in keys:
            if key[2] in self.forgets:
                undone |= self.forgets[key[2]]
                continue
            now, target = self.rollbacks[key]
            undone = (undone | now) - target
        self.undone = undone

    def at_most_once(
        self, sums: Mapping[str, float], where: str, *, local: bool | None = None
    ) -> None:
        """At any time, of any model that answers.

        ``local``: a replica's, whether of the newest rewrite; None: a server's.
        """
        if self.labels is not None:
            self.labels.at_most_once(sums, where, local=local)
            sums = {name: x for name, x in sums.items() if name not in self.labels.events}
        if self.choices is not None:
            self.choices.at_most_once(sums, where)
            sums = {name: x for name, x in sums.items() if not is_choice(name)}
        for name, x in sums.items():
            event = self.events.get(name)
            assert event is not None, f"{where}: {name} = {x} is nothing that was sent"
            most = event.amount * (1 + self.lost.get(name, 0))
            right = x in (0.0, event.amount, most)
            assert right, f"{where}: {name} counts {x}, not {event.amount}"

    def wrong(
        self,
        sums: Mapping[str, float],
        digest: tuple[int, int],
        where: str,
        journal: Journal | None = None,
    ) -> str | None:
        """What is not as it must be when all has come to rest; None if nothing is.

        ``journal``: what stands there, where labels change.
        """
        self.at_most_once(sums, where, local=True)
        told = {**dict.fromkeys(self.queued, ("queued", 0, 0)), **self.told}
        for name, n in self.lost.items():
            if name not in told and sums.get(name, 0.0) < self.events[name].amount * n:
                return f"{where}: {name} was lost, and is no more in the values"
        for name, (status, _, _) in told.items():
            lost = name in self.undone or status in ("frozen", "quarantined")
            times = 1 + self.lost.get(name, 0)
            expected_x = 0.0 if lost else self.events[name].amount * times
            if sums.get(name, 0.0) != expected_x:
                return f"{where}: {name} was answered {status} and counts {sums.get(name, 0.0)}"
        if self.labels is not None and journal is not None:
            return self.labels.wrong(journal, sums, digest, where)
        keys = [
            self.events[name].key
            for name, x in sums.items()
            if x and not is_choice(name)
            for _ in range(round(x / self.events[name].amount))
        ]
        if self.choices is not None:
            if (wrong := self.choices.wrong(sums, where, self.undone)) is not None:
                return wrong
            keys += self.choices.keys(self.undone)
        expected = (len(keys), sum(int.from_bytes(k[:8], "big") for k in keys) % 2**64)
        return None if digest == expected else f"{where}: digest {digest}, not {expected}"


def sums_of(values: Any) -> dict[str, float]:
    """The ledger in a server's values."""
    block = values.get("sums")
    return {} if block is None else dict(block.data)


def counted(values: Any) -> set[str]:
    """Events that count in a server's values; on shard 0, those of all shards."""
    sums = values["seen"].data if "seen" in values else sums_of(values)
    return {name for name, x in sums.items() if x}
