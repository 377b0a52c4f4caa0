"""Named features as rows of numbers: many at once as one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from online.models.features.inputs import Inputs
from replay.example import Features

NAMES = ["a", "b", "c"]
VALUES = st.one_of(st.floats(-1e6, 1e6), st.integers(-9, 9), st.booleans())
ROWS = st.lists(st.dictionaries(st.sampled_from([*NAMES, "other"]), VALUES), min_size=1, max_size=6)


@settings(deadline=None)
@given(
    seen=ROWS,
    asked=ROWS,
    names=st.sampled_from([["a"], ["b", "a"], NAMES]),
    scale=st.booleans(),
    ids=st.sampled_from([{}, {"a": 4}]),
)
def test_many_rows_are_the_rows_one_by_one(
    seen: list[Features], asked: list[Features], names: list[str], scale: bool, ids: Any
) -> None:
    inputs = Inputs("m", names, scale=scale, ids=ids)
    for row in seen:
        if row.keys() & set(names):
            before = dict(row)
            learned = inputs.learn(row)
            assert row == before
            assert learned == inputs.row(row)
    got = inputs.rows(asked)
    assert got.shape == (len(asked), len(names))
    assert got.tolist() == [inputs.row(row) for row in asked]
    whole: list[Features] = [{**dict.fromkeys(NAMES, 1.5), **row} for row in asked]
    assert np.array_equal(inputs.rows(whole), [inputs.row(row) for row in whole])


def test_a_row_with_none_of_the_inputs_is_learned_as_it_is_answered() -> None:
    inputs = Inputs("m", NAMES, scale=True)
    inputs.learn(dict.fromkeys(NAMES, 3.0))
    before = inputs.cut()
    assert before
    assert inputs.learn({"other": 1.0}) == inputs.row({"other": 1.0}) == inputs.row({})
    assert inputs.cut() == {}, "no moment has moved"
