"""Clips outlying feature values and targets before they move a model.

One value far from all others can ruin a scaler for good: after 1e4 among values of about 1, the
others look all alike.  So each name has a *range*, from the smallest to the largest value learned.
A value further outside it than :data:`REACH` times the range's width is *clipped*:

* a row is learned with the nearest end of the recent values instead: an extreme outlier is believed
  only in its sign.  The row keeps both values, so that replaying it clips nothing anew;
* a prediction is made as if the value were the nearest end of the range.

The values of a row that is learned share the reach, because eight outliers together do as much harm
as one eight times as far.  A value within the reach is used as it is and widens the range, at most
to twice its width.  Repeated widening shrinks the reach until enough rows have passed.

If most values of a name lie beyond the reach, the stream itself has changed (a counter, another
unit): after some rows the range moves there.

In regression the target is bounded in the same way: one label of a million among ratings would
determine the mean.  Its range needs more evidence before it clips (:mod:`online.learning.ranges`).

All of this is a view of the learned rows and adds up over replicas: its blocks are pushed with the
rows' range.  Nothing is written while values stay within their ranges.
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
    Range,
    Ranges,
    RecentValues,
    TargetRange,
    data_of,
    own_range,
    rebase_ranges,
    widths,
)  # fmt: skip
from paramserver.core.blocks import COUNT, EXTREMA, Block, Blocks, Touched
from replay.example import SENT_LABEL, Example, Features, Value

TURN: Final = 24
"""A name's range moves when its clipped values, minus half of its others, reach this number."""

_BACK: Final = 0.5
_TURN_YOUNG: Final = 2.0

FAR: Final = "far beyond"
"""Prefix of the reason given to the sender of a clipped row."""

_SHOWN: Final = 5  # names in that reason


class Bounds:
    """The value ranges of one model, with an open delta; has the methods of a tally.

    Parameters:
        free: Names that are never bounded: their numbers are identifiers, not measurements.
        targets: Whether labels are numbers, which are bounded under the name SENT_LABEL of
            `replay.example`.

    Attributes:
        on: False: nothing is clipped, and no ranges are learned.
    """

    def __init__(self, free: Collection[str] = (), *, targets: bool = False) -> None:
        self.on = True
        self.targets = targets
        self._free = frozenset(free)
        self._ranges = Ranges()
        self._n = 0  # rows that the model has learned
        self._recent = RecentValues()
        self._begin()

    @classmethod
    def of(cls, values: Blocks, *, on: bool) -> Bounds:
        """Make bounds from the ranges in these values."""
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

    # -- bounding rows ------------------------------------------------------------------------

    def answered(self, features: Features) -> Features:
        """The row as a prediction uses it; the same object if no value is beyond the reach."""
        out = features
        if self._ranges.below:
            self._ranges.make(features)
        for name, held in _outside(self._ranges, features) if self.on else ():
            if widths(held, features[name]) > held.reach(self._n):
                out = dict(out) if out is features else out
                out[name] = held.high if float(features[name]) > held.high else held.low  # type: ignore[arg-type]
        return out

    def taught(self, features: Features) -> tuple[Features, dict[str, Value] | None]:
        """Return the row as it is to be learned, and the sent values that were clipped in it.

        Returns the same row, and None, if no value is beyond the reach.
        """
        if self._ranges.below:
            self._ranges.make(features)
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
            low, high = self._recent.near(name, held)
            out[name] = high if float(features[name]) > held.high else low  # type: ignore[arg-type]
        return out, {name: features[name] for name in clipped}

    def inside(
        self, names: Sequence[str], x: npt.NDArray[np.float64], most: float
    ) -> npt.NDArray[np.bool_]:
        """Return which rows, with one number per name, lie within all ranges, so need no clipping.

        Values must also lie within ±``most``, the only bound for a name without a range.
        """
        self._ranges.make(names)
        ranges = self._ranges if self.on else {}
        return _rows_inside([ranges.get(name) for name in names], x, most)

    @property
    def names(self) -> Collection[str]:
        """Names of the features that have a range."""
        return self._ranges.names() - {SENT_LABEL}

    def ends(self, names: Iterable[str]) -> dict[str, tuple[float, float, float, float]]:
        """Return the ends of the ranges within which predictions take values unchanged, by name.

        ``(least, greatest, low, high)``: accepted values, and replacements below and above them.
        """
        if not self.on:
            return {}
        out, names = {}, [*names]
        self._ranges.make(names)
        for name in names:
            if (held := self._ranges.get(name)) is not None:
                reach = held.reach(self._n) * held.width
                out[name] = (held.low - reach, held.high + reach, held.low, held.high)
        return out

    # -- learning ----------------------------------------------------------------------------

    def add(self, example: Example, source: str = "") -> None:
        """Count one learned row; where a value was clipped, its sent value is counted."""
        self._n += 1
        self._open_n += 1
        if not self.on:
            return
        ranges, sent = self._ranges, example.raw
        features = example.features
        if self.targets:
            self._add_target(example, source)
        if sent is not None:  # names that were left out altogether get no range, either
            features = {**features, **{name: sent[name] for name in sent if name in features}}
        if not features.keys() <= ranges.keys():
            ranges.make(features)
            self._meet(features)
        if self._n % SAMPLED == 0:
            numbers = numbers_of(example, targets=self.targets)
            self._recent.look(numbers, ranges, self._n)
        outside = _outside(ranges, features)
        for name, held in outside:
            value = float(features[name])  # type: ignore[arg-type]  # outside: a number
            held = own_range(ranges, name)
            self._widen(name, held, value, clipped=sent is not None and name in sent)
            self._ranges.note(name, held)
        if ranges.awake:
            done = dict(outside)
            for name in [n for n in features if n in ranges.awake and n not in done]:
                held = ranges[name]
                if held.beyond and features[name]:
                    self._ease(name, held)
                if held.rows < YOUNG and not held.still(features[name], self._n):
                    self._age(name, held)
                self._ranges.note(name, held)

    def _add_target(self, example: Example, source: str) -> None:
        taught, sent = float(example.label), (example.raw or {}).get(SENT_LABEL)
        value = taught if sent is None else float(sent)
        held = self._ranges.get(SENT_LABEL)
        if not isinstance(held, TargetRange):
            held = self._ranges[SENT_LABEL] = TargetRange(value, value)
            held.changed = True
        held.learn(value, self._n, source, clipped=sent is not None)
        self._ranges.note(SENT_LABEL, held)

    def ahead(self) -> Bounds:
        """Make a copy for the targets alone, to process rows before they are learned."""
        made = Bounds(targets=self.targets)
        made.on, made._n = self.on, self._n
        made._recent = self._recent.only(SENT_LABEL)
        held = self._ranges.get(SENT_LABEL)
        if isinstance(held, TargetRange):
            made._ranges[SENT_LABEL] = held.copy()
            made._ranges.note(SENT_LABEL, held)
        return made

    def add_alike(self, rows: Sequence[Features]) -> bool:
        """Count unclipped rows with the same names; return False if :meth:`add` must count them."""
        if self._ranges.below:
            self._ranges.make(rows[0])
        asleep = self._ranges.awake.isdisjoint(rows[0])
        if self.on and not (asleep and _all_inside(self._ranges, self._free, rows)):
            return False
        if self.on:
            for i in range(-(self._n + 1) % SAMPLED, len(rows), SAMPLED):
                self._recent.look(rows[i], self._ranges, self._n + i + 1)
        self._n += len(rows)
        self._open_n += len(rows)
        return True

    def _meet(self, features: Features) -> None:
        """Begin a range for each numeric value under a new name; equal values share one."""
        met: dict[float | str, tuple[Range, tuple[float, float], tuple[float, float]]] = {}
        for name, value in [x for x in features.items() if x[0] not in self._ranges]:
            if name not in self._free and (type(value) is float or type(value) is int):
                key = float(value) or str(float(value))  # -0.0 and 0.0 are different
                if key not in met:
                    met[key] = self._begun(float(value))
                self._ranges[name], self._open_ranges[name], until = met[key]
                if self._n > 1:
                    self._open_until[name] = until

    def _begun(self, number: float) -> tuple[Range, tuple[float, float], tuple[float, float]]:
        held = Range(number, number)
        held.shared = True
        if self._n > 1:
            held.first = held.until = float(self._n)
        return held, (number, number), (held.first, held.until)

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

    # -- the methods of a tally ----------------------------------------------------------------

    def cut(self) -> Blocks:
        """Return the open delta, and reset it."""
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
        """Replace the values of the given keys, and apply the open delta on top."""
        ranges = self._ranges
        target = ranges.pop(SENT_LABEL, None)
        if DIGEST in values:
            self._n = values[DIGEST].data["count"] + self._open_n
        begun = not (ranges or ranges.below)  # so nothing is open, either
        if begun:
            ranges.begin(values)
        else:
            opened = (self._open_ranges, self._open_rows, self._open_beyond, self._open_until)
            rebase_ranges(ranges, values, *opened)
        sent = ranges.pop(SENT_LABEL, None)
        if target is None and sent is not None:
            target = TargetRange(sent.low, sent.high)
        if isinstance(target, TargetRange):
            ranges[SENT_LABEL] = target
            target.rebase(values)
        if begun:
            ranges.awake = {name for name, held in ranges.items() if not held.shared and held.awake}
            return
        for block in (RANGE, ROWS, BEYOND):
            for name in data_of(values, block):
                if (held := ranges.get(name)) is not None:
                    self._ranges.note(name, held)

    def reset(self, values: Blocks) -> None:
        """Replace the state by exactly ``values``, with an empty open delta."""
        self._ranges, self._n = Ranges(), 0
        self._begin()
        self.rebase(values)

    def touched(self, names: Collection[str]) -> Touched:
        """Return the blocks and keys that learning rows with these features may have changed."""
        known = {block: dict.fromkeys((*names, SENT_LABEL, SINCE)) for block in BOUNDED}
        return {DIGEST: None, **known, TARGETS: None}

    def mend(self, values: Blocks, names: Collection[str]) -> None:
        """Restore the state for these names from the ``touched`` values; otherwise as ``reset``."""
        self._begin()
        for name in (*names, SENT_LABEL):
            self._ranges.pop(name, None)
            self._ranges.awake.discard(name)
        self._n = 0
        self.rebase(values)


def numbers_of(example: Example, *, targets: bool) -> Features:
    """Return the values of a learned row that have ranges: its features, and a numeric target."""
    if not targets:
        return example.features
    return {**example.features, SENT_LABEL: float(example.label)}


def target_taught(bounds: Bounds, label: float) -> float:
    """Return the target that a regression label teaches, after clipping."""
    return cast(float, bounds.taught({SENT_LABEL: label})[0][SENT_LABEL])


def with_target(bounds: Bounds, example: Example) -> Example:
    """Return the row with its clipped target and the sent one; the same row if nothing changes.

    Rows that were bounded before, and labels that are not numbers, stay as they are.
    """
    raw = example.raw or {}
    if not bounds.targets or SENT_LABEL in raw:
        return example
    sent = float(example.label)
    if (taught := target_taught(bounds, sent)) == sent:
        return example
    return msgspec.structs.replace(example, label=taught, raw={**raw, SENT_LABEL: sent})


def _outside(ranges: Mapping[str, Range], features: Mapping[str, Value]) -> list[tuple[str, Range]]:
    """Return the names whose value is outside its range, with their ranges."""
    get = ranges.get
    try:
        return [
            (name, held)
            for name, value in features.items()
            if (held := get(name)) is not None and not held.low <= value <= held.high  # type: ignore[operator]
        ]
    except TypeError:  # text under a name that had numbers before
        return _outside(ranges, {k: v for k, v in features.items() if _is_number(v)})


def _all_inside(
    ranges: Mapping[str, Range], free: Collection[str], rows: Sequence[Features]
) -> bool:
    """Whether all numbers of rows with the same names lie within known ranges."""
    columns = zip(*[x.values() for x in rows], strict=True)
    try:
        for name, column in zip(rows[0], columns, strict=True):
            if (held := ranges.get(name)) is None:
                if name not in free and any(map(_is_number, column)):
                    return False
            elif min(column) < held.low or max(column) > held.high:
                return False
    except TypeError:  # text among the values
        return False
    return True


def _rows_inside(
    ranges: Sequence[Range | None], x: npt.NDArray[np.float64], most: float
) -> npt.NDArray[np.bool_]:
    low = np.array([-most if held is None else max(held.low, -most) for held in ranges])
    high = np.array([most if held is None else min(held.high, most) for held in ranges])
    inside: npt.NDArray[np.bool_] = np.all((x >= low) & (x <= high), axis=1)
    return inside


def _is_number(value: Value) -> bool:
    return type(value) is float or type(value) is int


def free_names(model: object) -> Collection[str]:
    """Names of a model's features that are integer identifiers, not measurements."""
    named: Collection[str] = getattr(model, "ids", ())
    return named


def clipped_reason(raw: Mapping[str, Value]) -> str:
    """Return the reason that the sender of a ``clipped`` row is given."""
    named = [(name.lstrip(SENT_LABEL[0]), value) for name, value in list(raw.items())[:_SHOWN]]
    shown = ", ".join(f"{name} = {value!r:.24}" for name, value in named)
    more = f" and {len(raw) - _SHOWN} more" if len(raw) > _SHOWN else ""
    return f"{FAR} what was sent before, learned as the end of what came lately: {shown}{more}"
