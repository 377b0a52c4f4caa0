"""The watch over one model: alarms with evidence, states, odd inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from evaluation.drift.errors import DriftSettingUnusable, ShareUnusable
from evaluation.drift.glr import Glr
from evaluation.drift.profile import build
from evaluation.drift.seed import Seed
from evaluation.drift.stepd import Stepd
from evaluation.drift.watch import Watch, WatchSettings

SHORT = WatchSettings(reference_rows=400, window_rows=300)


def features(draw: Random, shift: float = 0.0) -> dict[str, Any]:
    return {"x": draw.gauss(shift, 1.0), "colour": draw.choice(("red", "green"))}


def play(watch: Watch, rows: int, *, rate: float = 0.1, shift: float = 0.0, seed: int = 1) -> None:
    draw = Random(seed)
    for _ in range(rows):
        watch.served(features(draw, shift), draw.betavariate(8, 2))
        watch.judged(float(draw.random() < rate))


def test_a_rising_error_acts_and_says_since_when() -> None:
    watch = Watch(SHORT)
    play(watch, 2_000)
    assert watch.state().state == "ok"
    play(watch, 200, rate=0.6, seed=2)
    found = watch.state()
    assert found.state == "act"
    assert found.since is not None
    assert found.since.worse
    assert (found.since.signal, found.since.direction) == ("error", "up")
    assert abs(found.since.since - 2_000) < 60
    assert found.since.before == pytest.approx(0.1, abs=0.05)
    assert found.since.after > 0.4
    assert "rose" in found.why


def test_an_improvement_is_called_one() -> None:
    watch = Watch(SHORT)
    play(watch, 2_000, rate=0.6)
    play(watch, 250, rate=0.1, seed=2)
    found = watch.state()
    assert found.state == "watch"
    assert found.since is not None
    assert found.since.direction == "down"
    assert not found.since.worse
    assert not found.since.recovery


def test_a_fall_after_a_rise_is_a_recovery() -> None:
    watch = Watch(SHORT)
    play(watch, 2_000)
    play(watch, 1_000, rate=0.6, seed=2)
    play(watch, 500, rate=0.1, seed=3)
    ways = [(a.direction, a.recovery) for a in watch.alarms if a.signal == "error"]
    assert ways == [("up", False), ("down", True)]
    assert watch.state().state != "act"


def test_what_was_acted_on_is_no_reason_any_more() -> None:
    watch = Watch(SHORT)
    play(watch, 2_000)
    play(watch, 500, rate=0.6, seed=2)
    assert watch.state().state == "act"
    watch.acknowledge()
    play(watch, 400, rate=0.6, seed=3)
    assert watch.state().state == "ok"


def test_a_moved_feature_alarms_once_until_it_is_back() -> None:
    watch = Watch(SHORT)
    play(watch, 400)
    play(watch, 900, shift=3.0, seed=2)
    alarms = [a for a in watch.alarms if a.signal == "feature"]
    assert [(a.name, a.direction, a.row) for a in alarms] == [("x", "up", 700)]
    assert alarms[0].since == 401
    assert alarms[0].effect is not None
    assert alarms[0].effect > 0.25
    assert watch.state().state == "act"
    play(watch, 300, seed=3)
    play(watch, 310, shift=3.0, seed=4)  # features are compared in the next rows
    assert len([a for a in watch.alarms if a.signal == "feature"]) == 2


@pytest.mark.parametrize("signal", ["feature", "missing", "new"])
def test_detectors_watch_features_missing_values_and_new_categories(signal: str) -> None:
    settings = WatchSettings(features=("adwin",), reference_rows=400, window_rows=100_000)
    watch, draw = Watch(settings), Random(1)
    for i in range(3_000):
        row = features(draw, 1.5 if signal == "feature" and i >= 2_000 else 0.0)
        if signal == "missing" and i >= 2_000 and draw.random() < 0.3:
            row["x"] = None
        if signal == "new" and i >= 2_000 and draw.random() < 0.3:
            row["colour"] = "mauve"
        watch.served(row)
    found = [a for a in watch.alarms if a.signal == signal]
    assert found
    assert all(a.row > 2_000 for a in watch.alarms)
    assert found[0].direction == "up"
    assert found[0].name == ("colour" if signal == "new" else "x")


def test_alarms_and_states_are_json() -> None:
    watch = Watch(SHORT)
    play(watch, 1_000)
    play(watch, 700, rate=0.7, shift=3.0, seed=2)
    assert watch.alarms
    again = json.loads(json.dumps([a.data() for a in watch.alarms]))
    assert again[0]["row"] == watch.alarms[0].row
    assert json.loads(json.dumps(watch.state().data()))["state"] == "act"


@pytest.mark.parametrize("n", [0, 1, 8, 150])
def test_few_rows_are_not_enough_data(n: int) -> None:
    watch = Watch()
    play(watch, n, rate=0.9, shift=50.0)
    assert watch.state().state == "not enough data"
    assert watch.state().why
    assert not watch.alarms


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_always_right_or_always_wrong_is_no_drift(error: float) -> None:
    watch = Watch(SHORT)
    for _ in range(3_000):
        watch.served({"x": 1.0}, 1.0)
        watch.judged(error)
    assert watch.state().state == "ok"
    assert "not the same as no drift" in watch.state().why


def test_shuffled_time_is_no_evidence() -> None:
    watch, draw = Watch(SHORT), Random(1)
    times = [float(i) for i in range(2_000)]
    draw.shuffle(times)
    for at in times:
        watch.served(features(draw, 5.0 if at > 1_000 else 0.0), at=at)
        watch.judged(float(draw.random() < (0.6 if at > 1_000 else 0.1)))
    found = watch.state()
    assert found.state == "not enough data"
    assert "sort" in found.why


def test_a_few_late_rows_do_not_stop_the_watch() -> None:
    watch, draw = Watch(SHORT), Random(1)
    for i in range(3_000):
        watch.served(features(draw), at=float(i - 50 * (i % 10 == 0)))
        watch.judged(float(draw.random() < (0.6 if i > 2_500 else 0.1)))
    assert watch.state().state == "act"


def test_odd_rows_are_refused_or_counted_and_nothing_breaks() -> None:
    watch = Watch(SHORT)
    for bad in (math.nan, math.inf, -1.0, 2.0, 1e12, None, "wrong"):
        with pytest.raises(ShareUnusable):
            watch.judged(bad)  # type: ignore[arg-type]
        if bad is not None:
            with pytest.raises(ShareUnusable):
                watch.served({"x": 1.0}, bad)  # type: ignore[arg-type]
    assert (watch.served_rows, watch.judged_rows) == (0, 0)
    for i in range(1_500):
        odd = [math.nan, None, math.inf, 1e12, "text", True, 3][i % 7]
        watch.served({"x": odd, f"y{i % 5}": odd})
    assert watch.state().state == "ok"
    with pytest.raises(DriftSettingUnusable, match="phase = 1: give 0 to 0"):
        watch.served({}, phase=1)


def test_errors_of_a_regression_are_ranks() -> None:
    watch = Watch(WatchSettings(regression=True, reference_rows=400))
    draw = Random(1)
    for _ in range(2_000):
        watch.judged(abs(draw.gauss(0.0, 1e6)))
    assert watch.state().state == "ok"
    for _ in range(300):
        watch.judged(abs(draw.gauss(0.0, 5e6)))
    assert watch.state().state == "act"
    for bad in (math.nan, math.inf, -1.0):
        with pytest.raises(ShareUnusable, match="absolute error"):
            watch.judged(bad)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"error": ("adwim",)}, "detector = 'adwim': give one of glr, adwin"),
        ({"window_rows": 8}, "window_rows = 8: give 200 or more"),
        ({"reference_rows": 0}, "reference_rows = 0"),
        ({"phases": 0}, "phases = 0"),
        ({"alarms_kept": 0}, "alarms_kept = 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(DriftSettingUnusable, match=said):
        WatchSettings(**settings)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Glr(threshold=0.0), "threshold = 0.0: give 4 to 1000"),
        (lambda: Glr(threshold=math.nan), "threshold = nan"),
        (lambda: Glr(block=0), "block = 0"),
        (lambda: Glr(width=0), "width = 0"),
        (lambda: Glr(rows_max=0), "rows_max = 0"),
        (lambda: Seed(delta=0.0), "delta = 0.0"),
        (lambda: Seed(block=1), "block = 1: give 2"),
        (lambda: Stepd(alpha=0.0), "alpha = 0.0"),
        (lambda: Stepd(window=1), "window = 1: give 8"),
    ],
)
def test_settings_of_detectors_are_checked(make: Callable[[], object], said: str) -> None:
    with pytest.raises(DriftSettingUnusable, match=said):
        make()


def test_a_reference_has_its_phases() -> None:
    reference = build([{"x": 1.0}] * 300)
    with pytest.raises(DriftSettingUnusable, match="phases = 2: give 1"):
        Watch(WatchSettings(phases=2), reference)


def test_of_many_features_rows_are_drawn() -> None:
    settings, draw = WatchSettings(reference_rows=400, window_rows=300), Random(1)
    watch = Watch(settings)
    for i in range(3_000):
        watch.served({f"x{j}": draw.gauss(3.0 * (i >= 1_500), 1.0) for j in range(128)})
    assert {s.n for s in watch.shifts} == {300}
    first = watch.alarms[0]
    assert 1_500 < first.row < 3_000
    assert first.since <= first.row - 450
    assert len({a.name for a in watch.alarms}) == 128


def test_alarms_kept_are_bounded() -> None:
    settings = WatchSettings(error=("stepd",), reference_rows=400, alarms_kept=3)
    watch = Watch(settings)
    for i in range(8):
        play(watch, 400, rate=0.9 if i % 2 else 0.1, seed=i)
    assert len(watch.alarms) == 3
    assert watch.alarm_count > 3


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "drift.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    draw = Random(1)
    stream = [(features(draw), draw.random(), draw.random() < 0.5) for _ in range(500)]
    said: list[Any] = []
    exec(example, {"stream": stream, "print": said.append})
    assert said[-1].judged == 500
