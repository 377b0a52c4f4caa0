"""Replicas that hold some rows of a table learn what the others learn, and hold what they say."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import table_world
from table_world import World

from online.learning import cached_rows
from online.learning.values_in_parts import ServerView
from paramserver.core import wire
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

    def counted(self: Any, server: ServerView, catching_up: bool) -> dict[str, bytes]:
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
        asked = np.frombuffer(cache.request(ServerView(None), False)["t"], ID)
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
    assert np.frombuffer(cache.request(ServerView(None), False)["t"], ID)[0] == 7


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
    assert np.frombuffer(cache.request(ServerView(None), False)["t"], ID).tolist() == [7, 8]
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
    assert np.frombuffer(cache.request(ServerView(None), False)["t"], ID).tolist() == [9_000_000]


def _changed(old: str, new: str, again: int = cached_rows.AGAIN_MAX) -> Any:
    source = inspect.getsource(cached_rows)
    assert source.count(old) == 1, old
    made = ModuleType(cached_rows.__name__)
    exec(compile(source.replace(old, new), "<mutant>", "exec"), vars(made))
    vars(made)["AGAIN_MAX"] = again
    return made.CachedRows


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("lacking = len(self._uses) if server.values is None", "lacking = 0 if True",
                     id="rows that are held are not requested with whole values"),
        pytest.param("return self._lacking - len(self._again)", "return 0",
                     id="values are complete after the first of these rows"),
        pytest.param("self._uses.move_to_end(i)", "pass",
                     id="the first of these rows are requested again and again"),
        pytest.param("self._sent = frozenset()  # rows", "pass  # rows",
                     id="rows that are not held come with a part"),
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
