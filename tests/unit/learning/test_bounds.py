"""Ranges of numbers: what is clipped, what widens a range, and what two replicas know together."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.learning.bounds import Bounds
from online.learning.counters import DIGEST
from online.learning.ranges import BEYOND, EASE_ROWS, NEW_ROWS, RANGE, ROWS, UNTIL, YOUNG
from paramserver.core.blocks import DIGEST as DIGESTS
from paramserver.core.blocks import Block, Blocks, merge
from replay.example import Example, Features


def learn(bounds: Bounds, features: Features) -> bool:
    """Learn a row as the service does; whether something in it was clipped."""
    taken, sent = bounds.taught(features)
    bounds.add(Example(taken, label=True, raw=sent))
    return sent is not None


def clipped(bounds: Bounds, values: Iterable[float], name: str = "a") -> list[int]:
    return [i for i, value in enumerate(values) if learn(bounds, {name: value})]


def known(n: int = 200, names: str = "ab", seed: int = 0) -> Bounds:
    bounds, draw = Bounds(), random.Random(seed)
    for _ in range(n):
        assert not learn(bounds, {name: draw.uniform(0.0, 1.0) for name in names})
    return bounds


@pytest.mark.parametrize("value", [1e3, 1e4, -1e4, 1e100, -1e100, 10**9])
def test_a_number_far_beyond_all_before_is_learned_as_the_end_of_its_range(value: float) -> None:
    bounds = known()
    row: Features = {"a": value, "b": 0.5, "c": 1e100, "t": "text"}
    taken, sent = bounds.taught(row)
    low, high = (0.0, 0.2), (0.8, 1.0)
    between = high if value > 0 else low
    assert between[0] <= taken["a"] <= between[1]  # type: ignore[operator]
    assert sent == {"a": value}, "what was sent is in the row, of what was bounded only"
    assert {k: taken[k] for k in "bct"} == {"b": 0.5, "c": 1e100, "t": "text"}
    assert row["a"] == value, "the caller's row stays as it is"
    assert bounds.answered(row)["a"] == bounds.ends(["a"])["a"][3 if value > 0 else 2]
    assert 0.0 <= float(bounds.answered(row)["a"]) <= 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize("on", [True, False])
def test_rows_are_inside_up_to_what_may_be_sent_whatever_is_known_of_the_name(on: bool) -> None:
    bounds = known()
    bounds.on = on
    sent = [0.5, 1e4, 1e100, -1e100, 1.1e100, -math.inf, math.nan]
    inside = bounds.inside(["c"], np.array(sent)[:, None], 1e100).tolist()
    assert inside == [True] * 4 + [False] * 3, "nothing is known of this name"
    inside = bounds.inside(["a"], np.array(sent)[:, None], 1e100).tolist()
    assert inside == [True] + [not on] * 3 + [False] * 3
    assert bounds.inside(["c"], np.array([[1e4]]), 10.0).tolist() == [False]
    assert bounds.inside(["a"], np.array([[0.5]]), 0.25).tolist() == [False], "its range is wider"


def test_it_is_the_end_of_what_came_lately_not_of_the_widest_ever() -> None:
    bounds = known()
    assert not learn(bounds, {"a": 12.0})
    clipped(bounds, [0.5] * 600)
    assert bounds.taught({"a": 1e4}) == ({"a": 0.5}, {"a": 1e4})


def test_what_is_within_the_reach_is_taken_as_it_is() -> None:
    bounds = known()
    for row in ({"a": 0.5, "b": 0.1}, {"a": 15.0}, {"a": -15.0, "x": 1e9}):
        assert bounds.taught(dict(row)) == (row, None)
        given_row: Features = dict(row)
        assert bounds.answered(given_row) is given_row


def test_numbers_of_one_row_share_the_reach() -> None:
    bounds = known()
    assert bounds.taught({"a": 9.0})[1] is None
    assert bounds.taught({"a": 9.0, "b": 9.0})[1] == {"a": 9.0, "b": 9.0}


def test_asking_changes_nothing() -> None:
    bounds = known()
    for _ in range(100):
        bounds.answered({"a": 1e9, "new": 1.0})
        bounds.taught({"a": 1e9, "new": 1.0})
    assert bounds.ends(["a", "new"]).keys() == {"a"}
    assert bounds.cut().keys() == known().cut().keys()
    assert bounds.taught({"a": 1e9})[1] == {"a": 1e9}


def test_text_under_a_name_of_numbers_is_left_alone() -> None:
    bounds = known()
    row: Features = {"a": "x", "b": 1e9, "c": None}
    taken, sent = bounds.taught(row)
    assert (taken["a"], taken["c"], sent) == ("x", None, {"b": 1e9})
    assert learn(bounds, row)
    assert bounds.answered({"a": True, "b": None}) == {"a": True, "b": None}


def test_ids_are_never_bounded() -> None:
    bounds = Bounds(free=("movie",))
    values = [1.0, 2.0, 1e9, 3.0, 7e12] * 40
    assert clipped(bounds, values, "movie") == []


def test_without_filters_nothing_is_bounded_or_learned() -> None:
    bounds = Bounds()
    bounds.on = False
    assert clipped(bounds, [0.5] * 100 + [1e100]) == []
    assert bounds.answered({"a": 1e100}) == {"a": 1e100}
    assert bounds.cut() == {}


# -- what moves on, and what does not --------------------------------------------------------


def zeros(draw: random.Random) -> float:
    return draw.uniform(40.0, 60.0) if draw.random() < 0.01 else 0.0


def counter() -> Callable[[random.Random], float]:
    at = iter(range(10**9, 10**10))
    return lambda draw: float(next(at))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("what", "most"),
    [
        ("normal", 0), ("uniform", 0), ("log-normal", 0), ("pareto", 10), ("zeros", 3),
        ("counter", 40), ("grows", 40), ("walk", 40), ("offset", 0),
    ],
)  # fmt: skip
def test_honest_numbers_are_seldom_clipped(what: str, most: int, seed: int) -> None:
    draw, count, grows = random.Random(seed), counter(), iter(range(10**6))
    at = 0.0

    def walk(_: random.Random) -> float:
        nonlocal at
        at += draw.gauss(0.0, 1.0)
        return at

    drawn: dict[str, Callable[[random.Random], float]] = {
        "normal": lambda d: d.gauss(0.0, 1.0),
        "uniform": lambda d: d.random(),
        "log-normal": lambda d: d.lognormvariate(0.0, 1.0),
        "pareto": lambda d: d.paretovariate(1.5),
        "zeros": zeros,
        "counter": count,
        "grows": lambda d: float(next(grows)),
        "walk": walk,
        "offset": lambda d: 1.7e9 + d.gauss(0.0, 1e4),
    }
    bounds = Bounds()
    assert len(clipped(bounds, [drawn[what](draw) for _ in range(10_000)])) <= most


def test_an_offset_does_not_hide_what_is_far() -> None:
    draw, bounds = random.Random(1), Bounds()
    clipped(bounds, [1.7e9 + draw.gauss(0.0, 1e4) for _ in range(500)])
    assert bounds.taught({"a": 1.8e9})[1] == {"a": 1.8e9}


@pytest.mark.parametrize("factor", [100.0, 0.01, 1e6, -100.0])
@pytest.mark.parametrize("before", [300, 20_000])
def test_another_unit_is_taken_within_some_hundred_rows(factor: float, before: int) -> None:
    draw, bounds = random.Random(2), known(before)
    values = [factor * draw.random() for _ in range(1_000)]
    found = clipped(bounds, values)
    assert len(found) <= 200
    assert all(i < 200 for i in found)


def test_a_column_that_was_constant_may_begin_to_move() -> None:
    bounds = Bounds()
    assert clipped(bounds, [0.0035] * 5_000) == []
    draw = random.Random(3)
    assert clipped(bounds, [0.0035 + draw.gauss(0.0, 0.0005) for _ in range(500)]) == []
    assert clipped(bounds, [1e4]) == [0]


def test_a_counter_that_stands_still_for_many_rows_may_jump() -> None:
    day = 48  # as the date of Elec2, which goes on by a day and at the end of a month by seventy
    dates = [0.0049 + 0.00004 * (n // day) for n in range(12 * day)]
    assert clipped(Bounds(), [*dates, *[dates[-1] + 0.004] * day]) == []


def still(what: str, seed: int, n: int) -> list[float]:
    """Numbers that are mostly the high end of their range."""
    draw = random.Random(seed)
    made: dict[str, Callable[[int], float]] = {
        "flag": lambda _: float(draw.random() >= 0.003),
        "constant": lambda _: 1.0,
        "counter": lambda i: 1.0 + 0.01 * (i // 48),
    }
    return [made[what](i) for i in range(n)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("what", ["flag", "constant", "counter"])
@pytest.mark.parametrize("before", [600, 3_000])
def test_a_name_that_stands_still_cannot_be_pushed(what: str, before: int, seed: int) -> None:
    bounds, values = Bounds(), still(what, seed, before)
    assert clipped(bounds, values) == []
    at = values[-1]
    for _ in range(20):
        at *= 16.5
        learn(bounds, {"a": at})
        clipped(bounds, values[-10:])
    assert bounds.ends(["a"])["a"][3] <= 3.0 * max(values), "its high end"


def test_flags_that_are_mostly_set_are_learned_in_bulk() -> None:
    bounds, flags = Bounds(), [still("flag", seed, 4_000) for seed in range(20)]
    rows: list[Features] = [
        {f"f{i}": flag for i, flag in enumerate(row)} for row in zip(*flags, strict=True)
    ]
    for row in rows[:3_000]:
        learn(bounds, row)
    found = [bounds.add_alike(rows[i : i + 20]) for i in range(3_000, 4_000, 20)]
    assert found == [True] * 50


def test_a_name_that_comes_later_is_new_as_well() -> None:
    bounds, values = known(3_000), Blocks()
    assert clipped(bounds, [1.0, 10.0, 100.0, 1_000.0], "later") == []
    assert bounds.ends(["later"])["later"][1:] == (17_000.0, 1.0, 1_000.0)
    merge(values, bounds.cut())
    other = Bounds()
    other.reset({**values, **digest(3_004)})
    for one in (bounds, other):
        assert clipped(one, [8e3, 5e4, *[1.0] * NEW_ROWS], "later") == []
        assert clipped(one, [7e5] * 2, "later") == []
    assert other.ends(["later"]) == bounds.ends(["later"])
    assert other.cut() == bounds.cut()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.25])
@pytest.mark.parametrize("value", [1e3, 1e100])
def test_repeated_outliers_do_not_move_the_range(share: float, value: float) -> None:
    draw, bounds = random.Random(4), known()
    wrong = 0
    for _ in range(5_000):
        if draw.random() < share:
            wrong += not learn(bounds, {"a": value})
        else:
            assert not learn(bounds, {"a": draw.random()})
    assert wrong == 0
    assert bounds.ends(["a"])["a"][1] < 20.0


def test_who_widens_it_within_the_reach_finds_less_and_less() -> None:
    bounds = known()
    for _ in range(100):
        end = bounds.ends(["a"])["a"][1]
        learn(bounds, {"a": end * 0.999})
    assert bounds.ends(["a"])["a"][1] < 150.0
    clipped(bounds, [0.5] * (8 * EASE_ROWS))
    assert bounds.ends(["a"])["a"][1] > 300.0, "after some thousand rows it reaches as far as ever"


def test_nothing_is_written_while_numbers_stay_within_their_ranges() -> None:
    bounds = known(YOUNG * 2)
    assert bounds.cut().keys() <= {RANGE, ROWS, UNTIL}
    clipped(bounds, [0.5, 0.4, 0.3] * 100)
    assert bounds.cut() == {}


# -- a view that adds up ---------------------------------------------------------------------


def digest(n: int) -> Blocks:
    return {DIGEST: Block(DIGESTS, {"count": n, "sum": 0})}


def shared(replicas: Sequence[Bounds], values: Blocks, n: int) -> None:
    """Every replica pushes, then pulls all."""
    for one in replicas:
        merge(values, one.cut())
    for one in replicas:
        one.rebase({**values, **digest(n)})


@pytest.mark.parametrize("every", [1, 7, 64])
def test_two_replicas_know_what_one_does(every: int) -> None:
    draw, values = random.Random(5), Blocks()
    pair, n = (Bounds(), Bounds()), 0
    alone = Bounds()
    for i in range(4_000):
        row: Features = {"a": draw.random(), "b": draw.gauss(50.0, 3.0)}
        learn(alone, row)
        assert not learn(pair[i % 2], row)
        n += 1
        if i % every == 0:
            shared(pair, values, n)
    shared(pair, values, n)
    for one in pair:
        assert one.ends("ab") == pair[0].ends("ab")
        assert one.taught({"a": 1e4})[1] == {"a": 1e4}
    one, both = alone.ends(["b"])["b"], pair[0].ends(["b"])["b"]
    assert both == pytest.approx(one, rel=0.2)


@pytest.mark.parametrize("every", [1, 16])
def test_two_replicas_follow_another_unit(every: int) -> None:
    draw, values = random.Random(6), Blocks()
    pair, last = (Bounds(), Bounds()), 0
    for i in range(3_000):
        value = draw.random() * (100.0 if i >= 1_500 else 1.0)
        if learn(pair[i % 2], {"a": value}):
            last = i
        if i % every == 0:
            shared(pair, values, i + 1)
    assert 1_500 <= last < 1_900


def test_a_new_replica_begins_with_what_the_others_know() -> None:
    old = known()
    clipped(old, [1e4] * 5)
    values = {**old.cut(), **digest(205)}
    new = Bounds()
    new.reset(values)
    assert new.ends("ab") == old.ends("ab")
    assert new.taught({"a": 1e4, "b": 0.5})[1] == old.taught({"a": 1e4, "b": 0.5})[1]
    assert [clipped(new, [1e4] * 30), clipped(new, [0.1])] == [
        clipped(old, [1e4] * 30),
        clipped(old, [0.1]),
    ], "and goes on counting where they are"


def test_what_is_mended_is_what_a_reset_makes() -> None:
    values = {**known().cut(), **digest(200)}
    first, second = Bounds(), Bounds()
    for one in (first, second):
        one.reset(values)
        for row in ({"a": 3.0, "b": 1e9}, {"a": 9.0, "new": 2.0}):
            learn(one, dict(row))
    names = ["a", "b", "new"]
    touched = first.touched(names)
    part = {
        k: b if touched[k] is None else Block(b.kind, {n: b.data[n] for n in names if n in b.data})
        for k, b in values.items()
        if k in touched
    }
    first.mend(part, names)
    second.reset(values)
    assert first.ends(names) == second.ends(names)
    assert first.cut() == second.cut() == {}
    assert learn(first, {"a": 1e4}) == learn(second, {"a": 1e4})
    assert first.cut() == second.cut()


numbers = st.floats(-1e100, 1e100) | st.integers(-(2**53), 2**53)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), numbers, min_size=1), max_size=80))
def test_whatever_comes_all_stays_finite(rows: list[Features]) -> None:
    bounds, values = Bounds(), Blocks()
    for i, row in enumerate(rows):
        taken, sent = bounds.taught(row)
        assert taken.keys() == row.keys()
        assert all(taken[name] == row[name] for name in row if name not in (sent or {}))
        learn(bounds, row)
        bounds.answered(row)
        if i % 5 == 0:
            merge(values, bounds.cut())
            bounds.rebase({**values, **digest(i + 1)})
    for low, high, *_ in bounds.ends("abc").values():
        assert low <= high
        assert abs(low) < 1e105
        assert abs(high) < 1e105
    merge(values, bounds.cut())
    assert all(x >= 0 for x in (values[ROWS].data.values() if ROWS in values else ()))
    assert all(x >= 0 for x in (values[BEYOND].data.values() if BEYOND in values else ()))
