"""The rate of a model whose views sleep, in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures import sources
from benchmarks.quality import asleep as bench


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_both_learn_the_same_rows(monkeypatch: pytest.MonkeyPatch, task: Any) -> None:
    labels = {"binary": [False, True], "multiclass": ["a", "b"], "regression": [0.5, 2.0]}[task]
    told: list[Any] = [({"a": i / 7.0, "b": "x"}, labels[i % 2]) for i in range(20)]
    monkeypatch.setattr(bench, "STREAMS", {"s": sources.Source(task, lambda _: told)})
    (found,) = bench.run(Path(), streams=["s"], rows=15, pairs=2)
    assert (found.stream, found.task, found.rows, found.pairs) == ("s", task, 15, 2)
    assert 0.0 < found.low <= found.rate <= found.high
