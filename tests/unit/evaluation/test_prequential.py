"""Test-then-learn with late labels: beside river's own loop, a loop written down, and by hand."""

from __future__ import annotations

import datetime as dt
import math
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import evaluate, linear_model, metrics, optim, preprocessing

from evaluation.errors import LearnerFailed, StreamUnusable
from evaluation.learner import Answer
from evaluation.metrics import Task
from evaluation.prequential import prequential
from evaluation.scores import MISSING, OTHERS, SLICES_MAX, Scores
from evaluation.streams import Stream, open_stream
from replay.example import Features, Label

Rows = list[tuple[Features, Label]]


def logistic() -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05))


class Trace:
    """Answers what it was given, and keeps the order of all calls."""

    def __init__(self, answer: Any = True) -> None:
        self.answer = answer
        self.calls: list[str] = []

    def predict_one(self, x: Features) -> Any:
        self.calls.append(f"?{x['i']}")
        return self.answer

    def learn_one(self, x: Features, y: Label) -> None:
        self.calls.append(f"!{x['i']}")


def numbered(labels: Iterable[Any], **columns: list[Any]) -> Any:
    """Rows with their number as a feature, and the columns given."""
    return [
        ({"i": i, **{name: values[i] for name, values in columns.items()}}, y)
        for i, y in enumerate(labels)
    ]


def _real(name: str) -> Stream:
    directory = os.environ.get("ONLINE_DATA_DIR")
    try:
        return open_stream(name, Path(directory) if directory else None)
    except StreamUnusable as error:
        pytest.skip(str(error))


# -- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 1])
def test_a_label_at_once_is_known_to_the_next_question(delay: int) -> None:
    trace = Trace()
    prequential(trace, numbered([True] * 3), "binary", delay=delay)
    assert trace.calls == ["?0", "!0", "?1", "!1", "?2", "!2"]


def test_labels_are_late_by_rows() -> None:
    trace = Trace()
    judged = prequential(trace, numbered([True] * 4), "binary", delay=3)
    assert trace.calls == ["?0", "?1", "?2", "!0", "?3", "!1", "!2", "!3"]
    assert (judged.rows, judged.late, judged.never, judged.total.n) == (4, 3, 0, 4)


def test_labels_are_late_by_time_a_field_and_a_function() -> None:
    start = dt.datetime(2024, 1, 1)
    hours = [start + dt.timedelta(hours=h) for h in (0, 1, 1, 5)]
    expected = ["?0", "?1", "?2", "!0", "!1", "!2", "?3", "!3"]
    by_time = Trace()
    rows = numbered([True] * 4, t=hours)
    prequential(by_time, rows, "binary", moment="t", delay=dt.timedelta(hours=2))
    by_field = Trace()
    rows = numbered([True] * 4, t=[0, 1, 1, 5], wait=[2, 2, 2, 2])
    prequential(by_field, rows, "binary", moment="t", delay="wait")
    by_function = Trace()
    prequential(by_function, rows, "binary", moment=lambda x: x["t"], delay=lambda x, y: x["wait"])
    assert by_time.calls == by_field.calls == by_function.calls == expected


def test_labels_come_out_of_order_or_never() -> None:
    trace = Trace()
    rows = numbered([True, True, None, True, False], wait=[3, 1, 1, None, 0])
    judged = prequential(trace, rows, "binary", delay="wait")
    assert trace.calls == ["?0", "?1", "!1", "?2", "!0", "?3", "?4", "!4"]
    assert (judged.rows, judged.never, judged.late, judged.total.n) == (5, 2, 0, 3)
    assert judged.total.accuracy == 2 / 3


def test_no_change_knows_the_newest_row_whose_label_has_come() -> None:
    # The label of row 0 comes after that of row 1: the newer one stays the newest.
    rows = numbered(["b", "a", "a", "a"], wait=[2, 1, 1, 1])
    judged = prequential(Trace("a"), rows, "multiclass", delay="wait")
    # row 0: nothing known; 1: nothing; 2: "a" of row 1, and "b" of row 0; 3: "a" of row 2.
    assert judged.total.no_change == 2 / 4
    # of "a" and "b", once each, the one that comes first in the alphabet
    assert judged.total.majority == 2 / 4


# -- beside others -------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 7, 400])
def test_as_rivers_own_loop(delay: int) -> None:
    data = open_stream("phishing")
    metric = metrics.Accuracy() + metrics.LogLoss()
    theirs = evaluate.progressive_val_score(data.rows, logistic(), metric, delay=delay)
    ours = prequential(logistic(), data.rows, "binary", delay=delay)
    assert ours.total.accuracy == pytest.approx(theirs[0].get(), abs=1e-12)
    assert ours.total.log_loss == pytest.approx(theirs[1].get(), abs=1e-9)


def test_regression_as_rivers_own_loop() -> None:
    rng = random.Random(1)
    rows: Rows = []
    for _ in range(400):
        a = rng.gauss(0, 1)
        rows.append(({"a": a}, 100.0 + 3 * a + rng.gauss(0, 0.5)))

    def make() -> Any:
        return preprocessing.StandardScaler() | linear_model.LinearRegression(optim.SGD(0.05))

    metric = metrics.MAE() + metrics.RMSE() + metrics.R2()
    theirs = evaluate.progressive_val_score(rows, make(), metric, delay=5)
    total = prequential(make(), rows, "regression", delay=5).total
    for ours, their in zip((total.mae, total.rmse, total.r2), theirs, strict=True):
        assert ours == pytest.approx(their.get(), rel=1e-9)


@pytest.mark.data
@pytest.mark.parametrize(("delay", "expected"), [(1, 0.8533), (48, 0.6562), (336, 0.6606)])
def test_published_no_change_on_elec2(delay: int, expected: float) -> None:
    """The figures are of the rows for which the rule knows a label; here the others are wrong."""
    judged = prequential(Trace(), numbered_labels(_real("elec2")), "binary", delay=delay)
    assert judged.total.no_change is not None
    assert round(judged.total.no_change * judged.rows / (judged.rows - delay), 4) == expected


def numbered_labels(stream: Stream) -> Any:
    return (({"i": i}, y) for i, (_, y) in enumerate(stream.rows))


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 6)), min_size=1, max_size=40
    )
)
@settings(max_examples=200, deadline=None)
def test_as_a_loop_over_all_rows_for_each(rows: list[tuple[str, int | None]]) -> None:
    """The oracle looks through all earlier rows at each question; no queue, no counters."""
    judged = prequential(
        Trace("a"), numbered([y for y, _ in rows], w=[w for _, w in rows]), "multiclass", delay="w"
    )
    scored = [i for i, (_, w) in enumerate(rows) if w is not None]
    same = right = 0
    for i in scored:
        known = [j for j in scored if j < i and j + (rows[j][1] or 0) <= i]
        same += bool(known) and rows[max(known)][0] == rows[i][0]
        right += rows[i][0] == "a"
    assert judged.total.n == len(scored)
    assert judged.never == len(rows) - len(scored)
    if scored:
        assert judged.total.no_change == same / len(scored)
        assert judged.total.accuracy == right / len(scored)
    else:
        assert judged.total.accuracy is None


def test_a_learner_is_told_again_what_it_noted() -> None:
    class Noting:
        told: list[tuple[object, object]]

        def __init__(self) -> None:
            self.told = []

        def learn_one(self, x: Features, y: Label) -> None:
            raise AssertionError("it has notes")

        def answer_noted(self, x: Features) -> tuple[Answer, object]:
            return Answer(True), x["i"]

        def learn_noted(self, x: Features, y: Label, notes: object) -> None:
            self.told.append((x["i"], notes))

    noting = Noting()
    prequential(noting, numbered([True] * 5), "binary", delay=2)
    assert noting.told == [(i, i) for i in range(5)]


# -- windows, slices, replicas -------------------------------------------------------------------


def test_late_labels_count_where_the_row_was_asked() -> None:
    labels = [True] * 10 + [False] * 10
    judged = prequential(Trace(True), numbered(labels), "binary", delay=7, window=10)
    assert [(w.start, w.end, w.summary.accuracy) for w in judged.windows] == [
        (0, 10, 1.0),
        (10, 20, 0.0),
    ]


def test_slices_have_n_and_an_interval() -> None:
    rows = [({"i": i, "day": i % 3 if i % 7 else None}, i % 2 == 0) for i in range(70)]
    judged = prequential(Trace(True), rows, "binary", slices={"day": lambda x: x["day"]})  # type: ignore[arg-type]
    by = {s.value: s.summary for s in judged.slices}
    assert {value: s.n for value, s in by.items()} == {"0": 20, "1": 20, "2": 20, MISSING: 10}
    for s in by.values():
        assert s.interval is not None
        assert s.accuracy is not None
        assert s.interval.low < s.accuracy < s.interval.high


def test_slices_are_bounded() -> None:
    judged = prequential(
        Trace(True), numbered([True] * 300), "binary", slices={"row": lambda x: x["i"]}
    )
    assert len(judged.slices) == SLICES_MAX + 1
    assert {s.value: s.summary.n for s in judged.slices}[OTHERS] == 300 - SLICES_MAX


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_scores_of_replicas_add_up(task: Task) -> None:
    rng = random.Random(5)
    rows = []
    for i in range(600):
        p = rng.random()
        if task == "regression":
            rows.append((i, float(rng.randint(0, 9)), Answer(float(rng.randint(0, 9)))))
        elif task == "binary":
            rows.append((i, rng.random() < p, Answer(p > 0.5, {True: p, False: 1 - p})))
        else:
            rows.append((i, rng.choice("abc"), Answer("a", {"a": p, "b": 1 - p})))

    def scores() -> Scores:
        return Scores(task, window=1, windows_max=64, slices={"k": lambda x: x["k"]})

    whole, parts = scores(), [scores() for _ in range(3)]
    for i, label, answer in rows:
        for target in (whole, parts[rng.randrange(3)]):
            target.add(
                i, {"k": i % 4}, label, answer, no_change=rows[i - 1][1], majority=rows[0][1]
            )  # fmt: skip
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    one, other = whole.judged(rows=600), merged.judged(rows=600)
    assert one.windows[0].end == other.windows[0].end
    assert_close(one, other)


def assert_close(a: Any, b: Any) -> None:
    """Equal but for the rounding of sums in another order."""
    if isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-9)
    elif hasattr(a, "__dataclass_fields__"):
        for name in a.__dataclass_fields__:
            assert_close(getattr(a, name), getattr(b, name))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    else:
        assert a == b


def test_memory_does_not_grow_with_the_stream() -> None:
    scores = Scores("binary", window=10, windows_max=16)
    sizes = []
    for i in range(20_000):
        p = (i * 7919 % 1000) / 1000
        answer = Answer(p > 0.5, {True: p, False: 1 - p})
        scores.add(i, {}, i % 2 == 0, answer, no_change=True, majority=True)
        if i + 1 in (10_000, 20_000):
            sizes.append((len(scores.total), len(scores.windows)))
    assert sizes[0][0] == sizes[1][0] < 400
    assert sizes[1][1] <= 16


# -- input that is no good -----------------------------------------------------------------------


def test_an_empty_stream_is_not_enough() -> None:
    judged = prequential(logistic(), [], "binary")
    assert judged.lacking == ("no row has both an answer and a label",)
    assert judged.total.accuracy is None


def test_eight_rows_are_not_enough() -> None:
    judged = prequential(logistic(), list(open_stream("phishing").rows)[:8], "binary")
    assert judged.lacking == ("8 labelled rows, a score needs 30",)


def test_one_class_has_no_kappa_area_or_balance() -> None:
    judged = prequential(logistic(), [({"a": i % 5}, True) for i in range(100)], "binary")
    total = judged.total
    assert (total.balanced_accuracy, total.auc) == (None, None)
    assert judged.lacking == ("all labels are True: one class only",)


def test_a_constant_target_has_no_r2() -> None:
    rows = [({"a": i}, 1e12) for i in range(100)]
    judged = prequential(linear_model.LinearRegression(optim.SGD(0.0)), rows, "regression")
    assert judged.total.r2 is None
    assert judged.lacking == ("the targets hardly differ: no R²",)


def test_labels_that_all_come_after_the_last_question() -> None:
    judged = prequential(logistic(), open_stream("phishing").rows, "binary", delay=5_000)
    assert judged.late == judged.rows == 1250
    assert "all labels came after the last question" in judged.lacking[-1]


def test_labels_that_never_come() -> None:
    rows = [({"a": 1.0}, None)] * 50
    judged = prequential(logistic(), rows, "binary")
    assert (judged.never, judged.total.n) == (50, 0)
    assert judged.lacking


class Fixed:
    """Answers the same for each row."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def predict_proba_one(self, x: Features) -> Any:
        return self.answer

    def predict_one(self, x: Features) -> Any:
        return self.answer

    def learn_one(self, x: Features, y: Label) -> None:
        pass


@pytest.mark.parametrize(
    "answer", [{True: math.nan, False: math.nan}, {True: 1e12, False: 0}, {True: -1, False: 2}]
)
def test_probabilities_that_are_none_are_wrong_answers(answer: Any) -> None:
    rows: Rows = [({}, i % 2 == 0) for i in range(60)]
    judged = prequential(Fixed(answer), rows, "binary")
    total = judged.total
    assert (total.n, total.unusable, total.accuracy) == (60, 60, 0.0)
    assert (total.log_loss, total.brier, total.ece, total.auc) == (None,) * 4
    assert "60 answers were no finite numbers" in judged.lacking[0]


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_has_no_error(answer: float) -> None:
    rows: Rows = [({}, float(i % 2)) for i in range(60)]
    judged = prequential(Fixed(answer), rows, "regression")
    assert (judged.total.n, judged.total.unusable, judged.total.mae) == (0, 60, None)
    assert judged.lacking


def test_a_regressor_that_answers_nothing_is_said_to() -> None:
    rows: Rows = [({}, float(i % 2)) for i in range(60)]
    judged = prequential(Fixed(None), rows, "regression")
    assert (judged.total.n, judged.total.unanswered) == (0, 60)
    assert "60 rows were not answered" in judged.lacking[-1]


def test_a_learner_that_is_spoilt_by_nan_is_found_out() -> None:
    rows = list(open_stream("phishing").rows)
    rows[500] = ({**rows[500][0], "is_popular": math.nan}, True)
    judged = prequential(logistic(), rows, "binary")
    assert judged.total.unusable == 1250 - 501 + 1  # that row's answer was NaN already
    assert judged.lacking


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ("binary", math.nan),
        ("binary", 2),
        ("binary", "UP"),
        ("multiclass", math.nan),
        ("multiclass", (1, 2)),
        ("regression", math.nan),
        ("regression", math.inf),
        ("regression", "3"),
        ("regression", True),
    ],
)
def test_a_label_that_is_none_is_named(task: Task, label: Any) -> None:
    rows = [({"i": 0}, 1), ({"i": 1}, label)]
    with pytest.raises(StreamUnusable, match=r"row 1.*its label is"):
        prequential(Trace(1), rows, task)


@pytest.mark.parametrize("times", [[3, 1, 2], [1, math.nan, 2], [1, None, 2], [1, "x", 2]])
def test_moments_that_go_back_are_named(times: list[Any]) -> None:
    with pytest.raises(StreamUnusable, match=r"row 1.*its moment is.*Sort the rows"):
        prequential(Trace(), numbered([True] * 3, t=times), "binary", moment="t", delay=1)


@pytest.mark.parametrize("wait", [-1, math.nan, "soon"])
def test_a_delay_that_is_none_is_named(wait: Any) -> None:
    with pytest.raises(StreamUnusable, match=r"row 0.*its label comes"):
        prequential(Trace(), numbered([True], w=[wait]), "binary", delay="w")


def test_awaited_labels_are_bounded() -> None:
    rows = numbered([True] * 6)
    prequential(Trace(), rows[:5], "binary", delay=99, waiting_max=5)
    with pytest.raises(StreamUnusable, match=r"row 5.*5 labels are awaited.*waiting_max"):
        prequential(Trace(), rows, "binary", delay=99, waiting_max=5)


def test_a_learner_that_raises_is_named_with_its_row() -> None:
    class Raising(Trace):
        def learn_one(self, x: Features, y: Label) -> None:
            if x["i"] == 3:
                raise KeyError("a")

    with pytest.raises(LearnerFailed, match="can't learn row 3: KeyError"):
        prequential(Raising(), numbered([True] * 5), "binary")
    with pytest.raises(LearnerFailed, match="can't answer row 1: KeyError"):
        prequential(Trace(), [({"i": 0}, True), ({}, True)], "binary")
    with pytest.raises(LearnerFailed, match="can't learn row 0: TypeError"):
        prequential(logistic(), [({"a": "text"}, True)], "binary")


def test_an_object_that_is_no_learner_is_refused() -> None:
    with pytest.raises(TypeError, match="no learn_one"):
        prequential(object(), [], "binary")

    class Mute:
        def learn_one(self, x: Features, y: Label) -> None:
            pass

    with pytest.raises(TypeError, match="no predict_one"):
        prequential(Mute(), [], "binary")


def test_the_examples_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    examples = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    for example in examples:
        exec(compile(example, "docs/evaluation.md", "exec"), {})
    said = capsys.readouterr().out
    assert "enough data" in said
    assert said.endswith(" a\n")
    assert len(examples) == 5
