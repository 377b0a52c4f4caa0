"""Probabilities are corrected by labels: a view of the rows that changes no answer and no model."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import replica_world as worlds
from river import linear_model, optim, preprocessing

from online.messages.structs import Explanation, FeedbackRequest, Prediction, PredictRequest
from online.models.adapters.linear import Linear
from online.models.base import Prediction as Answer
from online.settings.model import ModelSettings
from online.sure.calibration import CALIBRATION, Calibration
from online.sure.conformal import STAMP, Confidence
from online.sure.views import calibration_in, stamp_of
from paramserver.core.blocks import Blocks, copy, merge
from replay import codec
from replay.example import Example, Label, label_text

ROWS = 3_000


def answers(sharp: float, labels: int = 2, seed: int = 1) -> list[tuple[Answer, Label]]:
    """Answers whose log odds are ``sharp`` times what they should be."""
    rng, out = random.Random(seed), list[tuple[Answer, Label]]()
    names: list[Label] = [False, True] if labels == 2 else [f"c{i}" for i in range(labels)]
    for _ in range(ROWS):
        odds = [rng.gauss(0.0, 1.5) for _ in names]
        label = rng.choices(names, [math.exp(x) for x in odds])[0]
        powers = [math.exp(sharp * x) for x in odds]
        shares = {name: p / sum(powers) for name, p in zip(names, powers, strict=True)}
        out.append((Answer(max(shares, key=shares.__getitem__), shares, b"n"), label))
    return out


def row(answer: Answer, label: Label, stamp: bytes) -> Example:
    shares = answer.probabilities or {}
    score = {label_text(name): p for name, p in shares.items()} or None
    return Example({}, label, score=score, sure=stamp)


def loss(said: Sequence[Answer], labels: Sequence[Label]) -> float:
    shares = [(a.probabilities or {}).get(y, 0.0) for a, y in zip(said, labels, strict=True)]
    return -sum(math.log(max(p, 1e-15)) for p in shares) / len(shares)


def play(
    world: Sequence[tuple[Answer, Label]], late: int = 0, replicas: int = 1
) -> tuple[list[Answer], list[Calibration]]:
    parts, values = [Calibration() for _ in range(replicas)], Blocks()
    given, rows = list[Answer](), list[Example]()
    for i, (answer, label) in enumerate(world):
        part = parts[i % replicas]
        given.append(part.answered(answer))
        rows.append(row(given[-1], label, part.stamp()))
        if i >= late:
            parts[(i * 7 + i // 5) % replicas].add(rows[i - late])
        if replicas > 1 and i % 64 == 0:
            for one in parts:
                merge(values, one.cut())
            for one in parts:
                one.rebase(copy(values))
    return given, parts


@pytest.mark.parametrize("labels", [2, 10])
@pytest.mark.parametrize("sharp", [3.0, 0.3])
@pytest.mark.parametrize("replicas", [1, 4])
def test_answers_that_are_too_sure_or_too_modest_are_corrected(
    labels: int, sharp: float, replicas: int
) -> None:
    world = answers(sharp, labels)
    given, parts = play(world, late=20, replicas=replicas)
    truth = [label for _, label in world]
    ideal = loss([answer for answer, _ in answers(1.0, labels)][1_000:], truth[1_000:])
    before = loss([answer for answer, _ in world][1_000:], truth[1_000:])
    after = loss(given[1_000:], truth[1_000:])
    assert after - ideal < 0.1 * (before - ideal), (before, after, ideal)
    assert parts[0].summary()["sharpness"] == pytest.approx(1.0 / sharp, rel=0.35)
    assert all(one.summary()["gained"] > 0.0 for one in parts)
    for (own, _), said in zip(world, given, strict=True):
        assert own.probabilities is not None
        assert said.probabilities is not None
        assert (said.label, said.notes) == (own.label, own.notes)
        assert math.fsum(said.probabilities.values()) == pytest.approx(1.0)
        order = sorted(own.probabilities, key=own.probabilities.__getitem__)
        shares = [said.probabilities[name] for name in order]
        assert shares == sorted(shares), "the order of labels stands"


@pytest.mark.parametrize("late", [0, 48, 500])
def test_answers_that_are_right_are_left_as_they_are(late: int) -> None:
    world = answers(1.0)
    given, (part,) = play(world, late)
    left = sum(own is said for (own, _), said in zip(world, given, strict=True))
    assert left > 0.95 * ROWS, part.summary()
    truth = [label for _, label in world]
    assert loss(given, truth) - loss([own for own, _ in world], truth) < 0.002


def test_what_has_lost_too_much_stops_whatever_the_last_labels_say() -> None:
    """Losses of late labels come when they are made: a bound ends them, and more labels ease it."""
    _, (part,) = play(answers(3.0))
    values: Blocks = {}
    merge(values, part.cut())
    assert part.on
    for gained, rows, on in ((-2.9, 0, True), (-3.1, 0, False), (-3.1, 1_000, True)):
        block = copy(values)
        block[CALIBRATION].data.update(gained=gained, compared=float(rows))
        part.reset(block)
        assert part.on == on, (gained, rows)


def test_labels_that_are_late_by_tens_of_thousands_correct_nothing() -> None:
    part, world = Calibration(), answers(3.0)
    rows = [row(answer, label, part.stamp()) for answer, label in world]
    part.count("n", 40_000.0)
    for one in rows[:2_000]:
        part.add(one)
    assert part.summary()["late"] == pytest.approx(41_000, rel=0.05)
    assert not part.on
    narrow = [struct.pack("<bH", 0, n) for n in (0, 40_000 - 7)]
    older = Calibration()
    older.count("n", 40_000.0)
    for (answer, label), stamp in zip(world, narrow, strict=False):
        older.add(row(answer, label, stamp))
    assert older.summary()["late"] == pytest.approx((0 + 8) / 2, abs=0.1), "rows of before are read"


def test_labels_that_are_noise_do_not_make_answers_sure() -> None:
    rng = random.Random(3)
    world = [(answer, rng.random() < 0.5) for answer, _ in answers(1.0)]
    given, _ = play(world)
    truth = [label for _, label in world]
    assert loss([own for own, _ in world], truth) > 0.9, "the model is sure of noise"
    assert loss(given[500:], truth[500:]) < 0.75, "it says one half, near enough"


def test_what_says_nothing_changes_nothing() -> None:
    part = Calibration()
    plain = Answer(True, {False: 0.2, True: 0.8})
    stamp = part.stamp()
    for example in (
        Example({}, True, score=None, sure=stamp),
        Example({}, True, score={"true": 1.0}, sure=stamp),
        row(plain, True, b""), row(plain, True, b"\0" * STAMP.size), row(plain, "new", stamp),
        row(Answer(True, {False: 0.2, True: math.nan}), True, stamp),
    ):  # fmt: skip
        part.add(example)
    assert part.cut() == {}
    for answer in (
        Answer(None, {}), Answer(None, None), Answer(1.5, None), Answer("a", {"a": 1.0}),
    ):  # fmt: skip
        assert part.answered(answer) is answer


def test_an_answer_of_certainties_and_of_no_number_is_given_all_the_same() -> None:
    _, (part,) = play(answers(3.0))
    assert part.on
    sure = part.answered(Answer(True, {False: 0.0, True: 1.0}))
    assert sure.probabilities is not None
    assert 0.0 <= sure.probabilities[False] < 1e-3
    broken = Answer(True, {False: math.nan, True: 0.5})
    assert part.answered(broken) is broken


def test_it_is_a_sum_over_the_rows_and_stands_behind_another_stamp() -> None:
    given, (part,) = play(answers(3.0))
    again, sure = Calibration(), Confidence("binary", 0.9)
    values: Blocks = {}
    merge(values, part.cut())
    again.reset(values)
    assert again.stamp() == part.stamp()
    both = stamp_of(sure, part, {})
    assert both == sure.stamp() + part.stamp()
    assert stamp_of(None, None, {}) is None
    assert stamp_of(None, part, {}) == part.stamp()
    example = row(given[0], True, both)
    before = part.summary()["n"], sure.summary()["n"]
    part.add(example)
    sure.add(example)
    assert (part.summary()["n"], sure.summary()["n"]) == (before[0] + 1, before[1] + 1)


def logistic() -> Linear:
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.5))
    return Linear(model)


def test_the_model_learns_the_same_and_the_row_has_what_was_answered(tmp_path: Path) -> None:
    """Labels by tokens and with features; a control without the setting."""
    seen, stamps = {}, {}

    async def scene(world: worlds.World, on: bool) -> None:
        replica = await world.replica("r", build=logistic, task="binary", calibrate=on)
        part, serving = calibration_in(replica.learner.tally.views), world.serving(replica)
        rng, said = random.Random(5), list[Prediction]()
        for i in range(400):
            x = {"a": rng.gauss(0.0, 1.0)}
            label = rng.random() < 1.0 / (1.0 + math.exp(-x["a"]))
            asked = serving.predict(PredictRequest(features=x))
            assert isinstance(asked, Prediction)
            said.append(asked)
            by_token = FeedbackRequest(id=asked.id, label=label)
            await serving.feedback(by_token if i % 2 else FeedbackRequest(features=x, label=label))
        model = replica.learner.serving
        own = [(model.predict({"a": x}).probabilities or {})[True] for x in (-2.0, 0.0, 1.0)]
        seen[on] = [one.prediction for one in said], own
        assert (part is not None) == on
        if part is not None:
            assert part.on, part.summary()
            assert part.summary()["n"] == 400
            request = PredictRequest(features={"a": 1.0}, explain=True)
            explained = await serving.explained(request)
            assert isinstance(explained, Prediction)
            shares, why = explained.probabilities, explained.explanation
            assert isinstance(shares, dict)
            assert isinstance(why, Explanation)
            odds = math.log(shares["true"] / shares["false"])
            assert why.output == pytest.approx(odds if why.of is True else -odds)
        journal = world.journal()
        rows = [r for p in journal.partitions("m") for r in journal.read(p.id, 1, 900)]
        sure = [codec.decode(one.payload).sure for one in rows]
        stamps[on] = {None if stamp is None else len(stamp) for stamp in sure}
        await replica.stop(1.0)

    for on in (True, False):
        worlds.play(tmp_path / str(on), partial(scene, on=on))
    assert seen[True][0] == seen[False][0], "no answer is another one"
    assert seen[True][1] == pytest.approx(seen[False][1], rel=1e-9), "nothing else was learned"
    assert stamps == {True: {5}, False: {None}}, "five bytes, and none for who does not ask"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"task": "regression", "learner": "linear"}, "has no probabilities"),
        ({"replay": {"policy": "balanced"}}, "distil: 0"),
    ],
)
def test_what_can_not_be_calibrated_is_refused(more: dict[str, object], said: str) -> None:
    given = {"name": "m", "task": "binary", "learner": "logreg", "calibrate": True}
    with pytest.raises(ValueError, match=said):
        ModelSettings.model_validate(given | more)
    assert CALIBRATION == "calibration"
