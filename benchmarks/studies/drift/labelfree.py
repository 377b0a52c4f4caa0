"""Accuracy without labels, beside the accuracy that the labels show later."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from river import linear_model, optim, preprocessing

from benchmarks.studies.drift.detectors import Progress
from evaluation.drift.labelfree import LabelFree
from evaluation.errors import StreamUnusable
from evaluation.streams import open_stream

CHUNK: Final = 1_000
SWAP_AT: Final = 30_000
SWAPPED: Final = 2_000
ACS: Final = ("acs_employment_MA", "employment_MA_{}.pq")


@dataclass(frozen=True, slots=True)
class Line:
    """Mean and largest distance between estimate and truth over the spans.

    ``asked`` is what confidence without calibration was measured to have on the same rows;
    ``plain_error`` is that, measured here.
    """

    what: str
    spans: int
    estimated: float
    true: float
    mean_error: float
    largest: float
    plain_error: float
    asked: str
    good: bool


@dataclass(frozen=True, slots=True)
class Span:
    """One span: the estimate before its labels came, plain confidence, and the truth."""

    estimated: float
    plain: float
    true: float


def elec2(data_dir: Path | None) -> tuple[list[Span], list[Span]]:
    """Logistic regression (SGD .05) on Elec2, per 1,000 rows; and after a swap of the labels.

    The model learns each label at once, as in the reference figures; the calibration knows only
    labels of earlier spans.  For the swap the model of row 30,000 stays as it is and the labels of
    the next 2,000 rows are the opposite ones: inputs and confidence are as before.
    """
    model: Any = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05))
    rows = list(open_stream("elec2", data_dir).rows)
    judge, spans, swapped = LabelFree(), [], []
    asked: list[tuple[float, bool]] = []
    for i, (x, y) in enumerate(rows):
        if i == SWAP_AT:
            swapped = list(_swap(model, rows[i : i + SWAPPED], judge))
        asked.append(_answer(model, x, y, judge))
        model.learn_one(x, y)
        if len(asked) == CHUNK:
            spans.append(_close(judge, asked))
            asked = []
    return spans, swapped


def _answer(model: Any, x: Any, y: Any, judge: LabelFree) -> tuple[float, bool]:
    p = model.predict_proba_one(x).get(True, 0.5)
    confidence = max(p, 1.0 - p)
    judge.served(confidence)
    return confidence, (p > 0.5) == y


def _swap(model: Any, rows: Sequence[Any], judge: LabelFree) -> Iterator[Span]:
    """The judge is left as it was: answers are marked as judged, and nothing is learned."""
    other = LabelFree()
    other.merge(judge.counters())
    asked = [_answer(model, x, not y, other) for x, y in rows]
    yield _span(other, asked)


def _span(judge: LabelFree, asked: Sequence[tuple[float, bool]]) -> Span:
    estimate = judge.estimate().accuracy
    assert estimate is not None
    plain = statistics.fmean(confidence for confidence, _ in asked)
    return Span(estimate, plain, statistics.fmean(right for _, right in asked))


def _close(judge: LabelFree, asked: Sequence[tuple[float, bool]]) -> Span:
    span = _span(judge, asked)
    for confidence, right in asked:
        judge.judged(confidence, right)
    return span


def acs(data_dir: Path | None) -> list[Span]:
    """A fixed model on the census of Massachusetts: calibrated on 2015, then year by year.

    Raises:
        StreamUnusable: The tables are not there, or pyarrow is not installed.
    """
    judge = LabelFree(memory=1_000_000)
    for confidence, right, _ in _acs(data_dir, "reference"):
        judge.judged(confidence, right, was_open=False)
    years: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right, year in _acs(data_dir, "analysis"):
        years.setdefault(year, []).append((confidence, right))
    spans = []
    for year in sorted(years):
        own = LabelFree(memory=1_000_000)
        own.merge(judge.counters())
        for confidence, _ in years[year]:
            own.served(confidence)
        spans.append(_span(own, years[year]))
    return spans


def _acs(data_dir: Path | None, part: str) -> Iterator[tuple[float, bool, int]]:
    """Confidence, whether the answer was right, and the year."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise StreamUnusable(ACS[0], "it is Parquet", "Install pyarrow") from error
    if data_dir is None:
        raise StreamUnusable(ACS[0], "no data directory is set", "Set ONLINE_DATA_DIR")
    path = data_dir / ACS[0] / ACS[1].format(part)
    try:
        table = parquet.read_table(path).to_pydict()
        if part == "analysis":
            late = data_dir / ACS[0] / ACS[1].format("analysis_target")
            labels = parquet.read_table(late).to_pydict()
            of = dict(zip(labels["id"], labels["employed"], strict=True))
            table["employed"] = [of[i] for i in table["id"]]
    except (OSError, KeyError) as error:
        raise StreamUnusable(str(path), str(error), "Name the folder of the tables") from error
    for p, answer, label, year in zip(
        table["predicted_probability"], table["prediction"], table["employed"], table["year"],
        strict=True,
    ):  # fmt: skip
        yield max(p, 1.0 - p), answer == label, year


def run(data_dir: Path | None, *, progress: Progress = lambda line: None) -> list[Line]:
    """Both tables, and the swap that no estimate without labels can see."""
    progress("label-free estimate: Elec2")
    spans, swapped = elec2(data_dir)
    progress("label-free estimate: ACS")
    return [
        _line("Elec2, per 1,000 rows", spans, 0.0227, "<= .0227"),
        _line("ACS employment, per year", acs(data_dir), 0.004, "<= .004"),
        _line("Elec2, labels swapped: must fail", swapped, None, ""),
    ]


def _line(what: str, spans: Sequence[Span], bound: float | None, asked: str) -> Line:
    errors = [abs(span.estimated - span.true) for span in spans]
    mean = statistics.fmean(errors)
    return Line(
        what,
        len(spans),
        statistics.fmean(span.estimated for span in spans),
        statistics.fmean(span.true for span in spans),
        mean,
        max(errors),
        statistics.fmean(abs(span.plain - span.true) for span in spans),
        asked,
        mean > 0.3 if bound is None else mean <= bound,
    )
