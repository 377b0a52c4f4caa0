"""What raises where rows are judged, or behind it, costs its own sender an answer at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from provisional_world import half

from online.errors import RequestError
from online.messages.structs import FeedbackRequest
from online.replica.filtered import Filtered
from online.replica.pending import waiting_for
from online.trust.filtering import Filtering, filtering_for
from replay.example import Example
from replay.journal.base import NewRow, Outcome

HINT = "Nothing was recorded. It is a bug: the service's log has it"


def broken(learner: Any, *, at_finals: bool = False) -> Filtering:
    """Filters that raise at an event that is called bad, or at its final label only."""
    from online.settings.model import ModelSettings

    model = ModelSettings(name="m", task="regression", learner="linreg")
    filters = filtering_for(model, learner, None, sources_max=99, vouched=False)
    assert filters is not None
    judge = filters.judge

    def judged(
        rows: Sequence[NewRow], examples: list[Example | None] | None = None, *, more: bool = False
    ) -> list[NewRow]:
        if any("bad" in row.event_id and (row.only or not at_finals) for row in rows):
            raise ZeroDivisionError("no source has sent anything")
        return judge(rows, examples, more=more)

    filters.judge = judged  # type: ignore[method-assign]
    filters.sleeps_through = lambda rows, examples: False  # type: ignore[method-assign]
    return filters


def test_rows_that_cant_be_judged_are_refused_at_once_and_alone(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica(filters=broken)
        writer, loop = replica.writer, asyncio.get_running_loop()
        good = [worlds.row(f"good-{i}") for i in range(6)]
        each = [loop.create_future() for _ in range(3)]
        lone = [
            asyncio.create_task(writer.record(rows))
            for rows in ([good[0], worlds.row("bad-0")], [good[1], good[2]], [good[3]])
        ]
        await asyncio.sleep(0)
        writer.put([good[4], worlds.row("bad-1"), good[5]], [None] * 3, each)
        found = await asyncio.gather(*lone, *each, return_exceptions=True)

        for refused in (found[0], found[4]):
            assert isinstance(refused, RequestError), found
            assert (refused.status, refused.code, refused.hint) == (503, "unjudged", HINT)
            assert "ZeroDivisionError: no source has sent anything" in str(refused)
        assert [len(recorded) for recorded in found[1:3]] == [2, 1], found
        assert [found[i].status for i in (3, 5)] == ["learned"] * 2, found
        held = {row.event_id for row in world.journal().read(writer.partition, 1, 99)}
        assert held == {"good-1", "good-2", "good-3", "good-4", "good-5"}, "all of it or nothing"

        assert "ZeroDivisionError" in "".join(replica.incidents), replica.incidents
        assert replica.counts["internal_errors"] == 2
        assert replica.counts["refused_journal"] == 3
        assert writer.waiting == 0
        assert writer.idle
        (recorded,) = await writer.record([worlds.row("later")])
        assert recorded.status == "learned"
        await replica.stop(30)
        partition = world.journal().partition(writer.partition)
        assert partition.sealed, "the stop is clean"

    worlds.play(tmp_path, scene)


def test_a_stored_join_that_cant_be_judged_costs_no_other_one(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica(filters=broken)
        serving = world.serving(replica)
        asked = [
            asyncio.create_task(serving.feedback(FeedbackRequest(label=1.0, id=name)))
            for name in ("a", "b")
        ]
        bad = asyncio.create_task(replica.writer.record([worlds.row("bad")]))
        found = await asyncio.gather(*asked, bad, return_exceptions=True)
        assert isinstance(found[2], RequestError), found
        assert found[2].code == "unjudged"
        assert [found[i][1].status for i in (0, 1)] == ["waiting"] * 2, found
        assert replica.writer.idle
        await replica.stop(30)

    worlds.play(tmp_path, scene)


def test_a_final_label_that_cant_be_judged_costs_no_other_one(tmp_path: Path) -> None:
    names = ("good-1", "bad", "good-2")

    async def scene(world: Any) -> None:
        filters = partial(broken, at_finals=True)
        replica = await world.replica(build=half, filters=filters)
        serving = world.serving(replica)

        def sent(name: str, label: float, *, guess: bool) -> Any:
            given = FeedbackRequest(
                label=label, features={"a": 1.0}, event_id=name, provisional=guess
            )
            return serving.feedback(given)

        for name in names:
            assert (await sent(name, 1.0, guess=True))[1].status == "learned"
        finals = [sent(name, 2.0, guess=False) for name in names]
        found = await asyncio.gather(*finals, return_exceptions=True)
        assert isinstance(found[1], RequestError), found
        assert found[1].code == "unjudged"
        assert [found[i][1].status for i in (0, 2)] == ["learned"] * 2, found
        assert replica.counts["internal_errors"] == 1
        assert replica.counts["corrected"] == 2
        assert replica.writer.idle
        await replica.stop(30)

    worlds.play(tmp_path, scene)


def test_what_raises_behind_the_append_leaves_nobody_waiting_and_no_row_unlearned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: list[bool] = []

    def once(self: Filtered, rows: Sequence[NewRow], outcomes: Sequence[Outcome]) -> None:
        if not broken:
            broken.append(True)
            raise ZeroDivisionError("it is broken")

    async def scene(world: Any) -> None:
        replica = await world.replica()
        writer, loop = replica.writer, asyncio.get_running_loop()
        monkeypatch.setattr(Filtered, "committed", once)
        each = [loop.create_future() for _ in range(2)]
        writer.put([worlds.row("a"), worlds.row("b")], [None] * 2, each)
        more = asyncio.create_task(writer.record([worlds.row("c")]))
        found = await asyncio.gather(*each, more, return_exceptions=True)
        for refused in found:
            assert isinstance(refused, RequestError), found
            assert refused.code == "journal_unavailable", "it may have been recorded, and was"
        assert writer.waiting == 0
        await worlds.until(lambda: world.weight(replica, "a") == 1)
        repeats = await writer.record([worlds.row("a"), worlds.row("b"), worlds.row("c")])
        assert worlds.statuses(repeats) == [("learned", True)] * 3
        await replica.stop(30)
        assert world.journal().partition(writer.partition).sealed

    worlds.play(tmp_path, scene)


def test_a_request_that_was_given_up_on_leaves_no_slot_taken(tmp_path: Path) -> None:
    """An answer that came too late, or twice, would else be counted as one more that waits."""

    async def scene(world: Any) -> None:
        replica = await world.replica()
        answers, loop = replica.writer.answers, asyncio.get_running_loop()
        each = [loop.create_future() for _ in range(2)]
        rows = [worlds.row("a"), worlds.row("b")]
        waiting = waiting_for(rows, None, loop.create_future(), each=each)
        answers.requests += 2
        each[0].cancel()  # its caller has gone
        answers.abandon([waiting])
        answers.abandon([waiting])
        assert answers.requests == 0
        lone = waiting_for(rows, None, loop.create_future())
        answers.requests += 1
        answers.abandon([lone])
        answers.abandon([lone])
        assert answers.requests == 0
        await replica.stop(30)

    worlds.play(tmp_path, scene)
