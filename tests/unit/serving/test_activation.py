"""An activated choice keeps what it was, and an id that no choice has is told so."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import replica_world as worlds
from test_default_rewards import WAIT_S, shop

from online.errors import RequestError
from online.messages.sender import sender
from online.rows.joins import NO_HALF
from online.serving.choices.activation import activate
from online.settings.tokens import Grant
from replay.journal.base import Half, NewRow, Verdict


def test_the_default_of_an_activated_choice_is_of_the_source_that_asked(tmp_path: Path) -> None:
    """Otherwise a forget of that source would leave its defaults."""

    async def scene(world: Any) -> None:
        one = await shop(world)
        sender.set(Grant("bob"))
        one.choosing.serving._reader.askers = frozenset({"bob"})
        await one.choose("now")
        await one.choose("later", defer=True)
        await activate(one.choosing.serving, "later")
        sender.set(Grant())
        assert await one.give(WAIT_S + 60) == 2
        with contextlib.closing(world.journal()) as journal:
            rows = journal.follow("m", 0, 1000).rows
        assert {row.event_id: row.source for row in rows} == {"now": "bob", "later": "bob"}
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_what_is_no_choice_is_not_activated(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world)
        serving, writer = one.choosing.serving, one.replica.writer
        key = one.replica.store.keys.join(None, "odd")
        half = NewRow(
            key, "odd", "", Verdict.ACCEPTED, b"\x01no half", 1.0,
            half=Half.PREDICTION,
        )  # fmt: skip
        await writer.record([half])
        for id_, status, code in (
            ("nothing", 404, "unknown_id"),
            ("a typing error", 404, "unknown_id"),
            ("x" * 300, 404, "unknown_id"),
            ("odd", 500, "journal_damaged"),
        ):
            with pytest.raises(RequestError) as caught:
                await activate(serving, id_)
            assert (caught.value.status, caught.value.code) == (status, code), id_
        assert not one.replica.counts["choices_activated"]
        await activate(serving, await one.choose())  # by its token: it was never deferred
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_an_activation_for_which_others_are_too_fast_can_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world)
        await one.choose("later", defer=True)
        record = one.replica.writer.record

        async def overtaken(rows: Any) -> Any:
            return await record([msgspec.structs.replace(rows[0], over=NO_HALF)])

        monkeypatch.setattr(one.replica.writer, "record", overtaken)
        with pytest.raises(RequestError, match="others were faster") as caught:
            await activate(one.choosing.serving, "later")
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
        monkeypatch.undo()
        await activate(one.choosing.serving, "later")
        assert await one.give(WAIT_S + 60) == 1
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)
