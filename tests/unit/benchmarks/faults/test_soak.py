"""What a soak calls growth, and what it does not."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.faults.soak import GROWTH_FILES, GROWTH_MB, Result, Sample, thirds

GOOD = Result(
    seconds=60, capacity_per_s=100, per_s=50, kills={"replica": 1}, acknowledged=10, predictions=10,
    failed_predictions=0, lost=[], twice=[], fsck_good=True, memory_mb=(1000, 1000 + GROWTH_MB),
    files=(500, 500),
)  # fmt: skip


def test_the_first_third_does_not_count() -> None:
    samples = [Sample(float(i), 100.0 if i < 30 else 500.0, 10) for i in range(91)]
    early, late = thirds(samples)
    assert {s.memory_mb for s in (*early, *late)} == {500.0}
    assert len(early) == 30
    assert len(late) == 31


@pytest.mark.parametrize(
    "changed",
    [
        {"memory_mb": (1000.0, 1001 + GROWTH_MB)},
        {"files": (500.0, 501.0 + GROWTH_FILES)},
        {"lost": ["f1"]},
        {"twice": ["f1"]},
        {"fsck_good": False},
    ],
)
def test_what_is_not_good_is_said(changed: dict[str, object]) -> None:
    assert GOOD.good
    assert not dataclasses.replace(GOOD, **changed).good  # type: ignore[arg-type]
