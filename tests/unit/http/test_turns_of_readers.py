"""Hundreds that ask for a status at once hold up no feedback; a slow reader holds up nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from online.http.middleware.turns import AT_ONCE, Turns

MANY = 50


class Working:
    """An application that takes some turns of the loop for each request."""

    def __init__(self) -> None:
        self.now = self.most = self.done = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(3):
            await asyncio.sleep(0)
        self.now -= 1
        if scope["path"] == "/fails":
            raise ValueError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        self.done += 1


async def nothing() -> dict[str, Any]:
    return {"type": "http.request"}


async def taken(message: dict[str, Any]) -> None:
    """Take a part of an answer."""


def asks(turns: Any, path: str, method: str = "GET", send: Any = taken) -> Any:
    return turns({"type": "http", "method": method, "path": path}, nothing, send)


@pytest.mark.parametrize(
    ("path", "method", "most"),
    [
        ("/metrics", "GET", AT_ONCE),
        ("/v1/models", "HEAD", AT_ONCE),
        ("/openapi.json", "GET", AT_ONCE),
        ("/fails", "GET", AT_ONCE),
        ("/livez", "GET", MANY),
        ("/v2/health/ready", "GET", MANY),
        ("/v1/models/m/report", "GET", MANY),
        ("/v1/models/m/rollback", "POST", MANY),
    ],
)
def test_so_many_are_worked_out_at_once(path: str, method: str, most: int) -> None:
    async def scene() -> None:
        inner = Working()
        turns = Turns(inner)
        asked = [asks(turns, path, method) for _ in range(MANY)]
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert inner.most == most
        assert inner.done == (0 if path == "/fails" else MANY) == sum(x is None for x in told)

    asyncio.run(scene())


def test_whoever_takes_no_answer_keeps_no_turn() -> None:
    async def scene() -> None:
        inner, takes = Working(), asyncio.Event()
        turns = Turns(inner)

        async def later(message: dict[str, Any]) -> None:
            await takes.wait()

        slow = [asyncio.ensure_future(asks(turns, "/metrics", send=later)) for _ in range(MANY)]
        await asks(turns, "/metrics")
        assert inner.done == 1
        takes.set()
        await asyncio.gather(*slow)
        assert inner.done == MANY + 1

    asyncio.run(scene())


@pytest.mark.parametrize("turn_s", [0.01, 3600.0], ids=["bounded", "control"])
def test_whoever_waits_for_what_stands_still_keeps_no_turn(turn_s: float) -> None:
    async def scene() -> None:
        begun, answers = 0, asyncio.Event()

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            nonlocal begun
            begun += 1
            if scope["path"] != "/metrics":
                await answers.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        turns = Turns(inner, turn_s=turn_s)
        waits = [asks(turns, "/v1/models/m/snapshots") for _ in range(AT_ONCE)]
        still = [asyncio.ensure_future(one) for one in waits]
        other = asyncio.ensure_future(asks(turns, "/metrics"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert begun == AT_ONCE
        assert not other.done()
        if turn_s < 1:
            await asyncio.wait_for(other, 60)
            assert not any(one.done() for one in still)
        answers.set()
        await asyncio.gather(*still, other)
        await asks(turns, "/metrics")
        assert turns._places._value == AT_ONCE, "each place is given back once"

    asyncio.run(scene())
