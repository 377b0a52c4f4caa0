"""A start whose settings name another number of servers asks for them before it begins them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from reshard_world import World, handed_on, one, saying

from online.challenger import promotion
from online.errors import StartRefused
from online.rebuild import reshard
from online.rows.prediction_ids import Keys
from online.service.state import server_count
from paramserver.core import resharding


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    Keys.from_file(made.settings(2).key_path)
    made.publish(1, 9, 9)
    with closing(made.journal):
        yield made


def start(world: World, given: int, *, rejects: bool = False) -> int:
    """As a service starts with a file that says so; how many servers it has then."""
    settings = world.settings(given)
    served, _ = promotion.as_served(settings, world.journal)
    server_count.record_given(settings, served, world.journal)
    if rejects:  # a service that can't fulfil requests
        server_count.reject_requests(served, world.journal)
    shards = served.models[0].shards
    model, loaded = served.models[0], world.loaded(shards)
    server_count.at_start(world.journal, served, model, loaded, lambda _: None, again=False)
    return shards


def pending(world: World) -> bool:
    found = resharding.newest(world.journal.controls("m", 0), one(world), done=False)
    return found is not None and not found[1].done


class Killed(BaseException):
    """The process is killed there."""


def killed(*_: object) -> None:
    raise Killed


def killed_after(step: Callable[..., Any]) -> Callable[..., Any]:
    def taken(*given: Any) -> Any:
        step(*given)
        raise Killed

    return taken


def test_what_served_neither_decides_nor_trims_while_the_others_begin(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, seen = reshard.begin, list[tuple[bool, int]]()

    def looked(*given: Any) -> None:
        seen.append((handed_on(world, 2), world.journal.head("m", world.spec).epoch))
        begin(*given)

    monkeypatch.setattr(reshard, "begin", looked)
    assert start(world, 3) == 3
    assert seen == [(True, 4)], "whoever has begun a decision has lost its epoch"
    assert not pending(world)
    assert (handed_on(world, 2), handed_on(world, 3)) == (True, False)


def test_where_they_can_not_begin_what_served_decides_again_and_it_is_tried_again(
    world: World,
) -> None:
    world.journal.trim("m", world.spec, 3, {world.partition: 9}, 1e9, 9)
    world.publish(2, 4, 4)  # rows after it are gone
    world.publish(3, 3, 4)
    histories = reshard.histories_of(world.settings(2), world.model(2), world.spec)
    for history in histories:
        history.withdraw("3-1")
    for _ in range(2):
        with pytest.raises(StartRefused, match="are no more in the journal"):
            start(world, 3)
        assert not handed_on(world, 2)
        assert world.journal.lineages("m")[-1] == world.spec, "whose rows are trimmed"
    assert start(world, 2) == 2
    assert start(world, 2) == 2


@pytest.mark.parametrize("where", ["epoch", "begin", "note"])
@pytest.mark.parametrize("rejects", [True, False])
def test_a_start_that_was_killed_is_made_good_by_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str, rejects: bool
) -> None:
    with monkeypatch.context() as broken:
        if where == "epoch":
            broken.setattr(reshard, "begin_epoch", killed)
        elif where == "begin":
            broken.setattr(reshard, "begin", killed)
        else:
            broken.setattr(reshard, "begin", killed_after(reshard.begin))
        for _ in range(2):
            with pytest.raises(Killed):
                start(world, 3)
            assert pending(world)
            assert handed_on(world, 2)
    assert start(world, 2, rejects=rejects) == 2, "the file was put back"
    assert not pending(world)
    assert not handed_on(world, 2)
    with monkeypatch.context() as broken:
        broken.setattr(reshard, "begin", killed)
        with pytest.raises(Killed):
            start(world, 4)
    assert start(world, 3, rejects=rejects) == 3
    assert world.begun(3).clock == {world.partition: 9}


def test_an_interrupted_start_leaves_nothing_where_an_operator_had_decided(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reshard.note(world.journal, "m", saying(world, 2, 2, 3))
    settings, model, loaded = world.settings(3), world.model(3), world.loaded(3)
    said = saying(world, 2, 2, 3, done=True)
    reshard.reshard(world.journal, settings, model, loaded, 2, said)
    assert start(world, 2) == 3, "the file is as it was"
    with monkeypatch.context() as broken:
        broken.setattr(reshard, "begin", killed)
        with pytest.raises(Killed):
            start(world, 5)
    assert start(world, 3) == 3
    assert not pending(world)
    assert not handed_on(world, 3)


def test_whoever_rejects_a_wish_goes_on_with_what_served_then(world: World) -> None:
    """The file has changed, too, and says a third number."""
    reshard.note(world.journal, "m", saying(world, 2, 2, 3))
    assert start(world, 4, rejects=True) == 4
    assert world.begun(4).clock == {world.partition: 9}, "what two servers had learned"
