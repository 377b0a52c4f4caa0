"""A lineage begins with what another number of servers has learned, and takes all of it with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from reshard_world import World, decided, handed_on, one, saying
from servers_without_ray import answers_for_ray

from online.challenger import promotion
from online.commands.setup import models
from online.errors import StartRefused
from online.models.loaded import Loaded
from online.rebuild import reshard
from online.rows.prediction_ids import Keys
from online.service.on_ray.challengers import Challengers
from online.service.service import Service
from online.service.state import parameter_servers, server_count
from online.service.state.check_state import Models
from online.settings.config import Settings
from online.settings.whole import histories_of
from paramserver.core import resharding, rewrites
from paramserver.core.resharding import Reshard
from replay.errors import JournalUnavailable


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with closing(made.journal):
        yield made


@pytest.mark.parametrize("after", [1, 3, 5])
def test_values_and_clock_of_the_cut_are_those_of_the_new_lineage(world: World, after: int) -> None:
    world.publish(1, 4, 4)
    world.publish(2, 7, 6)
    done = world.reshard(after)
    assert (done.before, done.after, done.snapshot, done.learned) == (2, after, "3-1", 4)
    loaded = world.loaded(after)
    for store in world.stores(after):
        assert store.head("m", loaded.spec_hash).epoch == 4, "above those of before"
    if after == 1:
        state = histories_of(world.settings(1), world.model(1), loaded.spec_hash)[0].load("4-0")
    else:
        state = world.begun(after)
    assert (state.clock, state.version) == ({world.partition: 4}, (4, 0))
    assert (state.spec, state.spec_text) == (loaded.spec_hash, loaded.spec_text)
    assert state.values["w"].data == {f"k{i}": float(i) for i in range(40)}
    specs = reshard.specs_of(world.model(1), world.settings(1))
    assert reshard.served(world.journal, "m", specs) == after


def test_decisions_since_the_cut_are_taken_in_and_failed_rows_stay_so(world: World) -> None:
    world.publish(1, 9, 9)
    source = msgspec.json.encode(rewrites.Source("bot", True))
    world.journal.write_control("m", rewrites.SOURCE, "ban", source)
    world.journal.write_control("m", "failed", f"failed:{world.spec[:16]}:aa", b"it raised")
    world.journal.write_control("m", "failed", "failed:0000000000000000:bb", b"another's")
    world.reshard(3)
    state = world.begun(3)
    assert state.banned == frozenset({"bot"})
    mark = f"failed:{world.loaded(3).spec_hash[:16]}:"
    controls = world.journal.controls("m", 0)
    assert [c.key for c in controls if c.key.startswith(mark)] == [f"{mark}aa"]
    assert state.control == max(c.seq for c in controls if c.kind == rewrites.BEGUN)


def test_a_cut_from_before_a_rollback_is_not_taken(world: World) -> None:
    world.publish(1, 9, 9)
    note = rewrites.Rollback(world.spec, "3-1", 0, {1: 9}, [], {1: (4, 9)})
    row, _ = world.journal.write_control("m", rewrites.ROLLBACK, "b", msgspec.json.encode(note))
    with pytest.raises(StartRefused, match="a decision has taken events out since its newest"):
        world.reshard(3)
    assert not world.journal.head("m", world.loaded(3).spec_hash).epoch
    world.publish(2, 9, 9, control=row.seq)
    assert world.reshard(3).snapshot == "3-2"


def test_what_is_not_in_the_journal_is_not_handed_on(world: World) -> None:
    world.publish(1, 9, 9)
    note = {
        "spec": world.spec, "snapshot": "b", "control": 0, "clock": {}, "closed": [],
        "position": 0, "files": [], "learned": 3, "quarantined": 0, "known": 0, "label": "y",
    }  # fmt: skip
    world.journal.write_control("m", rewrites.BACKFILL, "t", msgspec.json.encode(note))
    with pytest.raises(StartRefused, match="has learned tables"):
        world.reshard(3)


def test_a_cut_whose_later_rows_are_gone_is_not_taken(world: World) -> None:
    world.publish(1, 4, 4)
    world.journal.trim("m", world.spec, 3, {world.partition: 6}, 1e9, 9)
    with pytest.raises(StartRefused, match="are no more in the journal"):
        world.reshard(3)


def write(
    world: World, given: int, before: int, shards: int, *, done: bool = True, why: str = "operator"
) -> None:
    said = Reshard(one(world), given, before, shards, done=done, why=why)
    reshard.note(world.journal, "m", said)


def test_a_decision_stands_as_long_as_the_settings_say_what_they_did(world: World) -> None:
    assert decided(world, 2) == 2
    write(world, 2, 2, 3, done=False)
    assert decided(world, 2) == decided(world, 2, running=True) == 2, "a wish is no decision"
    write(world, 2, 2, 3)
    write(world, 2, 3, 5)
    assert [decided(world, n) for n in (1, 2, 3, 5, 7)] == [1, 5, 3, 5, 7]
    of_any = [decided(world, n, running=True) for n in (1, 2, 3, 5, 7)]
    assert of_any == [5] * 5, "whenever a replica was deployed"
    controls = world.journal.controls("m", 0)
    assert resharding.decided(controls, "another", 2, running=True) == 2


def test_what_could_not_be_done_at_a_wish_may_be_said_by_the_file(world: World) -> None:
    write(world, 2, 2, 3, done=False)
    write(world, 2, 3, 2, why="failed")
    assert [decided(world, n) for n in (1, 2, 3)] == [1, 2, 3]


def start(world: World, given: int) -> int:
    """As a service starts with a file that says so; how many servers it has then."""
    settings = world.settings(given)
    served, _ = promotion.as_served(settings, world.journal)
    server_count.record_given(settings, served, world.journal)
    shards = served.models[0].shards
    model, loaded = served.models[0], world.loaded(shards)
    server_count.at_start(world.journal, served, model, loaded, lambda _: None, again=False)
    return shards


def test_the_file_may_go_back_to_a_number_that_it_said_before(world: World) -> None:
    Keys.from_file(world.settings(2).key_path)
    world.publish(1, 9, 9)
    assert [start(world, n) for n in (2, 3, 2, 2, 1)] == [2, 3, 2, 2, 1]
    assert world.begun(3).clock == {world.partition: 9}


def test_what_an_operator_had_changed_is_made_permanent_and_taken_back_by_the_file(
    world: World,
) -> None:
    Keys.from_file(world.settings(2).key_path)
    world.publish(1, 9, 9)
    said = Reshard(one(world), 2, 2, 3, done=True, why="operator")
    served = world.settings(3), world.model(3), world.loaded(3)
    reshard.reshard(world.journal, *served, 2, said)
    assert [start(world, n) for n in (2, 2, 3)] == [3, 3, 3]
    rows = len(world.journal.controls("m", 0))
    assert start(world, 3) == 3
    assert len(world.journal.controls("m", 0)) == rows, "it is noted once"
    assert start(world, 2) == 2


def test_a_wish_that_says_what_the_file_says_stands(world: World) -> None:
    Keys.from_file(world.settings(2).key_path)
    write(world, 2, 2, 3)
    write(world, 3, 3, 5, done=False)
    server_count.record_given(world.settings(3), world.settings(3), world.journal)
    newest = resharding.newest(world.journal.controls("m", 0), one(world), done=False)
    assert newest is not None
    assert not newest[1].done


def test_of_two_who_ask_at_once_one_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    controls = world.journal.controls("m", 0)
    write(world, 2, 2, 3, done=False)
    monkeypatch.setattr(world.journal, "controls", lambda *_: controls)  # as it was before
    write(world, 2, 2, 3, done=False)  # a repeat of the first
    with pytest.raises(StartRefused, match="another request has just changed"):
        write(world, 2, 2, 5, done=False)


@pytest.mark.parametrize("cut", [True, False])
def test_a_wish_is_fulfilled_or_answered(
    world: World, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    asked: list[Any] = []

    def publishes(name: str, spec: str, wait_s: float) -> bool:
        asked.append(spec)
        world.publish(len(asked), 9, 9 if cut else 8)
        return True

    monkeypatch.setattr(parameter_servers, "has_decided", lambda *_: True)
    monkeypatch.setattr(parameter_servers, "publishes", publishes)
    monkeypatch.setattr(server_count, "_PAUSE_S", 0.0)
    challengers, serving = Challengers(), {"m": world.spec}
    wish = saying(world, 2, 2, 3)
    reshard.note(world.journal, "m", wish)
    challengers.promoted(world.journal, serving)
    assert challengers.resharded()
    assert not challengers.resharded(), "it is told once"
    said: list[str] = []
    if cut:
        server_count.reshard_pending(world.settings(2), serving, said.append)
        assert said == [
            "model m: 3 parameter servers instead of 2, from snapshot 3-1 with 9 events"
        ]
    else:
        with pytest.raises(StartRefused, match="no snapshot with the same rows"):
            server_count.reshard_pending(world.settings(2), serving, said.append)
    newest = resharding.newest(world.journal.controls("m", 0), one(world), done=True)
    assert newest is not None
    expected = Reshard(one(world), 2, 3, 2, True, "failed", wish.serves, wish.was)
    if cut:
        expected = msgspec.structs.replace(wish, done=True)
    assert newest[1] == expected
    assert decided(world, 2) == (3 if cut else 2)
    before = len(asked)
    assert before == (1 if cut else 2), "it is not asked again beside itself"
    server_count.reshard_pending(world.settings(2), serving, said.append)
    assert len(asked) == before, "nothing is wished any more"
    challengers.promoted(world.journal, serving)
    assert not challengers.resharded()


def test_from_the_wish_on_what_served_decides_nothing_until_it_serves_again(world: World) -> None:
    def which() -> list[int]:
        return [n for n in (1, 2, 3, 4) if handed_on(world, n)]

    write(world, 2, 2, 3, done=False)
    assert which() == [], "a row of a release before tells no specs"
    reshard.note(world.journal, "m", saying(world, 2, 2, 3))
    assert which() == [2]
    reshard.note(world.journal, "m", saying(world, 2, 2, 3, done=True))
    assert which() == [2]
    server_count.revert(world.journal, world.settings(2))
    assert which() == [3]
    for done in (False, True):
        reshard.note(world.journal, "m", saying(world, 2, 2, 4, done=done))
    assert which() == [2, 3]
    reshard.note(world.journal, "m", saying(world, 2, 4, 2))
    server_count.reject_requests(world.settings(4), world.journal)
    assert which() == [2, 3], "who can't fulfil a wish says so"


@pytest.mark.parametrize("answers", [True, False])
def test_who_does_not_answer_after_the_wish_decides_nothing_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """It may have begun a decision before the wish, and stand still since.

    A snapshot that takes long says nothing of that.
    """
    world.publish(1, 9, 9)
    monkeypatch.setattr(parameter_servers, "has_decided", lambda *_: answers)
    monkeypatch.setattr(parameter_servers, "publishes", lambda *_: False)
    reshard.note(world.journal, "m", saying(world, 2, 2, 3))
    server_count.reshard_pending(world.settings(2), {"m": world.spec}, lambda _: None)
    assert world.journal.head("m", world.spec).epoch == (3 if answers else 4)


def test_the_running_service_says_how_many_servers_there_are(world: World) -> None:
    """The file may have been changed since the service has read it."""
    Keys.from_file(world.settings(2).key_path)
    edited = world.settings(3)
    with pytest.raises(StartRefused, match="has 2 parameter servers"):
        models._request(edited, "m", 2, world.spec)
    with pytest.raises(StartRefused, match="describes another model m than the one that serves"):
        models._request(edited, "m", 4, "0" * 64)
    spec, now, row = models._request(edited, "m", 3, world.spec)
    assert (spec, now, row) == (world.loaded(3).spec_hash, 2, (1, one(world)))
    found = resharding.newest(world.journal.controls("m", 0), one(world), done=False)
    assert found is not None
    wish = found[1]
    assert (wish.given, wish.before, wish.shards, wish.was) == (3, 2, 3, world.spec)


def test_a_wish_is_told_again_if_the_journal_did_not_answer(world: World) -> None:
    def away() -> list[str]:
        raise JournalUnavailable("it is away")

    challengers = Challengers()
    write(world, 2, 2, 3, done=False)
    challengers.promoted(world.journal, {"m": world.spec})
    for _ in range(2):
        assert challengers.resharded()
        with pytest.raises(JournalUnavailable):
            challengers.until_read(away)
    assert challengers.resharded()
    assert challengers.until_read(lambda: ["done"]) == ["done"]
    assert not challengers.resharded()


def test_what_can_not_be_served_is_taken_back(world: World) -> None:
    world.publish(1, 9, 9)
    world.reshard(3)
    server_count.revert(world.journal, world.settings(2))
    specs = reshard.specs_of(world.model(1), world.settings(1))
    assert reshard.served(world.journal, "m", specs) == 2


@pytest.mark.parametrize("fails", ["", "deploying", "untaken", "loading", "unread"])
def test_a_service_goes_over_to_the_number_that_is_wished(
    world: World, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    started: list[str] = []
    deployed: list[int] = []
    ended: list[dict[str, str]] = []

    def begin(name: str) -> Callable[[], str]:
        started.append(name)
        return lambda: name

    def deploy(_: object, settings: Settings, *__: object) -> None:
        deployed.append(settings.models[0].shards)
        if fails in ("deploying", "untaken") and settings.models[0].shards == 3:
            raise StartRefused("no replica starts", "Mend it")

    def load(_: Models) -> dict[str, Loaded]:
        raise StartRefused("no replica starts", "Mend it")

    def unread(*_: object) -> dict[str, Loaded]:
        raise JournalUnavailable("it is away")

    Keys.from_file(world.settings(2).key_path)
    answers_for_ray(monkeypatch, begin)
    monkeypatch.setattr(parameter_servers, "_wait_serving", lambda *_: None)
    monkeypatch.setattr(parameter_servers, "end", lambda specs: ended.append(dict(specs)))
    monkeypatch.setattr(parameter_servers, "last_snapshots", lambda *_: [])
    monkeypatch.setattr(parameter_servers, "has_decided", lambda *_: True)
    monkeypatch.setattr(parameter_servers, "publishes", lambda *_: True)
    monkeypatch.setattr("online.service.on_ray.rollout.deploy", deploy)
    monkeypatch.setattr("online.service.on_ray.rollout.wait_swapped", lambda *_: not fails)
    monkeypatch.setattr(Service, "_wait_http", lambda self: None)
    monkeypatch.setattr(Challengers, "start", lambda self, settings: None)
    monkeypatch.setattr("online.service.processes.note", lambda *_: None)
    world.publish(1, 9, 9)
    service = Service(world.settings(2), lambda _: None)
    service._loaded = {"m": world.loaded(2)}
    reshard.note(world.journal, "m", saying(world, 2, 2, 3))
    with monkeypatch.context() as broken:
        if fails in ("loading", "unread"):
            broken.setattr(Models, "load", load if fails == "loading" else unread)
        if fails == "untaken":
            broken.setattr(server_count, "_TRY_S", 0.0)
            broken.setattr(promotion, "take_back_all", unread)
        if fails:
            with pytest.raises((StartRefused, JournalUnavailable), match=r"no replica|is away"):
                service.switch_models()
            assert deployed[1:] == ([2] if deployed else []), "what served is served again"
    if fails == "untaken":  # the journal says still that the others serve
        assert decided(world, 2) == 3
        server_count.revert_all(world.journal, service._specs(), world.settings(2))
    if fails in ("", "unread"):  # what the journal did not answer to is tried again
        service.switch_models()
        fails = ""
    new, old = world.loaded(3).spec_hash, world.spec
    names = [f"ParameterServer:m{of}:{new[:16]}" for of in ("", "+1", "+2")]
    assert started == ([] if fails == "loading" else names)
    left = {"m": new, "m+1": new, "m+2": new} if fails else {"m": old, "m+1": old}
    assert [one for one in ended if one] == ([] if fails == "loading" else [left])
    assert service._specs() == {"m": old if fails else new}
    assert decided(world, 2) == decided(world, 2, running=True) == (2 if fails else 3)
    assert service.switch_models() == []
