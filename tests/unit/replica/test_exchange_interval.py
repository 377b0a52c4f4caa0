"""How long the next exchange waits, by what the last one took."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from online.replica import exchange
from online.replica.exchange import Exchange
from online.replica.pace import Pace

INTERVAL_S = 0.02
ADOPT_S = 10.0


def waited(cost_s: float, *, enough: bool = True, alone: bool = False) -> list[float]:
    """Seconds that an exchange waits for at most, where there are rows, and many if ``enough``."""
    waits: list[float] = []

    async def once() -> None:
        pace = Pace(INTERVAL_S, ADOPT_S, alone=alone)

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


def test_where_no_other_process_waits_costly_exchanges_are_rarer_and_cheap_ones_are_not() -> None:
    assert waited(1.0, alone=True) == [pytest.approx(5 * INTERVAL_S)]
    assert waited(0.0003, alone=True) == [pytest.approx(0.0003 / 0.006)]
    assert waited(0.0, alone=True) == waited(0.0)
    assert sum(waited(0.0, enough=False, alone=True)) == pytest.approx(INTERVAL_S)


def test_a_replica_without_news_polls_less_often_but_within_an_answers_age() -> None:
    pace = Pace(INTERVAL_S, ADOPT_S)
    waits = []
    for _ in range(200):
        pace.idle(nothing_happened=True)
        waits.append(pace._idle_s)
    assert waits == sorted(waits)
    assert waits[99] == pytest.approx(5 * INTERVAL_S)
    assert waits[-1] == pytest.approx(16 * INTERVAL_S)
    pace.idle(nothing_happened=False)
    assert pace._idle_s == INTERVAL_S
    for interval_s in (0.05, 0.1, 0.5):  # an age of a second is kept where five intervals allow it
        pace = Pace(interval_s, ADOPT_S)
        for _ in range(200):
            pace.idle(nothing_happened=True)
        assert pace._idle_s == pytest.approx(max(5 * interval_s, 0.32))


def test_a_replica_whose_rows_are_adopted_soon_is_heard_of_often() -> None:
    """Its lease is half of that time."""
    pace = Pace(INTERVAL_S, 1.0)
    for _ in range(200):
        pace.idle(nothing_happened=True)
    assert pace._idle_s == pytest.approx(1.0 / 8)


def test_idle_models_of_a_process_poll_at_the_same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits at least half of what it should, and no longer: answers' ages depend on it."""

    async def once() -> list[float]:
        loop = asyncio.get_running_loop()
        ends: list[float] = []

        async def idle(begins_s: float) -> None:
            pace = Pace(INTERVAL_S, ADOPT_S)
            pace._idle_s = 0.2
            await asyncio.sleep(begins_s)
            begun = loop.time()
            await pace.wait(lambda: False)
            ends.append(loop.time())
            assert ends[-1] - begun >= 0.1

        wait, asked = asyncio.wait, list[float]()

        async def noted(tasks: Any, timeout: float, **more: Any) -> Any:
            asked.append(timeout)
            return await wait(tasks, timeout=timeout, **more)

        monkeypatch.setattr(asyncio, "wait", noted)
        at = 0.2 - loop.time() % 0.2
        await asyncio.gather(*(idle(at + more) for more in (0.01, 0.04, 0.07)))
        assert max(asked) <= 0.2
        return ends

    ends = asyncio.run(once())
    assert max(ends) - min(ends) < 0.06, "they began 0.06 s apart"


def test_a_wait_that_is_cancelled_leaves_no_task() -> None:
    async def scene() -> None:
        waits = asyncio.create_task(Pace(60.0, 60.0).wait(lambda: False))
        await asyncio.sleep(0.01)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "this one"

    asyncio.run(scene())


def test_a_server_that_is_away_is_asked_often_at_first_and_seldom_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked_s, away = 100.0, list[float](), True

    async def wait(*_: object) -> None: ...

    async def once(*_: object) -> bool | None:
        asked_s.append(now - 100.0)
        return None if away else False

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    one = Exchange.__new__(Exchange)
    one._pace = Pace(INTERVAL_S, ADOPT_S)
    one._cut_cost_s = one._reply_cost_s = 0.0
    one._reached_s, one._monotonic_s = now, lambda: now
    for method, fake in (("once", once), ("_due", lambda: ([], None)), ("_is_due", lambda: True)):
        monkeypatch.setattr(one, method, fake)
    monkeypatch.setattr(one._pace, "wait", wait)
    monkeypatch.setattr(exchange.asyncio, "sleep", sleep)

    def turns(n: int) -> list[float]:
        """Seconds since the last contact of each attempt."""
        asked_s.clear()
        for _ in range(n):
            asyncio.run(one.turn())
        return asked_s

    found = turns(60)
    assert found[:20] == pytest.approx([0.1 * i for i in range(20)])
    pauses = [later - before for before, later in pairwise(found)]
    assert all(
        pause <= max(0.1, 0.05 * at) + 1e-9 for pause, at in zip(pauses, found, strict=False)
    )
    assert turns(200)[-1] - asked_s[-2] == pytest.approx(1.0), "and never less often"
    away = False
    turns(1)
    away, before = True, now
    assert [at + 100.0 - before for at in turns(3)] == pytest.approx([0.0, 0.1, 0.2])
