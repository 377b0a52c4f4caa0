"""Policies give distributions that keep their bounds, and one draw each."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.decide import Policy, draw, policy, row, uniform
from online.decide.policy import KINDS, WIDTHS, beliefs, bounded, digamma, thompson, trigamma
from online.decide.scoring import score_many
from online.models.choices.action_counts import Counted
from online.models.choices.scores import Scores
from online.models.rewards import Action, Rewards
from online.models.selfrate import SelfRate
from replay.example import Example, Features

SHARES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)


def scores_of(shares: list[float], counted: float = 3.0, *, context: bool = True) -> Scores:
    """Scores of a model that has met each action as often."""
    n = len(shares)
    each = np.full(n, counted)
    return Scores(
        low=0.0,
        range=1.0,
        ids=list(range(n)),
        answers=np.array([shares, shares]),
        votes=np.array([0.5, 0.5]),
        shares=np.array(shares),
        variances=np.full(n, np.inf),
        arms=Counted(each, np.array(shares) * counted, each, np.array(shares) * counted, 0.5),
        context=context,
        tried={},
    )


@given(shares=SHARES, kind=st.sampled_from(KINDS), data=st.data())
def test_a_distribution_sums_to_one_and_is_only_over_what_is_allowed(
    shares: list[float], kind: str, data: st.DataObject
) -> None:
    n = len(shares)
    allowed = data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any))
    floor = data.draw(st.sampled_from([0.0, 0.01, 0.2, 1.0]))
    decision = Policy(kind=kind, floor=floor).decide(scores_of(shares), allowed)  # type: ignore[arg-type]
    p = decision.probabilities
    assert abs(p.sum() - 1.0) < 1e-9
    assert (p >= 0.0).all()
    assert not p[~np.array(allowed)].any()
    least = min(floor, 1.0 / sum(allowed))
    assert (p[np.array(allowed)] >= least - 1e-9).all()


@given(shares=SHARES, budget=st.floats(0.0, 1.0))
def test_what_explores_keeps_to_the_budget(shares: list[float], budget: float) -> None:
    policy = Policy(kind="softmax", temperature=0.5, budget=budget)
    p = policy.decide(scores_of(shares)).probabilities
    assert 1.0 - p.max() <= budget + 1e-9


def test_without_the_budget_more_is_explored() -> None:
    shares = [0.5, 0.45, 0.4]
    free = Policy(kind="softmax", temperature=0.5).decide(scores_of(shares)).probabilities
    assert 1.0 - free.max() > 0.3


def test_of_equal_actions_the_budget_has_the_same_one_whatever_rounding_says() -> None:
    """A choice that is computed with others has sums in another order than one alone."""
    shares = np.array([0.5, 0.0, 0.5])
    for i in range(3):
        means = np.array([0.6, 0.6, 0.6])
        means[i] = np.nextafter(0.6, 1.0)
        for off in (1e-8, -1e-8):
            p = bounded(shares + np.array([off, 0.0, -off]), means, floor=0.0, budget=0.2)
            assert p == pytest.approx([0.8, 0.0, 0.2], abs=1e-6)


def test_the_floor_comes_before_the_budget() -> None:
    p = bounded(np.array([1.0, 0.0, 0.0]), np.array([0.9, 0.1, 0.1]), floor=0.1, budget=0.0)
    assert p.tolist() == pytest.approx([0.8, 0.1, 0.1])


def test_the_draw_follows_the_distribution_over_many_nonces() -> None:
    p = np.array([0.5, 0.0, 0.3, 0.2])
    n = 20_000
    found = np.bincount([draw(p, uniform(b"k", b"%d" % i)) for i in range(n)], minlength=4)
    assert chi_square(found, p) < 13.8  # .001 of two degrees of freedom
    assert found[1] == 0
    assert chi_square(found, np.array([0.48, 0.0, 0.31, 0.21])) > 13.8  # the control


def chi_square(found: npt.NDArray[np.int64], p: npt.NDArray[np.float64]) -> float:
    expected = found.sum() * p[p > 0]
    return float(((found[p > 0] - expected) ** 2 / expected).sum())


def test_a_draw_is_the_same_each_time_and_another_for_each_key_nonce_and_slot() -> None:
    assert uniform(b"k", b"n", 0) == uniform(b"k", b"n", 0)
    drawn = {
        uniform(b"k", b"n", 0),
        uniform(b"k", b"n", 1),
        uniform(b"k", b"m", 0),
        uniform(b"j", b"n", 0),
    }
    assert len(drawn) == 4
    assert all(0.0 <= u < 1.0 for u in drawn)


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0 - 2.0**-53])
def test_an_action_of_probability_nothing_is_never_drawn(u: float) -> None:
    assert draw(np.array([0.0, 0.5, 0.5, 0.0]), u) in (1, 2)


def test_a_policy_that_can_not_be_is_refused_with_its_bounds() -> None:
    with pytest.raises(ValueError, match=r"floor is in \[0, 1\], got 2"):
        Policy(floor=2)
    with pytest.raises(ValueError, match="kind is one of auto"):
        Policy(kind="bold")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave at least one"):
        Policy().decide(scores_of([0.1]), [False])


def test_the_better_action_of_each_context_is_learned() -> None:
    model = Rewards().model_for("regression")
    actions: list[Action] = [("a", {}), ("b", {})]
    policy = Policy()
    gained = 0.0
    for t in range(300):
        context: Features = {"x": float(t % 2)}
        scores = model.score(context, actions)
        decision = policy.decide(scores)
        i = draw(decision.probabilities, uniform(b"k", b"%d" % t))
        reward = float(i == t % 2)
        gained += reward
        features = row(context, actions[i][0], {})
        model.learn_noted(Example(features, reward, notes=decision.notes(scores, i)), 1.0)
    assert gained > 270


def test_a_name_of_a_context_that_would_be_an_action_s_is_refused() -> None:
    with pytest.raises(ValueError, match="'@price' begins with '@'"):
        row({"@price": 1.0}, "a", {})


def test_thompson_s_rule_gives_each_of_two_its_probability_to_be_the_better() -> None:
    p = thompson(np.array([0.3, 0.0]), np.array([0.4, 0.3]))
    assert p[0] == pytest.approx(0.5 * (1.0 + math.erf(0.3 / 0.5 / math.sqrt(2.0))), abs=2e-3)
    assert thompson(np.zeros(4), np.ones(4)).tolist() == pytest.approx([0.25] * 4)
    assert thompson(np.array([0.0, 5.0]), np.array([1e-3, 1e-3]))[1] == pytest.approx(1.0)


def test_beliefs_are_those_of_the_beta_distribution() -> None:
    assert digamma(np.array([1.0]))[0] == pytest.approx(-0.5772156649, abs=1e-8)
    assert trigamma(np.array([1.0]))[0] == pytest.approx(math.pi**2 / 6.0, abs=1e-7)
    mean, spread = beliefs(np.array([0.0, 400.0]), np.array([0.0, 200.0]), 0.5)
    assert mean[1] == pytest.approx(0.0, abs=1e-9)
    assert spread[1] == pytest.approx(2.0 / math.sqrt(400.0), rel=0.02)
    assert spread[0] > 10.0 * spread[1]


def test_what_is_unsure_is_explored_by_confidence_and_not_by_greed() -> None:
    scores = scores_of([0.6, 0.5])
    few = np.array([1000.0, 1.0])
    arms = Counted(few, few * [0.6, 0.5], few, few * [0.6, 0.5], 0.55)
    scores = replace(scores, arms=arms)
    assert Policy(kind="confidence").decide(scores).probabilities[1] == 1.0
    assert Policy(kind="greedy").decide(scores).probabilities[0] == 1.0
    assert 0.05 < Policy(kind="thompson").decide(scores).probabilities[1] < 0.6


def test_auto_takes_the_width_that_has_gained() -> None:
    scores = scores_of([0.6, 0.5])
    wide = replace(scores, tried={"0.1": -50.0, "0.3": -50.0, "1": 0.0, "": 25.0})
    narrow = replace(scores, tried={"0.1": 0.0, "0.3": -50.0, "1": -50.0, "": 25.0})
    explored = [Policy().decide(one).probabilities[1] for one in (narrow, scores, wide)]
    assert explored == sorted(explored)
    assert explored[2] > explored[0] + 0.1
    decision = Policy().decide(scores)
    assert decision.tried.keys() == {f"{width:g}" for width in WIDTHS}
    assert all(abs(p.sum() - 1.0) < 1e-9 for p in decision.tried.values())


def test_without_a_context_auto_believes_all_rewards_of_an_action_unless_it_has_changed() -> None:
    scores = scores_of([0.6, 0.5], context=False)
    n, late = np.array([900.0, 900.0]), np.array([40.0, 40.0])
    alike = Counted(n, n * [0.6, 0.4], late, late * [0.55, 0.45], 0.5)
    changed = Counted(n, n * [0.6, 0.4], late, late * [0.1, 0.45], 0.5)
    assert Policy().decide(replace(scores, arms=alike)).probabilities[0] > 0.99
    assert Policy().decide(replace(scores, arms=changed)).probabilities[1] > 0.99


@pytest.mark.parametrize(("hope", "more"), [(policy.HOPE, True), (0.0, False)])
def test_without_a_context_auto_hopes_most_of_what_it_has_seldom_tried(
    monkeypatch: pytest.MonkeyPatch, hope: float, more: bool
) -> None:
    """The control without hope takes both of two that earned alike about as often."""
    monkeypatch.setattr(policy, "HOPE", hope)
    n, late = np.array([400.0, 20.0]), np.array([20.0, 20.0])
    arms = Counted(n, n * 0.5, late, late * 0.5, 0.5)
    p = Policy().decide(replace(scores_of([0.5, 0.5], context=False), arms=arms)).probabilities
    assert (p[1] > 0.8) == more, p
    assert p[0] > 0.001, p  # and leaves it to chance


def test_a_model_that_knows_no_choices_is_asked_row_by_row() -> None:
    model = SelfRate().model_for("binary")
    for t in range(200):
        model.learn(row({"x": float(t % 2)}, "ab"[t % 3 % 2], {}), t % 3 % 2 == 0, 1.0)
    (scores,) = score_many(model, [({"x": 1.0}, [("a", {}), ("b", {})], None)])
    assert scores.means[0] > scores.means[1]
    decision = Policy().decide(scores)
    assert decision.probabilities[0] > 0.99
    assert decision.notes(scores, 0) == model.predict(row({"x": 1.0}, "a", {})).notes


@pytest.mark.parametrize(("step", "off"), [(policy._STEP, 1e-6), (8.0, None)])
def test_the_grid_is_as_fine_as_the_surest_action_needs(
    monkeypatch: pytest.MonkeyPatch, step: float, off: float | None
) -> None:
    """Beside a sum of 4,001 terms; the control, a grid of 16 steps for whatever, is seen."""
    monkeypatch.setattr(policy, "_STEP", step)
    rng, worst = np.random.default_rng(4), 0.0
    for _ in range(30):
        means, widths = rng.normal(0.0, 0.5, 9), rng.uniform(0.1, 0.6, 9)
        v = np.linspace(-6.0, 6.0, 4001)[:, None]
        z = (v - means) / widths
        below = 0.5 * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0)))
        others = below.prod(axis=1, keepdims=True) / np.maximum(below, 1e-300)
        exact = (np.exp(-z * z / 2.0) / widths * others).sum(axis=0)
        exact /= exact.sum()
        worst = max(worst, float(np.abs(thompson(means, widths) - exact).max()))
    assert worst > 1e-4 if off is None else worst < off, worst
