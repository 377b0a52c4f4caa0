"""A model of one's own that raises for some rows: what it answers, and that others teach it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from river import compose, forest, linear_model, preprocessing

import online
from online.challenger.comparison import Challenger
from online.client import Event, ServiceRefused
from online.models.adapters.opaque import Opaque
from online.service.embedded import Embedded
from replay.example import Example


def selecting() -> Any:
    model = compose.Select("a", "b") | preprocessing.StandardScaler()
    return model | linear_model.LogisticRegression()


class Ratio:
    """A mean that can't be asked before it has learned something."""

    def __init__(self) -> None:
        self.rows, self.total = 0, 0.0

    def predict(self, features: dict[str, float]) -> float:
        return self.total / self.rows

    def learn_one(self, features: dict[str, float], label: float) -> None:
        self.rows += 1
        self.total += label


def served(model: Any, folder: Path, **settings: Any) -> Embedded:
    return online.serve(model, name="own", state_dir=folder, say=lambda _: None, **settings)


def test_a_row_that_it_can_t_answer_is_refused_by_itself(tmp_path: Path) -> None:
    with served(selecting(), tmp_path) as service:
        own = service.model
        early = own.predict({"a": 1.0})
        assert early.prediction is None, "it has learned nothing yet"
        whole = {"a": 1.0, "b": 2.0}
        assert own.feedback(True, id=own.predict(whole).id).status == "learned"
        with pytest.raises(ServiceRefused, match="KeyError: 'b'") as refused:
            own.predict_many([whole, {"a": 1.0}])
        found = refused.value
        assert (found.status, found.code, found.field) == (422, "not_answered", "instances[1]")
        with pytest.raises(ServiceRefused) as refused:
            own.predict({"a": 1.0}, explain=True)
        assert refused.value.status == 422
        ids = {"inputs": [{"name": "a", "shape": [1], "datatype": "FP64", "data": [1.0]}]}
        said = httpx.post(f"{service.url}/v2/models/own/infer", content=json.dumps(ids))
        assert said.status_code == 422, said.text

        # the same names, so that the rows of a body are read together
        rows = [{"a": 1.0, "b": 1.0}, {"b": 1.0}, {"a": 2.0, "b": 1.0}] * 20
        events = [Event(label=True, features=x, event_id=str(i)) for i, x in enumerate(rows)]
        receipts = own.feedback_many(events)
        assert [one.status for one in receipts] == ["learned", "failed", "learned"] * 20
        assert own.status()["learned"] == 41


def test_a_model_that_answers_only_when_it_has_learned_begins_to_learn(tmp_path: Path) -> None:
    with served(Ratio, tmp_path, task="regression") as service:
        asked = service.model.predict({"x": 1.0})
        assert asked.prediction is None
        assert service.model.feedback(4.0, id=asked.id).status == "learned"
        assert service.model.feedback(2.0, features={"x": 1.0}).status == "learned"
        assert service.model.predict({"x": 1.0}).prediction == 3.0


class Picky(Ratio):
    """It needs the feature ``b``."""

    def predict(self, features: dict[str, float]) -> float:
        return super().predict(features) + 0.0 * features["b"]


def test_a_choice_that_it_can_t_answer_is_refused_by_itself(tmp_path: Path) -> None:
    with served(Picky, tmp_path, task="choose", choose={"policy": "epsilon"}) as service:
        own = service.model
        first = own.choose(["x", "y"])
        assert [one.expected for one in first.ranking] == [0.5, 0.5], "it has learned nothing yet"
        assert own.reward(first.id, 1.0).status == "learned"
        with pytest.raises(ServiceRefused, match="KeyError: 'b'") as refused:
            own.choose(["x", "y"])
        found = refused.value
        assert (found.status, found.code, found.field) == (422, "not_answered", "actions")
        assert own.choose(["x", "y"], {"b": 1.0}).ranking[0].expected == 1.0


def test_a_label_of_another_kind_ends_no_forest(tmp_path: Path) -> None:
    with served(forest.ARFClassifier(n_models=2, seed=1), tmp_path, task="multiclass") as service:
        for i, label in enumerate([0, 1, 2, "n/a", 0, 1]):
            receipt = service.model.feedback(label, features={"x": float(i)}, event_id=str(i))
            assert receipt.status == "learned", label
        shares = service.model.predict({"x": 1.0}).probabilities
        assert isinstance(shares, dict)
        assert shares.keys() == {"0", "1", "2", "n/a"}


def test_a_challenger_that_raises_has_no_answer() -> None:
    def build() -> Opaque:
        return Opaque(selecting(), task="binary", key=bytes(32), why_not_mergeable="x")

    beside = Challenger(build, task="binary", spec="s", rows_max=10, rival="r")
    row = Example({"a": 1.0}, True, 1.0, {"true": 0.7, "false": 0.3}, (1, 1, 0), 0.0, None, None)
    beside.ask(1, row, compare=True)
    assert beside._answers[1].score is None
