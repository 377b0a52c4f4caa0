"""Replicas that hold some rows of a table learn what the others learn, and hold what they say."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from functools import partial
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
import table_world
from table_world import World

from online.learning import cached_rows
from online.learning.values_in_parts import ServerView
from paramserver.core import holdings, parts, wire
from paramserver.core.blocks import from_wire
from paramserver.core.tables.row_message import ID
from paramserver.core.tables.rows import Rows


def check(seed: int) -> World:
    """Whatever is repeated, lost and restarted; ``World`` checks each exchange."""
    world = World(seed, most=16, users=300)
    world.run(steps=200, faults=True)
    counts = [world.server.values["digest"].data["count"], sum(len(r.rows) for r in world.replicas)]
    assert counts[0] == counts[1], "each event counts once"
    for replica in world.replicas:
        cache = replica.learner.cache
        assert cache is not None
        assert min(cache.report().values()) > 0, "rows were missed, fetched and evicted"
    return world


def check_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        check(seed)


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_are_held_are_the_servers(seed: int) -> None:
    world = check(seed)
    assert world.repeats or world.restarts


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_are_held_come_again_in_parts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a prediction would wait while a million rows of a new server are looked through."""
    monkeypatch.setattr(cached_rows, "AGAIN_MAX", 6)
    asked = list[int]()
    request = cached_rows.CachedRows.request

    def counted(self: Any, server: ServerView, catching_up: bool) -> dict[str, Any]:
        ids = request(self, server, catching_up)
        asked.append(len(self._again))
        return ids

    monkeypatch.setattr(cached_rows.CachedRows, "request", counted)
    world = check(seed)
    assert world.restarts
    assert world.parts > 3 * world.restarts, "of each replica"
    assert max(asked) <= 6


def flooded(cache: Any) -> int:
    """Most rows that are held while predictions ask for ever new ones."""
    most = 0
    for n in range(0, 60_000, 3_000):
        cache.use(range(n, n + 3_000))
        cache.evict(lambda place: False)
        asked = np.frombuffer(cache.request(ServerView(None), False)["rows"]["t"], ID)
        assert len(asked) <= cached_rows.REQUESTED_MAX
        rows = Rows.empty(1)
        rows.gone = asked.astype(np.uint64)
        cache.took(reply_with(rows))
        most = max(most, len(cache._uses))
    return most


def test_a_flood_of_predictions_fills_no_memory() -> None:
    assert flooded(cached_rows.CachedRows("t", 500, lambda row: [])) <= 1_000 + 1_024
    cache = _changed("if len(self._uses) < 2 * self.most:", "if True:")("t", 500, lambda row: [])
    cache.evict = lambda stays: ()
    assert flooded(cache) > 2_024, "without the bound"


def test_what_is_about_to_be_learned_is_requested_first() -> None:
    cache = cached_rows.CachedRows("t", 500, lambda row: [7])
    cache.use(range(100, 5_000))
    cache.soon = [7]
    assert cache.ask(cache.soon)
    assert np.frombuffer(cache.request(ServerView(None), False)["rows"]["t"], ID)[0] == 7


def reply_with(rows: Rows) -> wire.SyncReply:
    return wire.SyncReply(
        wire.FORMAT, "s", 1, 1, [], "changes", {}, {}, [], {}, [], 0.0,
        rows={"t": wire.WireBlock("rows", rows.as_message())},
    )  # fmt: skip


def test_a_row_that_was_learned_without_its_values_is_missing_until_it_comes() -> None:
    cache = cached_rows.CachedRows("t", 100, lambda row: [7, 8])
    cache.request(ServerView(None), False)
    cache.learned({}, (1, 1))
    assert cache.ask(cache.ids_of({}))
    assert np.frombuffer(cache.request(ServerView(None), False)["rows"]["t"], ID).tolist() == [7, 8]
    rows = Rows(np.array([7], np.uint64), np.ones((1, 2), np.float32))
    rows.gone = np.array([8], np.uint64)
    chosen = cache.chosen(reply_with(rows))
    assert from_wire(chosen.blocks)["t"].data == rows
    cache.took(chosen)
    assert not cache.ask(cache.ids_of({})), "what has no row is known, too"
    assert cache.report()["learned_without_rows"] == 1


def test_rows_that_learning_needs_are_requested_however_many_predictions_lack() -> None:
    cache = cached_rows.CachedRows("t", 1, lambda row: [])
    cache.ask(range(cached_rows.ASKED_MAX))  # there is no room for more
    for held in (1_000_001, 1_000_002):  # twice the bound: nothing is requested for predictions
        cache.learned({}, (1, 1))
        cache._uses[held] = 1
    cache.soon = [9_000_000]
    cache.ask(cache.soon)
    assert np.frombuffer(cache.request(ServerView(None), False)["rows"]["t"], ID).tolist() == [
        9_000_000
    ]


def part_with_other_rows(cache: Any) -> list[int]:
    """Return the rows that are taken of a part whose request was for others, too."""
    cache._uses.update({1: 1, 2: 1})
    cache.ask([9])
    cache.request(ServerView(None), False)
    rows = Rows(np.array([2, 9], np.uint64), np.ones((2, 1), np.float32))
    reply = msgspec.structs.replace(reply_with(rows), kind="all")
    taken = from_wire(cache.part_of(reply, ServerView(None)).blocks)["t"].data
    ids: list[int] = taken.ids.tolist()
    return ids


def test_a_part_has_no_rows_that_are_not_held() -> None:
    assert part_with_other_rows(cached_rows.CachedRows("t", 9, lambda row: [])) == [2]
    broken = _changed("self._sent = frozenset()  # rows", "pass  # rows")
    assert part_with_other_rows(broken("t", 9, lambda row: [])) == [2, 9]


def answered_while_relearning(world: World) -> tuple[list[int], list[int]]:
    """Return what an answer lacks of a row that came while an older copy answers, and then."""
    replica = world.replicas[0]
    learner, cache = replica.learner, replica.learner.cache
    assert cache is not None
    learner._deltas._retain_bytes = 0  # so all rows have to be learned again
    for _ in range(12):
        replica.step(world.draw)
        replica.ask()
        world.exchange(replica)
    world.restart()
    relearn, replica.catch_up = replica.catch_up, lambda: None  # type: ignore[method-assign]
    while learner.catching_up or learner.up_to_date:
        world.exchange(replica)
    new = next(i for i in range(1, 999) if i not in cache._uses)
    cache.ask([new])
    world.exchange(replica)
    assert not learner.up_to_date
    assert new in cache._uses
    before = cache.use([new])
    relearn()
    return before, cache.use([new])


def test_a_row_that_came_while_an_older_copy_answers_is_missing_in_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, after = answered_while_relearning(World(0, most=16, users=300))
    assert len(before) == 1
    assert not after
    monkeypatch.setattr(table_world, "CACHE", _changed("self._apart |= fetched", "pass"))
    assert not answered_while_relearning(World(0, most=16, users=300))[0]


def _mutant(module: ModuleType, old: str, new: str) -> Any:
    source = inspect.getsource(module)
    assert source.count(old) == 1, old
    made = ModuleType(module.__name__)
    vars(made)["__module__"] = sys.modules[module.__name__]
    exec(compile(source.replace(old, new), "<mutant>", "exec"), vars(made))
    return made


def _changed(old: str, new: str, again: int = cached_rows.AGAIN_MAX) -> Any:
    made = _mutant(cached_rows, old, new)
    made.AGAIN_MAX = again
    return made.CachedRows


def undisturbed(seed: int) -> World:
    world = World(seed, most=16, users=300)
    world.run(steps=200, faults=False)
    return world


def test_only_rows_that_are_held_or_requested_are_sent() -> None:
    for seed in range(3):
        world = undisturbed(seed)
        assert not world.unread
        assert max(len(table) for table in _held(world)) < 60, "dropped rows are not recorded"
        received = sum(cache.received for cache in _caches(world))
        world.server.holdings._remove(["r1", "r2", "r3"])  # as if there was no room
        for replica in world.replicas:
            replica.step(world.draw)
            replica.catch_up()
            world.exchange(replica)
        assert sum(cache.received for cache in _caches(world)) > received
        assert not _held(world)


def _held(world: World) -> list[holdings.Held]:
    return [*world.server.holdings._held.values()]


def _caches(world: World) -> list[cached_rows.CachedRows]:
    return [r.learner.cache for r in world.replicas if r.learner.cache is not None]


def test_dropped_rows_that_are_not_reported_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = _changed("        self._leave(gone)\n", "")
    monkeypatch.setattr(table_world, "CACHE", broken)
    assert sum(undisturbed(seed).unread for seed in range(3)) > 20


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("            table.put(asked", "            len if True else (asked",
                     id="requested rows are not recorded"),
        pytest.param("if name in self._unknown:", "if False:",
                     id="a record that was removed begins again"),
    ],
)  # fmt: skip
def test_changes_that_a_replica_would_lack_are_noticed(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = _mutant(holdings, old, new)
    monkeypatch.setattr(parts, "Holdings", partial(broken.Holdings, 30))
    with pytest.raises(AssertionError):
        check_all(range(8))


def request_of(replica: str, serial: int, *, rows: list[int], left: list[int]) -> wire.SyncRequest:
    asked = {"t": np.array(rows, ID).tobytes()}
    dropped = {"t": np.array(left, ID).tobytes()}
    return wire.SyncRequest(
        wire.FORMAT, replica, 1, [], (1, 1), True, [], rows=asked, serial=serial, left=dropped
    )


def held_after_a_late_report(module: Any) -> bool:
    """Whether a row counts as held that is requested again before a report arrives."""
    known = module.Holdings()
    for serial, rows, left in ((1, [7, 8], []), (3, [7], []), (2, [], [7, 8])):
        known.note(request_of("a", serial, rows=rows, left=left))
    found = known.note(request_of("a", 4, rows=[], left=[]))
    return bool(found.of("t", np.array([7, 8], np.uint64)).all())


def test_what_a_late_request_reports_as_dropped_is_held() -> None:
    assert held_after_a_late_report(holdings)
    broken = _mutant(holdings, "if place < held.newest:", "if False:")
    assert not held_after_a_late_report(broken)


def reported_after_a_lost_request(cache: Any) -> dict[str, bytes]:
    """Return what is reported of a row that was dropped and came again, if the report was lost."""
    rows = Rows(np.array([7], np.uint64), np.ones((1, 1), np.float32))
    for _ in range(2):
        cache.ask([7])
        cache.request(ServerView(None), False)
        cache.took(reply_with(rows))
        cache.most, most = 0, cache.most
        cache.evict(lambda place: False)
        cache.most = most
        reported: dict[str, bytes] = cache.request(ServerView(None), False)["left"]
        assert reported == {"t": np.array([7], ID).tobytes()}
    cache.ask([7])
    reported = cache.request(ServerView(None), False)["left"]
    cache.took(reply_with(rows))
    return reported | cache.request(ServerView(None), False)["left"]


def test_rows_that_are_held_again_are_not_reported_as_dropped() -> None:
    assert not reported_after_a_lost_request(cached_rows.CachedRows("t", 9, lambda row: []))
    broken = _changed("        for i in ids:\n            self._left.pop(i, None)\n", "")
    assert reported_after_a_lost_request(broken("t", 9, lambda row: []))


def test_records_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica whose record has no room receives all changed rows, and those silent make room."""
    monkeypatch.setattr(holdings, "SILENT_MAX", 5)
    known = holdings.Holdings(30)

    def asks(replica: str, ids: list[int], serial: int) -> holdings.Held | None:
        return known.note(request_of(replica, serial, rows=ids, left=[]))

    assert known.counts() == {}
    assert asks("a", [*range(20)], 1) is not None
    assert asks("b", [*range(10)], 1) is not None
    assert known.counts() == {"held": 30, "unrecorded": 0}
    assert asks("b", [10], 2) is None, "31 ids"
    assert asks("b", [], 3) is None, "for good"
    assert known.counts() == {"held": 20, "unrecorded": 1}
    assert all(asks("c", [], serial) is not None for serial in range(1, 9))
    assert asks("c", [*range(20)], 9) is not None, "room was made by a, which is silent"
    assert asks("a", [], 2) is None
    assert known.counts() == {"held": 20, "unrecorded": 2}
    known.most = 3
    assert asks("d", [], 1) is None
    assert asks("c", [], 0) is None, "a sender that does not report"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("lacking = len(self._uses) if server.values is None", "lacking = 0 if True",
                     id="rows that are held are not requested with whole values"),
        pytest.param("return self._lacking - len(self._again)", "return 0",
                     id="values are complete after the first of these rows"),
        pytest.param("self._uses.move_to_end(i)", "pass",
                     id="the first of these rows are requested again and again"),
    ],
)  # fmt: skip
def test_rows_that_are_lost_among_parts_are_noticed(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_world, "CACHE", _changed(old, new, again=14))
    with pytest.raises(AssertionError):
        check_all((0, 1, 7))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("gone.append(i)\n        for i in [", "uses[i] = 1\n        for i in [",
                     id="no row is evicted"),
        pytest.param("[i in uses or i in sent for i in ids.tolist()]", "[True] * len(ids)",
                     id="all changed rows are held"),
        pytest.param("(i in changed and stays(changed[i]))", "False",
                     id="rows with own changes are evicted"),
        pytest.param("[i in uses or i in sent for i in ids.tolist()]",
                     "[i in sent for i in ids.tolist()]", id="changes of held rows are left out"),
    ],
)  # fmt: skip
def test_a_cache_that_breaks_a_promise_is_noticed(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_world, "CACHE", _changed(old, new))
    with pytest.raises(AssertionError):
        check_all(range(4))
