"""Value ranges of features and of targets.

A target's range needs more evidence before it clips, because rare values may determine the mean
(claims, prices, growth).  No target is clipped until :data:`YOUNG_TARGETS` nonzero ones are known.
Widening costs little reach, so that growth is followed.  Targets beyond the reach that keep coming
move the range at once: :data:`VOTES` within :data:`TARGET_ROWS` rows, at most
:data:`SOURCE_VOTES` of them counted from one source, or :data:`VOTES_ANY` from any source.  The
range then extends to their median.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, KeysView, Mapping
from math import frexp, inf, log2
from typing import Any, ClassVar, Final
from zlib import crc32

from paramserver.core.array_maps import ArrayMap, expect
from paramserver.core.blocks import COUNT, EXTREMA, Block, Blocks, Touched, select
from replay.example import SENT_LABEL, Features, Value

REACH: Final = 16.0
"""Accepted distance beyond the range, in range widths.  Elec2 and INSECTS, in order, need 14."""

YOUNG: Final = 32
"""Distinct values after which a range is established; values below its high end and new ends
count.  Until then its width is at least its largest absolute value."""

STILL_ROWS: Final = 1_024
"""Rows of the model within which a repeated high end does not count as distinct, because a counter
may stand still.  After that many rows it counts, as for a flag that is mostly set."""

NEW_ROWS: Final = 64
"""Rows of the model after a name's first one during which a young range widens freely within the
reach.  Afterwards each widening costs reach."""

EASE_ROWS: Final = 512
"""Rows of the model after which one widening to twice the width no longer costs reach."""

YOUNG_TARGETS: Final = 16
"""Nonzero targets that are learned unclipped before any is clipped."""

EASE_TARGETS: Final = 64
"""The same as :data:`EASE_ROWS` for targets; growth of one per cent a row then costs no reach."""

TARGET_ROWS: Final = 8_192
"""Rows of the model within which targets beyond the reach are counted together."""

VOTES: Final = 8
"""Targets beyond the reach after which the range moves."""

SOURCE_VOTES: Final = 3
"""How many of those count per source; targets without a source count each."""

VOTES_ANY: Final = 32
"""Targets beyond the reach, of any sources, after which the range moves."""

RANGE: Final = "bounds.range"
ROWS: Final = "bounds.rows"
BEYOND: Final = "bounds.beyond"
UNTIL: Final = "bounds.until"
TARGETS: Final = "bounds.targets"
BOUNDED: Final[Touched] = dict.fromkeys((RANGE, ROWS, BEYOND, UNTIL, TARGETS))
"""Blocks of the ranges, by name: its range; its distinct values, up to :data:`YOUNG`; how many
recent ones lay beyond the reach; its first row (0: the model's first) and the row at which its full
reach is restored.  For targets: how many lay beyond the reach, by source, side and distance."""

SINCE: Final = f"{SENT_LABEL} far"
"""Key in UNTIL for the row until which targets beyond the reach are counted together."""

_BELOW: Final = (RANGE, ROWS, BEYOND, UNTIL)
_ENDS: Final = (SENT_LABEL, SINCE)

SAMPLED: Final = 8
"""One row in this many is sampled for the recent values."""

_LATELY: Final = 16  # sampled rows kept: at least this many, at most twice
FREE: Final = 2.0  # widenings that cost no reach
STOP: Final = 6.0  # widenings after which almost no reach is left
_REST: Final = 0.25
_SIDE_VOTES: Final = 4  # votes that move one end of the range
_NEVER: Final = (0.0, 0.0)
_NAMED: Final = 16  # hash values that stand for sources
_STEP: Final = 2  # resolution of distances, in binary digits
_LEAST, _MOST = -32, 64  # binary digits of distances


class Range:
    """The range of one name's values, with its counters.

    Attributes:
        shared: Whether several names have this object, so that none of them may change it.
    """

    __slots__ = ("beyond", "first", "high", "low", "rows", "shared", "until")
    young: ClassVar[int] = YOUNG

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high, self.shared = low, high, False
        self.rows, self.beyond, self.first, self.until = 0, 0.0, 0.0, 0.0

    @property
    def width(self) -> float:
        """Width used for distances; at least the largest absolute value while young."""
        width = self.high - self.low
        if self.rows < self.young or width <= 0.0:
            width = max(width, abs(self.high), abs(self.low))
        return width if width > 0.0 else 1.0

    @property
    def awake(self) -> bool:
        """Whether values within it still change its state."""
        return self.beyond > 0.0 or (self.rows < self.young and self.low < self.high)

    def own(self) -> Range:
        """Return a copy that may be changed."""
        made = Range(self.low, self.high)
        made.first, made.until = self.first, self.until
        return made

    def new(self, n: int) -> bool:
        """Whether it widens without cost at the model's ``n``-th row."""
        return self.rows < self.young and n - self.first < NEW_ROWS

    def still(self, value: Value, n: int) -> bool:
        """Whether the value does not count as distinct, as of a counter that does not change."""
        return self.low == self.high or (value == self.high and n - self.until < STILL_ROWS)

    def reach(self, n: int) -> float:
        """Accepted distance beyond the range at the model's ``n``-th row, in widths."""
        return _left((self.until - n) / EASE_ROWS)


class TargetRange(Range):
    """The range of targets.

    Attributes:
        far: How many recent ones lay beyond the reach, by source, side and distance.
        since: The row of the model until which those count.
    """

    __slots__ = ("changed", "far", "open_far", "open_rows", "since")
    young: ClassVar[int] = YOUNG_TARGETS

    def __init__(self, low: float, high: float) -> None:
        super().__init__(low, high)
        self.far: dict[str, int] = {}
        self.since = 0.0
        self.changed, self.open_rows, self.open_far = False, 0, dict[str, int]()

    @property
    def awake(self) -> bool:
        """Whether values within it still change its state."""
        return self.rows < self.young

    def reach(self, n: int) -> float:
        """Accepted distance beyond the range at the model's ``n``-th row, in widths."""
        return inf if self.awake else _left((self.until - n) / EASE_TARGETS)

    def copy(self) -> TargetRange:
        """Return a copy with an empty open delta."""
        made = TargetRange(self.low, self.high)
        made.rows, made.until = self.rows, self.until
        made.far, made.since = dict(self.far), self.since
        return made

    def learn(self, value: float, n: int, source: str, *, clipped: bool) -> None:
        """Count the model's ``n``-th target, with the value that was sent."""
        was_young = self.awake
        if was_young and value:
            self.rows += 1
            self.open_rows += 1
        if self.low <= value <= self.high:
            return
        self.changed = True
        if clipped:
            self._vote(value, n, source)
            return
        most = inf
        if not was_young:
            most, far = self.width, min(widths(self, value), 1.0)
            until = max(self.until, n) + EASE_TARGETS * log2(1.0 + far)
            self.until = max(self.until, min(until, n + STOP * EASE_TARGETS))
        self.high = max(self.high, min(value, self.high + most))
        self.low = min(self.low, max(value, self.low - most))

    def _vote(self, value: float, n: int, source: str) -> None:
        if n > self.since:
            self._forget()
            self.since = n + TARGET_ROWS
        above = value > self.high
        size = frexp(value - self.high if above else self.low - value)[1]
        size = min(max(-(-size // _STEP) * _STEP, _LEAST), _MOST)
        who = str(crc32(source.encode()) % _NAMED) if source else ""
        key = f"{who}{'+' if above else '-'}{size - _LEAST}"
        self._count(key, 1)
        votes = self._votes()
        if len(votes) < VOTES:
            return
        up = sorted(size for side, size in votes if side == "+")
        down = sorted(size for side, size in votes if side == "-")
        self._forget()
        if len(up) >= _SIDE_VOTES:
            self.high += 2.0 ** up[(len(up) - 1) // 2]
        if len(down) >= _SIDE_VOTES:
            self.low -= 2.0 ** down[(len(down) - 1) // 2]

    def _count(self, key: str, by: int) -> None:
        self.far[key] = self.far.get(key, 0) + by
        self.open_far[key] = self.open_far.get(key, 0) + by

    def _forget(self) -> None:
        for key, n in self.far.items():
            self._count(key, -n)
        self.far = {}

    def cut(self, out: Blocks) -> None:
        """Add the open delta to ``out``, and reset it."""
        if self.changed:
            put(out, RANGE, EXTREMA, {SENT_LABEL: (self.low, self.high)})
            if self.until:
                put(out, UNTIL, EXTREMA, {SENT_LABEL: (0.0, self.until)})
            if self.since:
                put(out, UNTIL, EXTREMA, {SINCE: (0.0, self.since)})
        if self.open_rows:
            put(out, ROWS, COUNT, {SENT_LABEL: self.open_rows})
        if self.open_far:
            put(out, TARGETS, COUNT, self.open_far)
        self.changed, self.open_rows, self.open_far = False, 0, {}

    def rebase(self, values: Blocks) -> None:
        """Replace the values of the given keys, and apply the open delta on top."""
        low, high = data_of(values, RANGE).get(SENT_LABEL, (self.low, self.high))
        until, ends = data_of(values, UNTIL), (self.until, self.since)
        latest = [until.get(key, (0.0, end))[1] for key, end in zip(_ENDS, ends, strict=True)]
        if self.changed:
            low, high = min(low, self.low), max(high, self.high)
            latest = [max(pair) for pair in zip(latest, ends, strict=True)]
        self.low, self.high = low, high
        self.until, self.since = latest
        if SENT_LABEL in (rows := data_of(values, ROWS)):
            self.rows = rows[SENT_LABEL] + self.open_rows
        for key, n in data_of(values, TARGETS).items():
            self.far[key] = max(n + self.open_far.get(key, 0), 0)
        self.far = {key: n for key, n in self.far.items() if n}

    def _votes(self) -> list[tuple[str, int]]:
        """Sides and distances of the votes that count."""
        by_source: dict[str, list[tuple[int, str]]] = {}
        for key, n in self.far.items():
            who, side, size = key.partition("+" if "+" in key else "-")
            by_source.setdefault(who, []).extend([(int(size) + _LEAST, side)] * n)
        every = sum(map(len, by_source.values())) >= VOTES_ANY
        return [
            (side, size)
            for who, votes in by_source.items()
            for size, side in (votes if every or not who else sorted(votes)[:SOURCE_VOTES])
        ]


class RecentValues:
    """The smallest and largest recent values by name, from a sample of the rows."""

    def __init__(self) -> None:
        self._spans: list[dict[str, tuple[float, float]]] = [{}, {}]

    def near(self, name: str, held: Range) -> tuple[float, float]:
        """The smallest and largest recent value under the name, limited to its range."""
        spans = [span[name] for span in self._spans if name in span]
        if not spans:
            return held.low, held.high
        low, high = min(low for low, _ in spans), max(high for _, high in spans)
        return min(max(low, held.low), held.high), max(min(high, held.high), held.low)

    def look(self, features: Features, known: Container[str], n: int) -> None:
        """Record the ``n``-th row, one of :data:`SAMPLED`; the result is used for clipping only."""
        spans = self._spans[0]
        for name, value in features.items():
            if (type(value) is float or type(value) is int) and name in known:
                number = float(value)
                low, high = spans.get(name, (number, number))
                spans[name] = (min(low, number), max(high, number))
        if n % (SAMPLED * _LATELY) == 0:
            self._spans = [{}, spans]

    def only(self, name: str) -> RecentValues:
        """Return a copy that is limited to one name."""
        made = RecentValues()
        made._spans = [{name: x[name]} if name in x else {} for x in self._spans]
        return made


class Ranges(dict[str, Range]):
    """Ranges by name.  Of very many, each is made when its name is first asked for.

    Attributes:
        below: Blocks with the ranges that are not made yet, and those that are; empty: all are.
        awake: Names whose state changes even for values in range.
    """

    __slots__ = ("awake", "below")

    def __init__(self) -> None:
        super().__init__()
        self.below: Blocks = {}
        self.awake: set[str] = set()

    def begin(self, values: Blocks) -> None:
        """Take all ranges of these values; there are none yet."""
        if isinstance(data_of(values, RANGE), ArrayMap):
            self.below = {name: values[name] for name in _BELOW if name in values}
            self.make((SENT_LABEL,))
        else:
            self.update(ranges_of(values))

    def make(self, names: Iterable[str]) -> None:
        """Make the ranges of these names, as far as there are values of them."""
        if not self.below:
            return
        known, fresh = self.below[RANGE].data, [name for name in names if name not in self]
        expect(known, fresh)
        if fresh := [name for name in fresh if name in known]:
            made = ranges_of(select(self.below, dict.fromkeys(_BELOW, dict.fromkeys(fresh))))
            self.update(made)
            for name, held in made.items():
                self.note(name, held)

    def note(self, name: str, held: Range) -> None:
        """Update whether values within the range change its state from now on."""
        if held.awake:
            self.awake.add(name)
        else:
            self.awake.discard(name)

    def names(self) -> KeysView[str]:
        """Return the names of all ranges."""
        return {**data_of(self.below, RANGE), **self}.keys()


def ranges_of(values: Blocks) -> dict[str, Range]:
    """Return the ranges in these values.

    Names that were met in one row with one value, and never changed since, share a range: a model
    has millions of such names.
    """
    ranges: dict[str, Range] = {}
    ends, pair, until = data_of(values, UNTIL), None, None
    held = Range(0.0, 0.0)
    for name, here in data_of(values, RANGE).items():
        since = ends.get(name, _NEVER)
        if here is not pair or since is not until or not held.shared:
            held = Range(*here)
            held.first, held.until = since
            held.shared = held.low == held.high
            pair, until = here, since
        ranges[name] = held
    for name, rows in data_of(values, ROWS).items():
        if name in ranges:
            own_range(ranges, name).rows = rows
    for name, x in data_of(values, BEYOND).items():
        if name in ranges:
            own_range(ranges, name).beyond = max(x, 0.0)
    return ranges


def rebase_ranges(
    ranges: Ranges,
    values: Blocks,
    open_ranges: Mapping[str, tuple[float, float]],
    open_rows: Mapping[str, int],
    open_beyond: Mapping[str, float],
    open_until: Mapping[str, tuple[float, float]],
) -> None:
    """Set the ranges that are in these values, with the open delta on top."""
    ranges.make({name for block in _BELOW for name in data_of(values, block)})
    for name, (low, high) in data_of(values, RANGE).items():
        own = open_ranges.get(name, (low, high))
        low, high = min(low, own[0]), max(high, own[1])
        held = ranges.get(name)
        if held is None:
            ranges[name] = Range(low, high)
        elif not (held.shared and low and held.low == low and held.high == high):
            held = own_range(ranges, name)
            held.low, held.high = low, high
    for name, n in data_of(values, ROWS).items():
        if name in ranges:
            own_range(ranges, name).rows = n + open_rows.get(name, 0)
    for name, x in data_of(values, BEYOND).items():
        if name in ranges:
            own_range(ranges, name).beyond = max(x + open_beyond.get(name, 0.0), 0.0)
    for name, ends in data_of(values, UNTIL).items():
        if (held := ranges.get(name)) is not None:
            own = open_until.get(name, ends)
            first, until = min(ends[0], own[0]), max(ends[1], own[1])
            if (held.first, held.until) != (first, until):
                held = own_range(ranges, name)
                held.first, held.until = first, until


def own_range(ranges: dict[str, Range], name: str) -> Range:
    """Return a name's range, as an object of its own."""
    if (held := ranges[name]).shared:
        held = ranges[name] = held.own()
    return held


def widths(held: Range, value: Value) -> float:
    """Return how far a value is beyond the range, in widths of the range."""
    number = float(value)  # type: ignore[arg-type]  # outside: a number
    return (number - held.high if number > held.high else held.low - number) / held.width


def data_of(values: Blocks, name: str) -> Mapping[str, Any]:
    """Return the data of a block; empty if there is no such block."""
    return values[name].data if name in values else {}


def put(out: Blocks, name: str, kind: str, data: Mapping[str, Any]) -> None:
    """Add to a block's data, or make the block."""
    out[name] = Block(kind, {**data_of(out, name), **data})


def _left(strained: float) -> float:
    if strained < FREE:
        return REACH
    return REACH * 2.0 ** (1.0 - strained) if strained < STOP else _REST
