"""Keys of categories: the same whether they are kept or not, and long ones are not kept."""

from __future__ import annotations

import mmh3

from online.models.features import hashed

MASK = 2**22 - 1


def row(value: str | bool) -> dict[str, float]:
    return hashed.Hashed((), 22, 0, None).row({"colour": value}, learns=False)


def kept() -> int:
    return hashed._seen_category_place.cache_info().currsize


def test_keys_of_short_categories_are_kept_and_those_of_long_ones_are_not() -> None:
    hashed._seen_category_place.cache_clear()
    row("x" * 101)
    assert kept() == 0
    row("x" * 100)
    row("x" * 100)
    assert kept() == 1


def test_a_kept_key_is_the_hash_of_name_and_value() -> None:
    for value, spelled in (
        (True, "colour=true"), ("true", 'colour="true"'), ("x" * 101, f'colour="{"x" * 101}"'),
    ):  # fmt: skip
        place = str(mmh3.hash(spelled, 0, signed=False) & MASK)
        assert [row(value), row(value)] == [{"bias": 1.0, place: 1.0}] * 2, value
