"""The data structures of a report; ``msgspec.json.schema(Report)`` is its schema.

A number that could not be computed is None.  So is a section that was not computed;
``Report.not_computed`` then has the reason under the section's name.  Times are POSIX seconds, rows
are numbered from 1 in the order in which they were read, rates and accuracies are in [0, 1].
"""

from __future__ import annotations

from html import escape
from typing import Any, Final, Literal

import msgspec

SCHEMA: Final = "online-report/1"
"""Name of the JSON format.  Incompatible changes raise the number."""

State = Literal["ok", "watch", "act", "not_enough_data"]
EXIT_CODES: Final[dict[State, int]] = {"ok": 0, "watch": 0, "act": 1, "not_enough_data": 3}
"""Exit codes of the reporting command; 2 is wrong usage."""


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One reason for the verdict.

    ``section`` has the evidence; ``since_row`` and ``since_time`` are where it began (None: not
    tied to a row).
    """

    state: State
    section: str
    text: str
    do: str
    since_row: int | None = None
    since_time: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict: one sentence, from the first of the ``reasons``, which are worst first."""

    state: State
    sentence: str
    do: str
    since_row: int | None
    since_time: float | None
    reasons: tuple[Reason, ...]
    exit_code: int


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The data that the report is about.

    Attributes:
        origin, name: ``file`` or ``journal``, and the file's or the model's name.
        labels, positive: Labels that occurred, most frequent first (JSON text), and the positive
            label of a binary task.
        rows, predicted, labelled, judged: Numbers of rows read; with a prediction; with a label;
            with both.
        coverage: labelled / rows.
        delay_p50_s, delay_p95_s: Quantiles of the time from prediction to label.
        columns: Columns of a file by role.
    """

    origin: Literal["file", "journal"]
    name: str
    task: Literal["binary", "multiclass", "regression"]
    labels: tuple[str, ...]
    positive: str | None
    rows: int
    predicted: int
    labelled: int
    judged: int
    coverage: float | None
    first_time: float | None
    last_time: float | None
    delay_p50_s: float | None
    delay_p95_s: float | None
    delay_rows: int
    versions: tuple[str, ...]
    version: str | None
    columns: dict[str, str | None]


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics of a set of rows; metrics that do not apply to the task are None.

    ``low`` and ``high`` are the 95 % Wilson interval of the accuracy.  ``majority`` and
    ``no_change`` are the accuracies of these baselines on the same rows; ``mean_mae`` and
    ``last_mae`` are their MAE in regression.
    """

    n: int
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    majority: float | None = None
    no_change: float | None = None
    kappa_m: float | None = None
    kappa_t: float | None = None
    balanced_accuracy: float | None = None
    f1: float | None = None
    auc: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    ece: float | None = None
    mae: float | None = None
    rmse: float | None = None
    r2: float | None = None
    mean_mae: float | None = None
    last_mae: float | None = None


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive rows: their number, scores, and statistics of the predictions."""

    first_row: int
    last_row: int
    first_time: float | None
    last_time: float | None
    rows: int
    labelled: int
    scores: Scores
    positive_rate: float | None
    mean_score: float | None
    confidence: float | None
    version: str | None


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that share a value (a version, a slice), and their scores."""

    by: str
    value: str
    rows: int
    scores: Scores


class Slice(Group, frozen=True, kw_only=True):
    """The scores of one slice of a feature.

    ``sure`` is the number of rows with a predicted set or interval, ``covered`` the share of those
    that contained the label.
    """

    sure: int = 0
    covered: float | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a window's error for the states ``watch`` and ``act``.

    ``error`` (1 − accuracy, or the MAE) and ``deviation`` are those of the normal windows, in rows
    ``first_row … last_row``.
    """

    first_row: int
    last_row: int
    windows: int
    error: float
    deviation: float
    watch: float
    act: float


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated accuracy on ``n`` rows without labels, from the model's own confidence.

    ``labelled`` rows were used for calibration (0: not calibrated); ``error`` is the standard error
    by chance alone; ``note`` states the limitation.
    """

    accuracy: float
    n: int
    labelled: int
    error: float
    note: str


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """Section 2: scores overall, by window and by version.

    ``recent`` are the scores of the last ``recent_windows`` windows with labels; ``estimate`` is
    for the rows without labels.
    """

    metric: Literal["accuracy", "mae"]
    overall: Scores
    recent: Scores
    recent_windows: int
    window_rows: int
    windows: tuple[Window, ...]
    limits: Limits | None
    estimate: Estimate | None
    versions: tuple[Group, ...]


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Section 3: the confusion matrix; ``counts[i][j]`` rows with label i were predicted as j."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    recall: tuple[float | None, ...]
    precision: tuple[float | None, ...]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A confidence sequence at a row: the mean difference so far and its limits."""

    row: int
    mean: float
    low: float
    high: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Section 4: the model's accuracy minus a baseline's.

    ``decided_row`` is the first row at which the interval does not contain 0.
    """

    baseline: str
    confidence: float
    steps: tuple[Step, ...]
    decided_row: int | None


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Rows whose score is in [low, high): number, mean score, and share with a positive outcome."""

    low: float
    high: float
    n: int
    score: float | None
    rate: float | None


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Section 5: calibration.  ``of`` names the score; recent rows are those of section 2."""

    of: str
    bins: tuple[Bin, ...]
    ece: float
    brier: float
    recent_ece: float | None
    recent_n: int


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of the reference and of the newest rows on the same edges, or by the same names."""

    edges: tuple[float, ...]
    names: tuple[str, ...]
    then: tuple[int, ...]
    now: tuple[int, ...]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Distances between two samples of one quantity.

    ``psi`` and ``js`` (base 2, in [0, 1]) are computed on frozen reference bins; ``shift_sd`` is
    the Wasserstein distance in standard deviations of the reference (None if it hardly varies);
    ``p`` is a two-sample test's p-value, ``p_holm`` that after Holm's correction over the table.
    """

    n_then: int
    n_now: int
    psi: float | None = None
    js: float | None = None
    shift_sd: float | None = None
    p: float | None = None
    p_holm: float | None = None


class PredictionDrift(msgspec.Struct, frozen=True, kw_only=True):
    """Section 6: the model's predictions in the first and in the newest rows."""

    of: str
    spread: Spread
    histogram: Histogram | None
    mean_then: float | None
    mean_now: float | None
    rate_then: float | None
    rate_now: float | None


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One feature in section 7.

    Attributes:
        mean_then, mean_now: Means of a number.
        top_then, top_now: Most frequent categories.
        missing_then, missing_now, new, outside: Shares of rows: without the feature; with a
            category that the reference does not have; outside the reference's range.
        spark: Mean (numbers), or share of the reference's most frequent category, by window.
        importance: Mutual information with the model's prediction, in [0, 1]; None: not computed.
    """

    name: str
    kind: Literal["number", "category"]
    level: Literal["none", "some", "large"]
    why: str
    spread: Spread
    mean_then: float | None
    mean_now: float | None
    top_then: str | None
    top_now: str | None
    missing_then: float
    missing_now: float
    new: float | None
    outside: float | None
    importance: float | None
    spark: tuple[float | None, ...]
    histogram: Histogram | None


class FeatureDrift(msgspec.Struct, frozen=True, kw_only=True):
    """Section 7: features by effect; ``then_…`` and ``now_…`` are the rows compared."""

    then_first: int
    then_last: int
    now_first: int
    now_last: int
    features: tuple[Feature, ...]
    left_out: int


class Multivariate(msgspec.Struct, frozen=True, kw_only=True):
    """Section 8: a classifier of first and newest rows; AUC and its permutation interval."""

    auc: float
    low: float
    high: float
    n_then: int
    n_now: int
    drivers: tuple[str, ...]


class Slices(msgspec.Struct, frozen=True, kw_only=True):
    """Section 9: the worst of the slices with at least ``n_min`` scored rows.

    ``declared`` has all values of the features named in the settings.
    """

    looked_at: int
    n_min: int
    worst: tuple[Slice, ...]
    declared: tuple[Slice, ...] = ()


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm of section 10.

    ``change_row`` is the detector's estimate of the change point, ``before`` and ``after`` are the
    means on both sides of it.  ``worse``: the error rose.
    """

    row: int
    time: float | None
    signal: str
    feature: str
    detector: str
    direction: str
    change_row: int
    before: float | None
    after: float | None
    worse: bool


class Alarms(msgspec.Struct, frozen=True, kw_only=True):
    """Section 10: the newest alarms, newest first, and the number of ``older`` ones."""

    detectors: tuple[str, ...]
    alarms: tuple[Alarm, ...]
    older: int


class Causes(msgspec.Struct, frozen=True, kw_only=True):
    """Section 11: the causes of a change of accuracy, ``change`` = ``covariate`` + ``rest``.

    First and newest rows are divided into groups of similar rows.  ``covariate`` is the effect of
    the changed sizes of the groups, ``rest`` that of changes within groups.  ``groups`` is the
    number of groups that could be compared, ``compared`` their share of the newest rows.
    """

    then: float
    now: float
    change: float
    covariate: float
    rest: float
    groups: int
    compared: float


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """Section 12, from the journal: the rate of events, and the numbers of verdicts."""

    events_per_s: float | None
    verdicts: dict[str, int]


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Section 13: data quality; counts of rows, and names of columns."""

    no_answer: int
    no_label: int
    no_time: int
    out_of_order: int
    constant: tuple[str, ...]
    left_out: tuple[str, ...]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Section 14: a term of the report and its meaning."""

    term: str
    text: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole report; ``made_at`` is the time at which it was made."""

    schema: str
    made_at: float
    verdict: Verdict
    subject: Subject
    performance: Performance
    agreement: Agreement | None
    comparison: tuple[Comparison, ...] | None
    calibration: Calibration | None
    prediction_drift: PredictionDrift | None
    feature_drift: FeatureDrift | None
    multivariate: Multivariate | None
    slices: Slices | None
    alarms: Alarms | None
    causes: Causes | None
    training: Training | None
    quality: Quality
    notes: tuple[Note, ...]
    not_computed: dict[str, str]

    def __repr__(self) -> str:
        return f"<report, {self.verdict.state.replace('_', ' ')}: {self.verdict.sentence}>"

    def _repr_html_(self) -> str:
        """Return the page in a frame, for display in a notebook."""
        from evaluation.report.page.render import render  # needs matplotlib and Jinja2

        page = escape(render(self))
        style = "width:100%;height:640px;border:0"
        return f'<iframe title="report" sandbox srcdoc="{page}" style="{style}"></iframe>'


def to_json(report: Report) -> bytes:
    """Return the report as JSON (UTF-8).  All numbers in it are finite."""
    return msgspec.json.encode(report)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the output of :func:`to_json`."""
    made = msgspec.json.schema(Report)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **made}
