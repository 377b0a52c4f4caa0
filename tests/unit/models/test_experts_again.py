"""Linear experts learn rows again: weights move, and nothing that counts rows or judges answers."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from typing import Any

import pytest

from online.models.auto import Auto
from online.models.base import learn_example
from online.models.selfrate import SelfRate
from replay.example import Example, Features, Label, label_text

RECIPES = pytest.mark.parametrize("recipe", [SelfRate(), Auto()], ids=["linear", "auto"])
LABELS: dict[Any, tuple[Label, Label]] = {
    "binary": (True, False), "multiclass": ("a", "b"), "regression": (1.0, 4.0),
}  # fmt: skip


def served(model: Any, x: Features, y: Label) -> Example:
    found = model.predict(x)
    score = {label_text(k): p for k, p in (found.probabilities or {"": found.label}).items()}
    return Example(x, y, score=score, notes=found.notes)


@RECIPES
@pytest.mark.parametrize("task", LABELS)
def test_a_row_that_is_learned_again_moves_weights_alone(recipe: SelfRate, task: Any) -> None:
    model: Any = recipe.model_for(task)
    for i in range(40):
        learn_example(model, served(model, {"x": float(i % 5), "kind": "k"}, LABELS[task][i % 2]))
    model.cut()
    x: Features = {"x": 3.0, "kind": "k", "unknown": 1.0}
    before = model.predict(x)
    model.learn_again(x, LABELS[task][0], 0.5)
    assert model.predict(x) != before
    assert {name.split("/")[0] for name in model.cut()} == {"experts"}


def clouds(rng: random.Random, run: int = 100, rows: int = 1_800) -> list[tuple[Features, str]]:
    """Rows around four places; a hundred rows of one come after a hundred of another."""
    places = [[rng.gauss(0.0, 1.3) for _ in range(5)] for _ in "abcd"]
    at = [i // run % 4 for i in range(rows)]
    return [({f"x{i}": rng.gauss(c, 1.0) for i, c in enumerate(places[k])}, "abcd"[k]) for k in at]


@RECIPES
def test_what_late_runs_displace_is_kept_by_rehearsal(recipe: SelfRate) -> None:
    right = []
    for rehearses in (False, True):
        rng, model, good = random.Random(2), recipe.model_for("multiclass"), 0
        waiting, stored = deque[Example](), defaultdict[Label, list[Example]](list)
        for x, y in clouds(rng):
            good += model.predict(x).label == y
            waiting.append(served(model, x, y))
            if len(waiting) > 250:
                fresh = waiting.popleft()
                learn_example(model, fresh)
                if rehearses:
                    old = rng.choice((stored[rng.choice([*stored])] if stored else []) or [fresh])
                    model.learn_again(old.features, old.label, 1.0)
                stored[fresh.label].append(fresh)
        right.append(good)
    without, with_it = right
    assert with_it > max(without + 40, 1_198), right
