"""Offsets by key: what they learn, how they shrink, how they add up, and what is refused."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from replica_world import World, play, row, until

from evaluation.metrics import Task
from online.edge.errors import ExportRefused
from online.edge.lowering.lower import lower
from online.errors import ConfigError, RequestError
from online.learning.bounds import free_names
from online.learning.vocabulary import Vocabulary, words_of
from online.models.base import Model
from online.models.entities import offsets, personal
from online.models.entities.offsets import Offsets
from online.models.entities.personal import Personal, key_of
from online.models.errors import LearnerUnusable, StateNotFinite
from online.models.fm import Fm
from online.models.loading.from_settings import load_model
from online.replica.memory_settings import why_no_replay
from online.rows.validator import Validator
from online.settings.config import Settings, load
from online.settings.limits import Limits
from paramserver.core.blocks import Blocks, copy, from_wire, merge, to_wire
from replay import codec
from replay.example import Example, Features, Label

Rows = Sequence[tuple[Features, Label]]


def settings_of(**model: Any) -> Settings:
    return load(None, {"models": [{"name": "m", **model}]}, {})


def model_of(
    learner: str = "linear", task: Task = "regression", entity: Any = "who", **more: Any
) -> Personal:
    settings = settings_of(learner=learner, task=task, entity=entity, **more)
    found = load_model(settings.models[0], settings, bytes(32)).model
    assert isinstance(found, Personal)
    return found


def learned(model: Model, rows: Iterable[tuple[Features, Label]]) -> Any:
    for features, label in rows:
        model.learn(features, label, 1.0)
    return model


def visits(n: int, *, keys: int = 40, spread: float = 2.0, slope: float = 0.0) -> Rows:
    """Numbers that a shared part, each one's own level, and each one's own slope make up."""
    draw, own = random.Random(7), random.Random(8)
    levels = [own.gauss(0.0, spread) for _ in range(keys)]
    slopes = [own.gauss(0.0, slope) for _ in range(keys)]
    rows: list[tuple[Features, Label]] = []
    for _ in range(n):
        who, x = draw.randrange(keys), draw.gauss(0.0, 1.0)
        y = 3.0 + x + levels[who] + slopes[who] * x + draw.gauss(0.0, 0.5)
        rows.append(({"who": f"u{who}", "x": x}, y))
    return rows


def liked(rows: Rows) -> Rows:
    return [(x, float(y) > 3.0) for x, y in rows]


def error(model: Model, rows: Rows) -> float:
    """Mean squared error, or the mean of 1 less the share of what was true."""
    total = 0.0
    for features, label in rows:
        found = model.predict(features)
        if found.probabilities is None:
            total += (float(found.label or 0.0) - float(label)) ** 2
        else:
            total += 1.0 - found.probabilities[bool(label)]
    return total / len(rows)


LEARNERS: list[tuple[str, Task]] = [
    ("linear", "regression"), ("linear", "binary"), ("auto", "binary"),
    ("logreg", "binary"), ("linreg", "regression"),
]  # fmt: skip


@pytest.mark.parametrize(("learner", "task"), LEARNERS)
def test_known_keys_are_answered_better_and_new_ones_as_the_shared_model_does(
    learner: str, task: Task
) -> None:
    rows = visits(2_400)
    rows = liked(rows) if task == "binary" else rows
    model = learned(model_of(learner, task), rows[:2_000])
    known, nobody = rows[2_000:], [({**x, "who": "nobody"}, y) for x, y in rows[2_000:]]
    assert error(model, known) < 0.8 * error(model, nobody)
    for features, _ in nobody[:20]:
        for other in ({"x": features["x"]}, {"x": features["x"], "who": None}):
            assert model.predict(other) == model.predict(features)


def test_a_key_has_weights_of_its_own_on_the_numbers_that_are_chosen() -> None:
    rows = visits(3_000, slope=2.0)
    plain = learned(model_of(), rows[:2_500])
    own = learned(model_of(entity={"who": ["x"]}), rows[:2_500])
    assert error(own, rows[2_500:]) < 0.5 * error(plain, rows[2_500:])


def test_offsets_of_keys_that_mean_nothing_shrink_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def worse() -> float:
        rows = visits(2_500, keys=300, spread=0.0)
        told = learned(model_of(), rows[:1_500])
        alone = [({**x, "who": None}, y) for x, y in rows[1_500:]]
        return error(told, rows[1_500:]) / error(told, alone)

    assert worse() < 1.01
    monkeypatch.setattr(Personal, "_believe", lambda self: None)
    assert worse() > 1.02, "the control: all are believed"


def test_what_a_row_says_counts_for_less_than_the_shared_model_at_first() -> None:
    own = Offsets("o", 1.0)
    moved = []
    for _ in range(3):
        own.put("k", own.learned("k", 7.0, 1.0))
        moved.append(own.of("k"))
    assert moved[0] == pytest.approx(7.0 / (1.0 + offsets.ROWS), rel=0.05)
    assert moved == sorted(moved)
    assert moved[-1] < 7.0
    assert own.of("nobody") == 0.0


def test_moments_are_such_as_a_server_takes_whatever_the_rounding() -> None:
    draw = random.Random(9)
    for _ in range(300):
        own = Offsets("o", 1.0)
        for _ in range(draw.randrange(1, 4)):
            v = draw.gauss(0.0, 10.0 ** draw.randrange(-6, 7))
            own.put("k", own.learned("k", v, draw.uniform(1e-9, 64.0)))
        from_wire(to_wire(own.cut()))


def test_a_key_that_changes_is_followed_however_long_it_was_known() -> None:
    own = Offsets("o", 1.0)
    for v in [0.0] * 2_000 + [1.0] * 400:
        own.put("k", own.learned("k", v, 1.0))
    assert own.of("k") > 0.8
    assert 400 / 2_400 < 0.2, "the control: a plain mean of all rows"


def test_offsets_add_up_in_any_order_and_no_merge_rule_scales_them() -> None:
    rows = visits(900)
    base = learned(model_of(entity={"who": ["x"]}), rows[:300]).cut()
    deltas: list[Blocks] = []
    for part in (rows[300:500], rows[500:700], rows[700:]):
        model = model_of(entity={"who": ["x"]})
        model.reset(copy(base))
        deltas.append(learned(model, part).cut())
    found = []
    for order in itertools.permutations(deltas):
        values = copy(base)
        for delta in order:
            merge(values, delta, 0.25)  # as a server whose replicas average
        found.append(values)
    names = [name for name in found[0] if name.startswith("entity")]
    assert "entity/who" in names
    assert 'entity/["who", "x"]' in names
    for name in names:
        for key, numbers in found[0][name].data.items():
            for other in found[1:]:
                assert other[name].data[key] == pytest.approx(numbers, rel=1e-9, abs=1e-12)
    weights = sum(one["entity/who"].data[key_of("who", "u1")][0] for one in (base, *deltas))
    assert found[0]["entity/who"].data[key_of("who", "u1")][0] == pytest.approx(weights)


def test_many_rows_of_one_key_at_once_do_not_run_away() -> None:
    """Eight replicas learn 64 rows of one key each, before any has seen another's."""
    values: Blocks = {}
    for _ in range(12):
        deltas = []
        for _ in range(8):
            own = Offsets("o", 1.0)
            own.reset(copy(values))
            for _ in range(64):
                own.put("k", own.learned("k", 1.0, 1.0))
            deltas.append(own.cut())
        for delta in deltas:
            merge(values, delta)
        own = Offsets("o", 1.0)
        own.reset(values)
        assert 0.0 < own.of("k") <= 1.0


def test_keys_are_the_same_however_they_are_written() -> None:
    assert key_of("film", 17) == key_of("film", 17.0) == key_of("film", "17")
    different = {key_of("film", value) for value in (17, 18, 1.5, "a", "A", True)}
    assert len(different | {key_of("user", 17)}) == 7
    assert key_of("film", None) is None
    assert len(str(key_of("film", "long " * 200))) <= 16, "a key takes no more room than another"


def test_keys_are_names_of_the_model_and_no_measures() -> None:
    model = model_of("logreg", "binary", ["who", "film"])
    assert free_names(model) == {"who", "film"}
    known = Vocabulary(words_of(model))
    known.most, known.share = 3, 1.0
    row: Features = {"who": 17, "film": 3.0, "x": 1.0}
    assert known.taught(row, "a", 0.0, 9.0) == (row, None)
    known.add(Example(row, True), "a")
    assert len(known) == 3
    assert known.knows([{"who": "17", "film": 3, "x": 2.0}])
    taught, left = known.taught({"who": 18, "film": 3.0, "x": 1.0}, "a", 0.0, 9.0)
    assert (taught, left) == ({"film": 3.0, "x": 1.0}, {"who": 18}), "learned without its key"
    assert known.knows_numbers(["x"])
    assert not known.knows_numbers(["x", "who"]), "its number says who it is"
    machine = Fm(2, ["film"]).model_for("binary")
    assert free_names(machine) == {"film"}
    films = Vocabulary(words_of(machine))
    films.add(Example({"film": 17, "x": 1.0}, True), "a")
    assert not films.knows([{"film": 18, "x": 1.0}])


def test_the_shared_model_never_sees_a_key() -> None:
    rows = visits(400)
    model = learned(model_of(), rows)
    blocks = model.cut()
    assert set(blocks["scaler"].data) == {"x"}
    keys = {key for key in blocks["experts"].data}
    assert len({key.partition(":")[2] for key in keys}) == 2, "the bias and x"


def test_one_label_far_off_moves_its_key_by_a_bounded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved() -> float:
        model = learned(model_of(), visits(1_000))
        before = model._offsets[0].of(str(key_of("who", "u1")))
        model.learn({"who": "u1", "x": 0.0}, 1e6, 1.0)
        return abs(model._offsets[0].of(str(key_of("who", "u1"))) - before)

    assert moved() < 1.0
    monkeypatch.setattr(personal, "FAR", math.inf)
    assert moved() > 1e3, "the control"


def test_a_row_that_leaves_the_finite_numbers_changes_no_offset() -> None:
    own = Offsets("o", 1.0)
    own.put("k", own.learned("k", 1.0, 1.0))
    before = own.of("k")
    with pytest.raises(StateNotFinite):
        own.learned("k", math.inf, 1.0)
    assert own.of("k") == before
    assert own.cut()["o"].data["k"][0] == 1.0


def test_names_are_part_of_the_spec_and_without_them_it_is_as_it_was() -> None:
    specs = set()
    for entity in (None, "who", ["who", "film"], {"who": "x"}):
        settings = settings_of(learner="linear", task="binary", entity=entity)
        loaded = load_model(settings.models[0], settings, bytes(32))
        assert loaded.build().structure == loaded.model.structure
        specs |= {loaded.spec_hash, loaded.alike}
    assert len(specs) == 8


@pytest.mark.parametrize("learner", ["ftrl", "fm"])
def test_other_learners_are_refused_with_what_to_do(learner: str) -> None:
    with pytest.raises(LearnerUnusable, match=r"no offsets by key.*Take linear, auto, logreg"):
        model_of(learner, "binary")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"task": "multiclass"}, "the task is multiclass: take binary"),
        ({"task": "choose", "learner": "rewards"}, "the task is choose"),
        ({"entity": []}, "0 keys; give 1 to 8"),
        ({"entity": ["a", "a"]}, "twice"),
        ({"entity": {"who": ["who"]}}, "'who' is a key, and no number"),
        ({"entity": {"who": ["x"] * 2}}, "none of them twice"),
        ({"entity": "\x1b"}, "is no name"),
        ({"features": {"x": "number"}}, "'who' is none of `features`"),
        (
            {"entity": {"who": ["t"]}, "features": {"who": "category", "t": "text"}},
            "'t' is a text, and has to be a number",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"learner": "linear", "task": "binary", "entity": "who", **wrong}
    with pytest.raises(ConfigError, match=named):
        settings_of(**given)


def test_it_is_neither_exported_nor_rehearsed_and_says_why() -> None:
    model = learned(model_of("logreg", "binary"), liked(visits(300)))
    with pytest.raises(ExportRefused, match="entity: who: each who has parameters of its own"):
        lower(model, "binary")
    assert "twice" in str(why_no_replay(model, "compensated"))


def test_the_door_takes_texts_under_keys_only() -> None:
    settings = settings_of(learner="logreg", task="binary", entity="who").models[0]
    validator = Validator(
        settings, Limits(), numeric_only=model_of("logreg", "binary").numeric_only
    )
    assert validator.features({"who": "ada", "x": 1.0}, "f") == {"who": "ada", "x": 1.0}
    with pytest.raises(RequestError, match="a number is needed"):
        validator.features({"who": "ada", "x": "much"}, "f")


def test_two_replicas_have_the_same_offsets_once_each_has_what_the_other_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(personal, "ALONE", 0.0)

    async def scene(world: World) -> None:
        a, b = [await world.replica(name, build=model_of) for name in "ab"]
        rows = visits(40, keys=4)
        for i, (features, label) in enumerate(rows):
            given = codec.encode(Example(features, label))
            new = msgspec.structs.replace(row(f"e{i}"), payload=given)
            await (a, b)[i % 2].writer.record([new])
        await until(lambda: all(_rows(r) == 40 for r in (a, b)), 240.0)
        for features, _ in rows:
            first, second = (r.learner.serving.predict(features).label for r in (a, b))
            assert first == pytest.approx(second, rel=1e-9)
        nobody = a.learner.serving.predict({**rows[0][0], "who": None})
        assert a.learner.serving.predict(rows[0][0]) != nobody, "the control"
        await a.stop(1.0)
        await b.stop(1.0)

    play(tmp_path, scene)


def _rows(replica: Any) -> float:
    """Rows that the replica's offsets know of."""
    return float(replica.learner.serving._proved.now.get("rows", 0.0))
