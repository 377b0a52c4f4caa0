"""Lies of strangers, in short."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.attacks import strangers
from benchmarks.attacks.floods import Row

ROWS: list[Row] = [({"x": float(i % 7), "y": float(i % 20)}, i % 3 == 0) for i in range(200)]


class Model:
    """Answers that nothing is true."""

    def predict(self, features: Any) -> Any:
        from online.models.base import Prediction

        return Prediction(False, {False: 0.9, True: 0.1})


@pytest.mark.parametrize("kind", strangers.KINDS)
def test_what_is_told_to_be_a_lie_is_one(kind: str) -> None:
    lie = strangers.lies_of(kind, "binary", ROWS, 100, 3)
    rows = {(tuple(x.values()), y) for x, y in ROWS}
    told = [lie(n, Model()) for n in range(100, 200)]
    assert any(false for _, _, false in told)
    for features, label, false in told:
        true = (tuple(features.values()), not label) in rows
        assert not false or true, "the row has the other label"
