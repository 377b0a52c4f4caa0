"""Rows that are learned in one pass leave exactly what one by one would have left."""

from __future__ import annotations

import inspect
import random
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from river import linear_model, optim, preprocessing

import online.models.adapters.linear
from online.learning.alike import alike
from online.learning.merged import Learner
from online.models.adapters.linear import Linear
from online.models.auto import Auto
from online.models.limited import LimitedScaler
from online.models.rewards import Rewards
from online.models.selfrate import SelfRate
from online.rows.prediction_ids import event_key
from paramserver.core.wire import FORMAT, SyncReply
from replay import codec
from replay.example import Example, Judged
from replay.journal.base import Row, Verdict

SPEC = "f" * 64


def logistic(lr: float = 0.05) -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(lr))


ESTIMATORS: dict[str, Callable[[], Any]] = {
    "logistic regression": logistic,
    "without a scaler": lambda: linear_model.LogisticRegression(optim.SGD(0.1)),
    "two scalers": lambda: preprocessing.StandardScaler() | logistic(),
    "weights that a gradient is cut for": lambda: (
        preprocessing.StandardScaler()
        | linear_model.LogisticRegression(optim.SGD(0.1), clip_gradient=0.2)
    ),
    "behind the limited scaler": lambda: (
        LimitedScaler() | linear_model.LogisticRegression(optim.SGD(0.05))
    ),
    "perceptron": lambda: preprocessing.StandardScaler() | linear_model.Perceptron(),
    "linear regression": lambda: (
        preprocessing.StandardScaler() | linear_model.LinearRegression(optim.SGD(0.01))
    ),
}


NOTING: dict[str, Callable[[], Any]] = {"linear": SelfRate, "auto": Auto, "rewards": Rewards}


def examples_of(rng: random.Random, n: int, task: str, *, light: float = 0.3) -> list[Example]:
    """Rows of the same names, whole numbers and truths among the numbers.

    ``light``: one of the weights; rows below 1 are never counted together.
    """
    names = rng.sample("abcdefgh", rng.randint(1, 8))
    made = []
    for _ in range(n):
        numbers = [rng.choice([rng.gauss(0, 3), 2.0, rng.randint(-3, 3), True]) for _ in names]
        label: Any = rng.gauss(0, 1) if task == "regression" else rng.random() < 0.4
        p = rng.choice([rng.random(), 0.5, 0.0, 1.0])
        score = {"": p} if task == "regression" else {"false": 1.0 - p, "true": p}
        no_change = rng.choice([None, label, 0.5 if task == "regression" else True])
        weight = rng.choice([1.0, 1.0, light, 2.5])
        features = dict(zip(names, numbers, strict=True))
        made.append(Example(features, label, weight, score, (1, 1, 0), 5.0, None, no_change))
    return made


def rows_of(rng: random.Random, examples: Sequence[Example], first: int) -> list[Row]:
    made = []
    steady = first % 2 == 0  # taken one after the other
    for i, example in enumerate(examples, first):
        verdict = rng.choice([Verdict.ACCEPTED, Verdict.CLIPPED])
        key, payload = event_key("event", "s", str(i)), codec.encode(example)
        factor = 0.5 if verdict is Verdict.CLIPPED else 1.0
        at = 10.0 + (i // 3 if steady else rng.randint(-3, 3))
        made.append(Row(i, 1, i, key, str(i), "s", verdict, factor, payload, at))
    return made


def built(estimator: str, task: Any) -> Any:
    if estimator in NOTING:
        return NOTING[estimator]().model_for(task)
    return Linear(ESTIMATORS[estimator]())


def learner_of(estimator: str, task: Any, *, compensates: bool = False) -> Learner:
    made = Learner(
        lambda: built(estimator, task), task=task, spec=SPEC, retain_bytes=1 << 20,
        rows_max=40, compensates=compensates,
    )  # fmt: skip
    made.open_partition(1)
    made.on_reply(SyncReply(FORMAT, "", 1, 0, [], "all", {}, {}, [], {}, [], 0.0))
    return made


def state_of(learner: Learner) -> list[Any]:
    """All that the learner has, deltas too."""
    pushes = [(p.first, p.last, p.n, p.blocks, p.curved) for p in learner.pushes(1000)]
    tally, bounds = learner.tally, learner.bounds
    return [
        pushes, learner.own, tally.counters, tally.digest, tally.seen, tally.newest(),
        tally.majority(), bounds._n, bounds._recent._spans, learner.known(),
        len(learner.vocabulary),
        {name: (h.low, h.high, h.rows, h.beyond, h.until) for name, h in bounds._ranges.items()},
    ]  # fmt: skip


def noted(rng: random.Random, learner: Learner, example: Example) -> Example:
    """The example of numbers alone, with what the model says that it wants to be told again."""
    features = {name: float(value or 0.0) for name, value in example.features.items()}
    notes = learner.predict(features).notes if rng.random() < 0.7 else None
    return msgspec.structs.replace(example, features=features, notes=notes)


@pytest.mark.parametrize("compensates", [False, True])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, *NOTING])
def test_one_pass_leaves_what_one_by_one_leaves(estimator: str, compensates: bool) -> None:
    task = "regression" if estimator == "linear regression" else "binary"
    for seed in range(3):
        rng, light = random.Random(seed), 1.5 if seed == 2 else 0.3
        one, many = (learner_of(estimator, task, compensates=compensates) for _ in range(2))
        offset, passes = 1, 0
        for _ in range(15):
            examples = examples_of(rng, rng.randint(1, 30), task, light=light)
            if estimator in NOTING:
                examples = [noted(rng, one, example) for example in examples]
            if rng.random() < 0.3:
                judged = Judged(0.5, "", {"surprise": 0.25})
                examples[0] = msgspec.structs.replace(examples[0], judged=judged)
            rows = rows_of(rng, examples, offset)
            offset += len(rows)
            for row in rows:
                assert one.learn(row) is None
            at = 0
            while at < len(rows):
                n = alike(rows[at:], examples[at:])
                learned = many.learn_alike(rows[at : at + n], examples[at : at + n]) if n else 0
                passes += learned > 1
                if not learned:
                    assert many.learn(rows[at], None, examples[at]) is None
                at += learned or 1
            asked = examples[-1].features
            assert one.predict(asked) == many.predict(asked)
            if rng.random() < 0.3:
                assert state_of(one) == state_of(many)
        assert state_of(one) == state_of(many)
        assert passes >= 5, "next to nothing was learned in one pass"


def test_a_row_that_can_not_be_learned_is_named_and_leaves_the_rest() -> None:
    rng = random.Random(1)
    learner = learner_of("without a scaler", "binary")
    learner.bounds.on = False
    (first,) = rows_of(rng, examples_of(rng, 1, "binary"), 1)
    assert learner.learn(first) is None
    names = codec.decode(first.payload).features
    good = Example(dict.fromkeys(names, 1.0), True, 1.0, {"false": 0.5, "true": 0.5})
    bad = Example(dict.fromkeys(names, 1e300), False, 1e200, {"false": 0.5, "true": 0.5})
    examples = [good, good, bad, good]
    rows = rows_of(rng, examples, 2)
    before = state_of(learner)
    assert learner.learn_alike(rows, examples) == 0
    assert state_of(learner) == before
    failed = [learner.learn(row) for row in rows]
    assert [i for i, one in enumerate(failed) if one is not None] == [2]
    assert learner.tally.digest[0] == 4


def test_rows_are_alike_by_the_order_of_their_names() -> None:
    plain = Example({"a": 1.0, "b": 2.0}, True)
    others = {
        "turned": Example({"b": 2.0, "a": 1.0}, True),
        "bounded": Example({"a": 1.0, "b": 2.0}, True, raw={"a": 9.0}),
        "unread": None,
    }
    rng = random.Random(1)
    rows = rows_of(rng, [plain] * 3, 1)
    assert alike(rows, [plain] * 3) == 3
    for other in others.values():
        assert alike(rows, [plain, other, plain]) == 1
    assert alike(rows, [None, plain, plain]) == 0
    quarantined = [msgspec.structs.replace(rows[0], verdict=Verdict.QUARANTINED), *rows[1:]]
    assert alike(quarantined, [plain] * 3) == 0


_MUTANTS = {
    "the intercept comes first": ("raw = 0.0\n", "raw = bias\n", "raw + bias)", "raw)"),
    "the gradient is not cut": ("float(max(min(slope, most), -most))", "float(slope)"),
    "the weight is forgotten": ("slope *= weight\n", "slope *= 1.0\n"),
}


@pytest.mark.parametrize("name", list(_MUTANTS))
def test_another_arithmetic_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = textwrap.dedent(inspect.getsource(online.models.adapters.linear._Glm.walk))
    changes = _MUTANTS[name]
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert source.count(old) == 1
        source = source.replace(old, new)
    names = dict(vars(online.models.adapters.linear))
    exec(compile(source, "<mutant>", "exec"), names)
    monkeypatch.setattr(online.models.adapters.linear._Glm, "walk", names["walk"])
    with pytest.raises(AssertionError):
        _compare_all()


def _compare_all() -> None:
    for estimator in ("logistic regression", "weights that a gradient is cut for"):
        test_one_pass_leaves_what_one_by_one_leaves(estimator, compensates=False)
