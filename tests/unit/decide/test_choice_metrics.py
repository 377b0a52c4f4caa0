"""What came of choices is a sum over rows: rules that learn nothing stand beside it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from online.decide.choice_metrics import CHOICES, KEPT, OTHERS, ROWS_MIN, Choices
from online.decide.record import Choice, pack
from paramserver.core.blocks import Blocks, copy, merge
from replay.example import Example


def rewarded(
    chosen: int,
    reward: float,
    *,
    probabilities: Sequence[float] = (0.5, 0.5),
    estimates: Sequence[float] = (0.5, 0.25),
    names: Sequence[str] = ("a", "b"),
    baseline: int | None = None,
    drawn: int | None = None,
    excluded: tuple[int, ...] = (),
    defaulted: bool = False,
) -> Example:
    choice = Choice(
        {}, tuple((name, {}) for name in names), excluded, chosen, tuple(probabilities),
        tuple(estimates), "auto", baseline, drawn, defaulted=defaulted,
    )  # fmt: skip
    return Example({"@": names[chosen]}, reward, choice=pack(choice))


def test_each_figure_is_what_its_rows_say() -> None:
    counted = Choices(0.0, 1.0, 8)
    counted.add(rewarded(0, 1.0))
    counted.add(rewarded(1, 0.0, defaulted=True, baseline=0))
    counted.add(rewarded(0, 0.0, baseline=0))
    counted.add(Example({"x": 1.0}, 1.0))  # no choice
    counted.add(Example({"x": 1.0}, 1.0, choice=b"?"))  # none that anybody can read
    found = counted.summary()
    assert (found["n"], found["reward"]) == (3, pytest.approx(1 / 3))
    assert (found["defaulted"], found["explored"]) == (1, pytest.approx(1 / 3))
    assert {name: x["share"] for name, x in found["actions"].items()} == {
        "a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3),
    }  # fmt: skip
    # a alone: .5 + 2·.5, .5, .5 − 2·.5; b alone: .25, .25 − 2·.25, .25
    assert found["constant"] == {"action": "a", "reward": pytest.approx(0.5)}
    assert found["actions"]["b"]["alone"] == pytest.approx(0.25 / 3)
    assert found["evenly"] == pytest.approx((0.5 + 0.25 / 3) / 2)
    assert found["baseline"] == {"n": 2, "agreed": 0.5, "reward": pytest.approx(0.0)}
    assert found["apprentice"] is None


def test_estimates_of_rules_are_right_whatever_was_expected() -> None:
    """Two actions of known rewards, each chosen with .2 and .8, by wrong expectations."""
    counted, rng = Choices(0.0, 1.0, 8), random.Random(7)
    for _ in range(8000):
        chosen = int(rng.random() < 0.8)
        reward = float(rng.random() < (0.7, 0.2)[chosen])
        counted.add(rewarded(chosen, reward, probabilities=(0.2, 0.8), estimates=(0.1, 0.9)))
    found = counted.summary()
    assert found["constant"]["action"] == "a"
    assert found["constant"]["reward"] == pytest.approx(0.7, abs=0.05)
    assert found["evenly"] == pytest.approx(0.45, abs=0.03)
    assert found["reward"] == pytest.approx(0.3, abs=0.02)
    assert found["explored"] == pytest.approx(0.2, abs=0.02)


def test_an_estimate_is_shown_within_the_range_of_rewards() -> None:
    """One reward of an action that was hardly ever drawn weighs twenty times as much."""
    for reward, probability in ((1.0, 0.1), (0.0, 0.1)):
        counted = Choices(0.0, 1.0, 8)
        counted.add(rewarded(0, reward, probabilities=(probability, 0.9), estimates=(0.5, 0.25)))
        found, rules = counted.summary(), counted.rules()
        shown = [found["constant"]["reward"], found["evenly"], rules["constant"], rules["evenly"]]
        shown += [x["alone"] for x in found["actions"].values()]
        assert all(0.0 <= value <= 1.0 for value in shown), shown
        assert found["actions"]["a"]["alone"] == reward


def test_replicas_add_up_to_one_that_counts_all() -> None:
    rng = random.Random(3)
    rows = [
        rewarded(rng.randrange(2), rng.random(), baseline=0, names=("a", rng.choice("bcd\t")))
        for _ in range(60)
    ]
    alone, parts = Choices(0.0, 1.0, 8), [Choices(0.0, 1.0, 8) for _ in range(2)]
    values: Blocks = {}
    for i, row in enumerate(rows):
        alone.add(row)
        parts[i % 2].add(row)
        if i % 7 == 0:
            merge(values, parts[i % 2].cut())
            for part in parts:
                part.rebase(copy(values))
    for part in parts:
        merge(values, part.cut())
    fresh = Choices(0.0, 1.0, 8)
    fresh.reset(copy(values))
    assert set(fresh.named) == {CHOICES}
    merged, whole = fresh.summary(), alone.summary()
    assert merged["actions"].keys() == whole["actions"].keys()
    for name in ("n", "reward", "explored", "evenly"):
        assert merged[name] == pytest.approx(whole[name])


def test_actions_have_a_bound_and_others_are_one() -> None:
    counted = Choices(0.0, 1.0, 2)
    for i in range(6):
        counted.add(rewarded(0, 1.0, names=(f"n{i}",), probabilities=(1.0,), estimates=(0.5,)))
    found = counted.summary()
    assert {name: x["n"] for name, x in found["actions"].items()} == {OTHERS: 4, "n0": 1, "n1": 1}
    assert found["constant"] is None  # none of them was mostly there


def apprentice(agrees: float, seed: int, n: int, high: float = 1.0) -> Choices:
    """Of a caller who earns ``high`` or nothing, and whom the apprentice follows that often."""
    counted, rng = Choices(0.0, high, 8), random.Random(seed)
    for _ in range(n):
        drawn, reward = int(rng.random() > agrees), high * (rng.random() < 0.5)
        counted.add(rewarded(0, reward, baseline=0, drawn=drawn, probabilities=(1.0, 0.0)))
    return counted


@pytest.mark.parametrize("high", [1.0, 20.0])
def test_an_apprentice_is_ready_once_it_is_sure_to_keep_enough(high: float) -> None:
    found = apprentice(0.97, 1, 1500, high).standing()
    assert found is not None
    assert found.ready
    assert found.kept == pytest.approx(0.97, abs=0.03)
    assert found.agreed == pytest.approx(0.97, abs=0.03)
    few = apprentice(1.0, 1, ROWS_MIN - 1).standing()
    assert few is not None
    assert not few.ready
    assert Choices(0.0, 1.0, 8).standing() is None


def test_one_that_keeps_too_little_is_hardly_ever_ready_whenever_one_looks() -> None:
    """60 that keep exactly what is asked, looked at after every row: 5 % may be let through."""
    let_through = 0
    for seed in range(60):
        counted, rng = Choices(0.0, 1.0, 8), random.Random(seed)
        for _ in range(500):
            drawn, reward = int(rng.random() > KEPT), float(rng.random() < 0.5)
            counted.add(rewarded(0, reward, baseline=0, drawn=drawn, probabilities=(1.0, 0.0)))
            if (found := counted.standing()) is not None and found.ready:
                let_through += 1
                break
    assert let_through <= 60 * 0.05
