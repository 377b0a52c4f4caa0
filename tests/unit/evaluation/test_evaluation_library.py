"""Evaluation as a library: its page runs; plain answers, times, a watch, reports of frames."""

from __future__ import annotations

import datetime as dt
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from river import linear_model, preprocessing

from evaluation import report
from evaluation.drift.watch import Watch, WatchSettings
from evaluation.errors import StreamUnusable, TableUnusable
from evaluation.learner import Answer
from evaluation.prequential import prequential
from evaluation.scores import Scores
from replay.example import Features, Label

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"


def test_every_block_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "error up at label" in said
    assert names["made"].verdict.state == "ok"
    assert names["made"]._repr_html_().startswith("<iframe")


# -- times -----------------------------------------------------------------------------------------


class Shown:
    """A learner that keeps what it is shown."""

    def __init__(self) -> None:
        self.asked: list[Features] = []
        self.taught: list[Features] = []

    def predict_one(self, x: Features) -> bool:
        self.asked.append(x)
        return True

    def learn_one(self, x: Features, y: Label) -> None:
        self.taught.append(x)


DAY = dt.datetime(2026, 3, 1, 12)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda t: t,
        lambda t: t.isoformat(),
        lambda t: t.strftime("%Y-%m-%d %H:%M"),
        pd.Timestamp,
        np.datetime64,
        lambda t: t.replace(tzinfo=dt.UTC),
    ],
)
@pytest.mark.parametrize("by", ["delta", "column"])
def test_a_column_of_times_needs_no_trick(spelled: Any, by: str) -> None:
    rows: Any = []
    for i in range(6):
        at = DAY + dt.timedelta(hours=i)
        x = {"at": spelled(at), "x": 1.0}
        if by == "column":
            x["label_at"] = spelled(at + dt.timedelta(hours=2)) if i != 3 else None
        rows.append((x, True))
    learner, seen = Shown(), list[int]()
    delay: Any = "label_at" if by == "column" else dt.timedelta(hours=2)
    judged = prequential(
        learner, rows, "binary", moment="at", delay=delay, each=lambda n, a, y: seen.append(n)
    )
    never = 1 if by == "column" else 0
    assert (judged.rows, judged.never) == (6, never)
    assert seen == [n for n in range(6) if n != 3 or by == "delta"]
    assert judged.late == 2, "those of the last two hours"
    shown = [{name: v for name, v in x.items() if v is not None} for x in learner.asked]
    assert shown == [{"x": 1.0}] * 6
    assert all("at" not in x for x in learner.taught)


def test_a_number_that_says_when_stays_a_feature() -> None:
    learner = Shown()
    rows: Any = [({"at": float(i), "x": 1.0}, True) for i in range(3)]
    prequential(learner, rows, "binary", moment="at", delay=1.0)
    assert learner.asked[2] == {"at": 2.0, "x": 1.0}


def test_dates_that_go_back_and_texts_that_are_none_are_refused() -> None:
    dates: Any = [({"at": dt.date(2026, 1, 2)}, True), ({"at": dt.date(2026, 1, 1)}, True)]
    with pytest.raises(StreamUnusable, match="row 1"):
        prequential(Shown(), dates, "binary", moment="at")
    texts: Any = [({"at": "soon"}, True)]
    with pytest.raises(StreamUnusable, match="label comes"):
        prequential(Shown(), texts, "binary", moment="at", delay=dt.timedelta(hours=1))


# -- the watch -------------------------------------------------------------------------------------


def stream(n: int, turn: int, seed: int = 0) -> list[tuple[Features, Label]]:
    draw = random.Random(seed)
    rows: list[tuple[Features, Label]] = []
    for i in range(n):
        x = draw.gauss(0, 1)
        rows.append(({"x": x}, (x > 0) == (i < turn)))
    return rows


@pytest.mark.parametrize("delay", [0, 50])
def test_a_change_is_seen_when_its_labels_come(delay: int) -> None:
    watch = Watch(WatchSettings())
    came: list[int] = []
    prequential(
        preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        stream(2_000, 1_000), "binary", delay=delay, watch=watch,
        each=lambda row, answer, label: came.append(row),
    )  # fmt: skip
    assert came == list(range(2_000))
    (first, *_) = watch.alarms
    assert first.worse
    assert 1_000 <= first.row < 1_200, "counted in labels, whenever they came"
    assert abs(first.since - 1_000) < 60
    assert watch.served_rows == watch.judged_rows == 2_000


def test_a_steady_stream_raises_nothing() -> None:
    """The control."""
    watch = Watch(WatchSettings())
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    prequential(model, stream(3_000, 3_000), "binary", watch=watch)
    assert [alarm for alarm in watch.alarms if alarm.worse] == []
    assert watch.state().state == "ok"


def test_the_watch_is_told_as_the_service_tells_it() -> None:
    told: list[tuple[Any, ...]] = []

    class Told:
        def served(self, features: Any, score: Any = None, *, at: Any = None) -> list[Any]:
            told.append(("served", dict(features), score, at))
            return []

        def judged(self, error: Any, *, rule: Any = None, at: Any = None) -> list[Any]:
            told.append(("judged", error, rule, at))
            return []

    class Sure:
        def predict_proba_one(self, x: Features) -> dict[str, float]:
            return {"a": 0.75, "b": 0.25}

        def learn_one(self, x: Features, y: Label) -> None: ...

    rows: Any = [({"at": DAY + dt.timedelta(seconds=i), "x": i}, y) for i, y in enumerate("abb")]
    watch: Any = Told()
    prequential(Sure(), rows, "multiclass", moment="at", delay=dt.timedelta(seconds=1), watch=watch)
    begun = DAY.replace(tzinfo=dt.UTC).timestamp()
    assert told == [
        ("served", {"x": 0}, 0.75, begun),
        ("judged", 0.0, None, begun + 1),
        ("served", {"x": 1}, 0.75, begun + 1),
        ("judged", 1.0, 1.0, begun + 2),
        ("served", {"x": 2}, 0.75, begun + 2),
        ("judged", 1.0, 0.0, begun + 3),
    ]
    told.clear()
    numbers: Any = [({"x": 1.0}, 2.5), ({"x": 1.0}, 3.0)]
    prequential(linear_model.LinearRegression(), numbers, "regression", watch=watch)
    assert [one[0] for one in told] == ["served", "judged"] * 2
    assert told[1][1] == 2.5
    assert told[0][2] is None, "a number is no score"


# -- plain answers ---------------------------------------------------------------------------------


def test_plain_answers_score_as_the_learner_that_gave_them_would() -> None:
    class Replaying:
        def __init__(self, answers: list[Any]) -> None:
            self._answers = iter(answers)

        def predict_proba_one(self, x: Features) -> dict[bool, float]:
            p = next(self._answers)
            return {False: 1.0 - p, True: p}

        def learn_one(self, x: Features, y: Label) -> None: ...

    draw = random.Random(3)
    labels = [draw.random() < 0.3 for _ in range(500)]
    answers = [min(max(0.4 * y + 0.5 * draw.random(), 0.0), 1.0) for y in labels]
    rows: Any = [({"x": 1.0}, y) for y in labels]
    wanted = prequential(Replaying(answers), rows, "binary", window=100)
    assert Scores.of("binary", answers, labels, window=100) == wanted
    assert Scores.of("binary", np.array(answers), np.array(labels), window=100) == wanted
    texts = pd.Series(["spam" if y else "ham" for y in labels])
    assert Scores.of("binary", pd.Series(answers), texts, window=100, positive="spam") == wanted
    shares = [{"spam": p, "ham": 1.0 - p} for p in answers]
    assert Scores.of("binary", shares, texts, window=100, positive="spam") == wanted


def test_labels_numbers_and_what_is_not_known() -> None:
    judged = Scores.of("multiclass", ["a", "b", None, 3], ["a", "c", "a", 3])
    assert (judged.rows, judged.total.n, judged.total.accuracy) == (4, 4, 0.5)
    two = Scores.of("binary", [1, 0, True, False], [True, True, 1, 0])
    assert two.total.accuracy == 0.75
    numbers = Scores.of("regression", np.array([1, 2]), [1.5, 4.0])
    assert numbers.total.mae == 1.25
    halves = Scores("binary"), Scores("binary")
    for half in halves:
        half.take(0.9, True)
    halves[0].merge(halves[1])
    assert halves[0].judged().rows == 2


@pytest.mark.parametrize(
    ("answers", "labels", "says"),
    [
        ([0.5], [True, False], "row 1': a label without an answer"),
        ([0.5, 0.5], [True], "row 1': an answer without a label"),
        ([0.5], ["yes"], "row 0': its label is 'yes'"),
        ([0.5], [None], "row 0': its label is None"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_row(answers: Any, labels: Any, says: str) -> None:
    with pytest.raises(StreamUnusable, match=says):
        Scores.of("binary", answers, labels)
    with pytest.raises(StreamUnusable, match="its answer is 'x'"):
        Scores.of("regression", ["x"], [1.0])


def test_an_answer_that_is_no_probability_counts_as_none() -> None:
    judged = Scores.of("binary", [math.nan, 1.5, 0.9], [True, True, True])
    assert judged.total.accuracy == pytest.approx(1 / 3)
    assert Answer(None, usable=False).label is None


# -- reports ---------------------------------------------------------------------------------------


def frame(n: int = 1_500) -> pd.DataFrame:
    draw = random.Random(1)
    truth = [draw.random() < 0.4 for _ in range(n)]
    return pd.DataFrame(
        {
            "timestamp": pd.date_range("2026-01-01", periods=n, freq="h"),
            "score": [0.6 * y + 0.4 * draw.random() for y in truth],
            "label": truth,
            "amount": [draw.gauss(20.0 + 5.0 * y, 3.0) for y in truth],
        }
    )


def test_a_frame_is_reported_on_as_its_file(tmp_path: Path) -> None:
    table = frame()
    table.to_parquet(tmp_path / "t.parquet", index=False)
    of_file = report.of(tmp_path / "t.parquet")
    for made in (report.of(table), report.of(pa.Table.from_pandas(table, preserve_index=False))):
        assert made.verdict == of_file.verdict
        assert made.performance == of_file.performance
        assert made.feature_drift == of_file.feature_drift
        assert made.subject.first_time == of_file.subject.first_time is not None
        assert (made.subject.name, of_file.subject.name) == ("the frame", "t.parquet")
    columns = {name: table[name].tolist() for name in ("score", "label", "amount")}
    assert report.of(columns).subject.judged == 1_500
    assert "report" in report.of(str(tmp_path / "t.parquet"))._repr_html_()


def test_columns_are_named_and_errors_say_how() -> None:
    table = frame().rename(columns={"score": "p", "label": "sold"})
    made = report.of(table, label="sold", score="p", features=["amount"], time="timestamp")
    assert made.verdict.state == "ok"
    with pytest.raises(TableUnusable, match=r"Name it with label=…"):
        report.of(table)
    with pytest.raises(TableUnusable, match=r"Did you mean `sold`.*Give label=… one of"):
        report.of(table, label="solt")
    with pytest.raises(TableUnusable, match="data frame of plain columns"):
        report.of(3)
