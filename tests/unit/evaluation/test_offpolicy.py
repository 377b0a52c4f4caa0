"""A policy is judged on the log of another one, at any time, where the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.offpolicy import OffPolicy

LOGGED, TARGET = (0.7, 0.2, 0.1), (0.1, 0.3, 0.6)
MEANS = (0.3, 0.5, 0.8)
TRUTH = sum(t * m for t, m in zip(TARGET, MEANS, strict=True))


def log(seed: int, n: int) -> list[tuple[float, int]]:
    """Rewards and chosen actions of the served policy."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(3, size=n, p=LOGGED)
    rewards = rng.random(n) < np.array(MEANS)[chosen]
    return [(float(r), int(a)) for r, a in zip(rewards, chosen, strict=True)]


def ever_missed(seed: int, n: int, half: Callable[[int, float], float]) -> bool:
    """Whether the interval misses the truth at any row from the tenth on."""
    judge, missed = OffPolicy(), False
    for t, (reward, chosen) in enumerate(log(seed, n), 1):
        judge.add(reward, chosen, LOGGED, TARGET, MEANS if seed % 2 else None)
        c = judge.counters
        spread = max(c["ww"] / t, 1e-9) ** 0.5
        now = judge.now()
        assert now.interval is not None
        assert now.ips is not None
        low, high = now.interval.low, now.interval.high
        if (width := half(t, spread)) >= 0.0:
            low, high = now.ips - width, now.ips + width
        missed |= t >= 10 and not low <= TRUTH <= high
    return missed


def test_the_interval_covers_the_truth_at_every_row() -> None:
    assert sum(ever_missed(seed, 300, lambda t, s: -1.0) for seed in range(40)) <= 4


def test_an_interval_for_one_number_of_rows_does_not() -> None:
    missed = sum(ever_missed(seed, 300, lambda t, s: 1.96 * s / t**0.5 / 2) for seed in range(40))
    assert missed > 8


def test_all_three_estimates_find_the_truth_and_the_interval_narrows() -> None:
    judge = OffPolicy()
    for reward, chosen in log(1, 4000):
        judge.add(reward, chosen, LOGGED, TARGET, MEANS)
    now = judge.now()
    assert now.interval is not None
    for estimate in (now.ips, now.snips, now.dr):
        assert estimate == pytest.approx(TRUTH, abs=0.06)
    assert now.interval.low < TRUTH < now.interval.high
    assert now.interval.high - now.interval.low < 0.4
    assert now.warnings == ()


def test_a_model_of_the_rewards_makes_the_doubly_robust_one_steadier() -> None:
    def error(expected: tuple[float, ...] | None) -> float:
        found = []
        for seed in range(30):
            judge = OffPolicy()
            for reward, chosen in log(seed, 200):
                judge.add(reward, chosen, LOGGED, TARGET, expected)
            found.append((judge.now().dr or 0.0) - TRUTH)
        return float(np.std(found))

    assert error(MEANS) < 0.8 * error(None)


@given(split=st.integers(0, 60))
def test_counters_of_rows_add_up(split: int) -> None:
    a, b, whole = OffPolicy(), OffPolicy(), OffPolicy()
    for i, (reward, chosen) in enumerate(log(3, 60)):
        (a if i < split else b).merge(whole.add(reward, chosen, LOGGED, TARGET))
    a.merge(b.counters)
    assert a.counters == pytest.approx(whole.counters)


def test_rewards_of_another_range_are_told_in_their_own_unit() -> None:
    plain, scaled = OffPolicy(), OffPolicy(low=-10.0, high=10.0)
    for reward, chosen in log(5, 300):
        plain.add(reward, chosen, LOGGED, TARGET)
        scaled.add(20.0 * reward - 10.0, chosen, LOGGED, TARGET)
    assert scaled.now().ips == pytest.approx(20.0 * (plain.now().ips or 0.0) - 10.0)


def test_what_can_not_be_judged_is_said() -> None:
    judge = OffPolicy()
    assert judge.now().warnings == ("no row was judged",)
    for reward, chosen in log(6, 500):
        judge.add(reward, min(chosen, 1), (0.7, 0.3, 0.0), TARGET)
    said = " ".join(judge.now().warnings)
    assert "60.0% of its choices are never served" in said
    wrong = OffPolicy()
    for reward, chosen in log(7, 2000):
        wrong.add(reward, chosen, (0.4, 0.3, 0.3), TARGET)
    assert "the weights have a mean of" in " ".join(wrong.now().warnings)
    few = OffPolicy()
    few.add(1.0, 0, LOGGED, TARGET)
    (only,) = few.now().warnings  # one weight says nothing of the logged probabilities
    assert "worth 1 rows" in only


def test_actions_too_rare_to_be_drawn_do_not_discredit_the_log() -> None:
    judge = OffPolicy()
    for _ in range(300):  # the other action is not drawn in three of four such logs
        judge.add(1.0, 0, (0.999, 0.001), (0.9, 0.1))
    assert judge.now().warnings == ()
    control = OffPolicy()
    for _ in range(300):  # one in ten is never drawn
        control.add(1.0, 0, (0.9, 0.1), (0.5, 0.5))
    assert "the weights have a mean of 0.556" in " ".join(control.now().warnings)


def test_what_is_no_log_is_refused() -> None:
    judge = OffPolicy()
    with pytest.raises(ValueError, match="reward is in"):
        judge.add(1.5, 0, LOGGED, TARGET)
    with pytest.raises(ValueError, match="the chosen one's is above 0"):
        judge.add(1.0, 0, (0.0, 1.0), (0.5, 0.5))
    with pytest.raises(ValueError, match="alpha is in"):
        OffPolicy(alpha=1.0)
    assert judge.counters["n"] == 0
