"""A report consists of plain frozen values; ``msgspec.json.schema(Report)`` is its schema.

A number that could not be computed is None.  A section that was not computed is None, and
``Report.not_computed`` says why under the section's name.  Times are POSIX seconds; rows count
from 1 in the order in which they were read; rates and accuracies are in [0, 1].
"""

from __future__ import annotations

from html import escape
from typing import Any, Final, Literal

import msgspec

SCHEMA: Final = "online-report/1"
"""Name of the JSON's form.  A change that a reader would notice raises the number."""

State = Literal["ok", "watch", "act", "not_enough_data"]
EXIT_CODES: Final[dict[State, int]] = {"ok": 0, "watch": 0, "act": 1, "not_enough_data": 3}
"""Exit code of a command that reports; 2 is wrong usage."""


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One finding that moved the verdict.

    ``section`` is where the evidence stands, ``since_row`` and ``since_time`` where it began (None:
    not tied to a row).
    """

    state: State
    section: str
    text: str
    do: str
    since_row: int | None = None
    since_time: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The report in one sentence.  ``reasons`` are worst first; the first one gave the sentence."""

    state: State
    sentence: str
    do: str
    since_row: int | None
    since_time: float | None
    reasons: tuple[Reason, ...]
    exit_code: int


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The subject of a report is what was judged.

    Attributes:
        origin, name: ``file`` or ``journal``, and the file's or the model's name.
        labels, positive: Labels met, most frequent first (JSON text), and the positive one of a
            binary task.
        rows, predicted, labelled, judged: Rows read; with an answer; with a label; with both.
        coverage: labelled / rows.
        delay_p50_s, delay_p95_s: Time from answer to label.
        columns: Which column of a file was taken for what.
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
    """Metrics of a set of rows; what a task does not have is None.

    ``low`` and ``high``: 95 % Wilson interval of the accuracy.  ``majority`` and ``no_change`` are
    the accuracies of these rules on the same rows, ``mean_mae`` and ``last_mae`` their MAE.
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
    """Consecutive rows: how many, how many of them are judged, and how they were answered."""

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
    """A slice's scores; ``sure`` of its rows were answered with a set or an interval.

    The share ``covered`` of those had the label.
    """

    sure: int = 0
    covered: float | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Where the error of a window begins to be worth watching, and worth acting on.

    ``error`` and ``deviation`` are those of the windows of the reference (rows
    ``first_row … last_row``); ``error`` is 1 − accuracy or the MAE.
    """

    first_row: int
    last_row: int
    windows: int
    error: float
    deviation: float
    watch: float
    act: float


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy of ``n`` rows whose labels have not come, from the model's own confidence.

    ``labelled`` rows calibrate it (0: taken as it is); ``error`` is the standard error that chance
    alone gives; ``note`` says what it cannot see.
    """

    accuracy: float
    n: int
    labelled: int
    error: float
    note: str


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """Section 2.  ``recent`` are the last windows that have labels, as many as ``recent_windows``.

    ``estimate`` is of the rows without a label.
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
    """Section 3: the confusion matrix; ``counts[i][j]`` rows of label i were answered j."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    recall: tuple[float | None, ...]
    precision: tuple[float | None, ...]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A confidence sequence at a row: the mean difference so far and its band."""

    row: int
    mean: float
    low: float
    high: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Section 4: the model less a baseline, in accuracy; ``decided_row``: where 0 was first out."""

    baseline: str
    confidence: float
    steps: tuple[Step, ...]
    decided_row: int | None


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Rows whose score is in [low, high): how many, their mean score, and the share that was so."""

    low: float
    high: float
    n: int
    score: float | None
    rate: float | None


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Section 5.  ``of``: what the score is the probability of; ``recent`` as in section 2."""

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
    """How far two samples of one quantity are apart.

    ``psi`` and ``js`` (base 2, in [0, 1]) are of frozen reference bins, ``shift_sd`` the
    Wasserstein distance in standard deviations of the reference (None if it hardly varies), ``p``
    the two-sample test's, ``p_holm`` after Holm's correction over the table.
    """

    n_then: int
    n_now: int
    psi: float | None = None
    js: float | None = None
    shift_sd: float | None = None
    p: float | None = None
    p_holm: float | None = None


class PredictionDrift(msgspec.Struct, frozen=True, kw_only=True):
    """Section 6: what the model answered, then and now."""

    of: str
    spread: Spread
    histogram: Histogram | None
    mean_then: float | None
    mean_now: float | None
    rate_then: float | None
    rate_now: float | None


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """A row of section 7.

    Attributes:
        mean_then, mean_now: Of a number; ``top_then`` and ``top_now``: the most frequent category.
        missing_then, missing_now, new, outside: Shares of rows: without the feature; with a
            category that the reference has not; outside of the reference's range.
        spark: Mean (numbers) or share of the reference's top category in each window.
        importance: Mutual information with the model's answer, in [0, 1]; None: not computed.
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
    """Section 7: the reference (rows then), the newest rows (now), and features by effect."""

    then_first: int
    then_last: int
    now_first: int
    now_last: int
    features: tuple[Feature, ...]
    left_out: int


class Multivariate(msgspec.Struct, frozen=True, kw_only=True):
    """Section 8: can a classifier tell then from now?  AUC beside its permutation band."""

    auc: float
    low: float
    high: float
    n_then: int
    n_now: int
    drivers: tuple[str, ...]


class Slices(msgspec.Struct, frozen=True, kw_only=True):
    """Section 9: the worst of the slices that have at least ``n_min`` judged rows.

    ``declared``: all values of the features that the settings name.
    """

    looked_at: int
    n_min: int
    worst: tuple[Slice, ...]
    declared: tuple[Slice, ...] = ()


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """Section 10: one alarm.

    ``change_row`` is the detector's estimate of where it began, ``before`` and ``after`` the means
    on both sides of it.  ``worse``: it is an error that rose.
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
    """Section 10: the newest alarms, the newest first, and how many ``older`` ones there were."""

    detectors: tuple[str, ...]
    alarms: tuple[Alarm, ...]
    older: int


class Causes(msgspec.Struct, frozen=True, kw_only=True):
    """Section 11: ``change`` = ``covariate`` + ``rest``.

    Rows of then and now are put into groups of rows that look alike.  ``covariate`` is what the
    change in how many rows each group has would do by itself, ``rest`` what changed within groups.
    ``groups`` of them could be compared, with this share of the rows of now.
    """

    then: float
    now: float
    change: float
    covariate: float
    rest: float
    groups: int
    compared: float


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """Section 12, from the journal: how fast labels came, and what became of them."""

    events_per_s: float | None
    verdicts: dict[str, int]


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Section 13: what was found in the rows; each is a count of rows or values."""

    no_answer: int
    no_label: int
    no_time: int
    out_of_order: int
    constant: tuple[str, ...]
    left_out: tuple[str, ...]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Section 14: a word of the report, and what it means here."""

    term: str
    text: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of a report.  ``made_at`` is when."""

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
        """Return what a notebook shows: the page, in a frame of its own."""
        from evaluation.report.page import render  # it needs matplotlib and Jinja2

        page = escape(render(self))
        style = "width:100%;height:640px;border:0"
        return f'<iframe title="report" sandbox srcdoc="{page}" style="{style}"></iframe>'


def to_json(report: Report) -> bytes:
    """The report as JSON, UTF-8; numbers that are not finite can't be in it."""
    return msgspec.json.encode(report)


def schema() -> dict[str, Any]:
    """JSON Schema of what :func:`to_json` writes."""
    made = msgspec.json.schema(Report)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **made}
