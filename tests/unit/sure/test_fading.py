"""Sums that fade stay near what rows can bring, however many rows replicas learn between merges.

Each replica takes away a share of what was there when it last heard of the others: together they
take away more than there was, and if what is then below nothing faded too, it would swing wider and
wider until the block holds no number.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from online.models.choices.action_counts import ARMS, Arms
from online.sure import calibration, conformal, delays
from online.sure.calibration import CALIBRATION, Calibration
from online.sure.conformal import CONFIDENCE, STAMP, Confidence
from online.sure.delays import DELAYS, Delays
from paramserver.core.blocks import Blocks, copy, merge
from replay.example import Example

REPLICAS, ROWS, MERGES = 4, 60, 40
MEMORY = 15.0
"""Rows over which they fade here: as few beside those between merges as in a bulk of labels."""

Learn = Callable[[Any, random.Random], None]


def played(made: Callable[[], Any], learn: Learn) -> Blocks:
    """The values after so many merges of replicas that learn in between."""
    values, draw = Blocks(), random.Random(1)
    parts = [made() for _ in range(REPLICAS)]
    for _ in range(MERGES):
        for part in parts:
            part.reset(copy(values))
            for _ in range(ROWS):
                learn(part, draw)
        for part in parts:
            merge(values, part.cut())
    return values


def rewarded(part: Arms, draw: random.Random) -> None:
    part.learn(7, float(draw.random() < 0.3), 1.0)


def converted(part: Delays, draw: random.Random) -> None:
    delay_s = 30.0 if draw.random() < 0.7 else 90.0
    part.add(Example({}, True, predicted_at=1_000.0), 1_000.0 + delay_s, "app")


def answered(part: Calibration, draw: random.Random) -> None:
    p = 0.5 + draw.random() / 2
    score, y = {"true": p, "false": 1.0 - p}, draw.random() < p
    part.add(Example({}, y, score=score, sure=part.stamp()))


def late(part: Confidence, draw: random.Random) -> None:
    """An answer that many labels have come after."""
    then, n = STAMP.unpack(part.stamp())
    score, y = {"true": 0.9, "false": 0.1}, draw.random() < 0.9
    part.add(Example({}, y, score=score, sure=STAMP.pack(then, max(n - 100, 0))))


@pytest.mark.parametrize(
    ("made", "learn", "block"),
    [
        (Arms, rewarded, ARMS),
        (lambda: Delays(60.0), converted, DELAYS),
        (Calibration, answered, CALIBRATION),
        (lambda: Confidence("binary", 0.9), late, CONFIDENCE),
    ],
    ids=["arms", "delays", "calibration", "confidence"],
)
def test_no_sum_swings_wider_and_wider(
    monkeypatch: pytest.MonkeyPatch, made: Callable[[], Any], learn: Learn, block: str
) -> None:
    monkeypatch.setattr(delays, "_MEMORY", MEMORY)
    monkeypatch.setattr(calibration, "_MEMORY", MEMORY)
    monkeypatch.setattr(conformal, "_STRAY", MEMORY)
    data = played(made, learn)[block].data
    far = {name: n for name, n in data.items() if not abs(n) < 1e6}
    assert not far, far


def test_actions_of_late_are_never_worth_less_than_nothing() -> None:
    """The world turns between two merges: all that was rewarded of late is taken away twice."""
    before = Arms()
    for _ in range(200):
        before.learn(7, 1.0, 1.0)
    values = Blocks(before.cut())
    parts = [Arms(), Arms()]
    for part in parts:
        part.reset(copy(values))
        for _ in range(100):
            part.learn(7, 0.0, 1.0)
    for part in parts:
        merge(values, part.cut())
    after = Arms()
    after.reset(values)
    assert after.now["s:7"] < 0.0
    known = after.of((7,))
    assert ((known.means >= 0.0) & (known.means <= 1.0)).all(), known
    assert 0.0 <= known.late_total[0] <= known.late_n[0], known


def test_the_share_that_has_come_is_one_whatever_was_let_fade_twice() -> None:
    before = Delays(60.0)
    for _ in range(3_000):
        before.add(Example({}, True, predicted_at=0.0), 1.0, "app")
    values = Blocks(before.cut())
    parts = [Delays(60.0) for _ in range(REPLICAS)]
    for part in parts:
        part.reset(copy(values))
        for _ in range(1_200):
            part.add(Example({}, True, predicted_at=0.0), 100.0, "app")
    for part in parts:
        merge(values, part.cut())
    after = Delays(60.0)
    after.reset(values)
    for source in ("app", None):
        assert after.reached(source) == pytest.approx(0.0)
        assert after.weights(source) == pytest.approx((1.0, 1.0)), "not five"
