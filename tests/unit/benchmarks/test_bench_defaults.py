"""The table of learners that nobody has tuned, in small: every learner, every kind of value."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from benchmarks import defaults as bench
from benchmarks import sources

ROWS: list[Any] = [
    ({"t": f"one {i % 3}", "n": float(i % 7), "c": "red" if i % 2 else "blue"}, i % 2 == 1)
    for i in range(60)
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, list[Any]] = {
        "binary": ROWS,
        "multiclass": [(x, "abc"[i % 3]) for i, (x, _) in enumerate(ROWS)],
        "regression": [(x, float(i % 7)) for i, (x, _) in enumerate(ROWS)],
    }
    streams: dict[str, Any] = {
        task: sources.Source(task, lambda _, task=task: told[task], 2, ("t",))  # type: ignore[arg-type, misc]
        for task in told
    }
    monkeypatch.setattr(sources, "STREAMS", streams)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_every_learner_takes_every_kind_of_value(task: str) -> None:
    for name in (*bench.LEARNERS, "mlp"):
        line = bench.measure(task, name, Path())
        if name in ("naive bayes", "srp") and task == "regression":
            assert line is None
            continue
        assert line is not None
        assert (line.rows, line.what) == (60, name)
        assert (line.mae if task == "regression" else line.accuracy) is not None
    best = bench.measure(task, "auto", Path())
    assert best is not None
    if task == "binary":
        assert (best.accuracy or 0.0) > 0.8, "a category says it"


def test_a_learner_that_takes_numbers_gets_no_others() -> None:
    assert bench._numbers({"a": 1.0, "b": True, "c": "x", "d": None, "e": 2}) == {
        "a": 1.0,
        "e": 2.0,
    }


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_vowpal_wabbit_stands_beside_them_where_it_is(task: str) -> None:
    pytest.importorskip("vowpalwabbit", reason="vowpalwabbit is not installed")
    for name in bench.VOWPAL:
        line = bench.measure(task, name, Path())
        assert line is not None
        assert line.what == name
        assert (line.mae if task == "regression" else line.accuracy) is not None


@pytest.mark.usefixtures("small")
def test_a_stream_has_late_labels_by_its_name() -> None:
    assert sources.named("binary") is sources.STREAMS["binary"]
    late = sources.named("binary 48 late")
    assert (late.delay, late.task) == (48, "binary")
    with pytest.raises(KeyError):
        sources.named("no such stream")


@pytest.mark.parametrize("name", ["turning xor", "solar flare", "trump approval", "loans"])
def test_streams_that_nobody_has_looked_at_are_the_same_each_time(name: str) -> None:
    source = sources.STREAMS[name]
    told = [list(itertools.islice(source.rows(Path()), 50)) for _ in range(2)]
    assert told[0] == told[1]
    assert all(isinstance(x, dict) and x for x, _ in told[0])
