"""The table of learners that nobody has tuned, in small: every learner, every kind of value."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.commands import alone
from benchmarks.fixtures import sources
from benchmarks.quality import defaults as bench

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
    assert sources.named("binary 48 late 0 late").delay == 0, "the last number counts"
    for unknown in ("no such stream", "no such stream 48 late", "binary some late"):
        with pytest.raises(ValueError, match=r"is no stream; name one of: .*binary"):
            sources.named(unknown)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("late", "streams"),
    [((), ["binary 48 late"]), (("96", "0"), ["binary 48 late 96 late", "binary 48 late 0 late"])],
)
def test_the_command_delays_labels_only_if_asked(
    monkeypatch: pytest.MonkeyPatch, late: tuple[str, ...], streams: list[str]
) -> None:
    asked: list[list[str]] = []

    def run(*_: object, streams: list[str], **__: object) -> list[bench.Line]:
        asked.append(streams)
        return []

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(alone, "show", lambda *_, **__: None)
    words = [word for n in late for word in ("--late", n)]
    done = CliRunner().invoke(alone.app, ["defaults", "--stream", "binary 48 late", *words])
    assert (done.exit_code, asked) == (0, [streams]), done.output


def line(stream: str, what: str, accuracy: float) -> bench.Line:
    return bench.Line(stream, what, 9, accuracy, None, None, None, None, 0.5, 0.25, 1.0)


def test_ranks_are_means_and_the_best_rate_stands_for_all() -> None:
    lines = [
        line("a", "auto", 0.9), line("a", "river 0.1", 0.8), line("a", "river 0.2", 0.85),
        line("b", "auto", 0.7), line("b", "river 0.1", 0.75), line("b", "hat", 0.7),
    ]  # fmt: skip
    found = {one.what: one for one in bench.ranks(lines)}
    assert found["auto"] == bench.Rank("auto", 2, 1.75, 1, 2.5)
    assert found["river, best rate"] == bench.Rank("river, best rate", 2, 1.5, 1, 2.5)
    assert found["hat"] == bench.Rank("hat", 1, 3.75, 0, 5.0), "the last where it was not"
    assert found.keys() == {"auto", "river, best rate", "hat", "no-change", "majority"}


def test_lines_that_are_kept_are_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "ProcessPoolExecutor", Here)
    asked: list[int | None] = []

    def measured(stream: str, what: str, data: Path, limit: int | None) -> bench.Line:
        asked.append(limit)
        return line(stream, what, 0.8 if limit is None else 0.7)

    monkeypatch.setattr(bench, "measure", measured)
    kept = tmp_path / "lines"
    told = [{**asdict(line("other", "auto", 0.9)), "asked": None}, asdict(line("a", "auto", 0.9))]
    kept.write_text("".join(json.dumps(one) + "\n" for one in told))  # the second is of before
    for rows, accuracy in ((5, 0.7), (None, 0.8), (5, 0.7), (None, 0.8)):
        found = bench.run(tmp_path, streams=["a"], learners=["auto"], rows=rows, kept=kept)
        assert found == [line("a", "auto", accuracy)], rows
    assert asked == [5, None], "lines with another limit are others"


class Here(ThreadPoolExecutor):
    """A pool of this process."""

    def __init__(self, jobs: int, **_: object) -> None:
        super().__init__(jobs)


@pytest.mark.parametrize("name", ["turning xor", "solar flare", "trump approval", "loans"])
def test_streams_that_nobody_has_looked_at_are_the_same_each_time(name: str) -> None:
    source = sources.STREAMS[name]
    told = [list(itertools.islice(source.rows(Path()), 50)) for _ in range(2)]
    assert told[0] == told[1]
    assert all(isinstance(x, dict) and x for x, _ in told[0])
