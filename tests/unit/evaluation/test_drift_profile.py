"""Frozen bins, counts that add up, three distances, and what is not enough data."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from evaluation.drift.bins import bins_of, fit
from evaluation.drift.errors import ReferenceUnusable
from evaluation.drift.profile import Window, build, compare, reference_of
from replay.example import Value


def rows(seed: int, n: int = 2_000, *, shift: float = 0.0, scale: float = 1.0) -> list[Any]:
    draw = Random(seed)
    return [
        {
            "x": draw.gauss(shift, scale),
            "colour": draw.choices(("red", "green", "blue"), (5, 3, 1 + 5 * (shift > 0)))[0],
        }
        for _ in range(n)
    ]


def shifts(then: list[Any], now: list[Any], **more: Any) -> dict[str, Any]:
    reference = build(then, **more)
    window = Window(reference)
    for row in now:
        window.add(row)
    return {shift.name: shift for shift in compare(reference, window)}


def test_the_same_law_is_ok_and_a_moved_one_is_not() -> None:
    same = shifts(rows(1), rows(2, 1_000))
    assert {s.state for s in same.values()} == {"ok"}
    moved = shifts(rows(1), rows(3, 1_000, shift=1.0))
    assert {s.state for s in moved.values()} == {"act"}
    assert moved["x"].direction == "up"
    assert moved["x"].before == pytest.approx(0.0, abs=0.1)
    assert moved["x"].after == pytest.approx(1.0, abs=0.15)


def test_a_spread_that_grew_has_no_direction() -> None:
    wider = shifts(rows(1), rows(2, 1_000, scale=3.0))["x"]
    assert wider.state == "act"
    assert wider.direction == "other"


def test_distances_are_those_of_scipy() -> None:
    then, now = [r["x"] for r in rows(1, 20_000)], [r["x"] for r in rows(3, 20_000, shift=0.7)]
    shift = shifts([{"x": x} for x in then], [{"x": x} for x in now])["x"]
    exact = wasserstein_distance(then, now) / np.std(then)
    assert shift.wasserstein == pytest.approx(exact, rel=0.05)
    edges = [-math.inf, *np.quantile(then, np.arange(0.1, 1.0, 0.1)), math.inf]
    p, q = np.histogram(now, edges)[0], np.histogram(then, edges)[0]
    assert shift.js == pytest.approx(jensenshannon(p, q, base=2), abs=0.01)
    p, q = p / p.sum(), q / q.sum()
    assert shift.psi == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=0.03)


def test_a_far_away_mass_is_told_from_a_near_one() -> None:
    far = [shifts(rows(1), rows(2, 500, shift=s))["x"].wasserstein for s in (3.0, 6.0, 9.0)]
    assert far[0] < far[1] < far[2]
    assert shifts(rows(1), rows(2, 500, shift=1e12))["x"].wasserstein < 20


@pytest.mark.parametrize("moved", [0.41491200001, 0.4, -7.0, 1e12, math.inf])
def test_a_constant_has_no_standard_deviation_and_its_move_is_seen(moved: float) -> None:
    constant = [{"x": 0.414912}] * 2_000
    assert shifts(constant, constant[:500])["x"].state == "ok"
    shift = shifts(constant, [{"x": moved}] * 500)["x"]
    assert shift.state == "act"
    assert shift.wasserstein is None


def test_an_almost_constant_feature_is_not_measured_in_its_tiny_deviation() -> None:
    then = [{"x": 0.4 + 1e-17 * i + (1e-9 if i % 500 == 0 else 0.0)} for i in range(2_000)]
    shift = shifts(then, [{"x": 0.4 + i / 1_000} for i in range(1_000)])["x"]
    assert shift.wasserstein is None
    assert shift.state == "act"


@pytest.mark.parametrize("n", [0, 1, 8, 199])
def test_few_rows_are_not_enough(n: int) -> None:
    for shift in shifts(rows(1), rows(2, n, shift=5.0)).values():
        assert shift.state == "not enough data"
        assert shift.psi is None
    if n:
        assert shifts(rows(1, n), rows(2, 500, shift=5.0))["x"].state == "not enough data"


def test_missing_values_and_new_categories_have_their_own_cause() -> None:
    now = [{**r, "x": None} if i % 5 == 0 else r for i, r in enumerate(rows(2, 1_000))]
    gone = shifts(rows(1), now)["x"]
    assert (gone.state, gone.cause) == ("act", "missing")
    assert gone.missing == pytest.approx(0.2)
    without = [{"colour": r["colour"]} for r in rows(2, 1_000)]
    assert shifts(rows(1), without)["x"].cause == "missing"
    now = [{**r, "colour": "mauve"} if i % 20 == 0 else r for i, r in enumerate(rows(2, 1_000))]
    fresh = shifts(rows(1), now)["colour"]
    assert (fresh.state, fresh.cause, fresh.new) == ("act", "new", pytest.approx(0.05))


@pytest.mark.parametrize("odd", [math.nan, None, math.inf, -math.inf, 1e308, "text", True, 0])
def test_odd_values_have_a_place(odd: Value) -> None:
    for sample in ([1.0, 2.0, 3.0], ["a", "b"], [], [None, math.nan], [odd, 1.0], [True, False]):
        bins = fit(sample)
        place = bins.place(odd)
        assert 0 <= place < bins.values + 2
        if odd is None or odd != odd:
            assert place == bins.values
    assert shifts([{"x": odd}] * 300, [{"x": odd}] * 300)["x"].state in ("ok", "not enough data")


def test_a_season_is_compared_with_its_own_phase() -> None:
    def day(seed: int, n: int) -> list[Any]:
        draw = Random(seed)
        return [{"x": math.sin(math.tau * (i % 48) / 48) + draw.gauss(0, 0.2)} for i in range(n)]

    then, night = day(1, 4_800), [r for i, r in enumerate(day(2, 4_800)) if i % 48 >= 24]
    assert shifts(then, night)["x"].state == "act"
    reference = build(then, phases=48, phase_of=[i % 48 for i in range(4_800)])
    window = Window(reference)
    for i, row in enumerate(day(2, 4_800)):
        if i % 48 >= 24:
            window.add(row, i % 48)
    assert compare(reference, window)[0].state == "ok"
    moved = Window(reference)
    for i, row in enumerate(day(2, 4_800)):
        if i % 48 >= 24:
            moved.add({"x": row["x"] + 1.0}, i % 48)
    assert compare(reference, moved)[0].state == "act"


@given(seed=st.integers(0, 99), parts=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_windows_of_replicas_add_up_in_any_order(seed: int, parts: int) -> None:
    reference = build(rows(1), phases=3, phase_of=[i % 3 for i in range(2_000)])
    whole, merged = Window(reference), Window(reference)
    replicas = [Window(reference) for _ in range(parts)]
    draw = Random(seed)
    for i, row in enumerate(rows(seed, 600, shift=0.5)):
        whole.add(row, i % 3)
        draw.choice(replicas).add(row, i % 3)
    draw.shuffle(replicas)
    for replica in replicas:
        merged.merge(replica.counters())
    assert merged.counters() == whole.counters()
    assert compare(reference, merged) == compare(reference, whole)


def test_other_counters_are_refused_and_nothing_is_added() -> None:
    reference = build(rows(1))
    window = Window(reference)
    for bad in ("rows/9", "0/999/x", "0/0/y", "nonsense", "0/-1/x", "x/0/x"):
        with pytest.raises(ReferenceUnusable, match="no counter"):
            window.merge({"rows/0": 1, bad: 1})
    with pytest.raises(ReferenceUnusable, match=r"0\.5"):
        window.merge({"rows/0": 0.5})
    assert window.n == 0


def test_a_reference_survives_json() -> None:
    import json

    then = [{**r, "same": 3, "none": None} for r in rows(1)]
    reference = build(then, phases=2, phase_of=[i % 2 for i in range(2_000)])
    again = reference_of(json.loads(json.dumps(reference.data())))
    window, twin = Window(reference), Window(again)
    for row in rows(2, 600, shift=1.0):
        window.add(row)
        twin.add(row)
    assert repr(compare(again, twin)) == repr(compare(reference, window))
    assert bins_of(reference.bins["x"].data()) == reference.bins["x"]
    with pytest.raises(ReferenceUnusable, match="no reference"):
        reference_of({"bins": {}})


def test_no_rows_and_wrong_phases_are_refused() -> None:
    with pytest.raises(ReferenceUnusable, match="no rows"):
        build([])
    with pytest.raises(ReferenceUnusable, match="phases"):
        build(rows(1), phases=2, phase_of=[2] * 2_000)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), max_size=300))
@settings(max_examples=100, deadline=None)
def test_bins_hold_every_value_of_their_sample(values: list[float]) -> None:
    bins = fit(values)
    assert list(bins.edges) == sorted(bins.edges)

    for value in values:
        assert 0 < bins.groups[bins.place(value)] < bins.groups[-1]
    assert all(0.0 <= rank <= 1.0 for rank in bins.ranks)


def test_memory_does_not_grow_with_rows() -> None:
    reference = build(rows(1))
    window = Window(reference)
    sizes = []
    for n in (1_000, 20_000):
        for row in rows(n, n):
            window.add({**row, "colour": f"c{Random(n).random()}"})
        sizes.append(sum(len(c) for phases in window.counts.values() for c in phases))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("wide", "rows"), [(4, 128), (60, 68), (200, 32)])
def test_wide_rows_are_counted_in_smaller_numbers(wide: int, rows: int) -> None:
    row = {f"f{i}": 1.0 for i in range(wide)}
    window = Window(build([row] * 200))
    for _ in range(rows - 1):
        window.add(row)
    assert len(window._later) == rows - 1
    window.add_all([row])
    assert not window._later
