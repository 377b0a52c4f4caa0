"""3 and "3" are two classes in journals of earlier versions, and no answer mixes them up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from river import linear_model

from online.learning.vocabulary import Classes
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.models.adapters.linear import Linear


def test_a_number_and_its_text_that_are_two_classes_are_so_in_each_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classes, "spelled", lambda _, label, known: label)  # as they were taught

    async def scene(world: Any) -> None:
        replica = await world.replica(
            task="multiclass", build=lambda: Linear(linear_model.SoftmaxRegression())
        )
        serving = world.serving(replica)
        rows: list[tuple[str, Any]] = [("a", 3), ("b", "3"), ("c", "red")] * 4
        events = [
            Event(features={name: 1.0}, label=label, event_id=str(i))
            for i, (name, label) in enumerate(rows)
        ]
        await serving.feedback(FeedbackRequest(events=events))
        for name, label, key in (("a", 3, "3"), ("b", "3", '"3"'), ("c", "red", "red")):
            answer = serving.predict(PredictRequest(features={name: 1.0}))
            shares = answer.probabilities
            assert shares.keys() == {"3", '"3"', "red"}
            assert sum(shares.values()) == pytest.approx(1.0)
            assert (answer.prediction, max(shares, key=shares.__getitem__)) == (label, key)
            many = serving.predict(PredictRequest(instances=[{name: 1.0}])).predictions[0]
            assert many.probabilities == shares
            assert serving.score({name: 1.0}, "features")[1] == shares[key]
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)
