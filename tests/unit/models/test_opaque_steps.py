"""A forest that is read back member by member is the forest that was written down."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from river import datasets, ensemble, forest, linear_model, preprocessing, tree

from online.models.base import Stepwise
from online.models.errors import BlobUntrusted
from online.models.opaque import STATE, Opaque
from paramserver.blocks import OPAQUE, Block

ROWS: list[tuple[dict[str, Any], bool]] = list(datasets.Phishing())
MODELS = {
    "forest": lambda: forest.ARFClassifier(n_models=5, seed=3),
    "behind a scaler": lambda: preprocessing.StandardScaler() | forest.ARFClassifier(4, seed=1),
    "bag": lambda: ensemble.BaggingClassifier(linear_model.ALMAClassifier(), n_models=3, seed=2),
    "tree": tree.HoeffdingTreeClassifier,
}


def made(name: str, key: bytes = b"k" * 32) -> Opaque:
    model: Any = MODELS[name]()
    return Opaque(model, task="binary", key=key, why_not_mergeable="trees")


@pytest.mark.parametrize("name", MODELS)
def test_it_goes_on_bit_for_bit(name: str) -> None:
    first, copy = made(name), made(name)
    for x, y in ROWS[:500]:
        first.learn(x, y, 1.0)
    values = first.cut()
    assert isinstance(copy, Stepwise)
    steps = sum(1 for _ in copy.resetting(values))
    assert steps >= {"forest": 5, "behind a scaler": 4, "bag": 3, "tree": 1}[name]
    for x, y in ROWS[500:900]:  # what members share, as their random numbers, is shared still
        assert copy.predict(x) == first.predict(x)
        first.learn(x, y, 1.0)
        copy.learn(x, y, 1.0)
    assert pickle.dumps(first.estimator) != b""
    again = made(name)
    again.reset(values)
    whole = made(name)
    list(whole.resetting(values))
    assert [again.predict(x) for x, _ in ROWS[:50]] == [whole.predict(x) for x, _ in ROWS[:50]]


def test_nothing_is_unpickled_before_the_seal_is_known() -> None:
    first, stranger = made("forest"), made("forest", b"x" * 32)
    first.learn(*ROWS[0], 1.0)
    stranger.learn(*ROWS[1], 1.0)
    copy = made("forest")
    before = pickle.dumps(copy.estimator)
    for data in (stranger.cut()[STATE].data, first.cut()[STATE].data[:-1] + b"?"):
        with pytest.raises(BlobUntrusted):
            list(copy.resetting({STATE: Block(OPAQUE, data)}))
        assert pickle.dumps(copy.estimator) == before


def test_without_a_state_it_is_as_built() -> None:
    copy = made("forest")
    copy.learn(*ROWS[0], 1.0)
    assert list(copy.resetting({})) == []
    assert copy.predict(ROWS[0][0]) == made("forest").predict(ROWS[0][0])
