"""Builds the report from the tally of the rows; every number is computed here, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from evaluation.errors import TableUnusable
from evaluation.metrics import PAIR
from evaluation.report import details
from evaluation.report.ends import Ends
from evaluation.report.notes import NOTES
from evaluation.report.panes import Pane, together
from evaluation.report.rows import Origin, Rows
from evaluation.report.tally import Tally
from evaluation.report.values import (
    SCHEMA,
    Agreement,
    Bin,
    Calibration,
    Comparison,
    Estimate,
    Group,
    Performance,
    Report,
    Scores,
    Step,
    Subject,
    Window,
)
from evaluation.report.verdict import JUDGED_MIN, judge
from evaluation.summary import Summary, summary
from replay.example import label_of

RECENT_SHARE: Final = 8
"""The recent scores are those of the last windows with labels, one in this many."""

LABELS_SHOWN: Final = 12
"""Greatest number of labels for a confusion matrix."""

VERSIONS_SHOWN: Final = 20


DISORDER_MAX: Final = 0.05
"""Greatest share of the rows that may be earlier than a row before them."""


def report_on(
    origin: Origin,
    rows: Iterable[Rows],
    *,
    made_at: float,
    version: Callable[[], str | None] = lambda: None,
    progress: Callable[[int], None] = lambda n: None,
) -> Report:
    """Read all rows, in the order of events, and build a report on them.

    Parameters:
        made_at: Time of the report (POSIX seconds).
        version: Called after all rows were read; returns the model's present version, if known.
        progress: Called with the number of rows read so far.

    Raises:
        TableUnusable: The rows are not in the order of their time, so changes cannot be assessed.
    """
    tally = Tally(origin)
    for batch in rows:
        tally.add(batch)
        progress(tally.rows)
    timed = tally.rows - tally.no_time
    disordered = tally.out_of_order > max(DISORDER_MAX * timed, 1)
    if disordered and origin.kind == "file":  # a journal's rows are in the order of its commits
        share = tally.out_of_order / timed
        raise TableUnusable(
            origin.name, origin.columns.get("time"),
            f"{100 * share:.0f} % of its rows are earlier than one before them",
            "Sort the rows by time (is one time far too late?), or say that their order is right: "
            "--time none",
        )  # fmt: skip
    return build(tally, made_at=made_at, version=version())


def build(tally: Tally, *, made_at: float, version: str | None = None) -> Report:
    """Build the report from a tally.

    Parameters:
        made_at: Time of the report (POSIX seconds).
        version: The model's present version, if known.
    """
    missing: dict[str, str] = {}
    total = together(tally.panes.all)
    whole = summary(tally.origin.task, total.counters)
    subject = _subject(tally, total, whole, version)
    performance = _performance(tally, whole)
    ends = Ends(tally)
    comparison = _comparison(tally, missing)
    calibration = _calibration(tally, whole, performance, missing)
    features = None
    if ends.lacking:
        for name in ("feature_drift", "prediction_drift", "multivariate"):
            missing[name] = ends.lacking
    elif not tally.kinds:
        missing["feature_drift"] = missing["multivariate"] = "the rows have no features"
    else:
        features = ends.features()
    alarms = details.alarms(tally)
    verdict = judge(subject, performance, tally.course, comparison, calibration, features, alarms)
    multivariate = None
    if features is not None:
        difference = ends.multivariate()
        multivariate = (
            missing.setdefault("multivariate", difference)
            if isinstance(difference, str)
            else difference
        )
    predictions = None if ends.lacking else ends.predictions(_score_name(tally))
    if predictions is None:
        missing.setdefault("prediction_drift", "the model gave too few scores")
    return Report(
        schema=SCHEMA,
        made_at=made_at,
        verdict=verdict,
        subject=subject,
        performance=performance,
        agreement=_agreement(tally, whole, total, missing),
        comparison=comparison,
        calibration=calibration,
        prediction_drift=predictions,
        feature_drift=features,
        multivariate=None if isinstance(multivariate, str) else multivariate,
        slices=details.slices(tally, missing),
        alarms=alarms,
        causes=details.causes(tally, ends, missing),
        training=details.training(tally, subject, missing),
        quality=details.quality(tally),
        notes=NOTES,
        not_computed=missing,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# -- sections 1 and 2 ------------------------------------------------------------------------------


def _subject(tally: Tally, total: Pane, whole: Summary, version: str | None) -> Subject:
    origin = tally.origin
    counts = {c.label: c.n for c in whole.classes if c.n}
    labels = sorted(counts, key=lambda label: -counts[label])
    return Subject(
        origin=origin.kind,
        name=origin.name,
        task=origin.task,
        labels=tuple(_named(tally, label) for label in labels),
        positive=origin.names.get(True) if origin.task == "binary" else None,
        rows=tally.rows,
        predicted=total.answered,
        labelled=total.labelled,
        judged=whole.n,
        coverage=total.labelled / tally.rows if tally.rows else None,
        first_time=_finite(total.first_time),
        last_time=_finite(total.last_time),
        delay_p50_s=tally.delay(0.5),
        delay_p95_s=tally.delay(0.95),
        delay_rows=origin.delay,
        versions=tuple(tally.versions),
        version=version or total.version,
        columns=dict(origin.columns),
    )


def _named(tally: Tally, label: object) -> str:
    if isinstance(label, bool) and tally.origin.names:
        return tally.origin.names.get(label, str(label))
    return str(label)


def _scores(summary: Summary) -> Scores:
    interval = summary.interval
    return Scores(
        n=summary.n,
        accuracy=summary.accuracy,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        majority=summary.majority,
        no_change=summary.no_change,
        kappa_m=summary.kappa_m,
        kappa_t=summary.kappa_t,
        balanced_accuracy=summary.balanced_accuracy,
        f1=summary.f1,
        auc=summary.auc,
        log_loss=summary.log_loss,
        brier=summary.brier,
        ece=summary.ece,
        mae=summary.mae,
        rmse=summary.rmse,
        r2=summary.r2,
        mean_mae=summary.mean_mae,
        last_mae=summary.last_mae,
    )


def _window(tally: Tally, pane: Pane) -> Window:
    classes = tally.origin.task != "regression"
    return Window(
        first_row=pane.first_row,
        last_row=pane.first_row + pane.rows - 1,
        first_time=_finite(pane.first_time),
        last_time=_finite(pane.last_time),
        rows=pane.rows,
        labelled=pane.labelled,
        scores=_scores(summary(tally.origin.task, pane.counters)),
        positive_rate=pane.positive / pane.answered
        if pane.answered and tally.origin.task == "binary"
        else None,
        mean_score=pane.score_sum / pane.score_n if pane.score_n else None,
        confidence=pane.sure_sum / pane.score_n if pane.score_n and classes else None,
        version=pane.version,
    )


def _recent(tally: Tally) -> list[Pane]:
    judged = [p for p in tally.panes.all if p.counters.get("n")]
    return judged[-max(len(judged) // RECENT_SHARE, 1) :] if judged else []


def _drawn(tally: Tally) -> list[Pane]:
    """Return the panes to draw; a short last one is merged with the one before it.

    The error rate of a few rows varies widely by chance and would look like a change.
    """
    panes = tally.panes.all
    if len(panes) < 2 or panes[-1].rows * 2 >= tally.panes.size:
        return panes
    return [*panes[:-2], together(panes[-2:])]


def _performance(tally: Tally, whole: Summary) -> Performance:
    task = tally.origin.task
    windows = tuple(_window(tally, pane) for pane in _drawn(tally))
    recent = _recent(tally)
    versions = list(tally.versions.items())[-VERSIONS_SHOWN:]
    enough = whole.n >= JUDGED_MIN
    return Performance(
        metric="mae" if task == "regression" else "accuracy",
        overall=_scores(whole),
        recent=_scores(summary(task, together(recent).counters)),
        recent_windows=len(recent),
        window_rows=tally.panes.size,
        windows=windows,
        limits=tally.course.limits if enough else None,
        estimate=_estimate(tally),
        versions=tuple(
            Group(
                by="version", value=name, rows=tally.version_rows[name],
                scores=_scores(summary(task, counters)),
            )
            for name, counters in versions
        ),
    )  # fmt: skip


def _estimate(tally: Tally) -> Estimate | None:
    estimate = tally.label_free.estimate()
    if estimate.accuracy is None or estimate.error is None:
        return None
    return Estimate(
        accuracy=estimate.accuracy,
        n=estimate.n,
        labelled=int(estimate.labelled),
        error=estimate.error,
        note=estimate.note,
    )


# -- sections 3 to 5 -------------------------------------------------------------------------------


def _agreement(
    tally: Tally, whole: Summary, total: Pane, missing: dict[str, str]
) -> Agreement | None:
    classes = sorted(whole.classes, key=lambda c: -c.n)
    if not classes:
        regression = tally.origin.task == "regression"
        missing["agreement"] = (
            "targets are numbers" if regression else "no row has an answer and a label"
        )
        return None
    if len(classes) > LABELS_SHOWN:
        missing["agreement"] = f"{len(classes)} labels; at most {LABELS_SHOWN} are shown"
        return None
    counts: dict[tuple[object, object], int] = {}
    for name, value in total.counters.items():
        if name.startswith(PAIR):
            label, _, answer = name[len(PAIR) :].partition("\t")
            if answer:
                counts[label_of(label), label_of(answer)] = int(value)
    labels = [c.label for c in classes]
    return Agreement(
        labels=tuple(_named(tally, label) for label in labels),
        counts=tuple(tuple(counts.get((a, b), 0) for b in labels) for a in labels),
        recall=tuple(c.recall for c in classes),
        precision=tuple(c.precision for c in classes),
    )


def _comparison(tally: Tally, missing: dict[str, str]) -> tuple[Comparison, ...] | None:
    if not tally.comparisons:
        missing["comparison"] = "errors of numbers have no bound, which the sequence needs"
        return None
    out = []
    for name in tally.comparisons:
        steps, decided = [], None
        for pane in tally.panes.all:
            now = pane.steps.get(name)
            if now is None or now.mean is None or now.interval is None:
                continue
            row = pane.first_row + pane.rows - 1
            steps.append(Step(row=row, mean=now.mean, low=now.interval.low, high=now.interval.high))
            if decided is None and now.better is not None:
                decided = row
        if steps:
            out.append(
                Comparison(baseline=name, confidence=0.95, steps=tuple(steps), decided_row=decided)
            )
    if not out:
        missing["comparison"] = "no row has an answer and a label"
        return None
    return tuple(out)


def _score_name(tally: Tally) -> str:
    if tally.origin.task == "binary":
        return f"probability of {tally.origin.names.get(True, 'true')}"
    return "answer" if tally.origin.task == "regression" else "probability of the answer"


def _calibration(
    tally: Tally, whole: Summary, performance: Performance, missing: dict[str, str]
) -> Calibration | None:
    if whole.ece is None or whole.brier is None:
        regression = tally.origin.task == "regression"
        missing["calibration"] = (
            "answers are numbers, not probabilities"
            if regression
            else "the model gave no probabilities"
        )
        return None
    return Calibration(
        of=_score_name(tally),
        bins=tuple(
            Bin(low=t.low, high=round(t.low + 0.1, 1), n=t.n, score=t.score, rate=t.share)
            for t in whole.reliability
        ),
        ece=whole.ece,
        brier=whole.brier,
        recent_ece=performance.recent.ece,
        recent_n=performance.recent.n,
    )
