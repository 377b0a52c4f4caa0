"""How late positives come adds up over replicas, and says what a label by default weighs."""

from __future__ import annotations

import pytest

from online.sure.delays import POSITIVES_MIN, Delays
from paramserver.core.blocks import Blocks
from replay.example import Corrects, Example


def positive(delay_s: float) -> tuple[Example, float]:
    return Example({}, True, predicted_at=1_000.0), 1_000.0 + delay_s


def seen(window_s: float, *delays: float) -> Delays:
    made = Delays(window_s)
    for delay_s in delays:
        made.add(*positive(delay_s))
    return made


def test_before_enough_positives_all_labels_weigh_one() -> None:
    few = seen(60.0, *([30.0] * (POSITIVES_MIN - 1)))
    assert few.weights() == (1.0, 1.0)
    assert few.summary()["within"] is None
    few.add(*positive(90.0))
    assert few.summary()["within"] == pytest.approx(1.0 - 1.0 / POSITIVES_MIN, abs=0.001)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_both_sides_weigh_alike_in_the_sum(share: float) -> None:
    in_time = round(100 * share)
    default, late = seen(60.0, *([30.0] * in_time), *([90.0] * (100 - in_time))).weights()
    assert share + (1.0 - share) * late == pytest.approx(default, abs=0.05)  # the last count most
    assert 0.0 < late <= 1.0


def test_what_came_under_another_window_is_told_by_its_buckets() -> None:
    values = Blocks(seen(60.0, *([30.0] * 60), *([600.0] * 40)).cut())
    other = Delays(120.0)
    other.reset(values)
    assert other.reached() == pytest.approx(0.6)
    for _ in range(POSITIVES_MIN):
        other.add(*positive(90.0))
    assert other.reached() == pytest.approx(1.0), "by those that came since"


def test_replicas_add_up_and_count_what_was_corrected() -> None:
    one, two = seen(60.0, *([30.0] * 40)), seen(60.0, *([90.0] * 40))
    one.add(Example({}, False, provisional=True, late=0.5), 2_000.0)
    first = Corrects(1, 1, b"", False, 1.0, "", defaulted=True)
    two.add(Example({}, True, predicted_at=1_000.0, corrects=first), 2_000.0)
    two.add(Example({}, True, provisional=True, predicted_at=1_000.0), 2_000.0)
    two.add(Example({}, False, predicted_at=1_000.0), 2_000.0)
    two.add(Example({"x": 1.0}, True, predicted_at=2_000.0), 2_000.0)  # its features came with it
    values = Blocks(one.cut())
    two.rebase(values)
    assert two.positives == 81
    assert two.reached() == pytest.approx(40 / 81, abs=0.01)
    assert (two.summary()["defaulted"], two.summary()["corrected"]) == (1, 1)


def slow(made: Delays, source: str, n: int = 60) -> None:
    """One in four within the window."""
    for i in range(n):
        made.add(*positive(30.0 if i % 4 == 0 else 600.0), source)


def test_a_source_that_sends_many_at_once_decides_for_itself_alone() -> None:
    made = Delays(60.0)
    slow(made, "shop")
    assert made.reached() == pytest.approx(0.25, abs=0.01)
    for _ in range(1000):
        made.add(*positive(1.0), "flood")
    assert made.reached("shop") == pytest.approx(0.25, abs=0.01), "by its own"
    assert made.reached("flood") == pytest.approx(1.0)
    assert made.reached("new") == pytest.approx((0.25 + 1.0) / 2, abs=0.01), "as much as the other"
    for source in ("a", "b", "c"):
        slow(made, source)
    assert made.reached("new") == pytest.approx((4 * 0.25 + 1.0) / 5, abs=0.01)
    slow(made, "few", POSITIVES_MIN - 1)
    assert made.reached("few") == made.reached() != 0.25


def test_an_old_law_of_delays_fades() -> None:
    made = Delays(60.0)
    for _ in range(5_000):
        made.add(*positive(1.0), "shop")
    assert made.reached() == pytest.approx(1.0)
    for _ in range(3_000):
        made.add(*positive(600.0), "shop")
    assert made.reached() == pytest.approx(0.05, abs=0.01)
    assert made.weights("shop")[1] == pytest.approx(0.95, abs=0.01)
    assert made.positives == 8_000


def test_what_comes_late_weighs_a_tenth_at_least() -> None:
    default, late = seen(60.0, *([30.0] * 1000)).weights()
    assert (default, late) == pytest.approx((1.0, 0.1))
