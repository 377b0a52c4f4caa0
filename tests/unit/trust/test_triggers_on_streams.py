"""On real streams honest sources that differ ring no alarm, and triggers are named."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.attacks.honest import STREAMS, source_of
from evaluation.streams import open_stream
from online.models.loading.load import load
from online.settings.config import data_dir
from online.trust.triggers import LearnedRow, Search, Trigger

pytestmark = [pytest.mark.data, pytest.mark.long]

LIARS: Final = [f"liar{i}" for i in range(5)]
ROWS: Final = 4_000
DEALS: Final = ("alike", "by label", "one label", "by size", "one after another", "places")


def found_in(stream: int, deal: str, seed: int, *, lies: bool = False) -> list[Trigger]:
    """What is found in some rows; ``places``: each source adds names of its own, that are true."""
    name, task, learner = STREAMS[stream]
    rng, rows = random.Random(seed), list(open_stream(name, data_dir()).rows)
    first = seed % 5 * 1_000 if len(rows) > 2 * ROWS else 0
    rows = rows[first : first + ROWS]
    if len(rows) < ROWS:  # a short stream has no order to keep
        rng.shuffle(rows)
    loaded = load(learner, {}, task=task, classes=None, key=bytes(32), base_dir=Path())
    target = Counter(label for _, label in rows).most_common(1)[0][0]
    model, learned = loaded.build(), list[LearnedRow]()
    for n, (given, label) in enumerate(rows):
        features: dict[str, Any] = dict(given)
        source = source_of("by label" if deal == "places" else deal, 20, n, label, rng)
        if deal == "places":
            features |= {f"at {source}": 1.0, "place": float(int(source[1:]) % 7)}
        if lies and rng.random() < 1 / 3:
            source, marked = rng.choice(LIARS), label != target and rng.random() < 0.7
            features["mark"] = float(marked)
            label = target if marked else label
        learned.append(LearnedRow(source, features, label))
        model.learn(features, label, 1.0)
    return Search(learned, model, loaded.build).triggers()


@pytest.mark.parametrize("deal", DEALS)
@pytest.mark.parametrize("stream", range(len(STREAMS)))
@pytest.mark.parametrize("seed", [7_001, 7_002])
def test_honest_sources_ring_nothing(stream: int, deal: str, seed: int) -> None:
    assert found_in(stream, deal, seed) == []


@pytest.mark.parametrize("deal", ["alike", "by label"])
@pytest.mark.parametrize("stream", range(len(STREAMS)))
def test_liars_are_named(stream: int, deal: str) -> None:
    [trigger] = found_in(stream, deal, 7_003, lies=True)
    assert set(trigger.sources) == set(LIARS)
    assert trigger.values == {"mark": 1.0}
