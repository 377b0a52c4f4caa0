"""The table of outliers: what is sent; one event ruins a model only where nothing bounds."""

from __future__ import annotations

import pytest

from benchmarks.attacks import outliers, outlying_targets
from online.settings.config import data_dir


@pytest.mark.parametrize("kind", outliers.KINDS)
def test_outliers_come_behind_a_third_of_the_rows(kind: str) -> None:
    sent = outliers.sent("phishing", kind, 0, 300)
    at = [i for i, one in enumerate(sent) if one[3]]
    assert at[0] == 101
    assert len(sent) == 300 + len(at)
    assert all(set(one[1]) == set(sent[0][1]) for one in sent)
    assert len(at) == {"1 %": 2, "10 %": 20, "five": 5, "known": 10, "in turn": 9}.get(kind, 1)


@pytest.mark.parametrize("replicas", [1, 2])
def test_one_event_ruins_a_model_only_where_nothing_bounds(replicas: int) -> None:
    (line,) = outliers.run(["1e4"], [0], ["phishing"], [replicas], 600)
    assert line.none < line.off_none - 15.0, "the attack, without filters"
    assert line.lost <= 1.0, "400 rows: four answers"
    assert line.clipped == 0


@pytest.mark.data
def test_one_rating_of_a_million_ruins_a_model_only_where_nothing_bounds() -> None:
    if not (place := data_dir()) or not (place / "movielens_small").is_dir():
        pytest.skip("set ONLINE_DATA_DIR: the ratings are not here")
    (line,) = outlying_targets.run([1], ["ratings, entity"], [1], ["1e6"])
    assert float(line.none) > 3.0 * line.off_none, "the attack, without filters"
    assert line.good, line
