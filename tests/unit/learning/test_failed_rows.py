"""After a row that the model raised on: what is mended is what all values would have made of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from river import compose, linear_model, optim, preprocessing

from online.learning import merged as module
from online.learning.merged import Learner
from online.models.adapters.linear import Linear
from paramserver.core import wire
from replay import codec
from replay.example import Example
from replay.journal.base import Row, Verdict

NAMES = [f"x{i}" for i in range(12)]
BUILT = {name: 0.25 for name in NAMES[:4]}


class Picky(Linear):
    """Raises after all steps have learned, or before the first one has."""

    def learn(self, features: Any, label: Any, weight: float) -> None:
        if "worse" in features:
            raise ValueError("worse")
        super().learn(features, label, weight)
        if "bad" in features:
            raise ValueError("bad")


class Wary(Picky):
    """Notes how many numbers are put back."""

    most = 0

    def mend(self, values: Any, names: Any) -> None:
        Wary.most = max(Wary.most, sum(len(block.data) for block in values.values()))
        super().mend(values, names)


def _logistic(*before: Any) -> Callable[[], Picky]:
    def build() -> Picky:
        final = linear_model.LogisticRegression(optimizer=optim.SGD(0.1), initializer=None)
        steps = [type(step)() for step in before]
        pipeline = compose.Pipeline(*steps, final)
        if not before:
            for name, value in BUILT.items():
                final._weights[name] = value
            final.intercept = 0.5
        else:
            for i in range(5):
                pipeline.learn_one({name: float(i) for name in BUILT}, bool(i % 2))
        return Picky(pipeline)

    return build


def _softmax() -> Picky:
    final = linear_model.SoftmaxRegression(optimizer=optim.SGD(0.1))
    final.learn_one(dict(BUILT), 7)
    return Picky(compose.Pipeline(preprocessing.StandardScaler(), final))


BUILDS = {
    "plain": _logistic(),
    "standard": _logistic(preprocessing.StandardScaler()),
    "both": _logistic(preprocessing.MinMaxScaler(), preprocessing.StandardScaler()),
    "softmax": _softmax,
}


def _row(offset: int, r: random.Random, labels: tuple[Any, ...]) -> Row:
    names = r.sample(NAMES, r.randint(1, 5)) + r.choice([[], [], [], [], ["bad"], ["worse"]])
    features = {name: r.uniform(-2, 2) for name in names}
    label = r.choice(labels)
    payload = codec.encode(Example(features, label))
    key = offset.to_bytes(16, "big")
    return Row(0, 1, offset, key, str(offset), "s", Verdict.ACCEPTED, 1.0, payload, 1.0)


def _state(learner: Learner) -> Any:
    model: Any = learner.serving
    final = model._final._estimator
    parts: list[Any] = [learner.tally.counters, learner.tally.digest, learner.tally.seen]
    for scaler in (scaler._scaler for scaler in model._scalers):
        held = ("counts", "means", "vars") if hasattr(scaler, "counts") else ("min", "max")
        for numbers in (getattr(scaler, name) for name in held):
            parts.append({k: getattr(x, "get", lambda x=x: x)() for k, x in numbers.items()})
    if isinstance(final, linear_model.SoftmaxRegression):
        parts.append({label: _not_zero(weights) for label, weights in final.weights.items()})
    else:
        parts += [_not_zero(final._weights), final.intercept]
    return parts


def _not_zero(weights: Any) -> dict[str, float]:
    return {name: w for name, w in weights.items() if abs(w) > 1e-13}


def _different(a: Any, b: Any, place: str = "") -> str | None:
    """Where two states differ by more than rounding; None: nowhere."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{place}: {a.keys() ^ b.keys()}"
        a, b = [a[key] for key in a], [b[key] for key in a]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return place
        pairs = enumerate(zip(a, b, strict=True))
        return next(filter(None, (_different(*pair, f"{place}.{i}") for i, pair in pairs)), None)
    if isinstance(a, float) and isinstance(b, float):
        return None if math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) else f"{place}: {a}, {b}"
    return None if a == b else f"{place}: {a}, {b}"


def _play(build: Callable[[], Linear], seed: int, labels: tuple[Any, ...]) -> list[Any]:
    """States and deltas of a learner that meets bad rows, cuts, pushes and others' changes."""
    r = random.Random(seed)
    task: Any = "multiclass" if len(labels) > 2 else "binary"
    learner = Learner(build, task=task, spec="", retain_bytes=10**6, rows_max=8)
    learner.open_partition(1)
    found: list[Any] = []
    count, done = 0, 0

    def reply(kind: str, blocks: Any) -> None:
        more: dict[str, Any] = {"acks": [], "closed": [], "durable": {}, "orphans": []}
        learner.on_reply(
            wire.SyncReply(
                wire.FORMAT, spec="", epoch=1, count=count, kind=kind, blocks=blocks,
                clock={1: done}, confirmed_ms=0.0, **more,
            )
        )  # fmt: skip

    reply("all", {})
    for offset in range(1, 40):
        learner.learn(_row(offset, r, labels))
        found.append(_state(learner))
        if r.random() < 0.3:
            pushes = learner.pushes(9)
            found.append([[(n, b.data) for n, b in push.blocks.items()] for push in pushes])
            if pushes and r.random() < 0.5:
                count, done = count + 1, pushes[-1].last
                values = learner._pulled.with_deltas(learner._deltas.pending({}))
                blocks = {n: wire.WireBlock(b.kind, b.data) for n, b in values.items()}
                reply("all", blocks)
    return found


@pytest.mark.parametrize("name", BUILDS)
def test_mended_is_as_built_with_all_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: tuple[Any, ...] = (1, 2, 3, 7) if name == "softmax" else (False, True)
    mended = [_play(BUILDS[name], seed, labels) for seed in range(12)]
    monkeypatch.setattr(module, "Mendable", bytes)  # no model is one
    whole = [_play(BUILDS[name], seed, labels) for seed in range(12)]
    assert _different(mended, whole) is None


def test_only_what_rows_have_touched_is_put_back() -> None:
    learner = Learner(
        lambda: Wary(BUILDS["plain"]().estimator),
        task="binary",
        spec="",
        retain_bytes=0,
        rows_max=9,
    )
    learner.open_partition(1)
    values = {"weights": wire.WireBlock("additive", {f"key {i}": 1.0 for i in range(5_000)})}
    learner.on_reply(wire.SyncReply(wire.FORMAT, "", 1, 0, [], "all", values, {}, [], {}, [], 0.0))
    features = {"key 1": 1.0, "key 2": 1.0, "bad": 1.0}
    payload = codec.encode(Example(features, True))
    row = Row(0, 1, 1, bytes(16), "1", "s", Verdict.ACCEPTED, 1.0, payload, 1.0)
    assert learner.learn(row) is not None
    assert Wary.most == 2
    assert learner.serving.predict({"key 1": 0.0}).probabilities is not None
