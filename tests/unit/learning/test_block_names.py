"""What a model and the counters beside it send has names that do not meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from replica_world import World, play, until

from online.models.auto import Auto
from online.models.experts import newest_label
from online.models.selfrate import SelfRate
from online.rows.prediction_ids import event_key
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict

LABELS: dict[Any, list[Any]] = {
    "binary": [True, False], "multiclass": ["a", "b"], "regression": [1.0, 2.5],
}  # fmt: skip


def trouble(folder: Path, recipe: Any, task: Any) -> str | None:
    """What a replica raises that learns rows and pushes them."""
    found: list[str | None] = []

    async def scene(world: World) -> None:
        replica = await world.replica(build=lambda: recipe().model_for(task), task=task)
        rows = [
            NewRow(
                event_key("event", "s", str(i)), str(i), "s", Verdict.ACCEPTED,
                codec.encode(Example({"x": float(i), "kind": "k"}, label)), 1.0,
            )
            for i, label in enumerate(LABELS[task] * 3)
        ]  # fmt: skip
        await replica.writer.record(rows)
        await until(lambda: replica.learner.own == 0 or replica._unexpected is not None)
        found.append(replica._unexpected)
        await replica.stop(0.1)

    play(folder, scene)
    return found[0]


@pytest.mark.parametrize("task", list(LABELS))
@pytest.mark.parametrize("recipe", [SelfRate, Auto])
def test_the_blocks_of_a_model_are_its_own(tmp_path: Path, recipe: Any, task: Any) -> None:
    assert trouble(tmp_path, recipe, task) is None


def test_a_name_that_is_taken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest_label, "_BLOCK", "newest")
    found = trouble(tmp_path, SelfRate, "regression")
    assert found is not None
    assert "a model's block is named 'newest'" in found
