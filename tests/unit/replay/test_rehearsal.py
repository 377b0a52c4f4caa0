"""How much is replayed, and how much of it is recent."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from replay.errors import SettingInvalid
from replay.rehearsal import ROWS_MAX, Rehearsal


def test_short_streams_get_more_than_long_ones() -> None:
    rule = Rehearsal()
    rows = [rule.rows(n, 500) for n in range(1, 100_000, 250)]
    assert rows[0] == 3.0
    assert rows[-1] == 1.0
    assert rows == sorted(rows, reverse=True)
    assert max(a - b for a, b in pairwise(rows)) < 0.05, "no sudden step"


def test_the_length_counts_in_memories() -> None:
    rule = Rehearsal()
    for n in (10, 1_000, 7_000, 10**6):
        assert rule.rows(n, 100) == pytest.approx(rule.rows(20 * n, 2_000))


def test_whole_rows_are_right_on_average() -> None:
    rule, rng = Rehearsal(), Random(1)
    expected = rule.rows(17_000, 500)
    drawn = [rule.whole_rows(17_000, 500, rng) for _ in range(10_000)]
    assert set(drawn) == {int(expected), int(expected) + 1}
    assert sum(drawn) / len(drawn) == pytest.approx(expected, abs=0.02)
    assert {rule.whole_rows(1, 500, rng) for _ in range(100)} == {3}


def test_recent_items_come_first_after_an_alarm_and_step_back() -> None:
    rule = Rehearsal(recent=0.3, recent_alarm=0.9, alarm_rows=100)
    shares = [rule.recent_share(n) for n in range(150)]
    assert shares[0] == 0.9
    assert shares[:101] == sorted(shares[:101], reverse=True)
    assert set(shares[100:]) == {rule.recent_share(None)} == {0.3}
    assert max(a - b for a, b in pairwise(shares)) < 0.007


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rows_short": -0.1}, "rows_short"),
        ({"rows_long": ROWS_MAX + 1}, "rows_long"),
        ({"short": 0.0}, "short, long"),
        ({"short": 120.0}, "short, long"),
        ({"long": float("inf")}, "short, long"),
        ({"long": float("nan")}, "short, long"),
        ({"recent": 1.1}, "recent"),
        ({"recent_alarm": float("nan")}, "recent_alarm"),
        ({"alarm_rows": 0}, "alarm_rows"),
    ],
)
def test_settings_have_bounds(settings: dict[str, float], named: str) -> None:
    with pytest.raises(SettingInvalid, match=f"^{named} = "):
        Rehearsal(**settings)  # type: ignore[arg-type]


def test_the_bounds_themselves_are_fine() -> None:
    rule = Rehearsal(rows_short=ROWS_MAX, rows_long=0, recent=0, recent_alarm=1, alarm_rows=1)
    assert (rule.rows(1, 1), rule.rows(10**9, 1)) == (ROWS_MAX, 0)
    assert [rule.recent_share(n) for n in (None, 0, 1)] == [0, 1, 0]


def test_a_short_stream_gets_more_passes() -> None:
    rule, rng = Rehearsal(), Random(1)
    assert {rule.whole_passes(1, 500, rng) for _ in range(100)} == {2}
    assert {rule.whole_passes(10**6, 500, rng) for _ in range(100)} == {1}
    drawn = [rule.whole_passes(17_320, 500, rng) for _ in range(10_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(1.5, abs=0.02)
    for passes in (0.5, 11.0, float("nan")):
        with pytest.raises(SettingInvalid, match="passes_short"):
            Rehearsal(passes_short=passes)
