"""The limits of the report: a broken model moves none, and more of the same lowers no verdict."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.studies.drift.broken import verdicts
from evaluation.report.limits import POINTS, WINDOW_N_MIN, ControlChart

RANK = {"not_enough_data": 0, "ok": 0, "watch": 1, "act": 2}


def course_of(errors: list[float], *, share: bool = True) -> ControlChart:
    course = ControlChart(share=share)
    for row, error in enumerate(errors, 1):
        course.add(row, error)
    return course


def drawn(seed: int, *stretches: tuple[int, float]) -> list[float]:
    rng = Random(seed)
    return [float(rng.random() < rate) for rows, rate in stretches for _ in range(rows)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    good=st.integers(700, 4_000),
    bad=st.integers(1, 9_000),
    before=st.floats(0.0, 0.2),
    worse=st.floats(0.4, 0.8),
)
def test_more_of_the_same_failure_never_lowers_the_level(
    seed: int, good: int, bad: int, before: float, worse: float
) -> None:
    errors = drawn(seed, (good, before), (bad, before + worse))
    course, ranks, limits = ControlChart(share=True), [0], []
    for row, error in enumerate(errors, 1):
        course.add(row, error)
        if row > good:
            ranks.append(RANK[course.level])
            limits.append(course.limits)
    assert all(a <= b for a, b in pairwise(ranks))
    raised = [limit for limit, rank in zip(limits, ranks[1:], strict=True) if rank and limit]
    assert len({limit.error for limit in raised}) <= 1, (
        "what is broken is no part of what is normal"
    )
    assert all(a.act >= b.act for a, b in pairwise(raised))
    if bad > 4 * max(WINDOW_N_MIN, (good + bad) // POINTS):
        assert course.level == "act"


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    good=st.integers(2, 6),
    bad=st.integers(0, 12),
    more=st.integers(0, 12),
    right=st.floats(0.75, 1.0),
    late=st.floats(0.0, 0.4),
)
def test_more_of_the_same_failure_never_lowers_the_verdict(
    seed: int, good: int, bad: int, more: int, right: float, late: float
) -> None:
    """Of the whole report, with its rules without a model, in steps of 500 rows."""
    stretches = (500 * good, 1.0 - right), (500 * (bad + more), 1.0 - late)
    wrong = [error == 1.0 for error in drawn(seed, *stretches)]
    labels = [bool(Random(seed + i).random() < 0.5) for i in range(len(wrong))]
    ranks = [RANK[state] for state in verdicts(wrong, labels)]
    assert all(a <= b for a, b in pairwise(ranks[good - 1 :]))
    if bad + more > 1:
        assert ranks[-1] == RANK["act"], "however much of the stream is broken"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), start=st.floats(0.02, 0.2), slope=st.floats(0.35, 0.7))
def test_one_that_gets_worse_bit_by_bit_is_measured_against_its_best_time(
    seed: int, start: float, slope: float
) -> None:
    """Each window is but a little worse than the one before: a median of all goes with them."""
    rng, n = Random(seed), 12_000
    steady = 2_000
    rates = [start + slope * max(i - steady, 0) / (n - steady) for i in range(n)]
    assert course_of([float(rng.random() < rate) for rate in rates]).level == "act"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.floats(0.02, 0.4), n=st.integers(400, 9_000))
def test_a_steady_error_is_never_acted_on(seed: int, rate: float, n: int) -> None:
    course = ControlChart(share=True)
    for row, error in enumerate(drawn(seed, (n, rate)), 1):
        course.add(row, error)
        assert course.level != "act", row


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), unit=st.floats(1e-6, 1e6))
def test_absolute_errors_are_judged_in_any_unit(seed: int, unit: float) -> None:
    rng = Random(seed)
    steady = [unit * abs(rng.gauss(0.0, 1.0)) for _ in range(3_000)]
    assert course_of(steady, share=False).level == "ok"
    worse = [unit * abs(rng.gauss(0.0, 3.0)) for _ in range(3_000)]
    assert course_of(steady + worse, share=False).level == "act"


def test_it_ends_after_two_windows_that_are_as_before() -> None:
    good, bad = (4_000, 0.1), (2_000, 0.6)
    broken = course_of(drawn(3, good, bad))
    assert broken.level == "act"
    assert broken.since is not None
    assert abs(broken.since.first_row - 4_000) < 200
    back = course_of(drawn(3, good, bad, (800, 0.1)))
    assert back.level == "ok"
    assert back.over is not None
    assert back.over.error > 0.4
    assert back.limits is not None
    assert back.limits.act < 0.35
