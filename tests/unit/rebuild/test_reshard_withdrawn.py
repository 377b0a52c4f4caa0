"""A wish for another number of servers is taken back, and who serves decides again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from reshard_world import World, decided, handed_on, one, saying

from online.commands.setup import models
from online.errors import StartRefused
from online.rebuild import reshard
from online.rows.prediction_ids import Keys
from online.service.state import parameter_servers, server_count
from paramserver.core import resharding, rewrites
from paramserver.core.resharding import Reshard
from replay.errors import JournalUnavailable


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with closing(made.journal):
        yield made


def newest_of(world: World, *, done: bool = False) -> Reshard:
    found = resharding.newest(world.journal.controls("m", 0), one(world), done=done)
    assert found is not None
    return found[1]


def test_a_wish_is_withdrawn_with_the_number_that_there_is(world: World) -> None:
    Keys.from_file(world.settings(2).key_path)
    settings = world.settings(2)
    models._request(settings, "m", 3, world.spec)
    assert handed_on(world, 2)
    assert models._request(settings, "m", 2, world.spec) == (world.spec, 2, None)
    assert not handed_on(world, 2), "who serves decides again"
    assert (decided(world, 2), newest_of(world).why) == (2, "failed")
    with pytest.raises(StartRefused, match="has 2 parameter servers"):
        models._request(settings, "m", 2, world.spec)


def test_the_same_wish_again_is_the_same_wish(world: World) -> None:
    """What was begun for it is not begun again."""
    Keys.from_file(world.settings(2).key_path)
    settings = world.settings(2)
    first = models._request(settings, "m", 3, world.spec)
    assert models._request(settings, "m", 3, world.spec) == first
    assert models._request(settings, "m", 4, world.spec)[2] != first[2], "another one is another"
    assert models._request(settings, "m", 3, world.spec)[2] != first[2], "which is taken back so"


def test_a_wish_that_nobody_fulfils_in_time_is_withdrawn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    Keys.from_file(world.settings(2).key_path)
    monkeypatch.setattr(models, "_LOOK_S", 0.0)
    monkeypatch.setattr("online.service.state.run_file.running", lambda _: {})
    settings = world.settings(2)
    spec, _, row = models._request(settings, "m", 3, world.spec)
    assert row is not None
    monkeypatch.setattr(models, "_RESHARD_S", -1.0)
    with pytest.raises(StartRefused, match=r"new ones have not begun within .* was withdrawn"):
        models._wait_for_reshard(settings, "m", spec, row)
    assert not handed_on(world, 2)
    spec, _, row = models._request(settings, "m", 3, world.spec)
    assert row is not None
    reshard.note(world.journal, "m", saying(world, 2, 2, 3, done=True), row[0])
    with pytest.raises(StartRefused, match="its replicas have not switched"):
        models._wait_for_reshard(settings, "m", spec, row)
    assert newest_of(world).shards == 3, "what has begun is not withdrawn"


@pytest.mark.parametrize("late", [True, False])
def test_what_was_withdrawn_or_wished_anew_meanwhile_does_not_begin(
    world: World, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Late: the lineage has begun already, and its row does not come before the other one."""
    world.publish(1, 9, 9)
    monkeypatch.setattr(parameter_servers, "has_decided", lambda *_: True)
    monkeypatch.setattr(parameter_servers, "publishes", lambda *_: True)

    def meanwhile(step: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*given: Any) -> Any:
            answer = step(*given)
            others.pop()()
            return answer

        return taken

    def again() -> None:
        reshard.note(world.journal, "m", saying(world, 2, 2, 4))

    def withdraw() -> None:
        assert reshard.withdraw(world.journal, "m", one(world)) == 3

    place, name = (reshard, "begin") if late else (server_count, "_publish_aligned")
    monkeypatch.setattr(place, name, meanwhile(getattr(place, name)))
    for other, stands in ((withdraw, "failed"), (again, "operator")):
        others = [other]
        reshard.note(world.journal, "m", saying(world, 2, 2, 3))
        why = "another request has just changed" if late else "was withdrawn"
        with pytest.raises(StartRefused, match=why):
            server_count.reshard_pending(world.settings(2), {"m": world.spec}, lambda _: None)
        assert newest_of(world).why == stands
        assert decided(world, 2) == 2
        if late:
            assert world.journal.lineages("m")[-1] == world.spec, "whose rows are trimmed"
    assert newest_of(world).shards == 4, "it is looked at next"
    assert not newest_of(world).done
    begun = any(c.kind == rewrites.BEGUN for c in world.journal.controls("m", 0))
    assert begun == late


@pytest.mark.parametrize("away", [1, 99])
def test_a_journal_that_is_away_is_asked_again_to_take_back(
    world: World, monkeypatch: pytest.MonkeyPatch, away: int
) -> None:
    world.publish(1, 9, 9)
    reshard.note(world.journal, "m", saying(world, 2, 2, 3))
    reshard.note(world.journal, "m", saying(world, 2, 2, 3, done=True))
    left, write = [away], world.journal.write_control

    def unanswered(*given: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise JournalUnavailable("it is away")
        return write(*given)

    monkeypatch.setattr(server_count, "_TRY_S", 0.0)
    monkeypatch.setattr(world.journal, "write_control", unanswered)
    if away > 1:
        with pytest.raises(JournalUnavailable):
            server_count.revert_all(world.journal, {"m": world.spec}, world.settings(2))
        assert left[0] == away - server_count._TRIES
    else:
        server_count.revert_all(world.journal, {"m": world.spec}, world.settings(2))
    assert handed_on(world, 2) == (away > 1)
