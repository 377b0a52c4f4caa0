"""The watch over one model: alarms with evidence, states, odd inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from evaluation.drift import error_history
from evaluation.drift.alarm import Alarm
from evaluation.drift.errors import DriftSettingUnusable, ShareUnusable
from evaluation.drift.glr import Glr
from evaluation.drift.profile import build
from evaluation.drift.watch import Watch, WatchSettings

SHORT = WatchSettings(reference_rows=400, window_rows=300)


def features(draw: Random, shift: float = 0.0) -> dict[str, Any]:
    return {"x": draw.gauss(shift, 1.0), "colour": draw.choice(("red", "green"))}


def play(watch: Watch, rows: int, *, rate: float = 0.1, shift: float = 0.0, seed: int = 1) -> None:
    draw = Random(seed)
    for _ in range(rows):
        watch.served(features(draw, shift), draw.betavariate(8, 2))
        watch.judged(float(draw.random() < rate))


def test_an_alarm_is_a_line_of_words() -> None:
    rose = Alarm(2024, None, "error", "", "glr", "up", 2001, 0.1675, 0.70833, 2000, 24)
    line = "drift: error changed (up) from 0.168 to 0.708, since row 2001, seen at row 2024 by glr"
    assert str(rose) == line
    moved = Alarm(9, None, "feature", "a\x1b[2J\n", "window", "other", 1, None, None, 4, 4)
    assert str(moved) == (
        r"drift: feature 'a\x1b[2J\n' changed (other), since row 1, seen at row 9 by window"
    )


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


def test_a_fall_of_the_error_is_no_alarm() -> None:
    watch = Watch(SHORT)
    play(watch, 2_000, rate=0.6)
    play(watch, 500, rate=0.1, seed=2)
    assert watch.state().state == "ok"
    assert not watch.alarms


def test_a_rise_is_over_when_the_error_is_back() -> None:
    watch = Watch(SHORT)
    play(watch, 2_000)
    play(watch, 1_000, rate=0.6, seed=2)
    assert watch.state().state == "act", "it is not back"
    play(watch, 500, rate=0.1, seed=3)
    assert [a.direction for a in watch.alarms if a.signal == "error"] == ["up"]
    assert watch.state().state == "ok"


def in_runs(seed: int, rows: int = 20_000) -> Iterator[float]:
    """Errors of a healthy model on a stream of hard and easy times: some dozens of rows each."""
    draw, hard = Random(seed), 0.0
    for _ in range(rows):
        hard = 0.98 * hard + 0.2 * draw.gauss(0.0, 1.0)
        yield float(draw.random() < 1.0 / (1.0 + math.exp(2.0 - hard)))


@pytest.mark.parametrize("seed", range(3))
def test_the_state_settles_on_a_stream_of_hard_and_easy_times(seed: int) -> None:
    """A test that takes rows for independent of each other finds one rise after the other."""
    watch, plain, risen, above = Watch(SHORT), Glr(), 0, 0
    for row, error in enumerate(in_runs(seed), 1):
        watch.judged(error)
        found = plain.update(error)
        risen += found is not None and found.direction == "up"
        above += row % 50 == 0 and watch.state().state not in ("ok", "not enough data")
    assert risen > 20
    assert watch.alarm_count < risen / 2
    assert above <= 0.03 * 20_000 / 50


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_breaks_on_such_a_stream_is_found_all_the_same(seed: int) -> None:
    watch, draw = Watch(SHORT), Random(seed)
    for error in in_runs(seed, 5_000):
        watch.judged(error)
    late = 0
    while watch.state().state != "act":
        watch.judged(float(draw.random() < 0.8))
        late += 1
        assert late < 200
    for _ in range(2_000):
        watch.judged(float(draw.random() < 0.8))
        assert watch.state().state == "act", "as long as it is broken"


@pytest.mark.parametrize("seed", range(10))
def test_where_rows_are_independent_nothing_is_asked_beyond_the_test(seed: int) -> None:
    draw = Random(seed)
    errors = [float(draw.random() < (0.2 if i < 4_000 else 0.35)) for i in range(6_000)]
    watch, plain = Watch(SHORT), Glr()
    ups = [
        row for row, error in enumerate(errors, 1)
        if (found := plain.update(error)) is not None and found.direction == "up"
    ]  # fmt: skip
    for error in errors:
        watch.judged(error)
    assert [a.row for a in watch.alarms] == ups


@pytest.mark.parametrize("seed", range(4))
def test_what_a_model_was_before_it_had_learned_is_not_its_past(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alarms(*, changed: bool) -> list[int]:
        watch, draw, rows = Watch(), Random(seed), list[int]()
        for i in range(2_400):
            rate = 0.1 + 0.6 * math.exp(-i / 150) + 0.4 * (changed and i >= 1_200)
            rows += [alarm.row for alarm in watch.judged(float(draw.random() < rate))]
        return rows

    assert alarms(changed=False) == []
    (row,) = alarms(changed=True)
    assert 1_200 < row < 1_264
    monkeypatch.setattr(error_history, "_learned", lambda before, size: before)
    assert alarms(changed=True) == [], "as high as it was at first"


def test_a_time_that_is_harder_for_every_rule_is_no_rise_of_the_model() -> None:
    """The labels begin to alternate more: the model gets worse by as much as the last label."""
    watch, deaf, draw = Watch(SHORT), Watch(SHORT), Random(4)
    for row in range(6_000):
        wrong, rule = (0.10, 0.30) if row < 3_000 else (0.19, 0.57)
        error, same = float(draw.random() < wrong), float(draw.random() < rule)
        watch.judged(error, rule=same)
        deaf.judged(error)
    assert [a.signal for a in deaf.alarms] == ["error"]
    assert not watch.alarms


def test_scores_and_features_are_a_state_only_where_no_label_comes() -> None:
    settings = WatchSettings(reference_rows=400, window_rows=300)
    for labels in (True, False):
        watch, draw = Watch(settings), Random(1)
        for row in range(2_000):
            late = row >= 1_000
            score = draw.betavariate(2, 8) if late else draw.betavariate(8, 2)
            watch.served(features(draw, 3.0 * late), score)
            if labels:
                watch.judged(float(draw.random() < 0.1))
        assert watch.state().state == ("ok" if labels else "act")
        assert watch.shifts[0].state == "act", "it is shown"
        assert any(a.signal == "score" for a in watch.alarms) is not labels


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
    assert watch.state().state == "ok", "the labels say that the error is as before"
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
    assert "does not rule out drift" in watch.state().why


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
    settings = WatchSettings(features=("adwin",), reference_rows=400, alarms_kept=3)
    watch = Watch(settings)
    for i in range(8):
        play(watch, 400, shift=4.0 * (i % 2), seed=i)
    assert len(watch.alarms) == 3
    assert watch.alarm_count > 3


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "drift.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    draw = Random(1)
    stream = [(features(draw), draw.random(), draw.random() < 0.5) for _ in range(500)]
    said: list[Any] = []
    exec(example, {"stream": stream, "print": said.append})
    assert said[-1].judged == 500
