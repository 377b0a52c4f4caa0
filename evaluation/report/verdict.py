"""Derives the report's verdict, one sentence with its reasons, as a pure function of its sections.

Rules: changed distributions are no reason to act while the score holds; detectors only supply
evidence, never a verdict; with too few labels the verdict is never "ok".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from evaluation.report.limits import ControlChart, Point, error_of
from evaluation.report.values import (
    EXIT_CODES,
    Alarms,
    Calibration,
    Comparison,
    Feature,
    FeatureDrift,
    Performance,
    Reason,
    State,
    Subject,
    Verdict,
)

JUDGED_MIN: Final = 200
"""Least number of rows with prediction and label for a verdict other than "not enough data"."""

ECE_WATCH: Final = 0.1
"""Calibration error of the newest rows from which on the state is ``watch``."""

CALIBRATION_N_MIN: Final = 500

GONE: Final = 0.95
"""A feature is gone if it is missing in this share of the newest rows, and hardly was before."""

_HARDLY: Final = 0.05
_JUMP: Final = 0.2
_BEHIND: Final = 0.25  # share of rows newer than the newest label from which on labels are late
_ORDER: Final[dict[State, int]] = {"act": 0, "not_enough_data": 1, "watch": 2, "ok": 3}
_CLEARLY: Final = 0.02  # smaller relative differences of mean errors are ignored
_AGREES: Final = 0.1  # relative excess of the recent error that confirms an alarm
_SETTLED: Final = 0.2  # alarms older than this share of the rows are ignored


def judge(
    subject: Subject,
    performance: Performance,
    course: ControlChart,
    comparisons: tuple[Comparison, ...] | None,
    calibration: Calibration | None,
    features: FeatureDrift | None,
    alarms: Alarms | None,
) -> Verdict:
    """Return the verdict with all reasons for it, worst first."""
    reasons: list[Reason] = []
    reasons += _enough(subject, performance, course)
    reasons += _baselines(subject, performance, comparisons or ())
    changed = list(_change(subject, performance, course))
    reasons += changed
    if all(r.state == "ok" for r in changed):
        reasons += _alarms(subject, performance, alarms)
    reasons += _features(subject, performance, features, fell=any(r.state != "ok" for r in changed))
    reasons += _calibration(calibration)
    ordered = tuple(sorted(reasons, key=lambda r: _ORDER[r.state]))
    if not ordered or ordered[0].state == "ok":
        good = _good(subject, performance)
        ordered = (good, *ordered)
    first = ordered[0]
    return Verdict(
        state=first.state,
        sentence=first.text,
        do=first.do,
        since_row=first.since_row,
        since_time=first.since_time,
        reasons=ordered,
        exit_code=EXIT_CODES[first.state],
    )


def per_cent(share: float) -> str:
    """Format a share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{abs(100 * share):.1f} points"


def _reason(state: State, section: str, text: str, do: str, at: Point | None = None) -> Reason:
    return Reason(
        state=state, section=section, text=text, do=do, since_row=at.first_row if at else None
    )


def _enough(subject: Subject, performance: Performance, course: ControlChart) -> Iterator[Reason]:
    """Yield the reasons why the data do not suffice for a verdict."""
    judged = performance.overall.n
    if not subject.rows:
        yield _reason(
            "not_enough_data", "subject", "There are no rows yet.",
            "Come back when the service has answered and labels are in.",
        )  # fmt: skip
    elif not subject.predicted:
        text = f"None of the {subject.rows:,} rows has an answer of the model."
        yield _reason("not_enough_data", "subject", text, "Check which column holds the answers.")
    elif not subject.labelled:
        text = f"None of the {subject.rows:,} rows has a label yet."
        yield _reason(
            "not_enough_data", "subject", text,
            "Wait for the labels, or check the column that they are read from.",
        )  # fmt: skip
    elif judged < JUDGED_MIN:
        text = f"Only {judged:,} rows have an answer and a label; a verdict needs {JUDGED_MIN}."
        yield _reason("not_enough_data", "performance", text, "Come back when more labels are in.")
    elif subject.task != "regression" and len(subject.labels) < 2:
        text = f"All {judged:,} labels are {subject.labels[0]}: there is nothing to tell apart."
        yield _reason(
            "not_enough_data", "subject", text,
            "Wait for rows of another label, or check the column that labels are read from.",
        )  # fmt: skip
    elif subject.task == "regression" and performance.overall.r2 is None:
        text = f"The {judged:,} targets hardly differ: there is nothing to tell apart."
        yield _reason("not_enough_data", "subject", text, "Check the column of the targets.")
    elif performance.limits is None:
        text = (
            f"{judged:,} rows have a label: enough for a score, too few to tell whether it changes."
        )
        rows = judged + course.missing
        yield _reason(
            "not_enough_data", "performance", text, f"Come back when {rows:,} rows have labels."
        )


_IF_LATE: Final = " If labels come later than the next row, say so: --delay ROWS."
_RULES: Final = {
    "no_change": (
        "repeating the last known label",
        "Give the model the last label as a feature, or serve that rule until it is better.",
    ),
    "majority": (
        "always answering the most frequent label",
        "Do not rely on this model; look at its features and its learning rate.",
    ),
}


def _baselines(
    subject: Subject, performance: Performance, comparisons: tuple[Comparison, ...]
) -> Iterator[Reason]:
    """Yield a reason for each baseline that is not worse than the model."""
    if len(subject.labels) < 2:
        return
    scores = performance.overall
    for one in comparisons:
        rule, do = _RULES[one.baseline]
        theirs = scores.no_change if one.baseline == "no_change" else scores.majority
        last = one.steps[-1] if one.steps else None
        if last is None or theirs is None or scores.accuracy is None or last.low > 0:
            continue
        ours, other = per_cent(scores.accuracy), per_cent(theirs)
        if last.high < 0:
            text = f"The model is worse than no model: {ours} right, {rule} {other}."
            late = one.baseline == "no_change" and not _delay_known(subject)
            yield _reason("act", "comparison", text, do + (_IF_LATE if late else ""))
        elif scores.n >= JUDGED_MIN:
            text = f"The model is not shown to be better than {rule}: {ours} and {other} right."
            yield _reason("watch", "comparison", text, f"See section 4. {do}")
    if subject.task == "regression" and scores.mae is not None and scores.n >= JUDGED_MIN:
        rules = {"the newest target": scores.last_mae, "the mean so far": scores.mean_mae}
        best = min((v, k) for k, v in rules.items() if v is not None)
        text = f"The mean error is {scores.mae:.4g}; answering with {best[1]} has {best[0]:.4g}."
        if best[0] < (1 - _CLEARLY) * scores.mae:
            yield _reason("act", "performance", text, "Serve that rule until the model is better.")
        elif best[0] < (1 + _CLEARLY) * scores.mae:
            yield _reason("watch", "performance", text, "Look at its features and learning rate.")


def _delay_known(subject: Subject) -> bool:
    """Return whether the delay of labels is known, so that no-change used only known labels."""
    timed = subject.delay_p50_s is not None or subject.origin == "journal"
    return timed or subject.delay_rows > 0


def _change(subject: Subject, performance: Performance, course: ControlChart) -> Iterator[Reason]:
    """Yield a reason if the newest windows are worse than normal, or were and recovered."""
    limits = performance.limits
    accuracy = performance.metric == "accuracy"
    if limits is None or (accuracy and len(subject.labels) < 2):
        return
    began, now = course.since, course.error_since
    state = course.level
    if state == "ok" or began is None or now is None:
        if (over := course.over) is not None:
            error = over.error
            shown = f"accuracy was {per_cent(1 - error)}" if accuracy else f"MAE was {error:.4g}"
            text = f"In rows {over.first_row:,} to {over.last_row:,} {shown}; it has come back."
            yield _reason("ok", "performance", text, "If it may happen again: see section 7.")
        return
    if now <= limits.error:
        shown = f"right in {per_cent(1 - now)}" if accuracy else f"wrong by {now:.4g}"
        text = f"Since row {began.first_row:,} the model is no better than no model: {shown}."
    elif accuracy:
        text = (
            f"Accuracy fell by {_points(now - limits.error)}: {per_cent(1 - now)} since row "
            f"{began.first_row:,}, {per_cent(1 - limits.error)} before."
        )
    else:
        text = (
            f"The mean error rose from {limits.error:.4g} to {now:.4g} since row "
            f"{began.first_row:,}."
        )
    do = (
        "Find out what changed at that row (features, labels, a release), then roll back or let "
        "the model learn again from the newest rows."
        if state == "act"
        else "Look at sections 7 and 9 for what changed, and at the next report for whether it "
        "goes on."
    )
    yield _reason(state, "performance", text, do, began)


def _alarms(subject: Subject, performance: Performance, alarms: Alarms | None) -> Iterator[Reason]:
    """Yield a reason if an alarm for a recent rise of the error is confirmed by recent rows."""
    recent = error_of(performance.recent)
    limits = performance.limits
    if limits is None or recent is None or recent < (1 + _AGREES) * limits.error:
        return
    raised = [a for a in (alarms.alarms if alarms else ()) if a.signal == "error"]
    if not raised or not raised[0].worse:
        return
    last = raised[0]
    if last.row < (1 - _SETTLED) * subject.rows:
        return
    text = (
        f"The error rose near row {last.change_row:,} ({last.detector.replace('_', '-')}), "
        "further than before, and the newest rows have more errors than is typical."
    )
    yield Reason(
        state="watch",
        section="alarms",
        text=text,
        do="Look at section 2 around that row; an alarm alone is no proof.",
        since_row=last.change_row,
        since_time=last.time,
    )


def _calibration(calibration: Calibration | None) -> Iterator[Reason]:
    if calibration is None or calibration.recent_ece is None:
        return
    if calibration.recent_n >= CALIBRATION_N_MIN and calibration.recent_ece > ECE_WATCH:
        text = (
            f"Scores are off by {_points(calibration.recent_ece)} on the newest "
            f"{calibration.recent_n:,} rows: they are no probabilities."
        )
        do = "Do not compare scores with fixed thresholds until they are calibrated again."
        yield _reason("watch", "calibration", text, do)


def _features(
    subject: Subject, performance: Performance, drift: FeatureDrift | None, *, fell: bool
) -> Iterator[Reason]:
    if drift is None:
        return
    gone = [f for f in drift.features if f.missing_then < _HARDLY and f.missing_now > GONE]
    jumped = [f for f in drift.features
              if f not in gone and f.missing_now - f.missing_then > _JUMP]  # fmt: skip
    if gone:
        text = f"{_named(gone)} missing in nearly all of the newest rows, and hardly ever before."
        which = "this column" if len(gone) == 1 else "these columns"
        yield _reason("act", "feature_drift", text, f"Mend what fills {which}, then look again.")
    if jumped:
        text = f"{_named(jumped)} missing much more often than before."
        which = "this column" if len(jumped) == 1 else "these columns"
        yield _reason("watch", "feature_drift", text, f"Look at what fills {which}.")
    large = [f for f in drift.features if f.level == "large" and f not in gone + jumped]
    if not large:
        return
    label_row = max((w.last_row for w in performance.windows if w.scores.n), default=0)
    blind = label_row < (1 - _BEHIND) * subject.rows
    moved = f"{len(large)} of {len(drift.features)} features moved, ‘{large[0].name}’ the most"
    if blind:
        text = f"{moved}, and no label of rows after {label_row:,} is in: the score there is open."
        do = "Get some of the newest rows labelled first."
        yield _reason("watch", "feature_drift", text, do)
    elif not fell and performance.limits is not None:
        text = f"{moved}, but the score is as before."
        yield _reason("ok", "feature_drift", text, "Nothing: the model copes with it.")


def _named(features: list[Feature]) -> str:
    names = [f.name for f in features]
    shown = ", ".join(f"‘{name}’" for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _good(subject: Subject, performance: Performance) -> Reason:
    scores = performance.overall
    if scores.accuracy is None:
        text = (
            f"The mean error is {scores.mae:.4g} on {scores.n:,} rows, and the newest are no worse."
        )
        return _reason("ok", "performance", text, "Nothing.")
    best = max(v for v in (scores.majority or 0.0, scores.no_change or 0.0))
    rule = "repeating the last label" if best == scores.no_change else "the commonest label"
    text = (
        f"{per_cent(scores.accuracy)} of {scores.n:,} answers were right, and the newest are no "
        f"worse; {rule} is right in {per_cent(best)}."
    )
    return _reason("ok", "performance", text, "Nothing.")
