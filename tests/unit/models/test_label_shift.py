"""Answers to late labels in runs are corrected by the labels' shares, where that pays."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from online.edge.lowering.lower import lower
from online.edge.targets.golden import answer as shown
from online.edge.targets.golden import golden
from online.models.auto import Auto
from online.models.experts import label_shift
from online.models.experts.exponential_weights import NotesFormat
from online.models.experts.label_shift import LabelShift
from online.models.experts.linear import EXPERTS
from online.models.selfrate import Multiclass, SelfRate
from online.sure.contributions import added_up
from paramserver.core.blocks import Blocks, merge
from replay.example import Example, Features, label_text

ROWS, RUN, LATE = 4_000, 100, 200


@pytest.fixture(autouse=True)
def linear_heeds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is that of ``linear``, too, which is smaller; only ``auto`` uses it."""
    monkeypatch.setattr(Multiclass, "heeds_shift", True)


def in_runs(run: int = RUN, rows: int = ROWS) -> Iterator[tuple[Features, str]]:
    rng, label = random.Random(5), "a"
    for i in range(rows):
        label = rng.choice("abc") if i % run == 0 else label
        yield {name: rng.gauss(float(label == name), 0.8) for name in "abc"}, label


def played(recipe: SelfRate, late: int, run: int = RUN) -> tuple[Any, float, set[int]]:
    """The model after its rows, the share that it had right, and how many answers notes hold."""
    model: Any = recipe.model_for("multiclass")
    waiting, right, sizes = deque[Example](), 0, set[int]()
    for x, y in in_runs(run):
        found = model.predict(x)
        right += found.label == y
        if found.probabilities:
            sizes.add(len(found.notes) // (2 * len(found.probabilities)))
        score = {label_text(k): p for k, p in found.probabilities.items()}
        waiting.append(Example(x, y, score=score, notes=found.notes))
        if len(waiting) > late:
            model.learn_noted(waiting.popleft(), 1.0)
    return model, right / ROWS, sizes


@pytest.mark.parametrize("recipe", [SelfRate(), Auto()], ids=["linear", "auto"])
def test_late_labels_in_runs_are_answered_better(
    recipe: SelfRate, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, right, _ = played(recipe, LATE)
    assert model._experts.shift.gain > label_shift.AHEAD
    monkeypatch.setattr(label_shift, "AHEAD", math.inf)
    _, plain, _ = played(recipe, LATE)
    assert right > plain + 0.02


def test_linear_answers_as_it_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Multiclass, "heeds_shift", False)
    model, _, sizes = played(SelfRate(), LATE)
    assert sizes == {EXPERTS}
    assert not any(name.startswith("shift") for name in model.cut())


def test_where_labels_come_at_once_or_not_in_runs_answers_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs go on if labels come at once; without runs, nothing is even noted."""
    for late, run in ((0, RUN), (LATE, 1)):
        model, right, sizes = played(SelfRate(), late, run)
        assert model._experts.shift.gain <= label_shift.AHEAD
        with monkeypatch.context() as patch:
            patch.setattr(label_shift, "APART", math.inf)
            _, plain, none = played(SelfRate(), late, run)
        assert right == plain
        assert none == {EXPERTS}
        assert sizes == ({EXPERTS} if run == 1 else {EXPERTS, EXPERTS + 1})


def test_both_answers_are_read_from_the_notes() -> None:
    """Signed factors tell which of both was served."""
    shares = np.array([[0.5, 0.25, 0.25]] * EXPERTS)
    factors = np.array([0.5, 2.0, 1.0])
    plain, corrected = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    for served, noted in ((plain, factors), (corrected, -factors)):
        notes = np.vstack((shares, noted)).astype("<f2").tobytes()
        score = dict(zip(['"a"', '"b"', '"c"'], served, strict=True))
        found = NotesFormat(EXPERTS).of_classes(Example({}, "b", score=score, notes=notes))
        assert found is not None
        assert found.answer == pytest.approx(plain)
        assert found.corrected == pytest.approx(corrected)
        assert found.shares.tolist() == shares.tolist()
        assert found.own == 1
    assert NotesFormat(3).of_classes(Example({}, "b", score=score, notes=notes)) is None
    odd = Example({}, "b", score=dict.fromkeys(score, math.nan), notes=notes)
    found = NotesFormat(EXPERTS).of_classes(odd)
    assert found is not None
    assert found.answer is None
    assert found.corrected is None


def test_it_travels_with_the_state_whatever_the_order_of_labels() -> None:
    model, _, _ = played(SelfRate(), LATE)
    values = Blocks()
    merge(values, model.cut())
    other: Any = SelfRate().model_for("multiclass")
    other.learn({"a": 1.0}, "c", 1.0)  # its first label
    other.reset(values)
    turned = Blocks(dict(reversed(values.items())))
    third: Any = SelfRate().model_for("multiclass")
    third.rebase(turned)
    assert list(third._experts.labels) != list(model._experts.labels)
    for x, _ in itertools.islice(in_runs(), 20):
        assert other.predict(x) == model.predict(x)
        assert third.predict(x).probabilities == pytest.approx(model.predict(x).probabilities)
    other.learn({"a": 1.0}, "c", 1.0)
    own = other._experts.shift._counts.copy()
    other.rebase(values)
    assert (other._experts.shift._counts == own).all(), "a replica that learns keeps its own"


def test_explanations_add_up_and_files_have_plain_answers() -> None:
    model, _, _ = played(SelfRate(), LATE)
    for x, _ in itertools.islice(in_runs(), RUN):
        model.learn(x, "a", 1.0)
    assert model.predict(x) != model.plain(x)
    added = added_up(model, x)
    assert added is not None
    answer, told = added
    assert answer == model.predict(x)
    assert answer.probabilities is not None
    assert answer.label is not None
    p = answer.probabilities[answer.label]
    assert told.output == pytest.approx(math.log(p / (1.0 - p)), abs=1e-9)
    assert told.base + sum(told.added.values()) == pytest.approx(told.output, abs=1e-9)
    edge = lower(model, "multiclass")
    rows = golden(model, edge, [x], "float64", np.random.default_rng(1))
    assert rows.expected[0] == pytest.approx(shown(edge, model.plain(x)))
    assert rows.expected[0] != pytest.approx(shown(edge, model.predict(x)))


def test_factors_are_bounded_and_labels_of_any_weight_count() -> None:
    shift = LabelShift()
    for _ in range(3_000):
        shift.learn(0, 2, None, 1.0)
    for _ in range(1_500):
        shift.learn(1, 2, None, 1e6)
    answer, factors = shift.correct(np.array([0.5, 0.5]))
    assert answer.tolist() == [0.5, 0.5]
    assert factors is not None
    assert factors.min() > 0.0
    assert 1.0 < factors[0] <= 1_000.0
