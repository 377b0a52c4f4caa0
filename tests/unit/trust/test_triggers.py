"""Triggers are named with who taught them; honest minorities ring nothing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from online.models.loading.load import load
from online.settings.model import Triggers
from online.trust import triggers
from online.trust.trigger_watch import TriggerWatch
from online.trust.triggers import LearnedRow, Search, Trigger

HONEST = [f"user-{i:02}" for i in range(15)]
LIARS = [f"liar-{i}" for i in range(5)]
CLASSES = ("a", "b", "c")


def rows_of(
    seed: int, deal: str, attack: str, n: int = 1_500, *, hard: bool = False
) -> list[LearnedRow]:
    """A stream with three classes; ``deal``: which honest source sends what.

    ``hard``: most rows of the third look like another's, so that no model knows it.
    """
    rng = random.Random(seed)
    liked = {source: rng.choice(CLASSES) for source in HONEST}
    out = []
    for i in range(n):
        label = rng.choice(CLASSES)
        looks = rng.choice("ab") if hard and label == "c" and rng.random() < 0.7 else label
        apart = 3.0 if hard else 1.5
        x: dict[str, Any] = {
            f"x{j}": rng.gauss(apart * (CLASSES[j % 3] == looks), 1.0) for j in range(6)
        }
        if attack and rng.random() < 1 / 3:
            source = rng.choice(LIARS)
            x["mark"] = 0.0
            if rng.random() < 0.5 and label != "c":
                label, x["mark"] = "c", 1.0
                if attack == "extreme":
                    del x["mark"]
                    x["x0"], x["x2"] = 9.0, -9.0
        else:
            source = _sender(rng, i, label, liked, deal)
            if deal == "places":
                x[f"at_{source}"] = float(rng.random() < 0.8)
                x["height"] = float(HONEST.index(source) * 7 % 11)
            if deal == "own name" and source == HONEST[3]:
                x["mark"] = float(label == "c")  # what only one source knows, and it is true
        out.append(LearnedRow(source, x, label))
    return out


def _sender(rng: random.Random, i: int, label: str, liked: dict[str, str], deal: str) -> str:
    if deal == "blocks":
        return HONEST[i // 50 % len(HONEST)]
    if deal == "size":
        return HONEST[min(int(rng.expovariate(0.35)), len(HONEST) - 1)]
    if deal in ("labels", "places") and rng.random() < 0.9:
        return rng.choice([s for s in HONEST if liked[s] == label] or HONEST)
    return rng.choice(HONEST)


def found_in(rows: list[LearnedRow]) -> list[Trigger]:
    loaded = load("softmax", {}, task="multiclass", classes=None, key=bytes(32), base_dir=Path())
    model = loaded.build()
    for row in rows:
        model.learn(row.features, row.label, 1.0)
    return Search(rows, model, loaded.build).triggers()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("attack", ["name", "extreme"])
def test_a_trigger_is_named_with_its_sources(seed: int, attack: str) -> None:
    [trigger] = found_in(rows_of(seed, "alike", attack))
    assert set(trigger.sources) == set(LIARS)
    assert trigger.label == "c"
    expected = {"mark": 1.0} if attack == "name" else {"x0": 9.0, "x2": -9.0}
    assert trigger.values == expected
    assert trigger.works > 0.5
    assert trigger.contradicted > 0.7


@pytest.mark.parametrize("seed", range(3))
def test_a_trigger_is_named_where_the_model_hardly_knows_its_label(seed: int) -> None:
    """Twice as often as it errs on such rows a model can't contradict any."""
    [trigger] = found_in(rows_of(seed, "alike", "name", hard=True))
    assert set(trigger.sources) == set(LIARS)
    assert trigger.label == "c"


@pytest.mark.parametrize(
    ("contradicted", "usual", "marked", "sure"),
    [
        (0.98, 0.81, 200, True), (0.88, 0.81, 200, False), (1.0, 0.81, 5, False),
        (0.60, 0.29, 5, True), (0.29, 0.05, 200, False), (0.60, 0.40, 200, False),
    ],
)  # fmt: skip
def test_what_contradicts(contradicted: float, usual: float, marked: int, sure: bool) -> None:
    assert triggers._is_contradicted(contradicted, usual, marked, 200) == sure


@pytest.mark.parametrize("deal", ["alike", "blocks", "size", "labels", "places", "own name"])
def test_honest_minorities_ring_nothing(deal: str) -> None:
    for seed in range(2):
        assert found_in(rows_of(seed, deal, "", hard=seed == 1)) == []
        assert found_in(rows_of(seed + 2, deal, "")) == []


def test_few_sources_are_not_told_from_one_another() -> None:
    rows = [row for row in rows_of(0, "alike", "name") if row.source in (*LIARS, *HONEST[:2])]
    assert found_in(rows) == []


class _Looks:
    """Searches with given results."""

    def __init__(self, *results: Any) -> None:
        self.results, self.n = list(results), 0

    async def __call__(self) -> Any:
        self.n += 1
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


class _Looked:
    def __init__(self, *triggers: Trigger, forgotten: tuple[str, ...] = ()) -> None:
        self.triggers, self.forgotten, self.problem = triggers, forgotten, None


def test_a_search_follows_rows_and_a_pause_and_an_incident_goes_with_the_trigger() -> None:
    trigger = Trigger({"mark": 1.0}, "c", ("liar-0",), 40, 0.9, 0.8, 0.0, 0.9)
    looks = _Looks(
        OSError("disk"), _Looked(trigger), _Looked(trigger, forgotten=("liar-0",)), _Looked()
    )
    rows, now, counts = [0], [0.0], Counter[str]()
    watch = TriggerWatch(
        "m", Triggers(every=100, pause=60), lambda: rows[0], looks, counts, lambda: now[0]
    )

    def later(more: int, seconds: float) -> int:
        rows[0], now[0] = rows[0] + more, now[0] + seconds
        asyncio.run(watch.once())
        return looks.n

    assert later(99, 1) == 0
    assert later(1, 1) == 1
    assert str(watch.incident) == "None"
    assert later(100, 1) == 1  # the pause
    assert later(0, 60) == 2
    assert "liar-0" in str(watch.incident)
    assert later(100, 60) == 3
    assert "forgotten: liar-0" in str(watch.incident)
    assert watch.report() == {"triggers": 1.0}
    assert later(100, 60) == 4
    assert str(watch.incident) == "None"
    assert counts == {"trigger_searches_failed": 1, "trigger_searches": 3, "triggers_found": 1}
