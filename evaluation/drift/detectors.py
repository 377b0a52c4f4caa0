"""Detectors of one number a row: river's and our own behind one method.

Every signal is a share in [0, 1] before a detector sees it: an error is 1, a right answer 0; a
probability is one already; the value of a feature becomes its rank in the reference; a missing
value or a new category is 1.  So each detector can watch each signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from river import drift
from river.drift import binary

from evaluation.drift.alarm import Change, change, share
from evaluation.drift.errors import DriftSettingUnusable
from evaluation.drift.glr import Glr
from evaluation.drift.seed import Seed
from evaluation.drift.stepd import Stepd

RECENT: Final = 50
"""Rows that river's detectors without a change point are taken to have alarmed for."""


class Detector(Protocol):
    """Watches the mean of shares in [0, 1].

    Deterministic, independent of other instances, with memory that grows at most with the logarithm
    of the number of rows; can be copied and pickled.  After an alarm it watches on.
    """

    def update(self, x: float) -> Change | None:
        """Take one share; the change, if this row shows one.

        Raises:
            ShareUnusable: No number in [0, 1]; the detector is as before.
        """


class Adwin:
    """River's ADWIN (Bifet & Gavaldà 2007), with the change point that its cut names.

    Parameters:
        delta: In (0, 1): smaller is rarer false alarms.
        clock: Rows between two tests; ≥ 1.
    """

    def __init__(self, *, delta: float = 0.002, clock: int = 32) -> None:
        self._river = drift.ADWIN(delta=delta, clock=clock)
        self._n, self._sum = 0, 0.0  # since river's window began

    def update(self, x: float) -> Change | None:
        """Take one share, as in :class:`Detector`."""
        x = share(x)
        self._river.update(x)
        self._n += 1
        self._sum += x
        if not self._river.drift_detected:
            return None
        return self._cut()

    def update_all(self, xs: Sequence[float]) -> list[tuple[int, Change]]:
        """Take shares one after the other, none of which is looked at: places and changes."""
        river, changes = self._river, []
        for i, x in enumerate(xs):
            river.update(x)
            self._n += 1
            self._sum += x
            if river.drift_detected:
                changes.append((i, self._cut()))
        return changes

    def _cut(self) -> Change:
        # River begins with an empty window at the next row, whatever it kept at the cut.
        n, total = self._n, self._sum
        width, kept = self._river.width, self._river.total
        self._n, self._sum = 0, 0.0
        return change(total - kept, n - width, kept, width)


class River:
    """A detector of river that names no change point: the last ``RECENT`` rows stand for it.

    Parameters:
        detector: Of river: ``update`` and ``drift_detected``; it begins anew after an alarm.
    """

    def __init__(self, detector: Any) -> None:
        self._river = detector
        self._begin()

    def _begin(self) -> None:
        self._n, self._sum, self._recent = 0, 0.0, 0.0

    def update(self, x: float) -> Change | None:
        """Take one share, as in :class:`Detector`."""
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
        found = change(self._sum - after, n_before, after, n_after)
        self._begin()
        return found


DETECTORS: Final[Mapping[str, Callable[[], Detector]]] = {
    "glr": Glr,
    "adwin": Adwin,
    "page_hinkley": lambda: River(drift.PageHinkley()),
    "ddm": lambda: River(binary.DDM()),
    "hddm_a": lambda: River(binary.HDDMA(two_sided_test=True)),
    "hddm_w": lambda: River(binary.HDDMW(two_sided_test=True)),
    "stepd": Stepd,
    "seed": Seed,
}
"""What can be named in settings.  All see rises and falls, but those in ``ONLY_RISES``."""

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
    """New detectors beside their names; errors as of :func:`detector`."""
    return [(name, detector(name)) for name in names]


def updates(one: Detector, xs: Sequence[float]) -> list[tuple[int, Change]]:
    """Have a detector take shares one after the other: the place and the change of each finding.

    The caller has made sure that they are numbers in [0, 1].
    """
    if isinstance(one, Adwin | Glr):
        return one.update_all(xs)
    return [(i, found) for i, x in enumerate(xs) if (found := one.update(x)) is not None]
