"""Sections 9 to 13 of the report: slices, alarms, causes, training and data quality.

Each function returns its section, or None after adding the reason to ``missing``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from evaluation.drift.alarm import Alarm as Raised
from evaluation.report.causes import split
from evaluation.report.ends import Ends
from evaluation.report.slices import SENDERS
from evaluation.report.tally import END_ROWS, Tally
from evaluation.report.values import (
    Alarm,
    Alarms,
    Causes,
    Quality,
    Scores,
    Slice,
    Slices,
    Subject,
    Training,
)
from evaluation.summary import wilson

SLICE_N_MIN: Final = 50
SLICES_SHOWN: Final = 12
ERRORS_SHOWN: Final = 300
"""Number of alarms of the error that are shown, the newest ones."""

OTHERS_SHOWN: Final = 50
"""Number of other alarms that are shown, the newest ones."""


def slices(tally: Tally, missing: dict[str, str]) -> Slices | None:
    sums = tally.slices.sums
    regression = tally.origin.task == "regression"
    if not sums:
        missing["slices"] = "no judged row has a feature or a source"
        return None
    sender = "(sender)" if any(by == "source" for by, _ in sums) else "source"
    sums = {(sender if by == SENDERS else by, value): n for (by, value), n in sums.items()}
    parts: dict[str, int] = {}
    for by, _ in sums:
        parts[by] = parts.get(by, 0) + 1
    usable = [
        (key, values)
        for key, values in sums.items()
        if values[0] >= SLICE_N_MIN and parts[key[0]] > 1
    ]
    named = tally.origin.slices
    declared = sorted((key, values) for key, values in sums.items() if key[0] in named)
    if not usable and not declared:
        missing["slices"] = f"no slice has {SLICE_N_MIN} judged rows"
        return None

    def badness(item: tuple[tuple[str, str], np.ndarray]) -> tuple[float, tuple[str, str]]:
        key, (n, total, *_) = item
        return (-total / n if regression else wilson(total, n).high, key)

    worst = sorted(usable, key=badness)[:SLICES_SHOWN]
    return Slices(
        looked_at=len(usable),
        n_min=SLICE_N_MIN,
        worst=tuple(_slice(*key, values, regression=regression) for key, values in worst),
        declared=tuple(_slice(*key, values, regression=regression) for key, values in declared),
    )


def _slice(by: str, value: str, sums: np.ndarray, *, regression: bool) -> Slice:
    n, total, squares, sure, covered = (float(v) for v in sums)
    if regression:
        rmse = math.sqrt(squares / n)
        scores = Scores(n=int(n), mae=total / n, rmse=rmse)
    else:
        interval = wilson(total, n)
        scores = Scores(n=int(n), accuracy=total / n, low=interval.low, high=interval.high)
    share = covered / sure if sure else None
    return Slice(by=by, value=value, rows=int(n), scores=scores, sure=int(sure), covered=share)


def alarms(tally: Tally) -> Alarms:
    watch = tally.watch
    alarms = list(watch.alarms)
    errors = [a for a in alarms if a.signal == "error"][-ERRORS_SHOWN:]
    others = [a for a in alarms if a.signal != "error"][-OTHERS_SHOWN:]
    settings = watch.settings
    names = [*settings.error, *settings.score, *settings.features, "window"]
    return Alarms(
        detectors=tuple(dict.fromkeys(names)),
        alarms=tuple(sorted((_alarm(tally, a) for a in (*errors, *others)), key=lambda a: -a.row)),
        older=watch.alarm_count - len(errors) - len(others),
    )


def _alarm(tally: Tally, a: Raised) -> Alarm:
    labelled = a.signal == "error"
    return Alarm(
        row=_row(tally, int(a.row), labelled=labelled),
        time=a.at,
        signal=a.signal,
        feature=a.name,
        detector=a.detector,
        direction=a.direction,
        change_row=_row(tally, int(a.since), labelled=labelled),
        before=a.before,
        after=a.after,
        worse=a.worse,
    )


def _row(tally: Tally, number: int, *, labelled: bool) -> int:
    """Return the number of an alarm's row among all rows; from scored rows it is estimated."""
    if not labelled:
        return number
    before = 0
    for pane in tally.panes.all:
        n = int(pane.counters.get("n", 0))
        if n and before + n >= number:
            return pane.first_row + (number - before - 1) * pane.rows // n
        before += n
    return tally.rows


def causes(tally: Tally, ends: Ends, missing: dict[str, str]) -> Causes | None:
    if ends.lacking or tally.origin.task == "regression":
        missing["causes"] = ends.lacking or "errors of numbers are not split"
        return None
    parts = split(ends.then, ends.now)
    if isinstance(parts, str):
        missing["causes"] = parts
        return None
    return parts


def training(tally: Tally, subject: Subject, missing: dict[str, str]) -> Training | None:
    if tally.origin.kind == "file":
        missing["training"] = "a file tells nothing of the replicas; report on a service's journal"
        return None
    span = (subject.last_time or 0.0) - (subject.first_time or 0.0)
    return Training(
        events_per_s=tally.rows / span if span > 0 else None, verdicts=dict(tally.verdicts)
    )


def quality(tally: Tally) -> Quality:
    then, now = tally.then(END_ROWS), tally.now(END_ROWS)
    constant = [
        name for name in tally.kinds
        if _constant(then.features[name]) and _constant(now.features[name])
    ]  # fmt: skip
    left_out: Mapping[str, str] = tally.origin.left_out
    return Quality(
        no_answer=tally.no_answer,
        no_label=tally.no_label,
        no_time=tally.no_time,
        out_of_order=tally.out_of_order,
        constant=tuple(constant),
        left_out=tuple(left_out),
    )


def _constant(values: Sequence[object] | np.ndarray) -> bool:
    if isinstance(values, np.ndarray):
        known = values[~np.isnan(values)]
        return len(known) == 0 or bool(known.min() == known.max())
    return len({v for v in values if v is not None}) < 2
