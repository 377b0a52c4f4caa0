"""Labels that change: the events of a seed, and what must come of them.

The oracle reads the journal's rows and decisions as they stand there, and shares no code with what
it judges.  It knows a provisional label from a final one by who has sent it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replay import codec
from replay.example import Example, Features
from replay.journal.base import NewRow, Verdict

if TYPE_CHECKING:
    pass

GUESSING, FINAL = ("t0", "t1"), ("u0", "u1")
"""Who sends provisional labels, and who final ones."""
SOURCES = (*GUESSING, *FINAL)
FIRST = 64.0
"""How much more a provisional label weighs: any mixture of lessons has a sum of its own."""


@dataclass(frozen=True)
class Changing:
    """An event with a provisional label, and a final one."""

    name: str
    weight: float
    factor: float
    final_weight: float
    poison: bool
    sources: tuple[str, str]

    @property
    def key(self) -> bytes:
        return hashlib.blake2b(self.name.encode(), digest_size=16).digest()

    @property
    def first(self) -> float:
        """What its provisional label adds."""
        return 0.0 if self.poison else FIRST * self.weight * self.factor

    @property
    def final(self) -> float:
        """What its final label adds."""
        return 0.0 if self.poison else self.final_weight


@dataclass(frozen=True)
class Part:
    """One label of an event, as it is sent."""

    event: Changing
    final: bool

    @property
    def name(self) -> str:
        """What callers call the event, whichever of its labels it is."""
        return self.event.name

    def row(self, at: float) -> NewRow:
        """The row that the service makes of it."""
        event, final = self.event, self.final
        features: Features = {"event": event.name, "poison": event.poison, "deadly": False}
        weight = event.final_weight if final else FIRST * event.weight
        example = Example(features, 1.0, weight, provisional=not final)
        factor, source = 1.0 if final else event.factor, event.sources[final]
        verdict = Verdict.ACCEPTED if factor == 1 else Verdict.CLIPPED
        return NewRow(event.key, event.name, source, verdict, codec.encode(example), at, factor)


def drawn(seed: int) -> Iterator[Changing]:
    """The events of a seed."""
    dice = random.Random(f"labels of {seed}")
    for k in range(dice.randint(4, 20)):
        weights = dice.choice((1.0, 0.5, 2.0)), dice.choice((1.0, 1.0, 0.25))
        sources = dice.choice(GUESSING), dice.choice(FINAL)
        yield Changing(
            f"label {k}", *weights, dice.choice((1.0, 0.5)), dice.random() < 0.05, sources
        )


@dataclass(frozen=True)
class Found:
    """A row as it stands in the journal."""

    partition: int
    offset: int
    key: bytes
    event_id: str
    source: str
    verdict: str
    factor: float


class Journal:
    """What stands in the journal: its rows, and which of them are undone or have failed."""

    def __init__(self, rows: Iterable[Any], controls: Iterable[Any]) -> None:
        self.rows = [
            Found(r.partition, r.offset, r.key, r.event_id, r.source, r.verdict.value, r.factor)
            for r in rows
        ]
        self.failed: set[str] = set()
        self.undone: set[tuple[int, int]] = set()
        known: list[tuple[int, set[tuple[int, int]]]] = [(0, set())]
        for control in controls:
            if control.kind == "failed":
                self.failed.add(control.key.rpartition(":")[2])
            elif control.kind in ("rollback", "forget", "relearn"):
                note = json.loads(control.payload)
                base = known[-1][1]
                if control.kind == "rollback":
                    base = [rows for seq, rows in known if seq <= note["control"]][-1]
                known.append((control.seq, base | set(_taken(control.kind, note["undone"]))))
        self.undone = known[-1][1]

    def stands(self, row: Found) -> bool:
        """Whether the row has to be in the model."""
        if row.verdict not in ("accepted", "clipped") or row.key.hex() in self.failed:
            return False
        return (row.partition, row.offset) not in self.undone


def _taken(kind: str, undone: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, int]]:
    for partition, numbers in undone.items():
        if kind == "rollback":
            after, upto = numbers
            yield from ((int(partition), x) for x in range(after + 1, upto + 1))
            continue
        at = 0
        for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
            yield from ((int(partition), at + gap + x) for x in range(1, length + 1))
            at += gap + length


class Labels:
    """Keeps what callers were told of their labels, and compares all with the journal.

    Attributes:
        finals: Where the row with the final label stands, as callers were told.
        wait: Decides which predictions wait for a label by default, and where.
        again: Events that an operator had learned again.  A rollback that brings back what an
            earlier one took out leaves such a lesson beside the first one if it is not in the clock
            by then: of these only what stands in the end is compared.
    """

    def __init__(self, events: Iterable[Changing], seed: int) -> None:
        self.wait = random.Random(f"waits {seed}")
        self.events = {event.name: event for event in events}
        self._by_key = {event.key.hex(): event.name for event in self.events.values()}
        self.finals: dict[str, tuple[int, int]] = {}
        self.answered: dict[tuple[str, bool], str] = {}
        self.again: set[str] = set()
        self.met: set[str] = set()

    def answer(
        self, part: Part, status: str, place: tuple[int, int], before: tuple[int, int] | None
    ) -> None:
        """A caller was answered; ``before``: where the final label stood when it asked."""
        name = part.name
        allowed = {"learned", "clipped", "queued", "undone", "frozen", "quarantined", "released"}
        allowed |= {"discarded", "failed"} if part.event.poison else {"discarded"}
        assert status in allowed, f"{name} was answered {status}"
        if part.final:
            first = self.finals.setdefault(name, place)
            assert first == place, f"{name} has two final labels, {first} and {place}"
        elif before is not None:
            assert before == place, f"{name} is final at {before}; a provisional one at {place}"
        self.answered[name, part.final] = status

    def at_most_once(self, sums: Mapping[str, float], where: str, *, local: bool | None) -> None:
        """At any time.

        ``local``: a replica may learn a final label before it has the first.  False: it may have
        values of before a rewrite, on which it learns events again that are in these, too.
        """
        if local is False:
            return
        for name, event in self.events.items():
            if name in self.again:
                continue
            x = sums.get(name, 0.0)
            right = {0.0, event.first, event.final}
            right |= {event.final - event.first} if local else set()
            assert x in right, f"{where}: {name} counts {x}, not one of {sorted(right)}"

    def wrong(
        self, journal: Journal, sums: Mapping[str, float], digest: tuple[int, int], where: str
    ) -> str | None:
        """What is not as it must be when all has come to rest; None if nothing is."""
        lessons: dict[str, tuple[list[Found], list[Found]]] = defaultdict(lambda: ([], []))
        hashes = []
        for row in journal.rows:
            if not journal.stands(row):
                continue
            hashes.append(int.from_bytes(row.key[:8], "big"))
            if (name := self.event_of(row)) is not None:
                lessons[name][row.source in FINAL].append(row)
        for name, event in self.events.items():
            firsts, finals = lessons[name]
            if len(finals) > 1 or len(firsts) > 1:
                assert name in self.again, f"{name} is taught by {firsts} and {finals}"
                self.met.add("brought back")
                continue
            expected = 0.0
            if finals:
                expected = event.final
                self.met.add("corrected" if firsts else "final alone")
            elif firsts:
                expected = event.first / event.factor * firsts[0].factor
            if sums.get(name, 0.0) != expected:
                found = sums.get(name, 0.0)
                return f"{where}: {name} counts {found}, not {expected}: {firsts}, {finals}"
        for (name, final), status in self.answered.items():
            if final and status in ("learned", "clipped") and name not in self.finals:
                return f"{where}: {name} was learned, and has no row"
        expected_digest = (len(hashes), sum(hashes) % 2**64)
        if digest != expected_digest:
            return f"{where}: digest {digest}, and the journal's is {expected_digest}"
        return None

    def lost(self, journal: Journal) -> str | None:
        """Which final label was answered and has no row; None if none."""
        places = {(row.partition, row.offset): row for row in journal.rows}
        for name, place in self.finals.items():
            if place not in places or places[place].source not in FINAL:
                return f"{name} was answered, and {place} is no final label"
        return None

    def event_of(self, row: Any) -> str | None:
        """Whose lesson the row is: by its key, or by the one that its name holds."""
        name = self._by_key.get(row.key.hex())
        if name is None and row.event_id.startswith(("final:", "again:")):
            for word in row.event_id.split(":"):  # the key of the event's first row
                name = name or self._by_key.get(word)
            if name is None:  # a final label that was taught again: its own name holds the event's
                name = next((n for n in self.events if row.event_id.endswith(f":{n}")), None)
        return name
