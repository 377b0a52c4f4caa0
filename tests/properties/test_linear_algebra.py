"""Linear models under any interleaving of learning, cutting, merging and putting back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, optim, preprocessing

from online.models.adapters.linear import Linear
from paramserver.core.blocks import Blocks, combine, copy, merge

FEATURES = st.dictionaries(st.sampled_from("abcd"), st.integers(-3, 3), min_size=1, max_size=3)
STEP = st.one_of(
    st.tuples(st.just("learn"), FEATURES, st.sampled_from(["x", "y", "z"])),
    st.tuples(st.just("cut"), st.none(), st.none()),
    st.tuples(st.just("rebase"), FEATURES, st.sampled_from(["x", "y", "w"])),
    st.tuples(st.just("reset"), st.none(), st.none()),
)


def _softmax() -> Any:
    return preprocessing.StandardScaler() | linear_model.SoftmaxRegression(optim.SGD(0.125))


def _logistic() -> Any:
    return preprocessing.MinMaxScaler() | linear_model.LogisticRegression(optim.SGD(0.125))


def _check(build: Any, classify: Any, steps: list[Any], make: type[Linear] = Linear) -> None:
    """The model is always the server's values and its own open rows on top, seen by its deltas."""
    model, other = make(build()), Linear(build())
    server, own = Blocks(), Blocks()  # own: cut, not yet at the server
    for kind, features, label in steps:
        if kind == "learn":
            model.learn(features, classify(label), 1.0)
        elif kind == "cut":
            merge(own, model.cut())
        elif kind == "rebase":
            other.reset(copy(server))
            other.learn(features, classify(label), 1.0)
            merge(server, other.cut())
            model.rebase(combine(server, own))
        else:
            merge(own, model.cut())
            merge(server, own)
            own = Blocks()
            model.reset(copy(server))
    merge(own, model.cut())
    expected = Linear(build())
    expected.reset(combine(server, own))
    for asked in ({"a": 1, "b": -2}, {"c": 2, "d": 1}, {"a": 3, "e": 1}):
        want, got = expected.predict(asked).probabilities, model.predict(asked).probabilities
        assert want is not None
        assert got == pytest.approx(want, abs=1e-9)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.lists(STEP, max_size=25))
def test_softmax_is_values_plus_open_delta(steps: list[Any]) -> None:
    _check(_softmax, str, steps)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.lists(STEP, max_size=25))
def test_logistic_is_values_plus_open_delta(steps: list[Any]) -> None:
    _check(_logistic, lambda label: label == "x", steps)


def test_a_rebase_without_the_open_delta_is_found() -> None:
    """Negative control."""

    class Loses(Linear):
        def rebase(self, values: Blocks) -> None:
            kept = self.cut()
            super().rebase(values)
            self._kept = kept

        def cut(self) -> Blocks:
            kept, self._kept = getattr(self, "_kept", Blocks()), Blocks()
            return combine(kept, super().cut())

    steps = [("learn", {"a": 1}, "x"), ("learn", {"a": 3}, "y"), ("rebase", {"a": 2}, "y")]
    _check(_logistic, lambda label: label == "x", steps)
    with pytest.raises(AssertionError):
        _check(_logistic, lambda label: label == "x", steps, Loses)
