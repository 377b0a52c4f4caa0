"""The judge of killed choices holds a caller to what it was answered, and to nothing else."""

from __future__ import annotations

import pytest

from benchmarks.faults.choices_killed import DEFAULT, Known


@pytest.mark.parametrize(
    ("reward", "outcome", "right", "wrong"),
    [
        (1.0, "learned", {1.0}, {0.0, DEFAULT}),
        (1.0, "late", {DEFAULT}, {0.0, 1.0}),
        (None, "", {DEFAULT}, {0.0, 1.0}),
        (1.0, "", {1.0, DEFAULT}, {0.0}),  # its answer was lost, and the caller gave up
    ],
)
def test_a_row_has_the_reward_that_was_answered(
    reward: float | None, outcome: str, right: set[float], wrong: set[float]
) -> None:
    known = Known({}, 0.0, reward, outcome)
    assert all(known.may_be(label) for label in right)
    assert not any(known.may_be(label) for label in wrong)
