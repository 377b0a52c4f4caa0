"""Values are bounded before they move a model, by what was sent under the same name before.

One number that is far from all others ruins a scaler for good: after 1e4 among numbers of about 1,
the others look all alike.  So each name has a *range*, the least and the greatest number that were
learned, and what lies further beyond it than :data:`REACH` times its width is *clipped*:

* a row that is learned has the nearest end of what came lately instead: of a number that is so far
  off only the side is believed.  The row holds both, so whoever learns it later bounds nothing
  anew;
* an answer is given as if the number were the nearest end of the range.

In a row that is learned, numbers share the reach: eight that are far off together say the same
nonsense eight times.  A number within the reach is taken as it is, and widens the range, at most to
twice its width.  Who widens it again and again finds less and less reach, until rows have passed.

If most numbers of a name lie beyond the reach it is the world that has changed (a counter, another
unit): after some rows the range goes there.

In regression the target is such a number, too: one label of a million among ratings would be the
mean of all.  Its range asks for more before it is clipped (:mod:`online.learning.ranges`).

All of this is a view of the learned rows, and adds up over replicas: its blocks are pushed with
the rows' range.  Nothing is written while numbers stay within their ranges.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf, log2
from typing import Final, cast

import msgspec
import numpy as np
import numpy.typing as npt

from online.learning.counters import DIGEST
from online.learning.ranges import (
    BEYOND,
    BOUNDED,
    EASE_ROWS,
    RANGE,
    REACH,
    ROWS,
    SAMPLED,
    SINCE,
    STOP,
    TARGETS,
    UNTIL,
    YOUNG,
    Lately,
    Range,
    TargetRange,
    data_of,
    widths,
)  # fmt: skip
from paramserver.core.blocks import COUNT, EXTREMA, Block, Blocks, Touched
from replay.example import SENT_LABEL, Example, Features, Value

TURN: Final = 24
"""Clipped numbers of a name, less half of those that were not, after which its range moves."""

_BACK: Final = 0.5
_TURN_YOUNG: Final = 2.0

FAR: Final = "far beyond"
"""How the reason of such a row begins."""

_SHOWN: Final = 5  # names in it


class Bounds:
    """Ranges of the numbers of one model, with an open delta; the verbs of a tally.

    Parameters:
        free: Names that are never bounded: their numbers stand for something.
        targets: Whether labels are numbers, which are bounded under the name SENT_LABEL of
            `replay.example`.

    Attributes:
        on: False: nothing is bounded, and nothing is learned of ranges.
    """

    def __init__(self, free: Collection[str] = (), *, targets: bool = False) -> None:
        self.on = True
        self.targets = targets
        self._free = frozenset(free)
        self._ranges: dict[str, Range] = {}
        self._awake: set[str] = set()  # names for which a number within its range says something
        self._n = 0  # rows that the model has learned
        self._lately = Lately()
        self._begin()

    @classmethod
    def of(cls, values: Blocks, *, on: bool) -> Bounds:
        """Make bounds with what these values say of the ranges."""
        made = cls()
        made.on = on
        made.reset(values)
        return made

    def _begin(self) -> None:
        self._open_n = 0
        self._open_ranges: dict[str, tuple[float, float]] = {}
        self._open_rows: dict[str, int] = {}
        self._open_beyond: dict[str, float] = {}
        self._open_until: dict[str, tuple[float, float]] = {}

    # -- asking ------------------------------------------------------------------------------

    def answered(self, features: Features) -> Features:
        """The row as it is answered; the same object if nothing in it is beyond the reach."""
        out = features
        for name, held in _outside(self._ranges, features) if self.on else ():
            if widths(held, features[name]) > held.reach(self._n):
                out = dict(out) if out is features else out
                out[name] = held.high if float(features[name]) > held.high else held.low  # type: ignore[arg-type]
        return out

    def taught(self, features: Features) -> tuple[Features, dict[str, Value] | None]:
        """The row as it is to be learned, and what was sent of the numbers that it has others of.

        The very row, and None, if nothing in it is beyond the reach.
        """
        outside = _outside(self._ranges, features) if self.on else []
        if not outside:
            return features, None
        far: dict[str, float] = {}
        shared = 0.0
        for name, held in outside:
            far[name] = widths(held, features[name]) / held.reach(self._n)
            shared += far[name] if held.rows >= YOUNG else 0.0
        clipped = {
            name: held
            for name, held in outside
            if far[name] > 1.0 or (shared > 1.0 and held.rows >= YOUNG)
        }
        if not clipped:
            return features, None
        out = dict(features)
        for name, held in clipped.items():
            low, high = self._lately.near(name, held)
            out[name] = high if float(features[name]) > held.high else low  # type: ignore[arg-type]
        return out, {name: features[name] for name in clipped}

    def inside(
        self, names: Sequence[str], x: npt.NDArray[np.float64], most: float
    ) -> npt.NDArray[np.bool_]:
        """Which rows, of one number a name, lie within the ranges: nothing is done to those.

        All within ± ``most``: a name whose range is not known takes any such number.
        """
        ranges = self._ranges if self.on else {}
        return _rows_inside([ranges.get(name) for name in names], x, most)

    @property
    def names(self) -> Collection[str]:
        """Names of features whose range is known."""
        return self._ranges.keys() - {SENT_LABEL}

    def ends(self, names: Iterable[str]) -> dict[str, tuple[float, float, float, float]]:
        """Return what an answer takes as it is, of those names whose range is known.

        Least and greatest number, and what it takes instead of one below, and of one above.
        """
        if not self.on:
            return {}
        out = {}
        for name in names:
            if (held := self._ranges.get(name)) is not None:
                reach = held.reach(self._n) * held.width
                out[name] = (held.low - reach, held.high + reach, held.low, held.high)
        return out

    # -- learning ----------------------------------------------------------------------------

    def add(self, example: Example, source: str = "") -> None:
        """Count one learned row, with what was sent of the numbers that it has others of."""
        self._n += 1
        self._open_n += 1
        if not self.on:
            return
        ranges, sent = self._ranges, example.raw
        features = example.features
        if self.targets:
            self._add_target(example, source)
        if sent is not None:  # of what was left out altogether nothing is kept here, either
            features = {**features, **{name: sent[name] for name in sent if name in features}}
        if not features.keys() <= ranges.keys():
            self._meet(features)
        if self._n % SAMPLED == 0:
            numbers = numbers_of(example, targets=self.targets)
            self._lately.look(numbers, ranges, self._n)
        outside = _outside(ranges, features)
        for name, held in outside:
            value = float(features[name])  # type: ignore[arg-type]  # outside: a number
            self._widen(name, held, value, clipped=sent is not None and name in sent)
            self._note(name, held)
        if self._awake:
            done = dict(outside)
            for name in [n for n in features if n in self._awake and n not in done]:
                held = ranges[name]
                if held.beyond and features[name]:
                    self._ease(name, held)
                if held.rows < YOUNG and not held.still(features[name], self._n):
                    self._age(name, held)
                self._note(name, held)

    def _add_target(self, example: Example, source: str) -> None:
        taught, sent = float(example.label), (example.raw or {}).get(SENT_LABEL)
        value = taught if sent is None else float(sent)
        held = self._ranges.get(SENT_LABEL)
        if not isinstance(held, TargetRange):
            held = self._ranges[SENT_LABEL] = TargetRange(value, value)
            held.changed = True
        held.learn(value, self._n, source, clipped=sent is not None)
        self._note(SENT_LABEL, held)

    def ahead(self) -> Bounds:
        """Make bounds of the targets alone, to walk ahead of the rows that are learned."""
        made = Bounds(targets=self.targets)
        made.on, made._n = self.on, self._n
        made._lately = self._lately.only(SENT_LABEL)
        held = self._ranges.get(SENT_LABEL)
        if isinstance(held, TargetRange):
            made._ranges[SENT_LABEL] = held.copy()
            made._note(SENT_LABEL, held)
        return made

    def add_alike(self, rows: Sequence[Features]) -> bool:
        """Count rows of the same names, sent as they are learned; False: :meth:`add` has to."""
        asleep = self._awake.isdisjoint(rows[0])
        if self.on and not (asleep and _all_inside(self._ranges, self._free, rows)):
            return False
        if self.on:
            for i in range(-(self._n + 1) % SAMPLED, len(rows), SAMPLED):
                self._lately.look(rows[i], self._ranges, self._n + i + 1)
        self._n += len(rows)
        self._open_n += len(rows)
        return True

    def _meet(self, features: Features) -> None:
        """Begin a range for each number of a new name."""
        for name, value in [x for x in features.items() if x[0] not in self._ranges]:
            if name not in self._free and (type(value) is float or type(value) is int):
                number = float(value)
                held = self._ranges[name] = Range(number, number)
                self._open_ranges[name] = (number, number)
                if self._n > 1:
                    held.first = held.until = float(self._n)
                    self._open_until[name] = (held.first, held.until)

    def _note(self, name: str, held: Range) -> None:
        """Whether numbers within the range say something of it from now on."""
        if held.awake:
            self._awake.add(name)
        else:
            self._awake.discard(name)

    def _ease(self, name: str, held: Range) -> None:
        by = -min(_BACK, held.beyond)
        held.beyond += by
        self._open_beyond[name] = self._open_beyond.get(name, 0.0) + by

    def _age(self, name: str, held: Range) -> None:
        held.rows += 1
        self._open_rows[name] = self._open_rows.get(name, 0) + 1

    def _widen(self, name: str, held: Range, value: float, *, clipped: bool) -> None:
        width, far = held.width, widths(held, value)
        young, new = held.rows < YOUNG, held.new(self._n)
        if young:
            self._age(name, held)
        if clipped:
            self._open_beyond[name] = self._open_beyond.get(name, 0.0) + 1.0
            held.beyond += 1.0
            if held.beyond < (min(TURN, max(_TURN_YOUNG, 0.75 * held.rows)) if young else TURN):
                return
            self._open_beyond[name] -= held.beyond
            held.beyond = 0.0
            most = REACH
        else:
            if held.beyond:
                self._ease(name, held)
            most = inf if new else 1.0
            if not new:
                if held.until - self._n >= STOP * EASE_ROWS:
                    return
                held.until = max(held.until, self._n) + EASE_ROWS * log2(1.0 + min(far, most))
                self._open_until[name] = (held.first, held.until)
        if far <= most:
            held.low, held.high = min(held.low, value), max(held.high, value)
        elif value > held.high:
            held.high += most * width
        else:
            held.low -= most * width
        self._open_ranges[name] = (held.low, held.high)

    # -- the verbs of a tally ----------------------------------------------------------------

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        out: Blocks = {}
        if self._open_ranges:
            out[RANGE] = Block(EXTREMA, self._open_ranges)
        if self._open_rows:
            out[ROWS] = Block(COUNT, self._open_rows)
        if self._open_beyond:
            out[BEYOND] = Block(COUNT, self._open_beyond)
        if self._open_until:
            out[UNTIL] = Block(EXTREMA, self._open_until)
        if isinstance(target := self._ranges.get(SENT_LABEL), TargetRange):
            target.cut(out)
        self._begin()
        return out

    def rebase(self, values: Blocks) -> None:
        """Take new values for the keys given, with the open delta on top."""
        ranges = self._ranges
        target = ranges.pop(SENT_LABEL, None)
        if DIGEST in values:
            self._n = values[DIGEST].data["count"] + self._open_n
        for name, (low, high) in data_of(values, RANGE).items():
            own = self._open_ranges.get(name, (low, high))
            low, high = min(low, own[0]), max(high, own[1])
            held = ranges.get(name)
            if held is None:
                ranges[name] = Range(low, high)
            else:
                held.low, held.high = low, high
        for name, n in data_of(values, ROWS).items():
            if (held := ranges.get(name)) is not None:
                held.rows = n + self._open_rows.get(name, 0)
        for name, x in data_of(values, BEYOND).items():
            if (held := ranges.get(name)) is not None:
                held.beyond = max(x + self._open_beyond.get(name, 0.0), 0.0)
        for name, (first, until) in data_of(values, UNTIL).items():
            if (held := ranges.get(name)) is not None:
                own = self._open_until.get(name, (first, until))
                held.first, held.until = min(first, own[0]), max(until, own[1])
        found = ranges.pop(SENT_LABEL, None)
        if target is None and found is not None:
            target = TargetRange(found.low, found.high)
        if isinstance(target, TargetRange):
            ranges[SENT_LABEL] = target
            target.rebase(values)
        for block in (RANGE, ROWS, BEYOND):
            for name in data_of(values, block):
                if (held := ranges.get(name)) is not None:
                    self._note(name, held)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self._ranges, self._n = {}, 0
        self._awake.clear()
        self._begin()
        self.rebase(values)

    def touched(self, names: Collection[str]) -> Touched:
        """All that learning rows of these features may have changed."""
        known = {block: dict.fromkeys((*names, SENT_LABEL, SINCE)) for block in BOUNDED}
        return {DIGEST: None, **known, TARGETS: None}

    def mend(self, values: Blocks, names: Collection[str]) -> None:
        """Become what ``reset`` would make of all values, given those touched."""
        self._begin()
        for name in (*names, SENT_LABEL):
            self._ranges.pop(name, None)
            self._awake.discard(name)
        self._n = 0
        self.rebase(values)


def numbers_of(example: Example, *, targets: bool) -> Features:
    """Return what is counted of a learned row: its features, and its target if it is a number."""
    if not targets:
        return example.features
    return {**example.features, SENT_LABEL: float(example.label)}


def target_taught(bounds: Bounds, label: float) -> float:
    """The number that a label of regression teaches."""
    return cast(float, bounds.taught({SENT_LABEL: label})[0][SENT_LABEL])


def with_target(bounds: Bounds, example: Example) -> Example:
    """The row with the number that its label teaches, and what was sent; the same if that is it.

    Nothing is changed where labels are no numbers, and of a row that was bounded before.
    """
    raw = example.raw or {}
    if not bounds.targets or SENT_LABEL in raw:
        return example
    sent = float(example.label)
    if (taught := target_taught(bounds, sent)) == sent:
        return example
    return msgspec.structs.replace(example, label=taught, raw={**raw, SENT_LABEL: sent})


def _outside(ranges: Mapping[str, Range], features: Mapping[str, Value]) -> list[tuple[str, Range]]:
    """Names whose number is not within its range."""
    get = ranges.get
    try:
        return [
            (name, held)
            for name, value in features.items()
            if (held := get(name)) is not None and not held.low <= value <= held.high  # type: ignore[operator]
        ]
    except TypeError:  # text where numbers were sent before
        return _outside(ranges, {k: v for k, v in features.items() if _is_number(v)})


def _all_inside(
    ranges: Mapping[str, Range], free: Collection[str], rows: Sequence[Features]
) -> bool:
    """Whether all numbers of rows of the same names lie within the ranges, which are all known."""
    columns = zip(*[x.values() for x in rows], strict=True)
    try:
        for name, column in zip(rows[0], columns, strict=True):
            if (held := ranges.get(name)) is None:
                if name not in free and any(map(_is_number, column)):
                    return False
            elif min(column) < held.low or max(column) > held.high:
                return False
    except TypeError:  # text
        return False
    return True


def _rows_inside(
    ranges: Sequence[Range | None], x: npt.NDArray[np.float64], most: float
) -> npt.NDArray[np.bool_]:
    low = np.array([-most if held is None else max(held.low, -most) for held in ranges])
    high = np.array([most if held is None else min(held.high, most) for held in ranges])
    found: npt.NDArray[np.bool_] = np.all((x >= low) & (x <= high), axis=1)
    return found


def _is_number(value: Value) -> bool:
    return type(value) is float or type(value) is int


def free_names(model: object) -> Collection[str]:
    """Names of a model's features that are whole numbers of a table, not measures."""
    named: Collection[str] = getattr(model, "ids", ())
    return named


def clipped_reason(raw: Mapping[str, Value]) -> str:
    """Why a row is answered ``clipped``, for its sender."""
    named = [(name.lstrip(SENT_LABEL[0]), value) for name, value in list(raw.items())[:_SHOWN]]
    shown = ", ".join(f"{name} = {value!r:.24}" for name, value in named)
    more = f" and {len(raw) - _SHOWN} more" if len(raw) > _SHOWN else ""
    return f"{FAR} what was sent before, learned as the end of what came lately: {shown}{more}"
