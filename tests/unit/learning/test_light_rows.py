"""Rows count in scores and in the coverage of sets as often as they weigh."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from river import linear_model, optim

from evaluation import light_rows
from online.learning.counters import Tally
from online.learning.merged import Learner
from online.learning.scores import increments_of
from online.models.adapters.linear import Linear
from online.sure.calibration import Calibration
from online.sure.conformal import Confidence
from online.sure.views import stamp_of
from paramserver.core.wire import FORMAT, SyncReply
from replay import codec
from replay.example import Corrects, Example, label_text
from replay.journal.base import Row, Verdict

LIGHT = 1e-9


def counted(weights: Sequence[float], tally: Tally | None = None) -> list[bool]:
    """Which of the rows with these weights count."""
    tally, out = tally or Tally(), []
    for n, weight in enumerate(weights):
        out.append(tally.weigh(Example({}, True, weight)))
        tally.add(n.to_bytes(16, "big"), {}, None, 0.0)
    return out


@pytest.mark.parametrize("weight", [LIGHT, 0.01, 0.1, 1.0, 2.0, 1e6])
def test_rows_that_all_weigh_the_same_count(weight: float) -> None:
    assert all(counted([weight] * 2_000))


def test_rows_of_1_and_more_count_whatever_others_weigh() -> None:
    draw = random.Random(1)
    weights = [draw.choice([1.0, 2.0, 0.3, LIGHT]) for _ in range(2_000)]
    found = list(zip(weights, counted(weights), strict=True))
    assert all(counts for weight, counts in found if weight >= 1.0)
    assert sum(counts for weight, counts in found if weight == LIGHT) <= 1
    assert 0.25 < sum(c for w, c in found if w == 0.3) / weights.count(0.3) < 0.35


def test_light_rows_before_all_others_are_soon_the_exception() -> None:
    found = counted([LIGHT] * 5_000 + [1.0, LIGHT] * 500)
    assert all(found[5_000::2])
    assert sum(found[5_001::2]) <= 1


def test_where_all_weigh_less_from_now_on_rows_count_again() -> None:
    draw = random.Random(2)
    found = counted([1.0] * 2_000 + [draw.uniform(0.08, 0.12) for _ in range(10_000)])
    assert all(found[:2_000])
    assert sum(found[2_000:3_000]) < 300
    assert sum(found[-1_000:]) > 800


def test_heavy_rows_hide_nobody() -> None:
    assert all(counted([1.0, 0.99, 1e6, 1e300] * 300)[-1_200::4])


def late_rows(heavy: int) -> int:
    """Rows that count after some rows of a million times the usual weight."""
    return sum(counted([0.5] * 1_000 + [1e6] * heavy + [0.5] * 10_000)[-10_000:])


def test_a_few_heavy_rows_do_not_decide_what_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    assert late_rows(1) > 9_900
    assert late_rows(20) > 9_000
    monkeypatch.setattr(light_rows, "max", lambda *of: 1e9 if of[-1] == 1.0 else max(of), False)
    assert late_rows(1) < 6_000, "the control: a heavy row moves what is usual as it weighs"


def test_numbers_at_the_ends_of_the_range_are_weights_too() -> None:
    draw = random.Random(3)
    counted([draw.choice([5e-324, 1e-200, 1e-160, 1.0, 1e150]) for _ in range(3_000)])


def test_the_service_chooses_what_a_default_label_weighs() -> None:
    tally = Tally()
    counted([1.0] * 100, tally)
    assert tally.weigh(Example({}, False, LIGHT, late=0.5))
    first = Corrects(0, 0, b"", False, LIGHT, "s", {}, True)
    assert tally.weigh(Example({}, True, LIGHT, corrects=first))
    assert not tally.weigh(Example({}, True, LIGHT))


def test_rows_are_counted_in_one_pass_after_light_ones() -> None:
    one, many = Tally(), Tally()
    draw = random.Random(5)
    examples = [
        Example({}, draw.random() < 0.5, weight, {"false": 0.25, "true": 0.75})
        for weight in [0.25] + [draw.choice([1.0, 1.5, 3.0]) for _ in range(40)]
    ]
    rows = [
        Row(n, 1, n, n.to_bytes(16, "little"), "", "s", Verdict.ACCEPTED, 1.0, b"", float(n))
        for n in range(1, 42)
    ]
    for tally in (one, many):
        assert not tally.add_binary(rows[:1], examples[:1]), "a light row is counted by itself"
    for tally, by_one in ((one, 41), (many, 1)):
        for row, example in zip(rows[:by_one], examples[:by_one], strict=True):
            increments = increments_of("binary", example, tally) if tally.weigh(example) else {}
            tally.add(row.key, increments, label_text(example.label), row.at)
    assert many.add_binary(rows[1:], examples[1:])
    assert many.counters == pytest.approx(one.counters)
    assert many.counters["weight/sum"] == one.counters["weight/sum"] != 0.25


def test_replicas_know_together_what_is_usual() -> None:
    one, other = Tally(), Tally()
    counted([1.0, 0.5] * 300, one)
    other.reset(one.cut())
    assert other.counters == one.counters
    assert sum(counted([LIGHT] * 50, other)) <= 1


def served(*, attacked: bool) -> tuple[float, float, float, int]:
    """Accuracy and coverage as shown, mean size of honest rows' sets, and rows learned."""
    learner: Any = Learner(
        lambda: Linear(linear_model.LogisticRegression(optim.SGD(0.05))), task="binary",
        spec="f" * 64, retain_bytes=1 << 20, rows_max=40,
    )  # fmt: skip
    learner.open_partition(1)
    learner.on_reply(SyncReply(FORMAT, "", 1, 0, [], "all", {}, {}, [], {}, [], 0.0))
    sure, sharp = Confidence("binary", 0.9), Calibration()
    learner.tally.views = [sure, sharp]
    draw, n, sizes = random.Random(4), 0, []
    for i in range(3_000):
        x = draw.gauss(0.0, 3.0)
        truth = draw.random() < 1.0 / (1.0 + math.exp(-x))
        for label, weight in [(truth, 1.0), *[(x < 0.0, LIGHT)] * (attacked and i % 3 == 0)]:
            n += 1
            features = {"x": x}
            score = {str(k).lower(): p for k, p in learner.predict(features).probabilities.items()}
            stamp = stamp_of(sure, sharp, features)
            assert stamp is not None
            if weight == 1.0 and i >= 1_000:
                sizes.append(len(sure.labels(sure.stamp(features), score) or ()))
            example = Example(features, label, weight, score, (1, 1, 0), sure=stamp)
            key, payload = n.to_bytes(16, "little"), codec.encode(example)
            row = Row(n, 1, n, key, str(n), "s", Verdict.ACCEPTED, 1.0, payload, float(n))
            assert learner.learn(row) is None
    shown = learner.tally.counters
    size = sum(sizes) / len(sizes)
    return shown["correct"] / shown["n"], sure.summary()["coverage"], size, learner.tally.digest[0]


@pytest.mark.parametrize("works", [True, False])
def test_lies_that_weigh_nothing_move_neither_scores_nor_sets(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    accuracy, coverage, size, n = served(attacked=False)
    assert n == 3_000
    if not works:
        monkeypatch.setattr(Tally, "weigh", lambda self, example: True)
    found = served(attacked=True)
    assert found[3] == 4_000, "they are learned all the same"
    assert (abs(found[0] - accuracy) < 0.01) is works
    assert abs(found[1] - coverage) < 0.02
    assert (found[2] < size + 0.05) is works, "sets hold twice the labels otherwise"
