"""How long the next exchange waits, by what the last one took."""

from __future__ import annotations

import asyncio

import pytest

from online.replica.pace import Pace

INTERVAL_S = 0.02


def waited(cost_s: float, *, enough: bool = True) -> list[float]:
    """Seconds that an exchange waits for at most, where there are rows, and many if ``enough``."""
    waits: list[float] = []

    async def once() -> None:
        pace = Pace(INTERVAL_S)

        async def until_now(seconds: float) -> None:
            waits.append(seconds)

        pace._until_now = until_now  # type: ignore[method-assign]
        if enough:
            pace.enough()
        await pace.wait(lambda: True, cost_s)

    asyncio.run(once())
    return waits


def test_many_rows_start_an_exchange_earlier_where_it_is_cheap() -> None:
    assert waited(0.0) == [pytest.approx(INTERVAL_S / 4)]
    assert sum(waited(0.0, enough=False)) == pytest.approx(INTERVAL_S)


def test_an_exchange_that_costs_has_the_rows_of_a_whole_interval_and_no_more() -> None:
    for cost_s in (0.0002, 0.01, 1.0):
        assert waited(cost_s) == [pytest.approx(INTERVAL_S)], cost_s
    assert INTERVAL_S / 4 < waited(0.00006)[0] < INTERVAL_S
