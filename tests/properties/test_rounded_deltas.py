"""Replicas that round their deltas add the numbers that the server adds, and lose nothing to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from table_world import EXACT, SPEC, Numbers, World, build, numbers_of, rests_of, row, same

from online.learning.merged import Learner
from online.models import fm
from online.models.state import factors
from online.models.state.factors import TABLE, TableLines
from paramserver.core import wire
from paramserver.core.blocks import Blocks, from_wire, merge
from paramserver.core.server import Server
from paramserver.core.tables.rows import Rows


def check_nothing_is_lost(seed: int) -> None:
    """All that was learned was sent, or is still to be sent."""
    learned: Numbers = {}
    put = TableLines.put

    def noted(self: Any, keys: Any, lines: Any, before: Any) -> None:
        put(self, keys, lines, before)
        for key, change in zip(keys, lines - before, strict=True):
            i, numbers = factors.id_of(key), change[: EXACT + 4]
            total, size = learned.get(i, (0.0, 0.0))
            learned[i] = total + numbers, size + abs(numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fm.TableLines, "put", noted)
        world = World(seed)
        world.run(faults=False)
    rests = [rests_of(replica.learner) for replica in world.replicas]
    assert any(x.any() for rest in rests for x in rest.values()), "something is left over"
    for i, (total, size) in learned.items():
        rest = sum(rest.get(i, 0.0) for rest in rests)
        lost = np.abs(total - world.summed[i].astype(np.float64) - rest)
        assert (lost <= 1e-6 * size + 1e-9).all(), f"row {i}: {lost}"


def check_all_add_the_same(seed: int) -> None:
    """Whatever is repeated, lost and restarted; ``World`` checks each exchange."""
    world = World(seed)
    world.run(faults=True)
    assert world.repeats
    counts = [world.server.values["digest"].data["count"], sum(len(r.rows) for r in world.replicas)]
    assert counts[0] == counts[1], "each event counts once"


@pytest.mark.parametrize("seed", range(8))
def test_nothing_that_rounding_leaves_over_is_lost(seed: int) -> None:
    check_nothing_is_lost(seed)


@pytest.mark.parametrize("seed", range(8))
def test_replicas_and_server_add_the_same_numbers(seed: int) -> None:
    check_all_add_the_same(seed)


def _changed(old: str, new: str) -> type[TableLines]:
    source = inspect.getsource(factors)
    assert source.count(old) == 1, old
    made = ModuleType(factors.__name__)
    exec(compile(source.replace(old, new), "<mutant>", "exec"), vars(made))
    lines: type[TableLines] = made.TableLines
    return lines


SUBTRACTED = "self._moved[at] -= delta"
ROUNDED = "delta[:, exact:] = moved[:, exact:].astype(HALF)"


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        pytest.param(check_nothing_is_lost, SUBTRACTED, "self._moved[at] = 0.0", id="no rest"),
        pytest.param(check_all_add_the_same, ROUNDED, ROUNDED.replace(".astype(HALF)", ""),
                     id="the own delta is not rounded"),
        pytest.param(check_all_add_the_same, "self._base[at] += delta",
                     "self._base[at] += delta + self._moved[at]", id="the rest counts at once"),
        pytest.param(check_nothing_is_lost, "self._base[at] += delta",
                     "self._base[at] += delta; self._moved[at] += self._moved[at]",
                     id="the rest counts twice"),
    ],
)  # fmt: skip
def test_a_table_that_breaks_a_promise_is_noticed(
    check: Callable[[int], None], old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fm, "TableLines", _changed(old, new))
    with pytest.raises(AssertionError):
        check(0)


def test_what_is_left_over_is_sent_with_its_own_partition_only() -> None:
    """The other partition's rows may be learned again, with all of their effect."""
    learner = Learner(build, task="regression", spec=SPEC, retain_bytes=1 << 24, rows_max=5)
    learner.open_partition(1)
    learner.adopt(2, 3)
    server = Server("m", SPEC, "", "sum", 1)
    request = wire.SyncRequest(wire.FORMAT, "r", 1, [], None, True, [2])
    learner.on_reply(server.reply(request, [], [], 0.0))
    for offset in range(1, 5):
        learner.learn(row(1, offset, offset % 2, 3, 1.0 + offset))
    first = learner.pushes(9)
    assert any(x.any() for x in rests_of(learner).values())
    other = build()
    values: Blocks = {}
    for push in first:
        merge(values, from_wire(push.blocks))
    other.reset(values)
    for offset in range(1, 4):
        learner.learn(row(2, offset, offset % 2, 3, 2.0 * offset))
        other.learn({"user": f"u{offset % 2}", "film": 3}, 2.0 * offset, 1.0)
    second = from_wire(learner.pushes(9)[-1].blocks)
    assert same(numbers_of(second), numbers_of(other.cut()))


def test_a_row_that_fails_leaves_what_is_left_over() -> None:
    models = [build(), build()]
    values: Blocks = {}
    for model in models:
        for i in range(20):
            model.learn({"user": f"u{i % 3}", "film": i % 4}, float(i % 5), 1.0)
        values = model.cut()
    failing, clean = models
    rest = failing._table._moved.copy()
    failing.learn({"user": "u1", "film": 2}, 3.0, 1.0)
    failing.mend(values, ["user", "film"])
    assert np.array_equal(failing._table._moved, rest)
    assert rest[:, EXACT:].any()
    assert not rest[:, :EXACT].any(), "sums of weights are sent as they are"
    for model in models:
        model.learn({"user": "u2", "film": 1}, 1.0, 1.0)
    assert same(numbers_of(failing.cut()), numbers_of(clean.cut()))


def test_numbers_beyond_float16_are_sent_as_they_are() -> None:
    lines = TableLines(EXACT + 1, factors.Starts(0, 1, 0.1))
    lines.round_from(EXACT)
    before, _ = lines.held(["7", "8"])
    after = before.copy()
    after[:, :4] += [[1.0, 2.0, 3.0, 1e5], [1.0, 2.0, 3.0, 0.1]]
    lines.put(["7", "8"], after, before)
    sent = lines.cut()[TABLE].data
    assert sent.rounded == 0
    assert sent.numbers[:, 3].tolist() == [1e5, np.float32(0.1)]
    assert not lines._moved.any()


def test_the_rest_of_a_removed_row_goes_with_it() -> None:
    model = build()
    model.learn({"user": "u1", "film": 2}, 3.0, 1.0)
    model.cut()
    keys = list(model.numbers({"user": "u1", "film": 2}))
    gone = Rows.empty(EXACT + 4)
    gone.gone = np.array([factors.id_of(key) for key in keys], dtype=np.uint64)
    model.rebase({TABLE: factors.Block("rows", gone)})
    held, learned = model._table.held(keys)
    assert not held[:, : EXACT + 4].any()
    assert not learned.any()
