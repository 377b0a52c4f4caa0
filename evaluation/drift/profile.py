"""Compares feature distributions with a reference, by additive counts on frozen bins.

A :class:`Reference` is fitted once and never changes.  A :class:`Window` counts rows in its bins,
in memory independent of the number of rows; windows of several replicas are merged by addition.
:func:`compare` computes the distances between a window and its reference.  With phases (hour of the
day, day of the week) rows are compared with the reference rows of the same phase.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, Final, Literal

import numpy as np

from evaluation.drift.alarm import Direction, Signal
from evaluation.drift.bins import BINS, Bins, bins_of, fit
from evaluation.drift.errors import ReferenceUnusable
from replay.example import Features, Value

State = Literal["ok", "watch", "act", "not enough data"]

ROWS_MIN: Final = 200
"""Least number of rows on either side."""
PSI_WATCH: Final = 0.1
PSI_ACT: Final = 0.25
"""The usual two thresholds of the population stability index."""
MISSING_ACT: Final = 0.05
"""Change of the share of missing values from which on the state is ``act``."""
NEW_ACT: Final = 0.01
"""Increase of the share of new values (categories, text among numbers) for ``act``."""
MOVED_MIN: Final = 0.1
"""Shift of the mean, in standard deviations, from which on a direction is reported."""
_TOGETHER: Final = 128  # rows counted at a time
_NUMBERS_MAX: Final = 4_096  # values counted at a time: fewer wide rows, but at least _WIDE
_WIDE: Final = 32
_FEW: Final = 16  # with fewer rows numpy's calls cost more than they save
_NUMBERS: Final = frozenset({float, int, bool})
_SURE: Final = 4.0  # standard errors
_Z999: Final = 3.0902
FEATURES_MAX: Final = 256
"""Greatest number of features that are monitored: the first by name."""


@dataclass(frozen=True, slots=True)
class Shift:
    """The comparison of one feature with its reference.

    Attributes:
        state: ``act`` and ``watch`` require a sufficient effect that is also significant.
        cause, why: The cause of the state (the distribution, missing values or new ones), and a
            sentence on it.
        n, n_reference: Numbers of rows compared; with phases, the reference's effective number.
        psi: Population stability index, ≥ 0.
        js: Jensen-Shannon distance, base 2: square root of the divergence, in [0, 1].
        wasserstein: Wasserstein distance of numbers in the reference's standard deviations; values
            more than 10 of them outside its range count as at 10.  None for categories and for an
            (almost) constant reference.
        missing, missing_reference: Shares of rows without a value.
        new, new_reference: Shares, among rows with a value, of values that the reference never had.
        direction: Direction of the mean, if it moved by a tenth of a standard deviation or more.
        before, after: Means computed from the bins, in the feature's own unit; None without spread.
    """

    name: str
    state: State
    cause: Signal
    why: str
    n: int
    n_reference: float
    psi: float | None
    js: float | None
    wasserstein: float | None
    missing: float
    missing_reference: float
    new: float
    new_reference: float
    direction: Direction
    before: float | None
    after: float | None


class Window:
    """Counts of rows in the bins of a reference, by phase.

    Parameters:
        reference: The reference with the bins.
    """

    def __init__(self, reference: Reference) -> None:
        phases = reference.phases
        wide = max(len(reference.bins), 1)
        self._together = min(_TOGETHER, max(_WIDE, _NUMBERS_MAX // wide))
        self._bins = list(reference.bins.items())
        self.rows = [0] * phases
        self._counts: dict[str, list[list[int]]] = {
            name: [[0] * (bins.values + 2) for _ in range(phases)] for name, bins in self._bins
        }
        self._edges = [np.array(bins.edges, dtype=np.float64) for _, bins in self._bins]
        self._later: list[tuple[Mapping[str, Value], int]] = []
        self.unknown = 0
        """Number of values of features that the reference does not have."""

    def add(self, features: Mapping[str, Value], phase: int = 0) -> None:
        """Count one row; an absent feature is a missing value."""
        self.rows[phase] += 1
        self._later.append((features, phase))
        if len(features) > len(self._bins):
            known = sum(features.get(name) is not None for name, _ in self._bins)
            self.unknown += max(len(features) - known, 0)
        if len(self._later) >= self._together:
            self._count()

    def add_all(self, rows: Sequence[Mapping[str, Value]]) -> None:
        """Count several rows of phase 0, with the same result as :meth:`add` for each."""
        self.rows[0] += len(rows)
        self._later += [(features, 0) for features in rows]
        for features in rows:
            if len(features) > len(self._bins):
                known = sum(features.get(name) is not None for name, _ in self._bins)
                self.unknown += max(len(features) - known, 0)
        if len(self._later) >= self._together:
            self._count()

    def _table(self, rows: Sequence[Mapping[str, Value]]) -> np.ndarray | None:
        """Return the rows as a matrix (rows, features), or None unless all values are numbers."""
        if len(rows) < _FEW or len(self._bins) < 2 or len(self.rows) > 1:
            return None
        try:
            picked = list(map(itemgetter(*[name for name, _ in self._bins]), rows))
        except KeyError:
            return None
        flat = list(chain.from_iterable(picked))
        if not _NUMBERS.issuperset(map(type, flat)):
            return None
        try:
            table = np.fromiter(flat, np.float64, len(flat)).reshape(len(rows), len(self._bins))
        except OverflowError:
            return None
        return None if np.isnan(table).any() else table

    def _count(self) -> None:
        """Count the collected rows feature by feature, at half the cost of row by row."""
        later, self._later = self._later, []
        table = self._table([features for features, _ in later])
        for i, (name, bins) in enumerate(self._bins):
            counts = self._counts[name]
            if table is not None and bins.names is None:
                at = np.searchsorted(self._edges[i], table[:, i], side="right")
                added = np.bincount(at, minlength=len(counts[0])).tolist()
                counts[0] = [n + more for n, more in zip(counts[0], added, strict=True)]
                continue
            places = bins.places([features.get(name) for features, _ in later])
            for place, (_, phase) in zip(places, later, strict=True):
                counts[phase][place] += 1

    @property
    def counts(self) -> dict[str, list[list[int]]]:
        """Feature → phase → bin → number of rows."""
        if self._later:
            self._count()
        return self._counts

    @property
    def n(self) -> int:
        """The number of rows counted."""
        return sum(self.rows)

    def counters(self) -> dict[str, float]:
        """Return the non-zero counts by name; windows are merged by adding their counters."""
        counters: dict[str, float] = {}
        for phase, rows in enumerate(self.rows):
            if rows:
                counters[f"rows/{phase}"] = rows
        for name, phases in self.counts.items():
            for phase, row in enumerate(phases):
                for place, count in enumerate(row):
                    if count:
                        counters[f"{phase}/{place}/{name}"] = count
        return counters

    def merge(self, counters: Mapping[str, float]) -> None:
        """Add another window's :meth:`counters`; it must have the same reference.

        Raises:
            ReferenceUnusable: A counter does not match the bins; nothing was added.
        """
        for key, count in counters.items():
            if not self._knows(key) or count < 0 or count != int(count):
                raise ReferenceUnusable(
                    f"no counter of this reference: {key!r:.80} = {count!r:.30}",
                    "Merge windows that were counted with the same reference",
                )
        for key, count in counters.items():
            first, _, rest = key.partition("/")
            if first == "rows":
                self.rows[int(rest)] += int(count)
            else:
                place, _, name = rest.partition("/")
                self.counts[name][int(first)][int(place)] += int(count)

    def _knows(self, key: str) -> bool:
        first, _, rest = key.partition("/")
        if first == "rows":
            return rest.isdecimal() and int(rest) < len(self.rows)
        place, _, name = rest.partition("/")
        if not (first.isdecimal() and place.isdecimal() and name in self.counts):
            return False
        phases = self.counts[name]
        return int(first) < len(phases) and int(place) < len(phases[0])


@dataclass(frozen=True, slots=True)
class Reference:
    """The bins of each feature, and the counts of reference rows in them by phase.

    Attributes:
        bins: Bins by feature.
        rows: Number of reference rows of each phase.
        counts: Feature → phase → bin → number of reference rows.
        left_out: Number of features beyond ``FEATURES_MAX``, which are not monitored.
    """

    bins: Mapping[str, Bins]
    rows: tuple[int, ...]
    counts: Mapping[str, list[list[int]]]
    left_out: int

    @property
    def phases(self) -> int:
        """The number of phases; 1 without seasonality."""
        return len(self.rows)

    def data(self) -> dict[str, Any]:
        """Return the reference as data for JSON; :func:`reference_of` reads it."""
        return {
            "bins": {name: bins.data() for name, bins in self.bins.items()},
            "rows": list(self.rows),
            "counts": {name: [list(row) for row in rows] for name, rows in self.counts.items()},
            "left_out": self.left_out,
        }


def reference_of(data: Mapping[str, Any]) -> Reference:
    """Return the reference from the result of :meth:`Reference.data`.

    Raises:
        ReferenceUnusable: The data are not such a result.
    """
    try:
        return Reference(
            {name: bins_of(bins) for name, bins in data["bins"].items()},
            tuple(data["rows"]),
            {name: [list(row) for row in rows] for name, rows in data["counts"].items()},
            data["left_out"],
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ReferenceUnusable(
            f"no reference: {error!r:.80}", "Give what Reference.data() wrote"
        ) from error


def build(
    rows: Sequence[Features],
    *,
    phases: int = 1,
    phase_of: Sequence[int] | None = None,
    bins: int = BINS,
) -> Reference:
    """Build a reference from rows.

    Parameters:
        rows: Rows of a period without problems, in any order; all must fit in memory.
        phases: Number of phases of the season, ≥ 1.
        phase_of: Phase of each row, from 0; None: all rows are of phase 0.
        bins: Number of groups of bins for numbers, ≥ 2.

    Raises:
        ReferenceUnusable: There are no rows, or the phases do not match the rows.
    """
    if not rows:
        raise ReferenceUnusable("the reference has no rows", f"Give {ROWS_MIN} or more")
    of = [0] * len(rows) if phase_of is None else list(phase_of)
    if len(of) != len(rows) or not all(0 <= p < phases for p in of):
        raise ReferenceUnusable(
            f"{len(of)} phases for {len(rows)} rows, or one that is not from 0 to {phases - 1}",
            "Give each row its phase",
        )
    names = sorted({name for row in rows for name in row})
    watched = names[:FEATURES_MAX]
    fitted = {name: fit([row.get(name) for row in rows], bins=bins) for name in watched}
    empty = Reference(fitted, (0,) * phases, {}, len(names) - len(watched))
    window = Window(empty)
    for row, phase in zip(rows, of, strict=True):
        window.add(row, phase)
    return Reference(fitted, tuple(window.rows), window.counts, empty.left_out)


def compare(reference: Reference, window: Window) -> list[Shift]:
    """Return the comparisons of all features of the reference, ranked."""
    return ranked(compare_one(reference, window, name) for name in reference.bins)


def ranked(shifts: Iterable[Shift]) -> list[Shift]:
    """Sort comparisons by decreasing effect, those without data last."""
    return sorted(shifts, key=lambda s: (s.psi is None, -(s.psi or 0.0), s.name))


def compare_one(reference: Reference, window: Window, name: str) -> Shift:
    """Return the comparison of one feature of the reference."""
    return _shift(name, reference.bins[name], _same_phase(reference, window, name), window)


def _same_phase(reference: Reference, window: Window, name: str) -> tuple[np.ndarray, float]:
    """Return the reference's share of each bin, and its effective number of rows.

    Phases are weighted as in the window.  For a phase without reference rows the whole reference is
    used.
    """
    counts = np.array(reference.counts[name], dtype=np.float64)
    own, now = np.array(reference.rows, dtype=np.float64), np.array(window.rows, dtype=np.float64)
    whole = counts.sum(axis=0)
    if len(own) == 1 or not now.sum():
        return whole / max(own.sum(), 1.0), float(own.sum())
    weights = now / now.sum()
    known = own > 0
    shares = (counts[known] / own[known, None] * weights[known, None]).sum(axis=0)
    shares += whole / own.sum() * weights[~known].sum()
    effective = (weights[known] ** 2 / own[known]).sum() + weights[~known].sum() ** 2 / own.sum()
    return shares, float(1.0 / effective)


def _shift(name: str, bins: Bins, expected: tuple[np.ndarray, float], window: Window) -> Shift:
    shares, m = expected
    now = np.array(window.counts[name], dtype=np.float64).sum(axis=0)
    n, k = window.n, bins.values
    missing, missing_before = (float(now[k] / n) if n else 0.0), float(shares[k])
    present, present_before = float(n - now[k]), float(m * (1.0 - shares[k]))
    new = float(now[k + 1] / present) if present else 0.0
    new_before = float(shares[k + 1] / (1.0 - shares[k])) if shares[k] < 1.0 else 0.0
    gone = _Rates(missing, missing_before, n, m)
    if min(n, m) < ROWS_MIN or (min(present, present_before) < ROWS_MIN and not gone.matters):
        why = f"{min(present, present_before):,.0f} rows with a value; {ROWS_MIN} are needed"
        return Shift(
            name, "not enough data", "feature", why, n, m, None, None, None,
            missing, missing_before, new, new_before, "other", None, None,
        )  # fmt: skip
    p, q = bins.group(now), bins.group(shares * m)
    measured = min(present, present_before) >= ROWS_MIN
    psi = _psi(p, q) if measured else None
    moved = _moved(bins, now[:k], shares[:k]) if measured else None
    state, cause, why = _judge(psi, _chance(p, q, present, present_before), gone,
                        _Rates(new, new_before, present, present_before))  # fmt: skip
    return Shift(
        name, state, cause, why, n, m, psi, _js(p, q) if measured else None,
        None if moved is None else moved.wasserstein, missing, missing_before, new, new_before,
        "other" if moved is None else moved.direction,
        None if moved is None else moved.before, None if moved is None else moved.after,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rates:
    """A share now and before, with the numbers of rows ``n`` and ``m``."""

    now: float
    before: float
    n: float
    m: float

    @property
    def sure(self) -> bool:
        """Whether the difference is significant."""
        if not self.n or not self.m:
            return False
        p = (self.now * self.n + self.before * self.m) / (self.n + self.m)
        error = math.sqrt(p * (1.0 - p) * (1.0 / self.n + 1.0 / self.m))
        return abs(self.now - self.before) > _SURE * error

    @property
    def matters(self) -> bool:
        """Whether the difference of missing values is large and significant enough to act."""
        return abs(self.now - self.before) >= MISSING_ACT and self.sure


def _judge(
    psi: float | None, chance: float, gone: _Rates, fresh: _Rates
) -> tuple[State, Signal, str]:
    if gone.matters:
        return (
            "act",
            "missing",
            f"missing in {gone.now:.1%} of rows, {gone.before:.1%} in the reference",
        )
    if fresh.now - fresh.before >= NEW_ACT and fresh.sure:
        return "act", "new", f"{fresh.now:.1%} new values, {fresh.before:.1%} in the reference"
    if psi is None or psi < PSI_WATCH:
        return "ok", "feature", ""
    if psi <= chance:
        why = f"PSI {psi:.2f} is no more than chance makes of so few rows ({chance:.2f})"
        return "ok", "feature", why
    state: State = "act" if psi >= PSI_ACT else "watch"
    return state, "feature", f"PSI {psi:.2f}, {PSI_ACT if state == 'act' else PSI_WATCH} or more"


def _smooth(counts: np.ndarray) -> np.ndarray:
    """Return shares, adding half a row to each group so that none is 0."""
    more: np.ndarray = counts + 0.5
    shares: np.ndarray = more / more.sum()
    return shares


def _used(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return a mask of the groups in which either side has rows."""
    used: np.ndarray = (p + q) > 0
    return used


def _psi(p: np.ndarray, q: np.ndarray) -> float:
    used = _used(p, q)
    a, b = _smooth(p[used]), _smooth(q[used])
    return float(((a - b) * np.log(a / b)).sum())


def _chance(p: np.ndarray, q: np.ndarray, n: float, m: float) -> float:
    """Return the 99.9 % quantile of the PSI without a change.

    The PSI is then approximately (1/n + 1/m) times a chi-squared variable, whose quantile is
    computed by Wilson & Hilferty 1931.
    """
    k = int(_used(p, q).sum()) - 1
    if k < 1 or not n or not m:
        return 0.0
    part = 2.0 / (9.0 * k)
    return float(k * (1.0 - part + _Z999 * math.sqrt(part)) ** 3 * (1.0 / n + 1.0 / m))


def _js(p: np.ndarray, q: np.ndarray) -> float:
    a, b = p / max(p.sum(), 1.0), q / max(q.sum(), 1e-300)
    middle = (a + b) / 2

    def half(x: np.ndarray) -> float:
        some = x > 0
        return float((x[some] * np.log2(x[some] / middle[some])).sum()) / 2

    return math.sqrt(min(max(half(a) + half(b), 0.0), 1.0))


@dataclass(frozen=True, slots=True)
class _Moved:
    """The shift of a feature's numbers: distance in standard deviations, direction, means."""

    wasserstein: float
    direction: Direction
    before: float
    after: float


def _moved(bins: Bins, now: np.ndarray, before: np.ndarray) -> _Moved | None:
    if bins.positions is None or not now.sum() or not before.sum():
        return None
    at = np.array(bins.positions)
    a, b = now / now.sum(), before / before.sum()
    distance = float((np.abs(np.cumsum(a - b)[:-1]) * np.diff(at)).sum())
    mean_now, mean_before = float((a * at).sum()), float((b * at).sum())
    gap = mean_now - mean_before
    error = math.sqrt(max(float((a * at * at).sum()) - mean_now**2, 0.0) / float(now.sum()))
    direction: Direction = "up" if gap > 0 else "down"
    if abs(gap) < MOVED_MIN or abs(gap) < _SURE * error:
        direction = "other"
    return _Moved(
        distance, direction, bins.mean + bins.sd * mean_before, bins.mean + bins.sd * mean_now
    )
