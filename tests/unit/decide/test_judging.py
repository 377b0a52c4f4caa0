"""Policies are judged by the records of choices alone."""

from __future__ import annotations

import random

import pytest

from online.decide.judging import SERVED, Judging, PolicyUnknown, target
from online.decide.record import Choice

MEANS = (0.2, 0.5, 0.8)


def choice(chosen: int = 0, excluded: tuple[int, ...] = (), baseline: int | None = None) -> Choice:
    actions = tuple((name, {}) for name in "abc")
    return Choice({}, actions, excluded, chosen, (0.5, 0.3, 0.2), MEANS, "p", baseline)


def test_each_policy_answers_by_what_the_record_says() -> None:
    assert target(SERVED)(choice()) == (0.5, 0.3, 0.2)
    assert target("greedy")(choice()) == [0.0, 0.0, 1.0]
    assert target("greedy")(choice(excluded=(2,))) == [0.0, 1.0, 0.0]
    assert target("uniform")(choice(excluded=(0,))) == [0.0, 0.5, 0.5]
    assert target("epsilon:0.3")(choice()) == pytest.approx([0.1, 0.1, 0.8])
    assert target("always:b")(choice()) == [0.0, 1.0, 0.0]
    assert target("always:b")(choice(excluded=(1,))) is None
    assert target("always:d")(choice()) is None
    assert target("baseline")(choice()) is None
    assert target("baseline")(choice(baseline=0)) == [1.0, 0.0, 0.0]
    for name in ("", "best", "epsilon", "epsilon:2", "epsilon:x", "always:", "always"):
        with pytest.raises(PolicyUnknown, match="Give greedy"):
            target(name)


def test_the_values_of_policies_are_within_their_intervals() -> None:
    rng = random.Random(11)
    judging = Judging(["greedy", "uniform", "always:a", "always:d"], 0.05, 0.0, 1.0)
    for _ in range(4000):
        chosen = rng.choices(range(3), (0.5, 0.3, 0.2))[0]
        judging.add(choice(chosen), float(rng.random() < MEANS[chosen]))
    found = judging.now()
    worth = {SERVED: 0.41, "greedy": 0.8, "uniform": 0.5, "always:a": 0.2}
    for name, value in worth.items():
        one = found[name]
        assert one.interval is not None
        assert one.interval.low <= value <= one.interval.high
        assert one.dr == pytest.approx(value, abs=0.05)
        assert not one.warnings
    assert (found["always:d"].n, judging.unanswered["always:d"]) == (0, 4000)
