"""Computes all metrics of a span of rows from its counters (:mod:`evaluation.metrics`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from evaluation.metrics import EDGES, PAIR, SCORE, TENTHS, Task, ratio, summarise
from replay.example import Label, label_of

ROWS_MIN: Final = 30
"""Least number of labelled rows for a score."""

Z95: Final = 1.959964
_CANCELLED: Final = 1e-9  # relative to the sum of squares; smaller variances are rounding


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval from ``low`` to ``high``."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One label: ``n`` rows have it, for ``said`` it was predicted; None: undefined."""

    label: Label
    n: int
    said: int
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class Tenth:
    """Rows whose score is in one tenth of [0, 1]: mean score, and share with outcome 1."""

    low: float
    n: int
    score: float
    share: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The metrics of a span; None where a metric is undefined, for reasons in ``lacking``.

    Attributes:
        n: Number of labelled rows in the scores.
        unanswered, unusable: Rows without a prediction (which count as wrong for a classifier), and
            rows whose prediction is not a number or probability.
        accuracy, interval: Share of correct labels, with its Wilson interval (95 %), which assumes
            nearly independent rows; to compare two models see :mod:`evaluation.comparison`.
        majority, no_change, kappa_m, kappa_t: As in :func:`evaluation.metrics.summarise`.
        balanced_accuracy: Mean recall of the labels that occurred, if there are two or more.
        f1: F1 of True in a binary task, else the mean over all labels that occurred or were
            predicted.
        log_loss: In nats; probabilities clipped at 1e-15.
        brier: Mean of (p(True) − y)² in a binary task, else of Σ_k (p_k − y_k)² (Brier 1950).
        ece: Expected calibration error on ten bins of equal width (Naeini et al. 2015), of p(True)
            in a binary task, else of the predicted label's probability.
        auc, auc_error: Area under the ROC curve of p(True), binary only, from the histogram of
            scores.  Scores in one bin count as equal; the exact area differs by at most
            ``auc_error``.
        mae, rmse, mean_mae, last_mae: In the target's unit; the last two are those of predicting
            the mean so far and the newest target.
        r2: 1 − Σ (y − p)² / Σ (y − mean of y)², with the mean over the span.
        classes, reliability: Scores by label, and by tenth of the score; empty in regression.
        lacking: Reasons why the data do not suffice; empty if they do.
    """

    task: Task
    n: int
    unanswered: int = 0
    unusable: int = 0
    accuracy: float | None = None
    interval: Interval | None = None
    majority: float | None = None
    no_change: float | None = None
    kappa_m: float | None = None
    kappa_t: float | None = None
    balanced_accuracy: float | None = None
    f1: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    ece: float | None = None
    auc: float | None = None
    auc_error: float | None = None
    mae: float | None = None
    rmse: float | None = None
    r2: float | None = None
    mean_mae: float | None = None
    last_mae: float | None = None
    classes: tuple[ClassScore, ...] = ()
    reliability: tuple[Tenth, ...] = ()
    lacking: tuple[str, ...] = ()


def summary(task: Task, counters: Mapping[str, float]) -> Summary:
    """Return all metrics of summed counters."""
    base = summarise(task, counters)
    n, unusable = int(base["n"] or 0), int(counters.get("unusable", 0))
    lacking = _lacking(n, unusable, int(counters.get("folded", 0)))
    unanswered = int(counters.get("unanswered", 0))
    if task == "regression":
        return _regression(counters, base, n, unanswered, unusable, lacking)
    classes = () if counters.get("folded") else _classes(counters)
    seen = [c for c in classes if c.n]
    if n and len(seen) == 1:
        lacking.append(f"all labels are {seen[0].label!r}: one class only")
    recalls = [c.recall for c in seen if c.recall is not None]
    auc, within, tenths = None, None, _tenths(counters)
    if task == "binary":
        auc, within = _auc(counters)
    accuracy = base["accuracy"]
    return Summary(
        task, n, unanswered, unusable,
        accuracy=accuracy,
        interval=None if accuracy is None else wilson(accuracy * n, n),
        majority=base["majority"],
        no_change=base["no_change"],
        kappa_m=base["kappa_m"],
        kappa_t=base["kappa_t"],
        balanced_accuracy=sum(recalls) / len(recalls) if len(recalls) > 1 else None,
        f1=_f1(task, classes),
        log_loss=base["log_loss"],
        brier=ratio(counters.get("brier"), counters.get("log_n")),
        ece=_ece(tenths),
        auc=auc,
        auc_error=within,
        classes=classes,
        reliability=tenths,
        lacking=tuple(lacking),
    )  # fmt: skip


def wilson(right: float, n: float, z: float = Z95) -> Interval:
    """Return the confidence interval of the share ``right / n``, n > 0 (Wilson 1927)."""
    p, square = right / n, z * z / n
    centre = (p + square / 2) / (1 + square)
    reach = z * math.sqrt(max(p * (1 - p) / n + square / (4 * n), 0.0)) / (1 + square)
    return Interval(max(centre - reach, 0.0), min(centre + reach, 1.0))


def _lacking(n: int, unusable: int, folded: int) -> list[str]:
    out = []
    if not n:
        out.append("no row has both an answer and a label")
    elif n < ROWS_MIN:
        out.append(f"{n} labelled rows, a score needs {ROWS_MIN}")
    if unusable:
        out.append(f"{unusable} answers were no finite numbers or no probabilities")
    if folded:
        out.append("there are too many labels to score each of them")
    return out


# -- classes -------------------------------------------------------------------------------------


def _classes(counters: Mapping[str, float]) -> tuple[ClassScore, ...]:
    seen: dict[str, int] = {}
    said: dict[str, int] = {}
    right: dict[str, int] = {}
    for name, value in counters.items():
        if name.startswith(PAIR):
            label, _, answer = name[len(PAIR) :].partition("\t")
            count = int(value)
            seen[label] = seen.get(label, 0) + count
            if answer:
                said[answer] = said.get(answer, 0) + count
            if answer == label:
                right[label] = count
    return tuple(
        _class(label_of(text), seen.get(text, 0), said.get(text, 0), right.get(text, 0))
        for text in sorted({*seen, *said})
    )


def _class(label: Label, n: int, said: int, right: int) -> ClassScore:
    return ClassScore(
        label, n, said, ratio(right, n), ratio(right, said), ratio(2 * right, n + said)
    )


def _f1(task: Task, classes: tuple[ClassScore, ...]) -> float | None:
    if task == "binary":
        return next((c.f1 for c in classes if c.label is True), None)
    scores = [c.f1 for c in classes if c.f1 is not None]
    return sum(scores) / len(scores) if len(scores) > 1 else None


# -- scores --------------------------------------------------------------------------------------


def _histogram(counters: Mapping[str, float]) -> list[tuple[float, float]]:
    """Return for each bin of the score the number of rows with outcome 0, and with 1."""
    get = counters.get
    return [(get(f"{SCORE}{i}/0", 0.0), get(f"{SCORE}{i}/1", 0.0)) for i in range(len(EDGES) + 1)]


def _auc(counters: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Return the area under the ROC curve, and its greatest error due to equal bins."""
    below = area = tied = ones = 0.0
    for zeros, hits in _histogram(counters):
        area += hits * (below + zeros / 2)
        tied += hits * zeros / 2
        below += zeros
        ones += hits
    pairs = below * ones
    return (area / pairs, tied / pairs) if pairs else (None, None)


def _tenths(counters: Mapping[str, float]) -> tuple[Tenth, ...]:
    ns, hits = [0.0] * 10, [0.0] * 10
    for (zeros, ones), tenth in zip(_histogram(counters), TENTHS, strict=True):
        ns[tenth] += zeros + ones
        hits[tenth] += ones
    return tuple(
        Tenth(i / 10, int(n), counters.get(f"sum/{i}", 0.0) / n, hits[i] / n)
        for i, n in enumerate(ns)
        if n
    )


def _ece(tenths: tuple[Tenth, ...]) -> float | None:
    gaps = sum(t.n * abs(t.score - t.share) for t in tenths)
    return ratio(gaps, sum(t.n for t in tenths))


# -- regression ----------------------------------------------------------------------------------


def _regression(
    counters: Mapping[str, float],
    base: Mapping[str, float | None],
    n: int,
    unanswered: int,
    unusable: int,
    lacking: list[str],
) -> Summary:
    r2 = None
    if n:
        y_sum, y_squares = counters.get("y_sum", 0.0), counters.get("y_squares", 0.0)
        spread = y_squares - y_sum * y_sum / n
        if spread > _CANCELLED * y_squares:
            r2 = 1.0 - counters.get("squared_error", 0.0) / spread
        elif "y_sum" in counters:
            lacking.append("the targets hardly differ: no R²")
    if unanswered:
        lacking.append(f"{unanswered} rows were not answered, and are in no mean error")
    if unusable:  # otherwise a model could lower its error by predicting NaN for hard rows
        return Summary(
            "regression", n, unanswered, unusable,
            mean_mae=base["mean_mae"], last_mae=base["last_mae"], lacking=tuple(lacking),
        )  # fmt: skip
    return Summary(
        "regression", n, unanswered, unusable,
        mae=_finite(base["mae"]),
        rmse=_finite(base["rmse"]),
        r2=_finite(r2),
        mean_mae=_finite(base["mean_mae"]),
        last_mae=_finite(base["last_mae"]),
        lacking=tuple(lacking),
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    """Return the value, or None if a sum of squares has overflowed."""
    return value if value is not None and math.isfinite(value) else None
