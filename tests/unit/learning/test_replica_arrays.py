"""Replicas that take names and numbers as arrays have what they would have with dicts."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_shared_ranges as ranges

from online.learning import bounds as bounds_module
from online.learning import ranges as ranges_module
from online.learning import values_in_parts
from online.learning.bounds import Bounds
from online.learning.ranges import BEYOND, RANGE, ROWS, UNTIL
from online.learning.values_in_parts import ServerView
from online.learning.vocabulary import NAMES, Vocabulary
from paramserver.core import array_maps, runs, wire
from paramserver.core.array_maps import ArrayMap, as_dict
from paramserver.core.blocks import Block, Blocks, Touched, add_touched, copy, merge, select
from paramserver.core.runs import Collected, Run, part_of, read_run
from paramserver.core.server import Server
from paramserver.core.state import SnapshotState
from paramserver.errors import BlockError
from paramserver.snapshots import format as snapshot_format
from replay.example import Example

LONG = [f"näme {n}" for n in range(400)]


@pytest.fixture(autouse=True)
def _all_in_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_format, "ARRAYS_LEAST", 1)
    monkeypatch.setattr(runs, "_LEAST", 3)


def in_arrays(values: Blocks) -> Blocks:
    data = snapshot_format.encode(SnapshotState("m", "s", "t", (1, 2), values, {1: 5}))
    return snapshot_format.decode(data, in_arrays=True).values


def plain(values: Blocks) -> dict[str, Any]:
    return {name: (block.kind, as_dict(block.data)) for name, block in values.items()}


@pytest.fixture(params=["arrays", "dicts"])
def begun(request: pytest.FixtureRequest) -> Callable[[Blocks], Blocks]:
    return in_arrays if request.param == "arrays" else copy


# -- ranges and names ------------------------------------------------------------------------------


def course(seed: int, begin: Callable[[Blocks], Blocks]) -> list[str]:
    """What two replicas, of which one begins anew now and then, decide and have."""
    draw, server, out = random.Random(seed), Blocks(), list[str]()
    since: list[Touched] = [{}, {}]
    replicas = [Bounds(targets=True), Bounds(targets=True)]
    for _ in range(40):
        here = draw.randrange(2)
        bounds = replicas[here]
        for _ in range(draw.randint(1, 30)):
            features, label = ranges.row(draw), draw.choice([1.0, 2.0, 1e9])
            out.append(repr(sorted(bounds.answered(features).items())))
            taken, sent = bounds.taught(features)
            out.append(repr((sorted(taken.items()), sent)))
            if draw.random() < 0.2 and bounds.add_alike([{**features, "target": label}]):
                continue
            bounds.add(Example(taken, label=label, raw=sent))
        few = draw.sample(ranges.WORDS, 4)
        out.append(repr(bounds.inside(few, np.array([[1.0] * 4, [9.0] * 4]), 1e9).tolist()))
        n = bounds._open_n
        delta = {**bounds.cut(), "digest": Block("digest", {"count": n, "sum": n})}
        touched = merge(server, delta)
        for changed in since:
            add_touched(changed, touched)
        if draw.random() < 0.4:
            replicas[here] = Bounds(targets=True)
            replicas[here].reset(begin(server))
            since[here] = {}
        if draw.random() < 0.5:
            replicas[1 - here].rebase(copy(select(server, since[1 - here])))
            since[1 - here] = {}
        if draw.random() < 0.2:
            names = draw.sample(ranges.WORDS, 5)
            replicas[here].mend(copy(server), names)
        for one in replicas:
            out.append(repr(sorted(one.names)))
            if draw.random() < 0.2:  # that makes all of them
                out.append(repr(sorted(one.ends(ranges.WORDS).items())))
                out.append(repr(sorted(one._ranges.awake)))
    return out


@pytest.mark.parametrize("seed", range(8))
def test_ranges_are_made_from_arrays_as_they_would_be_from_dicts(seed: int) -> None:
    made, expected = course(seed, in_arrays), course(seed, copy)
    assert made == expected


@pytest.mark.parametrize(
    ("rule", "without"),
    [
        ("                self.note(name, held)\n", "                pass\n"),
        ("    ranges.make({name for block in _BELOW for name in data_of(values, block)})\n", ""),
    ],
)  # fmt: skip
def test_the_check_notices_a_rule_less(
    rule: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect.getsource(ranges_module)
    assert source.count(rule) == 1
    scope = dict(vars(ranges_module))
    exec(compile(source.replace(rule, without), "mutant", "exec"), scope)
    monkeypatch.setattr(ranges_module.Ranges, "make", scope["Ranges"].make)
    monkeypatch.setattr(bounds_module, "rebase_ranges", scope["rebase_ranges"])
    assert any(course(seed, in_arrays) != course(seed, copy) for seed in range(8))


def test_a_vocabulary_counts_the_names_below_once(begun: Callable[[Blocks], Blocks]) -> None:
    draw = random.Random(3)
    known = {f"n{i}": 1 for i in range(50)}
    held, oracle = Vocabulary(), set(known)
    held.reset(begun({NAMES: Block("count", dict(known))}))
    held.most = 100_000
    for i in range(60):
        names = {f"n{draw.randrange(80)}": 1.0 for _ in range(4)}
        assert held.knows([names]) is oracle.issuperset(names)
        assert held.knows_numbers([*names]) is oracle.issuperset(names)
        assert held.fresh(names) == [name for name in names if name not in oracle]
        assert held.taught(names, "s", 0.0, 1.0)[1] is None
        if i % 3 == 0:
            held.add(Example(names, label=True), "s")
            oracle |= names.keys()
        if i % 5 == 0:
            other = {f"n{draw.randrange(90)}": 1, f"n{draw.randrange(50)}": 2}
            held.rebase({NAMES: Block("count", other)})
            oracle |= other.keys()
        if i % 7 == 0:
            cut = held.cut()
            assert NAMES not in cut or not {*cut[NAMES].data} & {*known}
        assert len(held) == len(oracle)
    held.most = len(oracle)
    assert held.taught({"n1": 1.0, "absent": 1.0}, "s", 9.0, 1.0)[1] == {"absent": 1.0}


# -- values in parts -------------------------------------------------------------------------------


def values_of(draw: random.Random) -> Blocks:
    """Blocks that have most of their names in the same order, as the views of rows have."""
    names = draw.sample(LONG, draw.randint(5, 300))
    some = [name for name in names if draw.random() < 0.9]
    values = {
        "weights": Block("additive", {name: draw.random() for name in names}),
        RANGE: Block("extrema", dict.fromkeys(["target", *some], (0.0, 1.0))),
        UNTIL: Block("extrema", {name: (0.0, float(i // 7)) for i, name in enumerate(names[9:])}),
        ROWS: Block("count", dict.fromkeys(draw.sample(names, len(names) // 2), 3)),
        BEYOND: Block("count", {"a": 0.5, "b": 1}),
        NAMES: Block("count", dict.fromkeys([*names, "x", "y"], 1)),
        "scaler0": Block("moments", dict.fromkeys(names, (2.0, 0.5, 0.25))),
        "digest": Block("digest", {"count": 3, "sum": 7}),
    }
    return dict(draw.sample([*values.items()], len(values)))


def walk(seed: int) -> tuple[Any, Blocks, Any, set[type]]:
    """Values that arrive while they change: the server's, the replica's and its model's."""
    draw = random.Random(seed)
    state = SnapshotState("m", "s", "t", (1, 2), in_arrays(values_of(draw)), {})
    server = Server.restored(state, "sum", 2, part_keys=draw.choice([64, 320, 2_000]))
    seen: dict[str, Any] = {}

    class Model:
        def reset(self, values: Blocks) -> None:
            assert values == {}

        def rebase(self, values: Blocks) -> None:
            for name, block in values.items():
                assert not isinstance(block.data, ArrayMap)
                if isinstance(block.data, dict):
                    seen.setdefault(name, {}).update(block.data)

    view: Any = ServerView(Model)  # type: ignore[arg-type]
    since, offset, kinds = None, 0, list[str]()
    while True:
        for _ in range(draw.choice([0, 0, 1, 3])):
            offset += 1
            few = [*draw.sample(LONG, 3), f"new {draw.randrange(50)}"]
            changes = {
                "weights": Block("additive", dict.fromkeys(few, 0.5)),
                RANGE: Block("extrema", dict.fromkeys(few, (-float(offset), 1.0))),
                NAMES: Block("count", dict.fromkeys(few[:2], draw.choice([1, 0.5]))),
            }
            blocks = {n: wire.WireBlock(b.kind, b.data) for n, b in changes.items()}
            push = wire.Push(2, "s", 1, offset, offset, 1, server.version, blocks)
            assert server.push(push, lambda _: draw).status == "applied"  # type: ignore[arg-type,return-value]
        asked = wire.SyncRequest(wire.FORMAT, "r", 1, [], since, True, [], after=view.after)
        reply = wire.decode_reply(wire.encode(server.reply(asked, [], [], 0.0)))
        kinds.append(reply.kind)
        if reply.kind == "part":
            steps = view.take(reply)
            if draw.random() < 0.2:  # the connection is lost meanwhile
                for _ in range(draw.randint(0, len(reply.pieces))):
                    next(steps, None)
            for _ in steps if draw.random() < 0.5 else view.take(reply):
                pass
            since = view.values.since if view.values else None
            continue
        if (coming := view.complete(reply)) is not None:
            held = coming.pulled.blocks
            return plain(server.values), held, seen, {type(b.data) for b in held.values()}
        assert reply.kind in ("all", "changes")
        if reply.kind == "all":
            return plain(server.values), {}, seen, set()


@pytest.fixture
def walks() -> list[Any]:
    return [walk(seed) for seed in range(60)]


def test_values_that_arrive_in_runs_are_the_servers(walks: Any) -> None:
    arrived = [found for found in walks if found[1]]
    assert len(arrived) > 30
    assert sum(ArrayMap in types for *_, types in arrived) > 20
    for server, held, seen, _ in arrived:
        assert plain(held) == server
        for name in ("weights", "scaler0"):
            assert seen[name] == server[name][1]


def test_a_run_that_cannot_be_collected_is_taken_by_name() -> None:
    made = in_arrays({"weights": Block("additive", {name: 1.0 for name in LONG})})
    data: ArrayMap = made["weights"].data
    other = in_arrays({"weights": Block("additive", {name: 1.0 for name in LONG[::-1]})})
    held = Collected()

    def run(of: ArrayMap, first: int, end: int) -> Run:
        return read_run("w", "additive", part_of(of, first, end))

    assert not held.take("w", run(data, 10, 20)), "names before it are missing"
    assert held.take("w", run(data, 0, 10))
    assert not held.take("w", run(data, 0, 10)), "it was taken before"
    assert not held.take("w", run(other["weights"].data, 10, 20)), "another sender's"
    assert held.take("w", run(data, 10, 30))
    wrong = run(data, 5, 9)._replace(blob=run(data, 6, 10).blob, ends=run(data, 6, 10).ends)
    assert not held.take(NAMES, wrong), "other names than those there"
    assert held.take(NAMES, run(data, 25, 40)), "names that are known, and others"
    maps = held.maps()
    assert dict(maps["w"]) == dict.fromkeys(LONG[:30], 1.0)
    assert dict(maps[NAMES]) == dict.fromkeys(LONG[25:40], 1.0)
    assert held.maps() == {}


@pytest.mark.parametrize("kind", ["additive", "count", "moments", "extrema"])
def test_a_damaged_run_is_refused(kind: str) -> None:
    good = {"additive": 0.5, "count": 3, "moments": (1.0, 0.5, 0.0), "extrema": (0.0, 1.0)}[kind]
    made = in_arrays({"b": Block(kind, dict.fromkeys(LONG, good))})["b"].data
    token, place, blob, ends, numbers = part_of(made, 3, 9)
    assert read_run("b", kind, [token, place, blob, ends, numbers]).as_dict() == made.part(3, 9)
    bad: list[Any] = [
        [],
        [token, place, blob, ends],
        [token, -1, blob, ends, numbers],
        ["x", place, blob, ends, numbers],
        [token, place, blob + b"a", ends, numbers],
        [token, place, b"\xff" + blob[1:], ends, numbers],
        [token, place, blob, ends[:-4], numbers],
        [token, place, blob, ends, numbers[:-8]],
        [token, place, blob, ends, None],
        [token, place, b"", b"", b""],
    ]
    if kind != "count":
        bad.append([token, place, blob, ends, np.full(len(numbers) // 8, np.nan).tobytes()])
    if kind in ("moments", "extrema"):
        wrong = np.frombuffer(numbers)[::-1] - 1.0
        bad.append([token, place, blob, ends, wrong.tobytes()])
    for one in bad:
        with pytest.raises(BlockError):
            read_run("b", kind, one)
    with pytest.raises(BlockError):
        read_run("b", "digest", [token, place, blob, ends, numbers])


def test_names_that_nobody_has_do_not_fill_the_memory() -> None:
    held = Bounds()
    held.reset(in_arrays({RANGE: Block("extrema", dict.fromkeys(LONG, (0.0, 1.0)))}))
    index = held._ranges.below[RANGE].data.index
    for i in range(30_000):
        held.answered({f"asked {i}": 1.0, LONG[i % 400]: 2.0})
    assert len(index.places) < 10_000
    assert len(held._ranges) == 400


RULES = [
    (values_in_parts, "values.update(own.data)", "pass"),
    (runs, "if taken is not None and run.place < taken.spans[-1][1]:", "if False:"),
    (array_maps, "numbers[[*changed]] = [*changed.values()]", "pass"),
]


@pytest.mark.parametrize(("module", "rule", "without"), RULES)
def test_the_walks_notice_a_rule_less(
    module: Any, rule: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect.getsource(module)
    assert source.count(rule) == 1
    scope = dict(vars(module))
    exec(compile(source.replace(rule, without), "mutant", "exec"), scope)
    for cls, method in (
        (values_in_parts.PartialValues, "_take_run"),
        (values_in_parts.PartialValues, "settle"),
        (Collected, "take"),
        (ArrayMap, "stretch"),
    ):
        if changed := scope[cls.__name__] if cls.__module__ == module.__name__ else None:
            monkeypatch.setattr(cls, method, getattr(changed, method))

    def right(seed: int) -> bool:
        server, held, seen, _ = walk(seed)
        return not held or (plain(held) == server and seen["weights"] == server["weights"][1])

    with pytest.raises((AssertionError, BlockError, ValueError, StopIteration)):
        assert all(map(right, range(120)))


def test_names_of_a_row_are_looked_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one a row of a thousand names that nobody has would stop the loop for .1 s."""
    bounds, names = Bounds(), Vocabulary()
    bounds.reset(in_arrays({RANGE: Block("extrema", dict.fromkeys(LONG, (0.0, 1.0)))}))
    names.reset(in_arrays({NAMES: Block("count", dict.fromkeys(LONG, 1))}))
    asked: list[int] = []
    find = array_maps.NameIndex._found

    def counted(index: array_maps.NameIndex, fresh: list[str]) -> list[int]:
        asked.append(len(fresh))
        return find(index, fresh)

    monkeypatch.setattr(array_maps.NameIndex, "_found", counted)
    row = {**{f"asked {i}": 1.0 for i in range(300)}, **dict.fromkeys(LONG[:100], 0.5)}
    bounds.answered(row)
    assert asked == [400]
    assert not names.knows([row])
    assert asked == [400, 400]
