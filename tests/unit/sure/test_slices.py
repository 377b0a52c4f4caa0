"""Scores and coverage by the values of features are sums over the rows."""

from __future__ import annotations

import io
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from pydantic import ValidationError
from rich.console import Console

from evaluation.metrics import Task
from online.commands.operate import status as command
from online.messages.structs import Event
from online.models.selfrate import SelfRate
from online.settings.model import ModelSettings
from online.sure.conformal import Confidence, held
from online.sure.slice_values import MISSING, OTHERS
from online.sure.slices import SLICES, Slices
from online.sure.views import slices_in, views_of
from paramserver.core.blocks import Blocks, copy, merge
from replay.example import Example, Features, Value

ROWS = 200


def example(value: Value, right: bool = True, sure: bytes | None = None) -> Example:
    features: Features = {"a": 1.0} if value is None else {"group": value}
    return Example(features, right, score={"false": 0.1, "true": 0.9}, sure=sure)


def test_each_value_has_its_own_scores() -> None:
    part, sure = Slices("binary", ["group"], 4), Confidence("binary", 0.9)
    for value, right, many in (("x", True, 3), ("x", False, 1), ("y", False, 2), (None, True, 1)):
        for _ in range(many):
            part.add(example(value, right, sure.stamp()))
    part.add(Example({"group": "x"}, True))  # nothing was answered
    assert part.summary()["group"] == {  # sets of one label so far
        "x": {"n": 4, "accuracy": 0.75, "coverage": 0.75},
        "y": {"n": 2, "accuracy": 0.0, "coverage": 0.0},
        MISSING: {"n": 1, "accuracy": 1.0, "coverage": 1.0},
    }


def test_in_regression_it_is_the_error() -> None:
    part = Slices("regression", ["group"], 4)
    for target in (1.0, 4.0):
        part.add(Example({"group": True}, target, score={"": 2.0}))
    assert part.summary() == {"group": {"true": {"n": 2, "mae": 1.5}}}


def test_values_have_a_bound_and_odd_ones_their_own_name() -> None:
    part = Slices("binary", ["group"], 2)
    values: list[Value] = ["x", "a\tb\x1b[2J", "z", 3.5, None, "missing", "others"]
    for value in values:
        part.add(example(value))
    found = part.summary()["group"]
    assert {name: scores["n"] for name, scores in found.items()} == {
        "x": 1, "a\tb\x1b[2J": 1, OTHERS: 4, MISSING: 1,
    }  # fmt: skip
    wide = Slices("binary", ["group"], 10)
    for value in values:
        wide.add(example(value))
    assert wide.summary()["group"].keys() >= {'"missing"', '"others"', MISSING, "3.5"}
    long = Slices("binary", ["group"], 10)
    long.add(example("x" * 5_000))
    assert max(map(len, long.cut()[SLICES].data)) < 100


def test_parts_add_up_to_the_whole() -> None:
    rng, values = random.Random(2), Blocks()
    whole, parts = Slices("binary", ["group"], 8), [Slices("binary", ["group"], 8) for _ in "ab"]
    for i in range(ROWS):
        row = example(rng.choice("xyz"), rng.random() < 0.7)
        whole.add(row)
        parts[i % 2].add(row)
        if i % 20 == 0:
            for part in parts:
                merge(values, part.cut())
            for part in parts:
                part.rebase(copy(values))
    for part in parts:
        merge(values, part.cut())
    again = Slices("binary", ["group"], 8)
    again.reset(values)
    assert again.summary() == whole.summary()
    assert not again.cut()
    other = Slices("binary", ["another"], 8)
    other.reset(values)
    assert other.summary() == {"another": {}}  # a feature that is not named any more


def settings(**more: Any) -> ModelSettings:
    return ModelSettings(name="m", task="binary", learner="linear", **more)


def test_settings_say_which_features() -> None:
    assert views_of(settings()) == []
    assert isinstance(slices_in(views_of(settings(slices=["a"], confidence=0.9))), Slices)
    for odd in ({"slices": ["\x1b"]}, {"slices": ["b"], "features": {"a": "number"}}):
        with pytest.raises(ValidationError, match="is no name, or not one of"):
            settings(**odd)
    with pytest.raises(ValidationError, match="a choice has no set"):
        ModelSettings(name="m", task="choose", confidence=0.9)  # type: ignore[call-arg, arg-type]


def test_what_is_served_is_told_by_slice(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        replica = await world.replica(
            build=lambda: SelfRate().model_for("binary"),
            task="binary",
            slices=["group"],
            confidence=0.9,
        )
        events = [
            Event(features={"group": i % 3 > 0, "n": float(i)}, label=i % 2 > 0) for i in range(60)
        ]
        await world.serving(replica).record(events)
        found = slices_in(replica.learner.tally.views)
        assert found is not None
        shown = found.summary()["group"]
        assert [(name, scores["n"]) for name, scores in shown.items()] == [
            ("true", 40),
            ("false", 20),
        ]
        assert all(scores["coverage"] >= 0.8 for scores in shown.values())
        await replica.stop(1.0)
        other = await world.replica(
            "s", build=lambda: SelfRate().model_for("binary"), task="binary", slices=["group"]
        )
        again = slices_in(other.learner.tally.views)
        assert again is not None
        assert again.summary()["group"] == shown
        await other.stop(1.0)

    worlds.play(tmp_path, scene)


def test_status_prints_the_first_values() -> None:
    text = io.StringIO()
    scores = {"n": 12, "accuracy": 0.5, "coverage": 1.0}
    slices = {"group": {f"[v{i}]": scores for i in range(10)}, "empty": {}}
    command._show_slices(Console(file=text, width=100), slices)
    lines = text.getvalue().splitlines()
    assert lines[1] == "  [v0]: accuracy .5000, coverage 1.000 over 12"
    assert lines[-3:] == ["  and 2 values more: online status --json", "by empty:", "  no rows yet"]


@pytest.mark.parametrize(("task", "most"), [("binary", 1.5), ("regression", 2.0)])
def test_many_replicas_do_not_swing_where_a_slice_has_many_labels(task: Task, most: float) -> None:
    rng, values, shares = random.Random(1), Blocks(), []
    parts = [Confidence(task, 0.9, ["group"], 4) for _ in range(16)]
    for _ in range(60):
        covered = 0
        for part in parts:
            for _ in range(16):
                row = labelled(task, rng, part.stamp({"group": "x"}))
                found = held(task, row)
                covered += found is not None and found[0]
                part.add(row)
        shares.append(covered / 256)
        for part in parts:
            merge(values, part.cut())
        for part in parts:
            part.rebase(copy(values))
    chance = math.sqrt(0.9 * 0.1 / 256)
    assert statistics.mean(shares[20:]) == pytest.approx(0.9, abs=0.01)
    assert statistics.stdev(shares[20:]) < most * chance, shares


def labelled(task: Task, rng: random.Random, sure: bytes) -> Example:
    """A row by an answer that is too sure, or that is off by chance."""
    odds = rng.gauss(0.0, 2.0)
    if task == "regression":
        return Example({"group": "x"}, odds, score={"": 0.0}, sure=sure)
    said, right = (1.0 / (1.0 + math.exp(-one)) for one in (odds, odds / 2.0))
    score = {"false": 1.0 - said, "true": said}
    return Example({"group": "x"}, rng.random() < right, score=score, sure=sure)
