"""Labels that come after their rows of `task: anomaly`: refused alone, and of learned rows only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import replica_world as worlds

from online.errors import RequestError
from online.messages.structs import Event, Receipt
from online.models.detector import Detecting
from online.replica.pending import Recorded
from online.replica.replica import ModelReplica
from online.serving import anomalies
from online.serving.serving import Serving
from replay.journal.base import Verdict

BROKEN = 13.0


class Far:
    """How far a row is from zero; one number can't be learned."""

    def score_one(self, features: dict[str, float]) -> float:
        return abs(features.get("a", 0.0))

    def learn_one(self, features: dict[str, float]) -> None:
        if features["a"] == BROKEN:
            raise ValueError("no lesson")


async def detector(world: worlds.World) -> tuple[ModelReplica, Serving]:
    def build() -> Detecting:
        return Detecting(Far(), 0.9, key=bytes(32), why_not_mergeable="it is a detector")

    replica = await world.replica(build=build, task="binary", anomaly={}, ordered=True)
    return replica, world.serving(replica)


def event(name: str | None, label: bool | None = None, value: float = 1.0) -> Event:
    return Event(label, features={"a": value}, event_id=name)


def told(receipts: Sequence[Receipt]) -> list[str]:
    """Statuses, and the codes of those that are refused."""
    return [r.error["code"] if isinstance(r.error, dict) else r.status for r in receipts]


@pytest.mark.parametrize("code", ["busy", "journal_full"])
def test_a_late_label_that_is_refused_leaves_the_other_rows_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    async def scene(world: worlds.World) -> None:
        replica, serving = await detector(world)
        await serving.record([event("first"), event("second")])
        calls: list[int] = []
        record = replica.writer.record

        async def once(*given: Any, **more: Any) -> list[Recorded]:
            calls.append(len(given[0]))
            if len(calls) == 2:
                raise RequestError(503, code, "too much waits", None, "Send it again")
            return await record(*given, **more)

        monkeypatch.setattr(replica.writer, "record", once)
        body = [event("first", False), event(None), event("second", True), event("new")]
        receipts = await serving.record(body)
        assert told(receipts) == [code, "learned", code, "learned"]
        assert calls == [4, 2]
        again = await serving.record([body[0], body[2]])
        assert told(again) == ["learned", "learned"], "sent again, they are taken"
        found = anomalies.summary_of(replica)
        assert found is not None
        assert (found["rows"], found["unlabelled"]) == (4, 2)
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_late_label_that_nobody_can_read_leaves_the_other_rows_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        replica, serving = await detector(world)
        await serving.record([event("first")])
        record = replica.writer.record

        async def spoilt(rows: Sequence[Any], examples: Sequence[Any]) -> list[Recorded]:
            found = await record(rows, examples)
            if len(rows) == 1:  # the late label
                found = [msgspec.structs.replace(found[0], status="damaged", reason="spoilt")]
            return found

        monkeypatch.setattr(replica.writer, "record", spoilt)
        receipts = await serving.record([event("first", True), event(None)])
        assert told(receipts) == ["journal_damaged", "learned"]
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


async def set_aside(serving: Serving, verdict: Verdict) -> None:
    asked = await serving._reader.read(event("first"), "")
    row = msgspec.structs.replace(asked.row, verdict=verdict)  # type: ignore[union-attr]
    await serving.replica.writer.record([row])


async def quarantined(serving: Serving) -> None:
    await set_aside(serving, Verdict.QUARANTINED)


async def frozen(serving: Serving) -> None:
    await set_aside(serving, Verdict.FROZEN)


async def failed(serving: Serving) -> None:
    await serving.record([event("first", value=BROKEN)])


@pytest.mark.parametrize("first", [quarantined, frozen, failed])
def test_a_label_of_a_row_that_was_not_learned_counts_nowhere(
    tmp_path: Path, first: Callable[[Serving], Any]
) -> None:
    async def scene(world: worlds.World) -> None:
        replica, serving = await detector(world)
        await serving.record([event("another")])
        await first(serving)
        value = BROKEN if first is failed else 1.0
        (receipt,) = await serving.record([event("first", True, value)])
        assert (receipt.status, receipt.first_outcome) == ("conflict", first.__name__)
        found = anomalies.summary_of(replica)
        assert found is not None
        assert (found["rows"], found["unlabelled"]) == (1, 1)
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)
