"""Sets and intervals have the label as often as asked, and the threshold is a view of the rows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
import replica_world as worlds
from river import linear_model, optim, preprocessing

from evaluation.metrics import Task
from online.learning.counters import Tally
from online.messages.structs import Event, FeedbackRequest, Prediction, PredictRequest, Receipt
from online.models.adapters.linear import Linear
from online.rebuild.rebuild import NOBODY, ForgetScope, Method, Rebuild, nothing
from online.rows.history import Decisions
from online.sure import conformal
from online.sure.conformal import CONFIDENCE, STAMP, Confidence
from online.sure.views import confidence_in
from paramserver.core import rewrites
from paramserver.core.blocks import Blocks, copy, merge
from replay import codec
from replay.example import Example, Label, PredictionHalf, label_text
from replay.journal.base import NewRow, Verdict

ROWS = 6_000
Answer = tuple[dict[str, float], Label]


def binary(seed: int) -> list[Answer]:
    """Answers that are too bold by half, of a world that turns in the middle."""
    rng, out = random.Random(seed), list[Answer]()
    for i in range(ROWS):
        odds = rng.gauss(0.0, 2.0)
        right = 1.0 / (1.0 + math.exp(-odds * (0.6 if i < ROWS // 2 else 0.2)))
        p = 1.0 / (1.0 + math.exp(-odds))
        out.append(({"false": 1.0 - p, "true": p}, rng.random() < right))
    return out


def classes(seed: int) -> list[Answer]:
    """Answers over four classes that know less than they say."""
    rng, out = random.Random(seed), list[Answer]()
    for _ in range(ROWS):
        powers = [math.exp(rng.gauss(0.0, 1.5)) for _ in range(4)]
        label = rng.choices(range(4), [x**0.5 for x in powers])[0]
        out.append(({label_text(i): x / sum(powers) for i, x in enumerate(powers)}, label))
    return out


def numbers(seed: int) -> list[Answer]:
    """Errors whose spread grows a hundredfold in the middle."""
    rng = random.Random(seed)
    errors = [rng.gauss(0.0, 1.0 if i < ROWS // 2 else 100.0) for i in range(ROWS)]
    return [({"": 10.0}, 10.0 + error) for error in errors]


WORLDS: dict[Task, Callable[[int], list[Answer]]] = {
    "binary": binary, "multiclass": classes, "regression": numbers,
}  # fmt: skip


def play(task: Task, late: int, level: float = 0.9, replicas: int = 1) -> list[bool]:
    """Whether the answer of each row had the label, which came so many rows late."""
    parts, values = [Confidence(task, level) for _ in range(replicas)], Blocks()
    rows, hits = list[Example](), list[bool]()
    for i, (score, label) in enumerate(WORLDS[task](3)):
        part = parts[i % replicas]
        row = Example({}, label, score=score, sure=part.stamp())
        rows.append(row)
        hits.append(has(part, row))
        if i >= late:
            parts[(i * 7 + i // 5) % replicas].add(rows[i - late])
        if replicas > 1 and i % 64 == 0:
            for one in parts:
                merge(values, one.cut())
            for one in parts:
                one.rebase(copy(values))
    return hits


def has(part: Confidence, row: Example) -> bool:
    assert row.sure is not None
    assert row.score is not None
    if "" in row.score:
        ends = part.interval(row.sure, row.score[""])
        return ends is not None and ends[0] <= float(row.label) <= ends[1]
    texts = part.labels(row.sure, row.score)
    assert texts, "a set is never empty"
    assert texts[0] == max(row.score, key=row.score.__getitem__)
    return label_text(row.label) in texts


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


@pytest.mark.parametrize("late", [0, 48, 500])
@pytest.mark.parametrize("task", list(WORLDS))
def test_the_label_is_there_as_often_as_asked(task: Task, late: int) -> None:
    hits = play(task, late)[500:]
    if late == 0:
        windows = [share(hits[i : i + 500]) for i in range(0, 5_500, 500)]
        assert min(windows) > 0.85
    lost = (late + 60) / len(hits) if task == "regression" else 0.02  # no width tells of the turn
    assert 0.885 - lost < share(hits) < 0.92


def test_late_labels_of_a_world_that_stands_still_do_not_swing_the_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def swing() -> float:
        hits = play("multiclass", 500)[1_000:]
        windows = [share(hits[i : i + 250]) for i in range(0, len(hits), 250)]
        return max(windows) - min(windows)

    heeding = swing()
    monkeypatch.setattr(Confidence, "_strayed", lambda *_: 1.0)  # each error moves it in full
    assert heeding < 0.75 * swing(), heeding


def test_a_threshold_that_stays_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Confidence, "_move", lambda *_: None)
    assert abs(share(play("multiclass", 0)[500:]) - 0.9) > 0.03


@pytest.mark.parametrize("task", list(WORLDS))
def test_four_replicas_cover_as_one_does(task: Task) -> None:
    one, four = share(play(task, 48)[500:]), share(play(task, 48, replicas=4)[500:])
    assert four == pytest.approx(one, abs=0.015)


@pytest.mark.parametrize("level", [0.8, 0.97])
def test_other_levels_are_kept_as_well(level: float) -> None:
    assert share(play("multiclass", 0, level)[500:]) == pytest.approx(level, abs=0.012)


def test_deltas_add_up_to_what_one_has_learned() -> None:
    whole, first, then = (Confidence("binary", 0.9) for _ in range(3))
    rows = [Example({}, y, score=s, sure=whole.stamp()) for s, y in binary(1)[:400]]
    values = Blocks()
    for i, row in enumerate(rows):
        whole.add(row)
        (first if i < 200 else then).add(row)
        if i == 199:
            merge(values, first.cut())
            then.rebase(copy(values))
    merge(values, then.cut())
    assert values[CONFIDENCE].kind == "count"
    mine = whole.cut()[CONFIDENCE].data
    theirs = values[CONFIDENCE].data
    assert mine.keys() == theirs.keys()
    for name in ("n", "asked", "covered", "size"):
        assert mine[name] == theirs[name] or name == "size"
    again = Confidence("binary", 0.9)
    again.reset(values)
    assert again.summary() == then.summary()
    assert again.stamp() == then.stamp()
    assert not again.cut()


def test_what_was_answered_without_a_threshold_says_nothing() -> None:
    part = Confidence("binary", 0.9)
    for sure in (None, b"", b"123"):
        part.add(Example({}, True, score={"false": 0.9, "true": 0.1}, sure=sure))
    part.add(Example({}, True, score=None, sure=part.stamp()))
    assert not part.cut()
    assert part.summary() == {"level": 0.9, "n": 0, "coverage": None, "size": None}


def test_what_another_model_answered_before_a_promotion_says_nothing() -> None:
    part, tally = Confidence("binary", 0.9), Tally()
    tally.views, tally.others = [part], ((0, 3),)
    given = {"score": {"false": 0.9, "true": 0.1}, "sure": part.stamp()}
    for epoch in (3, 4):
        tally.note(Example({}, True, version=(epoch, 0, 0), **given), 1.0)  # type: ignore[arg-type]
    assert part.summary()["n"] == 1


def test_before_the_first_label_there_is_no_interval() -> None:
    part = Confidence("regression", 0.9)
    stamp = part.stamp()
    assert part.interval(stamp, 3.0) is None
    part.add(Example({}, 5.0, score={"": 3.0}, sure=stamp))
    assert part.summary()["n"] == 0
    low, high = part.interval(part.stamp(), 3.0) or (0.0, 0.0)
    assert low < 3.0 < high
    for exact in range(50):
        part.add(Example({}, 0.0, score={"": 0.0}, sure=part.stamp()))
        part.add(Example({}, float(exact), score={"": float(exact)}, sure=part.stamp()))
    assert part.summary()["coverage"] == 1.0


@pytest.mark.parametrize("replicas", [1, 4])
def test_intervals_hold_again_soon_after_a_time_of_exact_answers(replicas: int) -> None:
    """A meter that stood still for long begins to move: errors grow by nine digits."""
    parts, values = [Confidence("regression", 0.9) for _ in range(replicas)], Blocks()
    draw, hits = random.Random(5), list[bool]()
    for i in range(4_000):
        part = parts[i % replicas]
        answer = 5.0 + (draw.gauss(0.0, 1.0) if i >= 2_000 else 0.0)
        row = Example({}, 5.0, score={"": answer}, sure=part.stamp())
        hits.append(has(part, row))
        part.add(row)
        if i % 16 == 0:
            for one in parts:
                merge(values, one.cut())
            for one in parts:
                one.rebase(copy(values))
    assert 0.87 < share(hits[2_500:]) < 0.98


def test_a_class_that_is_new_is_missed_and_moves_the_threshold_up() -> None:
    part = Confidence("multiclass", 0.9)
    before = STAMP.unpack(part.stamp())[0]
    part.add(Example({}, "new", score={'"a"': 0.7, '"b"': 0.3}, sure=part.stamp()))
    assert STAMP.unpack(part.stamp())[0] > before
    assert part.summary()["coverage"] == 0.0


def test_several_replicas_do_not_push_it_beyond_its_ends() -> None:
    part, values = Confidence("binary", 0.9), Blocks()
    for _ in range(3):
        other = Confidence("binary", 0.9)
        for _ in range(100):
            other.add(Example({}, True, score={"false": 1.0, "true": 0.0}, sure=other.stamp()))
        merge(values, other.cut())
    part.reset(values)
    at = STAMP.unpack(part.stamp())[0]
    assert at == conformal._LABELS.high
    part.add(Example({}, True, score={"false": 1.0, "true": 0.0}, sure=STAMP.pack(0.0, 0)))
    assert part.cut()[CONFIDENCE].data["moved"] == 0.0


def test_rows_and_halves_of_before_are_read() -> None:
    old = codec.encode(Example({"a": 1.0}, True))
    assert codec.decode(old).sure is None
    half = codec.encode_prediction(PredictionHalf({"a": 1.0}, sure=b"12345678"))
    assert codec.decode_prediction(half).sure == b"12345678"


# -- served ------------------------------------------------------------------------------------


def logistic() -> Linear:
    return Linear(preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05)))


def test_what_is_served_moves_by_tokens_own_ids_and_features(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        replica = await world.replica(build=logistic, task="binary", confidence=0.9)
        serving = world.serving(replica)
        part = confidence_in(replica.learner.tally.views)
        assert part is not None

        async def label(**event: object) -> Receipt:
            _, found = await serving.feedback(FeedbackRequest(label=True, **event))  # type: ignore[arg-type]
            assert isinstance(found, Receipt)
            return found

        said = serving.predict(PredictRequest(features={"a": 1.0}))
        assert isinstance(said, Prediction)
        assert said.label_set == [False, True]
        assert (await label(id=said.id)).status == "learned"
        serving.predict(PredictRequest(features={"a": 1.0}, id="mine"))
        await worlds.until(lambda: replica.counts["joins_kept"] == 1)
        assert (await label(id="mine")).status == "learned"
        assert (await label(features={"a": 1.0}, event_id="e")).status == "learned"
        ordinary = [Event(features={"a": float(i)}, label=True) for i in range(3)]
        assert {one.status for one in await serving.record(ordinary)} == {"learned"}
        assert part.summary()["n"] == 6
        assert (await label(id=said.id)).status == "duplicate"
        assert part.summary()["n"] == 6
        many = serving.predict(PredictRequest(instances=[{"a": 1.0}, {"a": 2.0}]))
        assert all(row.label_set for row in many.predictions)  # type: ignore[union-attr]

        journal = world.journal()
        rows = [r for p in journal.partitions("m") for r in journal.read(p.id, 1, 100)]
        again = Confidence("binary", 0.9)
        for row in rows:
            again.add(codec.decode(row.payload))
        assert again.stamp() == part.stamp()  # a view of the rows
        await worlds.until(lambda: replica.backlog.rows == 0 and replica.learner.own == 0)
        await replica.stop(1.0)
        other = await world.replica("s", build=logistic, task="binary", confidence=0.9)
        found = confidence_in(other.learner.tally.views)
        assert found is not None
        assert found.stamp() == part.stamp()
        await other.stop(1.0)

    worlds.play(tmp_path, scene)


def test_nobody_pays_for_what_is_not_asked_for(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        sizes = []
        for name, more in (("r", {}), ("s", {"confidence": 0.9})):
            replica = await world.replica(name, build=logistic, task="binary", **more)
            said = world.serving(replica).predict(PredictRequest(features={"a": 1.0}))
            assert isinstance(said, Prediction)
            assert (said.label_set != []) == bool(more) or not more
            sizes.append(len(said.id))
            await replica.stop(1.0)
        assert 0 < sizes[1] - sizes[0] <= math.ceil(10 * 4 / 3)

    worlds.play(tmp_path, scene)


def test_forgetting_a_source_leaves_what_the_others_rows_say(tmp_path: Path) -> None:
    world, asked = worlds.World(tmp_path), Confidence("binary", 0.9)
    journal, rows = world.journal(), list[NewRow]()
    for i, (score, label) in enumerate(binary(4)[:300]):
        example = Example({"a": float(i)}, label, score=score, sure=asked.stamp())
        asked.add(example)
        source, key = "bot" if i % 3 == 0 else "good", i.to_bytes(16, "big")
        rows.append(NewRow(key, f"e{i}", source, Verdict.ACCEPTED, codec.encode(example), 1.0))
    partition = journal.register("m", "r", worlds.SPEC, 0.0).id
    journal.append(partition, 0, rows)

    def values(wanted: ForgetScope) -> dict[str, float]:
        views = partial(list, [Confidence("binary", 0.9)])
        method = Method(logistic, "binary", views=views)
        start = nothing("m", worlds.SPEC, "{}", {})
        rebuild = Rebuild(journal, Decisions(worlds.SPEC), wanted, start, method)
        rebuild.run()
        block = rebuild.built((1, 0), 0, 5.0).state.values[CONFIDENCE]
        return dict(block.data)

    for wanted in (NOBODY, ForgetScope("bot")):
        again = Confidence("binary", 0.9)
        for row in rows:
            if row.source != wanted.source:
                again.add(codec.decode(row.payload))
        assert values(wanted) == again.cut()[CONFIDENCE].data


def test_forgetting_after_promotions_counts_the_answers_of_this_model_alone(tmp_path: Path) -> None:
    """It has served in epochs 1 and 2 and from 5 on, and another model in between."""
    world, asked, own = worlds.World(tmp_path), Confidence("binary", 0.9), Confidence("binary", 0.9)
    journal, rows = world.journal(), list[NewRow]()
    for i, (score, label) in enumerate(binary(4)[:300]):
        epoch = 1 + i // 50
        version = epoch, i, 0
        example = Example({"a": 0.0}, label, score=score, sure=asked.stamp(), version=version)
        asked.add(example)
        if epoch not in (3, 4):
            own.add(example)
        row = NewRow(
            i.to_bytes(16, "big"), f"e{i}", "s", Verdict.ACCEPTED, codec.encode(example), 1
        )
        rows.append(row)
    partition = journal.register("m", "r", worlds.SPEC, 0.0).id
    journal.append(partition, 0, rows)
    for n, (before, after, epoch) in enumerate([(worlds.SPEC, "b", 2), ("b", worlds.SPEC, 4)]):
        note = msgspec.json.encode(rewrites.Promote(before, after, {}, {}, epoch=epoch))
        journal.write_control("m", rewrites.PROMOTE, f"promote:{n}", note)
    method = Method(logistic, "binary", views=partial(list, [Confidence("binary", 0.9)]))
    decisions = Decisions(worlds.SPEC)
    start = nothing("m", worlds.SPEC, "{}", {})
    rebuild = Rebuild(journal, decisions, ForgetScope("bot"), start, method)
    rebuild.run()
    values = rebuild.built((1, 0), 0, 5.0).state.values
    assert dict(values[CONFIDENCE].data) == own.cut()[CONFIDENCE].data
    assert values["metrics"].data["another/n"] == 100


# -- slices ------------------------------------------------------------------------------------


def two_groups(slices: tuple[str, ...], late: int = 0, replicas: int = 1) -> dict[str, float]:
    """Coverage of two groups; of one the answers are right, of the other far too bold."""
    parts = [Confidence("binary", 0.9, slices, 2) for _ in range(replicas)]
    values, draw = Blocks(), random.Random(4)
    rows, hits = list[Example](), dict[str, list[bool]]()
    for i in range(ROWS):
        group, odds = draw.choice(("plain", "plain", "bold")), draw.gauss(0.0, 2.0)
        right = 1.0 / (1.0 + math.exp(-odds * (0.2 if group == "bold" else 1.0)))
        p, features, part = 1.0 / (1.0 + math.exp(-odds)), {"group": group}, parts[i % replicas]
        score = {"false": 1.0 - p, "true": p}
        row = Example(features, draw.random() < right, score=score, sure=part.stamp(features))
        rows.append(row)
        hits.setdefault(group, []).append(has(part, row))
        if i >= late:
            parts[(i * 7 + i // 5) % replicas].add(rows[i - late])
        if replicas > 1 and i % 64 == 0:
            for one in parts:
                merge(values, one.cut())
            for one in parts:
                one.rebase(copy(values))
    return {group: share(of[300:]) for group, of in hits.items()}


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("late", [0, 48])
def test_each_slice_has_the_coverage(late: int, replicas: int) -> None:
    found = two_groups(("group",), late, replicas)
    assert found == pytest.approx({"plain": 0.9, "bold": 0.9}, abs=0.025)


def test_one_threshold_for_all_is_wrong_for_each() -> None:
    found = two_groups(())
    assert found["plain"] > 0.93
    assert found["bold"] < 0.87


def test_asking_makes_no_value_known_and_status_says_how_far_slices_are() -> None:
    part = Confidence("binary", 0.9, ["group"], 1)
    before = part.stamp({"group": "new"})
    part.add(Example({"group": "a"}, True, score={"false": 1.0, "true": 0.0}, sure=before))
    known, unknown = (STAMP.unpack(part.stamp({"group": value}))[0] for value in "ab")
    assert known > unknown
    assert part.summary()["slices"] == {"group": {"a": pytest.approx(0.3 * 0.9 * 0.5)}}
    part.add(Example({"group": "b"}, True, score={"false": 1.0, "true": 0.0}, sure=before))
    assert part.summary()["slices"]["group"].keys() == {"a", "others"}
    again = Confidence("binary", 0.9, ["group"], 1)
    again.reset(part.cut())
    for value in ("a", "b", "c"):
        asked = STAMP.unpack(part.stamp({"group": value}))
        assert STAMP.unpack(again.stamp({"group": value})) == pytest.approx(asked)


def test_few_labels_of_a_slice_move_it_whole_in_each_of_several_replicas() -> None:
    part, row = Confidence("binary", 0.9, ["group"], 2), {"group": "a"}
    missed = Example(row, True, score={"false": 1.0, "true": 0.0}, sure=part.stamp(row))

    def move() -> float:
        before = part.summary()["slices"]["group"].get("a", 0.0)
        part.add(missed)
        moved: float = part.summary()["slices"]["group"]["a"] - before
        return moved

    part._own, part._others = 1_000.0, 3_000.0  # of four labels one moves it here
    moves, whole = [move() for _ in range(34)], 0.3 * 0.9 * 0.5
    assert moves[0] == pytest.approx(whole)
    assert moves[-1] < 0.3 * whole, "the others have as many, and correct the same error"
    part.cut()
    assert move() < 0.3 * whole, "as many as the last time come to all of them"
    part.cut()
    assert 0.3 * whole < move() < whole, "hardly any came"
    part.cut()
    part.cut()
    assert move() == pytest.approx(whole), "none came"


def test_what_is_served_has_the_threshold_of_its_slice(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        settings = {"task": "binary", "confidence": 0.9, "slices": ["group"]}
        replica = await world.replica(build=logistic, **settings)
        serving = world.serving(replica)
        part = confidence_in(replica.learner.tally.views)
        assert part is not None
        labelled = [({"group": float(i % 2), "a": 1.0}, bool(i % 2)) for i in range(20)]
        for features, label in labelled:
            said = serving.predict(PredictRequest(features=features))
            assert isinstance(said, Prediction)
            await serving.feedback(FeedbackRequest(id=said.id, label=label))
        own = [Event(features=features, label=label) for features, label in labelled]
        await serving.record(own)
        serving.predict(PredictRequest(features=labelled[0][0], id="mine"))
        await worlds.until(lambda: replica.counts["joins_kept"] == 1)
        await serving.feedback(FeedbackRequest(id="mine", label=True))
        journal = world.journal()
        rows = [r for p in journal.partitions("m") for r in journal.read(p.id, 1, 100)]
        again = Confidence("binary", 0.9, ["group"], 32)
        for i, row in enumerate(rows):
            example = codec.decode(row.payload)
            if i < len(labelled) or i == len(rows) - 1:  # the others were asked together
                asked = STAMP.unpack(example.sure or b"")
                assert STAMP.unpack(again.stamp(example.features)) == pytest.approx(asked), i
            again.add(example)
        assert len(rows) == 2 * len(labelled) + 1
        shown = part.summary()["slices"]["group"]
        assert shown.keys() == {"0.0", "1.0"}
        assert again.summary()["slices"]["group"] == pytest.approx(shown)
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)
