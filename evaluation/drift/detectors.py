"""Drift detectors on one number per row, river's and our own, with a common interface.

Every signal is converted to a number in [0, 1] (a share): an error is 1, a correct prediction 0; a
probability is used as it is; a feature's value becomes its rank in the reference; a missing value
or a new category is 1.  So any detector can monitor any signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from river import drift
from river.drift import binary

from evaluation.drift.alarm import Change, change, share
from evaluation.drift.errors import DriftSettingUnusable
from evaluation.drift.glr import Glr

RECENT: Final = 50
"""Number of rows assumed after the change point for river's detectors that do not report it."""


class Detector(Protocol):
    """Monitors the mean of numbers in [0, 1].

    A detector is deterministic and independent of other instances, its memory grows at most with
    the logarithm of the number of rows, and it can be copied and pickled.  It continues after an
    alarm.
    """

    def update(self, x: float) -> Change | None:
        """Add one number; return the change if this row reveals one.

        Raises:
            ShareUnusable: It is not a number in [0, 1]; the detector is unchanged.
        """


class Adwin:
    """River's ADWIN (Bifet & Gavaldà 2007), reporting the change point where it cuts its window.

    Parameters:
        delta: In (0, 1); smaller values give fewer false alarms.
        clock: Rows between two tests; ≥ 1.
    """

    def __init__(self, *, delta: float = 0.002, clock: int = 32) -> None:
        self._river = drift.ADWIN(delta=delta, clock=clock)
        self._n, self._sum = 0, 0.0  # since river's window began

    def update(self, x: float) -> Change | None:
        """Add one number, as in :class:`Detector`."""
        changes = self.update_all([share(x)])
        return changes[0][1] if changes else None

    def update_all(self, xs: Sequence[float]) -> list[tuple[int, Change]]:
        """Add numbers in [0, 1] without checking them; return index and change of each finding."""
        river, changes = self._river, []
        for i, x in enumerate(xs):
            river.update(x)
            self._n += 1
            self._sum += x
            if river.drift_detected:
                changes.append((i, self._cut()))
        return changes

    def _cut(self) -> Change:
        # River starts with an empty window at the next row, although it kept rows at the cut.
        n, total = self._n, self._sum
        width, window_sum = self._river.width, self._river.total
        self._n, self._sum = 0, 0.0
        return change(total - window_sum, n - width, window_sum, width)


class River:
    """A detector of river that reports no change point: ``RECENT`` rows ago is assumed.

    Parameters:
        detector: River's object with ``update`` and ``drift_detected``; it restarts after an alarm.
    """

    def __init__(self, detector: Any) -> None:
        self._river = detector
        self._begin()

    def _begin(self) -> None:
        self._n, self._sum, self._recent = 0, 0.0, 0.0

    def update(self, x: float) -> Change | None:
        """Add one number, as in :class:`Detector`."""
        x = share(x)
        self._river.update(x)
        self._n += 1
        self._sum += x
        self._recent += (x - self._recent) / min(self._n, RECENT)
        if not self._river.drift_detected:
            return None
        n_after = min(RECENT, (self._n + 1) // 2)
        n_before = max(self._n - n_after, 1)
        after = self._recent * n_after
        detected = change(self._sum - after, n_before, after, n_after)
        self._begin()
        return detected


DETECTORS: Final[Mapping[str, Callable[[], Detector]]] = {
    "glr": Glr,
    "adwin": Adwin,
    "page_hinkley": lambda: River(drift.PageHinkley()),
    "ddm": lambda: River(binary.DDM()),
    "hddm_a": lambda: River(binary.HDDMA(two_sided_test=True)),
    "hddm_w": lambda: River(binary.HDDMW(two_sided_test=True)),
}
"""Detectors by their names in settings.  Those in ``ONLY_RISES`` do not notice falls."""

ONLY_RISES: Final = frozenset({"ddm"})


def detector(name: str) -> Detector:
    """Return a new detector of this name.

    Raises:
        DriftSettingUnusable: No detector has this name.
    """
    make = DETECTORS.get(name)
    if make is None:
        raise DriftSettingUnusable("detector", repr(name), f"one of {', '.join(DETECTORS)}")
    return make()


def named(names: Iterable[str]) -> list[tuple[str, Detector]]:
    """Return new detectors with their names; errors as :func:`detector`."""
    return [(name, detector(name)) for name in names]


def updates(one: Detector, xs: Sequence[float]) -> list[tuple[int, Change]]:
    """Add numbers to a detector; return index and change of each finding.

    The caller ensures that they are numbers in [0, 1].
    """
    if isinstance(one, Adwin | Glr):
        return one.update_all(xs)
    return [
        (i, change_found) for i, x in enumerate(xs) if (change_found := one.update(x)) is not None
    ]
