"""This module measures what is remembered of tasks that came one after the other.

``a[k][i]`` is the accuracy on task i after task k was learned.  Any-time and worst-case figures
are of many points within the tasks (De Lange, van de Ven and Tuytelaars, "Continual evaluation for
lifelong learning", ICLR 2023): a final accuracy does not tell what users met in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, slots=True)
class Remembered:
    """Figures of one run, in percent.

    Attributes:
        acc: Mean accuracy of all tasks at the end.
        forgetting: Mean loss of the earlier tasks from the best that they ever had after a task.
        bwt: Backward transfer: mean gain of the earlier tasks since they were learned.
        any_time: Mean over all points of the mean accuracy of the tasks seen until then.
        worst: Of the last task its accuracy at the end, of each earlier one its lowest at any point
            after it had ended; the mean of the tasks.
    """

    acc: float
    forgetting: float
    bwt: float
    any_time: float
    worst: float


@dataclass(frozen=True, slots=True)
class Point:
    """Accuracies of the tasks 0 … ``task`` while ``task`` is learned, in [0, 1]."""

    task: int
    accuracies: Sequence[float]


def remembered(after: Sequence[Sequence[float]], points: Sequence[Point]) -> Remembered:
    """The figures of a run.

    Parameters:
        after: ``after[k]``: accuracies of the tasks 0 … k (or more), in [0, 1], after task k.
        points: In the order of the run; those of the last task are after all others.

    Examples:
    >>> points = [Point(0, [0.8]), Point(1, [0.5, 0.6]), Point(1, [0.7, 0.9])]
    >>> remembered([[0.9], [0.7, 0.9]], points)
    Remembered(acc=80.0, forgetting=20.0, bwt=-20.0, any_time=71.67, worst=70.0)
    """
    final = after[-1]
    n = len(after)
    best = [max(after[k][i] for k in range(i, n - 1)) for i in range(n - 1)]
    lowest = [
        min((point.accuracies[i] for point in points if point.task > i), default=final[i])
        for i in range(n - 1)
    ]
    return Remembered(
        _percent(final),
        _percent([best[i] - final[i] for i in range(n - 1)]),
        _percent([final[i] - after[i][i] for i in range(n - 1)]),
        _percent([fmean(point.accuracies) for point in points]),
        _percent([*lowest, final[-1]]),
    )


def _percent(shares: Sequence[float]) -> float:
    return round(100 * fmean(shares), 2) if shares else 0.0
