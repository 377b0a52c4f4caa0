"""Every detector has to pass these checks: plain functions over a factory, for any test runner.

``make()`` gives a new detector.  Each check raises AssertionError with what was found.
:func:`yield_checks` is for parametrised tests, :func:`check_detector` runs all.  What a detector
promises beyond its interface is a :class:`Promise` handed over with it.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from evaluation.drift.alarm import Change
from evaluation.drift.detectors import Detector
from evaluation.drift.errors import ShareUnusable

Make = Callable[[], Detector]
Found = list[tuple[int, Change]]
Values = Sequence[float]


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise is what a detector claims of itself.

    Attributes:
        falls: It sees falls too.
        false_max: False alarms in 20,000 rows at an error rate of .2, at most.
        delay_max: Rows from .1 to .6 at most.
        locates: It names a change point: means before and after are those of the two rates.
        others_max: Further alarms in the 800 rows after a change, at most.
    """

    falls: bool = True
    false_max: int = 1
    delay_max: int = 150
    locates: bool = True
    others_max: int = 2


def check_detector(make: Make, promise: Promise) -> None:
    """Run every check; the first that fails raises AssertionError."""
    for _, run in yield_checks(make, promise):
        run()


def yield_checks(make: Make, promise: Promise) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and body of each check."""
    for check in _CHECKS:
        yield check.__name__, partial(check, make, promise)


def errors(seed: int, *stretches: tuple[float, int]) -> list[float]:
    """1 with probability ``p`` for ``n`` rows, for each (p, n)."""
    draw = Random(seed).random
    return [float(draw() < p) for p, n in stretches for _ in range(n)]


def found(detector: Detector, values: Values) -> Found:
    """Rows, from 1, and changes."""
    alarms = []
    for row, x in enumerate(values, 1):
        change = detector.update(x)
        if change is not None:
            alarms.append((row, change))
    return alarms


def refuses_what_is_no_share(make: Make, promise: Promise) -> None:
    stream = errors(1, (0.1, 400), (0.7, 400))
    asked, twin = make(), make()
    expected = found(twin, stream)
    alarms = []
    for row, x in enumerate(stream, 1):
        for bad in (float("nan"), float("inf"), -0.01, 1.01, 1e12, "1", None):
            _refused(asked, bad)
        change = asked.update(x)
        if change is not None:
            alarms.append((row, change))
    assert alarms == expected, f"alarms after refusals: {alarms}, expected {expected}"


def _refused(detector: Detector, bad: object) -> None:
    try:
        detector.update(bad)  # type: ignore[arg-type]
    except ShareUnusable as refusal:
        args = pickle.loads(pickle.dumps(refusal)).args
        if args == refusal.args:
            return
        raise AssertionError(f"pickled, the refusal has {args}") from refusal
    raise AssertionError(f"{bad!r} was taken")


def says_nothing_of_constants(make: Make, promise: Promise) -> None:
    for value in (0.0, 1.0, 0.5, 1 / 3, 0.1, False, True):
        alarms = found(make(), [value] * 2_000)
        assert not alarms, f"{len(alarms)} alarms about a constant {value}"


def says_nothing_in_eight_rows(make: Make, promise: Promise) -> None:
    for bits in range(256):
        values = [float(bits >> i & 1) for i in range(8)]
        assert not found(make(), values), f"an alarm in the eight rows {values}"


def is_quiet_without_a_change(make: Make, promise: Promise) -> None:
    alarms = sum(len(found(make(), errors(seed, (0.2, 5_000)))) for seed in range(4))
    assert alarms <= promise.false_max, f"{alarms} false alarms in 20,000 rows"


def finds_a_rise(make: Make, promise: Promise) -> None:
    for seed in range(8):
        _finds(make, promise, seed, 0.1, 0.6, "up")


def finds_a_fall_or_says_nothing(make: Make, promise: Promise) -> None:
    for seed in range(8):
        if promise.falls:
            _finds(make, promise, seed, 0.6, 0.1, "down")
        else:
            late = [a for a in found(make(), errors(seed, (0.6, 1_500), (0.1, 800))) if a[0] > 1500]
            assert not late, f"an alarm about a fall: {late}"


def _finds(make: Make, promise: Promise, seed: int, before: float, after: float, way: str) -> None:
    rows = 1_500
    alarms = found(make(), errors(seed, (before, rows), (after, 800)))
    hits = [(row, change) for row, change in alarms if row > rows]
    assert hits, f"a change from {before} to {after} is missed"
    row, change = hits[0]
    assert row - rows <= promise.delay_max, (
        f"it takes {row - rows} rows to find {before} to {after}"
    )
    assert change.direction == way, f"from {before} to {after} is called {change.direction}"
    others = len(hits) - 1
    assert others <= promise.others_max, f"{others} more alarms in 800 rows after one change"
    if promise.locates:
        assert abs(change.before - before) < 0.1, f"mean before: {change.before}, true {before}"
        assert abs(change.after - after) < 0.25, f"mean after: {change.after}, true {after}"
        point = row - change.n_after
        assert abs(point - rows) <= 64, f"change point {point}, true {rows}"


def gives_evidence_that_adds_up(make: Make, promise: Promise) -> None:
    stream = errors(3, (0.1, 900), (0.6, 900), (0.1, 900), (0.9, 900), (0.0, 500), (1.0, 500))
    begun, alarms = 0, found(make(), stream)  # rows before `begun` are forgotten
    assert alarms, "no alarm in five changes"
    for row, change in alarms:
        assert min(change.n_before, change.n_after) >= 1, f"a side without rows: {change}"
        rows = change.n_before + change.n_after
        assert rows <= row - begun, f"{row - begun} rows since the last change, not {change}"
        for mean in (change.before, change.after):
            assert 0.0 <= mean <= 1.0, f"no share: {change}"
        up = "up" if change.after > change.before else "down"
        assert change.direction in (up, "other"), f"direction and means differ: {change}"
        begun = row - change.n_after


def watches_on_after_an_alarm(make: Make, promise: Promise) -> None:
    stream = errors(5, (0.1, 1_500), (0.6, 1_500), (0.1, 1_500), (0.6, 1_500))
    rises = [row for row, change in found(make(), stream) if change.direction == "up"]
    for begun in (1_500, 4_500):
        hits = [row for row in rises if begun < row <= begun + promise.delay_max]
        assert hits, f"the rise at row {begun} is missed: alarms at {rises}"


def depends_on_nothing_else(make: Make, promise: Promise) -> None:
    stream = errors(7, (0.1, 1_000), (0.6, 500), (0.1, 700))
    random.seed(1)
    before = random.getstate()
    one, other = make(), make()
    expected = found(make(), stream)
    alarms: tuple[Found, Found] = ([], [])
    for row, x in enumerate(stream, 1):  # two at once: they share nothing
        for detector, own, value in ((one, alarms[0], x), (other, alarms[1], 1.0 - x)):
            change = detector.update(value)
            if change is not None:
                own.append((row, change))
    assert alarms[0] == expected, "the same values give other alarms"
    assert random.getstate() == before, "the global generator was used"


def goes_on_as_a_copy(make: Make, promise: Promise) -> None:
    stream = errors(9, (0.1, 1_000), (0.6, 500))
    whole = found(make(), stream)
    for cut in (500, 1_003):
        begun = make()
        first = found(begun, stream[:cut])
        for copied in (copy.deepcopy(begun), pickle.loads(pickle.dumps(begun))):
            rest = [(row + cut, change) for row, change in found(copied, stream[cut:])]
            assert first + rest == whole, f"a copy made after {cut} rows goes on otherwise"


def keeps_little(make: Make, promise: Promise) -> None:
    detector, sizes = make(), []
    for n in (2_000, 8_000):
        found(detector, errors(n, (0.2, n)))
        sizes.append(len(pickle.dumps(detector)))
    assert sizes[1] <= 2 * sizes[0] + 500, f"{sizes[0]} bytes after 2,000 rows, then {sizes[1]}"


def takes_other_shares_than_0_and_1(make: Make, promise: Promise) -> None:
    draw = Random(11)
    low = [min(max(draw.gauss(0.2, 0.1), 0.0), 1.0) for _ in range(2_000)]
    high = [min(max(draw.gauss(0.8, 0.1), 0.0), 1.0) for _ in range(1_000)]
    alarms = found(make(), low + high)
    assert [a for a in alarms if a[0] > 2_000], "a mean that moves from .2 to .8 is missed"
    assert not [a for a in alarms if a[0] <= 2_000], "an alarm before it moved"


_CHECKS = (
    refuses_what_is_no_share,
    says_nothing_of_constants,
    says_nothing_in_eight_rows,
    is_quiet_without_a_change,
    finds_a_rise,
    finds_a_fall_or_says_nothing,
    gives_evidence_that_adds_up,
    watches_on_after_an_alarm,
    depends_on_nothing_else,
    goes_on_as_a_copy,
    keeps_little,
    takes_other_shares_than_0_and_1,
)
