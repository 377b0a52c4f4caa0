"""A model of `task: anomaly`: rows with a label and without are learned once, labels judge them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from river import anomaly, linear_model, preprocessing

import online
from online.errors import OnlineError
from online.models.errors import LearnerUnusable
from online.rows.journal_rows import JournalRows, open_for_report
from online.service.embedded import Embedded
from replay.example import Features


def stream(n: int = 700, seed: int = 1) -> Iterator[tuple[Features, bool]]:
    """One row in fifty is far from the others."""
    draw = random.Random(seed)
    for i in range(n):
        odd = i % 50 == 49
        far = 6.0 * odd * draw.choice([-1, 1])
        yield {name: draw.gauss(far, 1.0) for name in "abc"}, odd


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    folder = tmp_path_factory.mktemp("anomaly")
    with online.serve("anomaly", name="pumps", state_dir=folder, say=lambda _: None) as running:
        rows = [{"features": x, "event_id": f"row-{i}"} for i, (x, _) in enumerate(stream())]
        for i in range(0, 700, 25):  # each body is answered by what was learned before it
            answer = post(running, "feedback", {"events": rows[i : i + 25]}).json()
            assert {one["status"] for one in answer["events"]} == {"learned"}
        yield running


def post(service: Embedded, verb: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/models/pumps/{verb}", json=body, timeout=240)


def status(service: Embedded) -> Any:
    return httpx.get(f"{service.url}/v1/models/pumps", timeout=240).json()


def test_rows_without_a_label_are_learned_and_judge_nothing(service: Embedded) -> None:
    told = status(service)
    assert (told["task"], told["learner"]) == ("anomaly", "anomaly")
    assert told["learned"] >= 700
    found = told["anomaly"]
    assert (found["threshold"], found["unlabelled"]) == (0.99, found["rows"] - told["quality"]["n"])
    assert 0.0 < found["share"] < 0.1
    metrics = httpx.get(f"{service.url}/metrics", timeout=240).text
    assert 'online_anomaly_share{model="pumps"}' in metrics
    assert 'online_anomaly_unlabelled_rows{model="pumps"}' in metrics


def test_an_answer_has_a_score_and_says_whether_it_is_above(service: Embedded) -> None:
    rows = [dict.fromkeys("abc", 0.1), dict.fromkeys("abc", 9.0)]
    usual, odd = (post(service, "predict", {"features": x}).json() for x in rows)
    assert 0.0 <= usual["score"] < 0.5 < odd["score"] <= 1.0
    assert (usual["prediction"], odd["prediction"]) == (False, True)
    assert "probabilities" not in odd, "a score is none"
    inputs = [{"name": x, "shape": [1], "datatype": "FP64", "data": [9.0]} for x in "abc"]
    answer = httpx.post(
        f"{service.url}/v2/models/pumps/infer", json={"inputs": inputs}, timeout=240
    ).json()
    outputs = {one["name"]: one["data"] for one in answer["outputs"]}
    assert (outputs["prediction"], outputs["score"]) == ([True], [odd["score"]])
    known = {
        one["name"]
        for one in httpx.get(f"{service.url}/v2/models/pumps", timeout=240).json()["outputs"]
    }
    assert set(outputs) <= known
    many = post(service, "predict", {"instances": rows}).json()["predictions"]
    assert [row["score"] for row in many] == [usual["score"], odd["score"]]


def test_the_document_lets_rows_come_without_a_label(service: Embedded) -> None:
    document = httpx.get(f"{service.url}/openapi.json", timeout=60).json()
    kinds = document["components"]["schemas"]["FeedbackRequest"]["oneOf"]
    assert [one["required"] for one in kinds] == [["id"], ["features"], ["events"]]


def test_a_row_is_learned_once_whether_its_label_comes_with_it_later_or_never(
    service: Embedded,
) -> None:
    asked = service.model.predict({"a": 0.0, "b": 0.0, "c": 0.0})
    before = status(service)
    first = service.model.feedback(id=asked.id)
    assert (first.status, first.duplicate) == ("learned", False)
    again = service.model.feedback(id=asked.id)
    assert (again.status, again.first_outcome) == ("duplicate", "learned")
    late = service.model.feedback(False, id=asked.id)
    assert (late.status, late.duplicate) == ("learned", False)
    assert service.model.feedback(False, id=asked.id).status == "duplicate"
    other = service.model.feedback(True, id=asked.id)
    assert (other.status, other.reason) == ("conflict", "the label recorded first is false")
    assert service.model.feedback(id=asked.id).status == "duplicate"
    after = status(service)
    assert after["learned"] - before["learned"] == 2, "the row, and its label"
    assert after["quality"]["n"] - before["quality"]["n"] == 1
    assert after["anomaly"]["rows"] - before["anomaly"]["rows"] == 1
    assert after["anomaly"]["unlabelled"] == before["anomaly"]["unlabelled"]


def test_late_labels_judge_the_answers_of_then_and_teach_nothing(service: Embedded) -> None:
    probe = {"features": {"a": 2.0, "b": -2.0, "c": 2.0}}
    before, score = status(service), post(service, "predict", probe).json()["score"]
    labels = [
        {"features": x, "event_id": f"row-{i}", "label": odd} for i, (x, odd) in enumerate(stream())
    ]
    for outcome in ("learned", "duplicate"):
        answer = post(service, "feedback", {"events": labels[300:]}).json()
        assert {one["status"] for one in answer["events"]} == {outcome}
    after = status(service)
    assert after["quality"]["n"] - before["quality"]["n"] == 400
    assert after["quality"]["auc"] > 0.85
    (true,) = [one for one in after["quality"]["classes"] if one["label"] is True]
    assert true["recall"] > 0.2, "of rows that are one in fifty, those in the highest hundredth"
    assert post(service, "predict", probe).json()["score"] == score


def test_a_label_that_is_none_of_the_two_is_refused(service: Embedded) -> None:
    for odd in ("", "odd", 2, []):
        answer = post(service, "feedback", {"features": {"a": 1.0}, "label": odd})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "label")
    receipt = post(service, "feedback", {"features": {"a": 1.0}, "label": None}).json()
    assert receipt["status"] == "learned"


def test_the_report_counts_labels_where_there_are_some(service: Embedded) -> None:
    settings = service._parts.settings
    with contextlib.closing(open_for_report(settings)) as journal:
        pages = list(JournalRows(journal, settings.models[0]))
    labels = [label for page in pages for label in page.label]
    assert set(labels) <= {None, True, False}
    assert None in labels


def test_without_http_and_across_a_restart(tmp_path: Path) -> None:
    rows = list(stream(400))
    usual, odd_one = rows[0][0], dict.fromkeys("abc", 9.0)
    with online.Learner("anomaly", tmp_path) as learner:
        receipts = learner.learn_many(
            [(x, True if odd else None) for x, odd in rows], event_ids=map(str, range(400))
        )
        assert {one.status for one in receipts} == {"learned"}
        before = learner.score_one(usual), learner.score_one(odd_one)
        assert before[0] < 0.5 < before[1]
        assert learner.predict_one(odd_one) is True
        assert learner.learn_one(usual, event_id="0").status == "duplicate"
        found = learner.report()["anomaly"]
        assert (found["rows"], found["unlabelled"]) == (400, 392)
    with online.Learner("anomaly", tmp_path) as again:
        assert (again.score_one(usual), again.score_one(odd_one)) == before
    with online.Learner("anomaly", tmp_path, anomaly={"threshold": 0.999}) as stricter:
        assert stricter.score_one(odd_one) < before[1], "another threshold, the same state"
        assert stricter.report()["learned"] == 400


class Far:
    """How far a row is from the middle of those before."""

    def __init__(self) -> None:
        self.mean, self.n = 0.0, 0

    def score_one(self, features: dict[str, float]) -> float:
        return abs(features["a"] - self.mean)

    def learn_one(self, features: dict[str, float]) -> None:
        self.n += 1
        self.mean += (features["a"] - self.mean) / self.n


@pytest.mark.parametrize(
    "detector",
    [Far(), preprocessing.StandardScaler() | anomaly.LODA(seed=1)],
    ids=["a class of one's own", "LODA"],
)
def test_any_detector_may_score_on_any_scale(detector: Any, tmp_path: Path) -> None:
    with online.Learner(detector, tmp_path, task="anomaly") as learner:
        receipts = learner.learn_many([(x, None) for x, odd in stream(400) if not odd])
        assert {one.status for one in receipts} == {"learned"}
        scores = [learner.score_one({"a": far, "b": -far, "c": far}) for far in (0.0, 20.0)]
        assert 0.0 <= scores[0] < 0.4 < scores[1] <= 1.0


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LearnerUnusable, match="no detector"):
        online.Learner(linear_model.LogisticRegression(), tmp_path, task="anomaly")


@pytest.mark.parametrize(
    "more", [{"confidence": 0.9}, {"slices": ["a"]}, {"replay": {"policy": "recent"}}], ids=str
)
def test_what_needs_a_label_with_each_row_is_refused(more: Any, tmp_path: Path) -> None:
    with pytest.raises(OnlineError, match="needs a label with each row"):
        online.Learner("anomaly", tmp_path, **more)


def test_a_label_is_needed_where_no_anomalies_are_looked_for(tmp_path: Path) -> None:
    with (
        online.Learner("logreg", tmp_path) as learner,
        pytest.raises(OnlineError, match="not a label of this model: null"),
    ):
        learner.learn_one({"a": 1.0})
