"""A row that the disk has changed: nobody learns it, its repeat says so, and the rest goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

from online.errors import RequestError
from online.messages.structs import FeedbackRequest


def damage(world: Any, partition: int, offset: int, column: str, value: Any) -> None:
    """As a disk would: nobody proves it again."""
    journal = world.journal()
    with journal._file.write() as db:
        where = 'WHERE partition = ? AND "offset" = ?'
        changed = db.execute(f"UPDATE rows SET {column} = ? {where}", (value, partition, offset))
        assert changed.rowcount == 1
    journal.close()


DAMAGE = [
    ("payload", b"\x01\x93\x80\xc3\xca\x3f\x80\x00\x00"), ("verdict", "clipped"), ("factor", 0.5),
    ("source", "tesu"), ("event_id", "e9"), ("at", 2.0), ("seq", 4000), ("ran", 7),
    ("model", 2), ("checksum", None), ("checksum", 1), ("verdict", "accepte\x7f"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value", "ordered"),
    [(*one, False) for one in DAMAGE] + [(*one, True) for one in DAMAGE[:2]],
)
def test_a_damaged_row_is_not_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, value: Any, ordered: bool
) -> None:
    monkeypatch.setattr("online.replica.replica._CATCH_UP_S", 0.1)

    async def scene(world: Any) -> None:
        journal = world.journal()
        dead = journal.register("m", "dead", worlds.SPEC, 1.0).id
        journal.append(dead, 0, [worlds.row(f"e{n}") for n in range(6)])
        damage(world, dead, 4, column, value)
        replica = await world.replica("r", ordered=ordered)
        if not ordered:
            await replica.exchange._adopt(dead)
        await worlds.until(lambda: replica.incidents)
        assert "damaged" in str(replica.incidents)
        assert "row 4 of partition" in str(replica.incidents)
        assert replica.learner.predict({"e0": 1.0}) is not None, "predictions go on"
        assert world.weight(replica, "e3") == 0
        if not ordered:  # there all wait for it
            recorded = await replica.writer.record([worlds.row("new")])
            assert recorded[0].status == "learned", "other partitions go on"
            assert [world.weight(replica, f"e{n}") for n in (0, 5)] == [1, 0]
        assert journal.examine(lambda done, total: None).damage
        await replica.stop(0.1)
        journal.close()

    worlds.play(tmp_path, scene)


def test_a_repeat_of_a_damaged_row_says_so_and_its_neighbours_are_recorded(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica()
        serving = world.serving(replica)
        assert (await replica.writer.record([worlds.row("a")]))[0].status == "learned"
        damage(world, replica.writer.partition, 1, "payload", b"\x01other")
        rows = [worlds.row("a"), worlds.row("b")]
        assert [r.status for r in await replica.writer.record(rows)] == ["damaged", "learned"]
        event = FeedbackRequest(features={"a": 1.0}, label=1.0, event_id="a", source="test")
        with pytest.raises(RequestError, match="row 1 of partition") as refusal:
            await serving.feedback(event)
        assert (refusal.value.status, refusal.value.code) == (500, "journal_damaged")
        assert replica.counts["damaged"] == 2
        await replica.stop(0.1)

    worlds.play(tmp_path, scene)


def test_learning_goes_on_when_the_row_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("online.replica.follower._DAMAGED_S", 0.01)

    async def scene(world: Any) -> None:
        journal = world.journal()
        dead = journal.register("m", "dead", worlds.SPEC, 1.0).id
        journal.append(dead, 0, [worlds.row(f"e{n}") for n in range(6)])
        damage(world, dead, 4, "factor", 0.5)
        replica = await world.replica()
        await replica.exchange._adopt(dead)
        await worlds.until(lambda: replica.incidents)
        damage(world, dead, 4, "factor", 1.0)

        def mended() -> bool:
            replica._shared.wake.set()  # the follower looks now
            return not replica.incidents

        await worlds.until(mended)
        await worlds.until(lambda: world.weight(replica, "e5") == 1)
        await replica.stop(0.1)
        journal.close()

    worlds.play(tmp_path, scene)
