"""While no replica answers: a bound, and the reason."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from online.http.no_replica import Application, NoReplicaGuard, Replicas


async def never(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


async def stubborn(scope: Any, receive: Any, send: Any) -> None:
    """It answers when it is told to stop."""
    try:
        await asyncio.Event().wait()
    finally:
        await send({"type": "http.response.start", "status": 200, "headers": []})


def ask(behind: Application, *looks: Replicas | Exception, path: str = "/readyz") -> list[Any]:
    """What was sent to the caller; the last look is repeated."""
    sent: list[Any] = []
    left = list(looks)

    def look() -> Replicas:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    async def send(message: Any) -> None:
        sent.append(message)

    async def scene() -> None:
        application = NoReplicaGuard(behind, look, look_s=0.01, wait_s=0.03)
        async with asyncio.timeout(240):
            await application({"type": "http", "path": path}, None, send)

    asyncio.run(scene())
    return sent


def refusal(sent: list[Any]) -> Any:
    start, body = sent
    assert start["status"] == 503
    assert (b"retry-after", b"5") in start["headers"]
    return json.loads(body["body"])["error"]


def test_the_reason_is_said_as_soon_as_it_is_known() -> None:
    error = refusal(ask(never, Replicas(0, None), Replicas(0, "broken on purpose")))
    assert error["code"] == "no_replica"
    assert error["message"] == "no replica answers: broken on purpose"
    text = refusal(ask(never, Replicas(0, "broken"), path="/v2/models/m/infer"))
    assert text.startswith("no replica answers: broken. Send it again")


def test_without_a_reason_it_is_waited_for_a_while() -> None:
    assert "being started" in refusal(ask(never, Replicas(0, None)))["message"]
    assert "does not say why" in refusal(ask(never, OSError("gone")))["message"]


def test_an_answer_that_takes_long_is_waited_for_while_a_replica_runs() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.1)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    (start,) = ask(slow, Replicas(1, "another one does not start"))
    assert start["status"] == 200


def test_an_answer_that_has_begun_goes_on() -> None:
    async def long(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.1)
        await send({"type": "http.response.body", "body": b"end"})

    assert [m["type"] for m in ask(long, Replicas(0, "gone"))][-1] == "http.response.body"


def test_what_answers_late_is_not_sent_after_a_refusal() -> None:
    assert len(ask(stubborn, Replicas(0, "broken"))) == 2
