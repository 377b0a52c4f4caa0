"""Drift monitoring of one model: signals, detectors, alarms, and the resulting state."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from operator import gt, itemgetter
from random import Random
from typing import Any, Final

from evaluation.drift.alarm import Alarm, Signal, alarm_of
from evaluation.drift.detectors import Detector, detector, named, updates
from evaluation.drift.error_rise import ErrorRise
from evaluation.drift.errors import DriftSettingUnusable
from evaluation.drift.profile import Reference, Shift, State, Window, build, compare_one, ranked
from replay.example import Features, Value

ROWS_MIN: Final = 200
"""Number of labelled rows before there is a state other than `not enough data`."""
BACKWARD_MAX: Final = 0.25
"""With a larger share of rows older than their predecessor, the stream counts as unordered."""
LABELLED_MIN: Final = 0.1
"""Share of labelled rows in a window, below which the state is based on features and scores."""
EACH_ROW: Final = 64
"""Features counted in each row.  With more features, or with detectors (each of which costs as much
as ``DETECTOR_COST`` counts), rows are sampled, so that the mean cost per row stays the same."""
DETECTOR_COST: Final = 10
_ORDER_ROWS: Final = 100
_APART: Final = 16  # rows handled one by one before columnwise counting is tried again


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """Settings of drift monitoring.

    Attributes:
        error, score, features: Names of the detectors for the errors; for the score; and for each
            feature's rank in the reference, missing values and new categories.  By default features
            have none: their distributions are compared by window, with an effect size, because
            detectors on consecutive (correlated) rows raise alarms all the time.
        regression: Errors are absolute errors in the target's unit, which are converted to ranks
            among those of the first ``reference_rows`` rows.
        reference_rows: Number of served rows that become the reference, if none is given; ≥ 200.
        window_rows: Number of counted rows in a window; ≥ 200.  With up to ``EACH_ROW`` features
            all served rows are counted.  With a season, choose whole periods of it.
        phases: Number of phases of the season, ≥ 1; a row is compared with reference rows of its
            phase.
        alarms_kept: Number of alarms that are remembered, the newest ones; ≥ 1.
    """

    error: tuple[str, ...] = ("glr",)
    score: tuple[str, ...] = ("adwin",)
    features: tuple[str, ...] = ()
    regression: bool = False
    reference_rows: int = 2_000
    window_rows: int = 1_000
    phases: int = 1
    alarms_kept: int = 1_000

    def __post_init__(self) -> None:
        least = {"reference_rows": 200, "window_rows": 200, "phases": 1, "alarms_kept": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise DriftSettingUnusable(name, str(getattr(self, name)), f"{bound} or more")
        for name in (*self.error, *self.score, *self.features):
            detector(name)


@dataclass(frozen=True, slots=True)
class Watched:
    """The state of drift monitoring at one time.

    Attributes:
        state, why: ``act``: the error has risen more than the stream's usual fluctuations and the
            no-change baseline explain, and is not back; or, with hardly any labels, a feature's
            distribution has changed in the last window.  ``watch``: a smaller change in the last
            window.  ``ok``: none of these, which does not prove that there is no drift.  If labels
            show that the error is as before, a changed distribution only appears in ``shifts``, and
            a changed score raises no alarm.
        served, judged: Numbers of predictions and of labels so far.
        since: The first alarm behind the state, or None.
        alarms: Number of alarms so far.
        shifts: Features in the last complete window, largest effect first; empty before the first.
    """

    state: State
    why: str
    served: int
    judged: int
    since: Alarm | None
    alarms: int
    shifts: tuple[Shift, ...]

    def data(self) -> dict[str, Any]:
        """Return the state as data for JSON."""
        return asdict(self)


class Watch:
    """Monitors one model for drift.  Its state is disposable: it can be rebuilt from the journal.

    Parameters:
        settings: The settings.
        reference: Reference distributions; None: built from the first ``reference_rows`` rows.
        aside: Executor that builds the reference, which takes up to 0.1 s; rows that come meanwhile
            are in no window.  None: it is built in the call for the last of these rows.
    """

    def __init__(
        self,
        settings: WatchSettings = WatchSettings(),
        reference: Reference | None = None,
        aside: Executor | None = None,
    ) -> None:
        if reference is not None and reference.phases != settings.phases:
            raise DriftSettingUnusable(
                "phases", str(settings.phases), f"{reference.phases}, as the reference has"
            )
        self.settings = settings
        self._aside = aside
        self._coming: Future[Reference] | None = None
        self.reference: Reference | None = None
        self.window: Window | None = None
        """The open window; its counts can be merged with other replicas'."""
        self.shifts: tuple[Shift, ...] = ()
        self.alarms: deque[Alarm] = deque(maxlen=settings.alarms_kept)
        self.alarm_count = self.served_rows = 0
        self._rising = ErrorRise(settings.error, settings.reference_rows)
        self._score = named(settings.score)
        self._features: dict[tuple[Signal, str], list[tuple[str, Detector]]] = {}
        self._window_begun = 1
        self._closed: _Closed | None = None
        self._share, self._draw = 1.0, Random(0).random
        self._first: list[tuple[Features, int]] = []
        self._was: dict[str, State] = {}
        self._order = _Order()
        self._noted: Alarm | None = None
        self._closed_at, self._blind = (0, 0), False  # rows served and judged at the last window
        if reference is not None:
            self._begin(reference)

    def served(
        self,
        features: Mapping[str, Value],
        score: float | None = None,
        *,
        at: float | None = None,
        phase: int = 0,
    ) -> list[Alarm]:
        """Record a prediction; return new alarms.

        Parameters:
            features: Features as parsed from the request.
            score: Probability of the positive label, or of the predicted one; None if there is
                none.
            at: Time (POSIX seconds); rows are expected in this order.
            phase: Phase of the season, from 0.

        Raises:
            ShareUnusable, DriftSettingUnusable: The score or phase is out of range; nothing was
                counted.
        """
        if not 0 <= phase < self.settings.phases:
            raise DriftSettingUnusable("phase", str(phase), f"0 to {self.settings.phases - 1}")
        alarms: list[Alarm] = []
        row = self.served_rows + 1
        moved = [] if score is None else _ask("score", "", self._score, score, row, at)
        if moved and self._unlabelled:
            alarms += moved
        self.served_rows = row
        self._order.see(at)
        if self._coming is not None:
            if self._coming.done():
                self._begin(self._coming.result())
                self._coming = None
        elif self.window is None:
            self._first.append((dict(features), phase))
            if len(self._first) >= self.settings.reference_rows:
                rows, phases = [r for r, _ in self._first], [p for _, p in self._first]
                self._first = []
                made = partial(build, rows, phases=self.settings.phases, phase_of=phases)
                if self._aside is None:
                    self._begin(made())
                else:
                    self._coming = self._aside.submit(made)
        elif self._share == 1.0 or self._draw() < self._share:
            self.window.add(features, phase)
            if self.settings.features and self.reference is not None:
                alarms += _each(self.reference, self._features, features, (row, at), self._share)
            if self.window.n >= self.settings.window_rows and self._closed is None:
                self._close(row, at)
        if self._closed is not None and self._closed.row < row:
            alarms += self._compare(self._closed)
        return self._kept(alarms) if alarms else alarms

    def judged(
        self, error: float, *, rule: float | None = None, at: float | None = None
    ) -> list[Alarm]:
        """Record a prediction's error when its label comes; return new alarms.

        Labels are recorded in the order in which they come.  A falling error raises no alarm.

        Parameters:
            error: 1 for a wrong and 0 for a correct prediction, or any number in between (a cost,
                or 1 − the label's probability); in regression the absolute error.
            rule: Error of the no-change baseline, 0 or 1; None: unknown.
            at: Time (POSIX seconds).

        Raises:
            ShareUnusable: The error is out of range; nothing was counted.
        """
        if self.settings.regression:
            if (rank := self._rising.ranked(error)) is None:
                return []
            error, rule = rank, None
        alarms = self._kept(self._rising.add(error, rule, at))
        if alarms:
            self._rising.accept(alarms[0])
        return alarms

    def learned(
        self,
        rows: Sequence[Features],
        scores: Sequence[float],
        errors: Sequence[float],
        rules: Sequence[float | None],
        at: Sequence[float],
    ) -> list[tuple[int, Alarm]]:
        """Record rows with predictions and labels; return index and alarm of each alarm, in order.

        The result is as if :meth:`served` and :meth:`judged` were called for each row.  Scores and
        errors must be in [0, 1]; they are not checked.
        """
        out: list[tuple[int, Alarm]] = []
        start = stop = 0
        while (start := stop) < len(rows):
            if (stop := self._by_column(start, at)) > start:
                of = slice(start, stop)
                alarms = self._counted(rows[of], scores[of], errors[of], rules[of], at[of])
                out += [(start + i, alarm) for i, alarm in alarms]
                continue
            stop = min(start + _APART, len(rows))
            for i in range(start, stop):
                raised = self.served(rows[i], scores[i], at=at[i])
                raised += self.judged(errors[i], rule=rules[i], at=at[i])
                out += [(i, alarm) for alarm in raised]
        return out

    def _by_column(self, start: int, at: Sequence[float]) -> int:
        """Return the end of the rows from ``start`` that can be counted by column, or ``start``."""
        settings, window = self.settings, self.window
        if window is None or self._closed is not None or self._share < 1.0:
            return start
        if settings.features or settings.phases > 1 or settings.regression:
            return start
        stop = min(start + settings.window_rows - window.n - 1, len(at))
        return stop if stop > start and self._order.fits(at[start:stop]) else start

    def _counted(
        self, rows: Sequence[Features], scores: Sequence[float], errors: Sequence[float],
        rules: Sequence[float | None], at: Sequence[float],
    ) -> list[tuple[int, Alarm]]:  # fmt: skip
        out: list[tuple[int, Alarm]] = []
        for who, one in self._score:
            for i, raised in updates(one, scores):
                row = self.served_rows + i + 1
                if self._is_unlabelled(row - 1, self.judged_rows + i):
                    since = max(row - raised.n_after + 1, 1)
                    out.append((i, alarm_of(raised, row, at[i], "score", "", who, since)))
        self.served_rows += len(rows)
        self._order.see_all(at)
        assert self.window is not None
        self.window.add_all(rows)
        out += self._rising.add_all(errors, rules, at)
        out.sort(key=itemgetter(0))  # stable: for one row, alarms on the prediction come first
        self._kept([alarm for _, alarm in out])
        return out

    @property
    def cheap(self) -> int:
        """The number of further rows that are cheap to record, up to the end of the window.

        After that, each row compares one feature, which takes longer than recording a row.  It is 0
        while such comparisons are outstanding.
        """
        if self._closed is not None:
            return 0
        settings, window = self.settings, self.window
        return settings.window_rows - (0 if window is None else window.n)

    @property
    def judged_rows(self) -> int:
        """The number of labelled rows so far."""
        return self._rising.rows

    def note(self, alarm: Alarm) -> None:
        """Add an alarm that was raised elsewhere for the same labelled rows."""
        self._noted = alarm
        self.alarms.append(alarm)
        self.alarm_count += 1

    def acknowledge(self) -> None:
        """Clear a risen error after an action was taken, until it rises again."""
        self._rising.raised = None

    def state(self) -> Watched:
        """Return the present state, derived from alarms and windows."""
        state, why, alarm = self._verdict()
        return Watched(
            state, why, self.served_rows, self.judged_rows, alarm, self.alarm_count, self.shifts
        )

    def _begin(self, reference: Reference) -> None:
        self.reference, self.window = reference, Window(reference)
        self._window_begun = self.served_rows + 1
        each = 1 + DETECTOR_COST * len(self.settings.features)
        self._share = min(1.0, EACH_ROW / max(len(reference.bins) * each, 1))
        for name in reference.bins if self.settings.features else ():
            for signal in _OF_FEATURES:
                self._features[signal, name] = named(self.settings.features)

    def _close(self, row: int, at: float | None) -> None:
        """Close the window; its features are compared one per later row, to spread the cost."""
        assert self.reference is not None
        assert self.window is not None
        self._closed = _Closed(self.window, self._window_begun, row, at)
        served, judged = row - self._closed_at[0], self.judged_rows - self._closed_at[1]
        self._blind, self._closed_at = judged < LABELLED_MIN * served, (row, self.judged_rows)
        self.window, self._window_begun = Window(self.reference), row + 1

    def _compare(self, closed: _Closed) -> list[Alarm]:
        """Compare one more feature; after the last one, return alarms for worsened features."""
        assert self.reference is not None
        name = next(islice(self.reference.bins, len(closed.shifts), None), None)
        if name is not None:
            closed.shifts.append(compare_one(self.reference, closed.window, name))
            if len(closed.shifts) < len(self.reference.bins):
                return []
        self.shifts, self._closed = tuple(ranked(closed.shifts)), None
        alarms = []
        for shift in self.shifts:
            # Hysteresis: a feature in state ``act`` stays there until it is below PSI_WATCH.
            if shift.state == "act" and self._was.get(shift.name) != "act":
                alarms.append(_of_window(shift, closed))
            if shift.state in ("act", "ok"):
                self._was[shift.name] = shift.state
        return alarms

    def _kept(self, alarms: list[Alarm]) -> list[Alarm]:
        if not alarms:
            return alarms
        if self._order.broken:
            return []
        self.alarms.extend(alarms)
        self.alarm_count += len(alarms)
        return alarms

    @property
    def _unlabelled(self) -> bool:
        """Whether too few labels come to judge the error."""
        return self._is_unlabelled(self.served_rows, self.judged_rows)

    def _is_unlabelled(self, served: int, judged: int) -> bool:
        return self._blind if self.shifts else judged < LABELLED_MIN * served

    def _verdict(self) -> tuple[State, str, Alarm | None]:
        if self._order.broken:
            return "not enough data", "the rows are not in the order of their time: sort them", None
        if self.judged_rows < ROWS_MIN and not self.shifts:
            why = f"{self.judged_rows} labelled rows; {ROWS_MIN} are needed"
            return "not enough data", why, None
        if (rose := self._rising.raised) is not None:
            why = f"the error rose from {rose.before:.3f} to {rose.after:.3f} ({rose.detector})"
            return "act", why, rose
        noted = self._noted
        if noted is not None and self.judged_rows - noted.row < self.settings.window_rows:
            return "watch", f"{noted.signal} {noted.direction} ({noted.detector})", noted
        if not self._unlabelled:
            why = "the error has not risen above its history; this does not rule out drift"
            return "ok", why, None
        for state in ("act", "watch"):
            shift = next((s for s in self.shifts if s.state == state), None)
            if shift is not None:
                first = next((a for a in reversed(self.alarms) if a.name == shift.name), None)
                return shift.state, f"{shift.name}: {shift.why}", first
        for alarm in reversed(self.alarms):
            if alarm.signal != "error" and (
                self.served_rows - alarm.row < self.settings.window_rows
            ):
                what = f"{alarm.signal} {alarm.name}".strip()
                return "watch", f"{what} {alarm.direction} ({alarm.detector})", alarm
        return "ok", "no alarm in the last window; this does not rule out drift", None


_OF_FEATURES: Final[tuple[Signal, ...]] = ("feature", "missing", "new")


def _ask(
    signal: Signal,
    name: str,
    detectors: Iterable[tuple[str, Detector]],
    x: float,
    row: int,
    at: float | None,
    share: float = 1.0,
) -> list[Alarm]:
    """Return the alarms of detectors that get this share of the rows."""
    alarms = []
    for who, one in detectors:
        if (raised := one.update(x)) is not None:
            since = max(row - round(raised.n_after / share) + 1, 1)
            alarms.append(alarm_of(raised, row, at, signal, name, who, since))
    return alarms


def _each(
    reference: Reference, asked: Mapping[tuple[Signal, str], Iterable[tuple[str, Detector]]],
    features: Mapping[str, Value], when: tuple[int, float | None], share: float,
) -> list[Alarm]:  # fmt: skip
    """Return the alarms of the features' detectors, which get this share of the rows."""
    alarms: list[Alarm] = []
    for name, bins in reference.bins.items():
        place, values = bins.place(features.get(name)), bins.values
        shares: dict[Signal, float] = {"missing": place == values}
        if place != values:
            shares["new"] = place > values
        if place < values:
            shares["feature"] = bins.ranks[place]
        for signal, x in shares.items():
            alarms += _ask(signal, name, asked[signal, name], x, *when, share)
    return alarms


class _Order:
    """Checks whether rows come in the order of their times."""

    def __init__(self) -> None:
        self._n = self._backward = 0
        self._last = -math.inf

    def see(self, at: float | None) -> None:
        if at is None:
            return
        self._n += 1
        self._backward += at < self._last
        self._last = at

    def fits(self, at: Sequence[float]) -> bool:
        """Return whether the rows are ordered well enough now and at each of these rows."""
        backward = self._backward + self._steps_back(at)
        return backward <= BACKWARD_MAX * self._n or self._n + len(at) < _ORDER_ROWS

    def see_all(self, at: Sequence[float]) -> None:
        """Record the times of several rows."""
        self._backward += self._steps_back(at)
        self._n += len(at)
        self._last = at[-1]

    def _steps_back(self, at: Sequence[float]) -> int:
        return int(at[0] < self._last) + sum(map(bool, map(gt, at, at[1:])))

    @property
    def broken(self) -> bool:
        return self._n >= _ORDER_ROWS and self._backward > BACKWARD_MAX * self._n


@dataclass(slots=True)
class _Closed:
    """A complete window, from row ``begun`` to ``row``, whose features are being compared."""

    window: Window
    begun: int
    row: int
    at: float | None
    shifts: list[Shift] = field(default_factory=list)


def _of_window(shift: Shift, closed: _Closed) -> Alarm:
    before, after, direction = shift.before, shift.after, shift.direction
    if shift.cause == "missing":
        before, after = shift.missing_reference, shift.missing
        direction = "up" if after > before else "down"
    elif shift.cause == "new":
        before, after, direction = shift.new_reference, shift.new, "up"
    return Alarm(
        closed.row, closed.at, shift.cause, shift.name, "window", direction, closed.begun,
        before, after, int(shift.n_reference), shift.n, shift.psi,
    )  # fmt: skip
