"""Finds the learned rows nearest to a given row, for operators.

They are read from the journal on request.  No state is kept for it, and rows that are undone,
forgotten, failed or quarantined at that time are excluded.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from online.errors import RequestError
from online.messages.structs import NearRow
from online.replica.replica import ModelReplica
from online.rows.finals import corrected
from online.rows.history import Decisions, origin
from online.rows.validator import Validator
from replay import codec
from replay.errors import ReplayError
from replay.example import Example, Features, Value
from replay.journal.base import Journal, Partition, Row

_STEP_VALUES: Final = 6_400
"""Values in one step on the thread, which takes turns with a busy event loop."""

_READ_ROWS: Final = 256
"""Largest number of rows of a partition that are read at once."""

Sums = dict[str, tuple[float, float, float]]
"""Count, mean and M2 (sum of squared deviations) of each name's values."""


class _LearnedRow(NamedTuple):
    seq: int
    source: str
    event_id: str
    at: float
    example: Example


class Nearest:
    """Finds the nearest rows of one model."""

    def __init__(self, replica: ModelReplica, validator: Validator) -> None:
        self._replica, self._validator = replica, validator

    async def to(self, features: Features, n: int) -> list[NearRow]:
        """Return the ``n`` nearest rows, nearest first; ties in favour of newer rows.

        Raises RequestError if the journal does not answer within ``limits.explain_s``.
        """
        limit_s = self._replica.limits.explain_s
        try:
            async with asyncio.timeout(limit_s):
                size = max(1, _STEP_VALUES // max(len(features), 1))
                learned, sums = await self._learned(size)
                spreads = {name: math.sqrt(m2 / n) for name, (n, _, m2) in sums.items()}
                near: list[tuple[float, int, _LearnedRow]] = []
                for start in range(0, len(learned), size):
                    page = learned[start : start + size]
                    near = await self._replica.store.read(_nearer, near, page, features, spreads, n)
        except TimeoutError:
            message = f"the nearest rows were not read within {limit_s:g} s"
            hint = "Lower limits.nearest_rows, raise limits.explain_s, or ask without nearest"
            raise RequestError(503, "explain_too_slow", message, "nearest", hint, 1) from None
        except ReplayError as error:
            hint = "Ask without nearest, or again when the journal can be read"
            raise RequestError(503, "journal_unavailable", str(error), "nearest", hint, 1) from None
        return [self._shown(distance, one) for distance, _, one in near]

    async def _learned(self, size: int) -> tuple[list[_LearnedRow], Sums]:
        """Rows that the model has learned, among its newest ``limits.nearest_rows``."""
        replica, name = self._replica, self._replica.settings.name
        read, journal = replica.store.read, replica.store.journal
        decisions = await replica.control.read()
        kept_back = {*decisions.bans}
        if replica.filters is not None:
            kept_back.update(replica.filters.reputations.quarantined)
        rows = islice(_newest(journal, name), replica.limits.nearest_rows)
        learned, sums = list[_LearnedRow](), Sums()
        while (page := await read(_taught, rows, size, decisions, kept_back, sums)) is not None:
            learned += page
        return learned, sums

    def _shown(self, distance: float, row: _LearnedRow) -> NearRow:
        _, source, event_id, at, example = row
        label = self._validator.show(example.label)
        return NearRow(distance, label, example.features, source, event_id, at)


def _newest(journal: Journal, model: str) -> Iterator[Row]:
    """Yield the rows of one model, newest first."""
    each = [_backwards(journal, partition) for partition in journal.partitions(model)]
    yield from heapq.merge(*each, key=lambda row: row.seq, reverse=True)


def _backwards(journal: Journal, partition: Partition) -> Iterator[Row]:
    """Yield the rows of a partition, newest first; each read doubles in size."""
    end, n = partition.end, 1
    while n := min(n, end - partition.trimmed, _READ_ROWS):
        if not (rows := journal.read(partition.id, end - n + 1, n)):
            return  # retention has removed them meanwhile, or they are lost
        yield from reversed(rows)
        end, n = end - n, 2 * n


def _taught(
    rows: Iterator[Row], size: int, decisions: Decisions, kept_back: set[str], sums: Sums
) -> list[_LearnedRow] | None:
    """Filter the next rows for learned ones, and add them to the sums; None: no more rows."""
    if not (page := list(islice(rows, size))):
        return None
    taught = []
    for row in filter(decisions.learned, page):
        excluded = row.offset <= decisions.without.get(row.partition, 0)
        if excluded or row.source in kept_back or codec.is_erased(row.payload):
            continue
        example = codec.decode(row.payload)
        if example.moved is None and not example.provisional and not example.taught:
            taught.append(_LearnedRow(row.seq, row.source, _named(row), row.at, example))
    add_to(sums, [one.example for one in taught])
    return taught


def _named(row: Row) -> str:
    """The event's id as its caller sent it, also for relearned or corrected events."""
    event = origin(row)
    first = msgspec.structs.replace(row, key=event.key, event_id=event.event_id)
    return event.event_id if corrected(first) is None else event.event_id.split(":", 4)[4]


def add_to(sums: Sums, examples: Iterable[Example]) -> None:
    """Add the numeric values of rows to the moments of their names."""
    for example in examples:
        for name, value in example.features.items():
            if (number := _number(value)) is not None:
                n, mean, m2 = sums.get(name, (0.0, 0.0, 0.0))
                n, off = n + 1.0, number - mean  # Welford (1962)
                mean += off / n
                sums[name] = n, mean, m2 + off * (number - mean)


def distance(a: Features, b: Features, spreads: Mapping[str, float]) -> float:
    """Return how different two rows are, from 0 to 1: the mean over their names (Gower 1971).

    Two numbers differ by their distance in standard deviations of the name (one counts as half),
    two texts by the words that only one of them has; a name that one row lacks counts as 1.
    """
    names = a.keys() | b.keys()
    if not names:
        return 0.0
    shared = a.keys() & b.keys()
    apart = sum(_apart(a[name], b[name], spreads.get(name, 0.0)) for name in shared)
    return (apart + len(names) - len(shared)) / len(names)


def _apart(a: Value, b: Value, spread: float) -> float:
    if a == b:
        return 0.0
    x, y = _number(a), _number(b)
    if x is not None and y is not None:
        return 1.0 - spread / (spread + abs(x - y))
    if isinstance(a, str) and isinstance(b, str):
        mine, other = set(a.lower().split()), set(b.lower().split())
        return 1.0 - len(mine & other) / max(len(mine | other), 1)
    return 1.0


def _number(value: Value) -> float | None:
    return float(value) if isinstance(value, (int, float)) and type(value) is not bool else None


def _nearer(
    near: Sequence[tuple[float, int, _LearnedRow]],
    page: Sequence[_LearnedRow],
    features: Features,
    spreads: Mapping[str, float],
    n: int,
) -> list[tuple[float, int, _LearnedRow]]:
    """The ``n`` nearest among the previous ones and those of the page."""
    candidates = [(distance(features, f.example.features, spreads), -f.seq, f) for f in page]
    return heapq.nsmallest(n, [*near, *candidates], key=lambda one: one[:2])
