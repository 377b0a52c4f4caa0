"""A detector of river is served as it is: its score sorts, and known anomalies are not learned."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from river import anomaly, compose, preprocessing

import online
from evaluation.prequential import prequential
from online.errors import RequestError
from online.models.detector import Detector, Ranking
from replay.example import Features


def trees() -> Any:
    return preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(window_size=250, seed=1)


def loda() -> Any:
    return preprocessing.StandardScaler() | anomaly.LODA(seed=1)


def stream(n: int = 1_500) -> Iterator[tuple[Features, bool]]:
    draw = random.Random(1)
    for i in range(n):
        odd = i % 50 == 49
        far = 5.0 * odd * draw.choice([-1, 1])
        yield {name: draw.gauss(far, 1.0) for name in "abc"}, odd


@pytest.mark.parametrize("build", [trees, loda])
def test_the_score_sorts_anomalies_from_the_rest(build: Any) -> None:
    judged = prequential(Detector(build()), list(stream()), "binary", window=500)
    last = judged.windows[-1].summary
    assert (last.auc or 0.0) > 0.9
    assert last.n == 500


def test_a_question_changes_nothing_and_unknown_names_count_for_nothing() -> None:
    asked, untouched = Detector(trees()), Detector(trees())
    for features, label in stream(300):
        asked.predict_proba_one({**features, "new": 1e9})
        asked.predict_proba_one({"new": 1e9})
        asked.learn_one(features, label)
        untouched.learn_one(features, label)
    row = {"a": 0.5, "b": -0.5, "c": 0.1}
    assert asked.predict_proba_one(row) == untouched.predict_proba_one(row)
    assert asked.predict_proba_one({**row, "new": 1.0}) == asked.predict_proba_one(row)


def test_what_is_known_as_an_anomaly_is_not_learned() -> None:
    one, other = Detector(trees()), Detector(trees())
    for features, _ in stream(300):
        one.learn_one(features, False)
        other.learn_one(features, False)
        other.learn_one({name: 9.0 for name in features}, True)
    row = {"a": 9.0, "b": 9.0, "c": 9.0}
    assert one.predict_proba_one(row) == other.predict_proba_one(row)


def test_it_is_served_judged_and_kept(tmp_path: Path) -> None:
    (tmp_path / "payments.py").write_text(
        "from river import anomaly, preprocessing\n\n\n"
        "def build(window=50):\n"
        "    trees = anomaly.HalfSpaceTrees(window_size=window, seed=1)\n"
        "    return preprocessing.MinMaxScaler() | trees\n"
    )
    learner, state = f"{tmp_path}/payments.py:build", tmp_path / "state"
    rows = list(stream(600))
    with online.Learner(learner, state, task="binary") as served:
        for i, (features, label) in enumerate(rows):
            served.learn_one(features, label, event_id=str(i))
        before = [served.predict_one(features) for features, _ in rows[-50:]]
        report = served.report()
        with pytest.raises(RequestError, match="number"):
            served.learn_one({"a": "text"}, False)
        assert report["quality"]["auc"] > 0.8
    with online.Learner(learner, state, task="binary") as again:
        assert [again.predict_one(features) for features, _ in rows[-50:]] == before


def test_a_detector_in_the_middle_is_no_detector() -> None:
    from online.models.detector import is_detector

    assert is_detector(trees())
    assert is_detector(loda())
    assert not is_detector(compose.Select("a") | preprocessing.StandardScaler())


def test_the_rows_behind_a_window_in_which_nothing_was_said_are_no_anomalies() -> None:
    ranking = Ranking(trees())
    rows = [features for features, odd in stream(600) if not odd]
    ranks = []
    for features in rows:
        ranks.append(ranking.predict_proba_one(features)[True])
        ranking.learn_one(features, False)
    assert set(ranks[:250]) == {0.0}, "the trees say nothing yet"
    assert sum(rank > 0.99 for rank in ranks) < 10
    assert max(ranks[250:]) > 0.9
