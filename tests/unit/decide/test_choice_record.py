"""The record of a choice travels in a token, comes back exactly, and is read by nobody else."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.decide.policy import draw, uniform
from online.decide.record import Choice, RecordInvalid, pack, unpack
from online.rows.prediction_ids import Keys, Nonces, Predicted, TokenInvalid, Tokens

KEYS = Keys([bytes(range(32))])

names = st.text(min_size=1, max_size=12)
values = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=64),
    st.integers(-(2**53), 2**53),
    st.booleans(),
    st.text(max_size=12),
    st.none(),
)
rows = st.dictionaries(names, values, max_size=5)


@st.composite
def alike(draw_: Any) -> dict[str, Any]:
    """Actions with the same names, and only floats."""
    told = draw_(st.lists(names, min_size=1, max_size=4, unique=True))
    row = st.tuples(*[st.floats(allow_nan=False) for _ in told])
    found = draw_(st.dictionaries(names, row, min_size=1, max_size=6))
    return {name: dict(zip(told, values, strict=True)) for name, values in found.items()}


@st.composite
def choices(draw_: Any) -> Choice:
    unlike = st.dictionaries(names, rows, min_size=1, max_size=6)
    actions = tuple(draw_(unlike | alike()).items())
    n = len(actions)
    places = st.integers(0, n - 1)
    shares = st.floats(0.0, 1.0)
    return Choice(
        draw_(rows),
        actions,
        tuple(sorted(draw_(st.sets(places, max_size=n - 1)))),
        draw_(places),
        tuple(draw_(st.lists(shares, min_size=n, max_size=n))),
        tuple(draw_(st.lists(shares, min_size=n, max_size=n))),
        draw_(names),
        draw_(st.none() | places),
    )


def typed(choice: Choice) -> Any:
    told = [*choice.context.values(), *(v for _, x in choice.actions for v in x.values())]
    return choice, [type(value) for value in told]


def tokens(model: str = "m", prefix: bytes = b"prefix") -> Tokens:
    return Tokens(KEYS, model, Nonces(prefix))


@settings(max_examples=120, deadline=None)
@given(choices())
def test_a_token_brings_the_choice_back_exactly(choice: Choice) -> None:
    mine = tokens()
    nonce = mine.nonce()
    predicted = Predicted(1, {"x": 1.0}, {"": 0.5}, (1, 2, 3), 4.0, None, "s", choice=pack(choice))
    token = mine.issue(predicted, nonce)
    event_id, found = tokens(prefix=b"second").read(token)
    assert event_id == nonce.hex()
    assert found.choice is not None
    assert typed(unpack(found.choice)) == typed(choice)
    assert sorted(choice.ranking()) == list(range(len(choice.actions)))
    p, means = choice.probabilities, choice.estimates
    ordered = sorted(range(len(p)), key=lambda i: (i != choice.chosen, -p[i], -means[i], i))
    assert choice.ranking() == ordered
    with pytest.raises(TokenInvalid):
        tokens("other").read(token)


@settings(max_examples=120, deadline=None)
@given(choices(), st.data())
def test_what_is_damaged_is_refused_and_nothing_else_is_raised(choice: Choice, data: Any) -> None:
    packed = bytearray(pack(choice))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(packed), pack(choice)[:place]):
        try:
            unpack(damaged)
        except RecordInvalid:
            continue
        assert damaged[:1] == b"\1"  # a flag of the packing that says nothing of what is in it


def test_actions_with_the_same_numbers_take_eight_bytes_a_number() -> None:
    numbers = {f"price {i}": 0.1 * i for i in range(10)}
    actions = tuple((f"item {i}", {k: v + i for k, v in numbers.items()}) for i in range(20))
    shares = (0.05,) * 20
    alike = Choice({}, actions, (), 1, shares, shares, "greedy:0")
    unlike = msgspec.structs.replace(alike, actions=(*actions[1:], ("item 0", {"other": 1.0})))
    assert len(pack(alike)) < 8 * 200 + 700
    assert (pack(alike)[:1], pack(unlike)[:1]) == (b"\2", b"\1")
    flipped = bytearray(pack(alike))
    flipped[-40] ^= 1
    with pytest.raises(RecordInvalid):
        unpack(bytes(flipped))
    with pytest.raises(RecordInvalid, match="checksum"):
        unpack(pack(alike)[:-100])


def test_a_record_whose_parts_do_not_fit_is_refused() -> None:
    good = Choice({}, (("a", {}), ("b", {})), (), 1, (0.5, 0.5), (0.1, 0.2), "greedy:0")
    assert unpack(pack(good)) == good
    for bad in (
        msgspec.structs.replace(good, chosen=2),
        msgspec.structs.replace(good, chosen=-1),
        msgspec.structs.replace(good, probabilities=(1.0,)),
        msgspec.structs.replace(good, estimates=()),
    ):
        with pytest.raises(RecordInvalid, match="do not fit"):
            unpack(pack(bad))
    with pytest.raises(RecordInvalid, match="format is 9"):
        unpack(b"\x09")
    with pytest.raises(RecordInvalid, match="too long"):
        unpack(b"\1" + zlib.compress(bytes(17 << 20)))


def test_a_repeat_of_the_question_is_told_from_another() -> None:
    asked = Choice({"x": 1.0}, (("a", {}), ("b", {"y": 2.0})), (0,), 1, (0.0, 1.0), (0.0, 0.0), "p")
    again = msgspec.structs.replace(asked, chosen=0, probabilities=(1.0, 0.0), policy="q")
    assert asked.asks_as(again)
    for other in (
        msgspec.structs.replace(asked, context={"x": 2.0}),
        msgspec.structs.replace(asked, excluded=()),
        msgspec.structs.replace(asked, baseline=1),
        msgspec.structs.replace(asked, actions=(("a", {}), ("b", {}))),
    ):
        assert not asked.asks_as(other)


def test_draws_follow_from_the_nonce_and_differ_by_model_and_by_slot() -> None:
    mine, other = tokens(), tokens("other")
    nonces = [mine.nonce() for _ in range(200)]
    us = [uniform(mine.drawing_key, nonce, 0) for nonce in nonces]
    assert us == [uniform(tokens().drawing_key, nonce, 0) for nonce in nonces]
    assert us != [uniform(other.drawing_key, nonce, 0) for nonce in nonces]
    assert us != [uniform(mine.drawing_key, nonce, 1) for nonce in nonces]
    assert len(set(us)) == 200

    assert {draw(np.array([0.0, 1.0, 0.0]), u) for u in us} == {1}
    assert {draw(np.array([0.5, 0.0, 0.5]), u) for u in us} == {0, 2}
