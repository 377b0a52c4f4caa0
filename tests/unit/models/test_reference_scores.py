"""The published scores of plain river, and the adapters beside it, row by row."""

from __future__ import annotations

import gzip
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from plain_runs import last_label, progressive
from river import feature_extraction, linear_model, optim, preprocessing

from evaluation.errors import StreamUnusable
from evaluation.metrics import increments, summarise
from evaluation.streams import Stream, open_stream
from online.models.adapters.linear import Linear
from online.models.adapters.opaque import Opaque
from online.models.base import Model
from online.models.ftrl import Ftrl
from paramserver.core.blocks import Blocks, copy, merge, select
from replay.example import Features, Label

ROWS = 4_000
MERGE_EVERY = 16


def _real(name: str) -> Stream:
    directory = os.environ.get("ONLINE_DATA_DIR")
    try:
        return open_stream(name, Path(directory) if directory else None)
    except StreamUnusable as error:
        pytest.skip(str(error))


def _scaled(final: Any) -> Any:
    return preprocessing.StandardScaler() | final


def logistic(rate: float = 0.05) -> Any:
    return _scaled(linear_model.LogisticRegression(optim.SGD(rate)))


def softmax() -> Any:
    return _scaled(linear_model.SoftmaxRegression(optim.SGD(0.05)))


def alma() -> Any:
    return _scaled(linear_model.ALMAClassifier())


def _balanced(pairs: list[tuple[bool, bool]]) -> float:
    """Mean of the shares of right answers among each of two labels."""
    by = [[p == y for p, y in pairs if y is label] for label in (False, True)]
    return sum(sum(right) / len(right) for right in by) / 2


@pytest.mark.data
def test_ftrl_on_texts_beside_rivers_bag_of_words() -> None:
    """Spam in text messages, 747 of 5,574; river's learner at its best of four rates."""
    place = Path(os.environ.get("ONLINE_DATA_DIR") or "") / "sms_spam"
    files = sorted(place.glob("*.gz"))
    if not files:
        pytest.skip("no sms_spam in ONLINE_DATA_DIR")
    with gzip.open(files[0], "rt", encoding="utf-8") as lines:
        rows = [(text.rstrip("\n"), label == "spam") for label, _, text in
                (line.partition("\t") for line in lines)]  # fmt: skip
    assert len(rows) == 5574
    own = Ftrl(text=["text"]).model_for("binary")
    plain = feature_extraction.BagOfWords(lowercase=True) | linear_model.LogisticRegression(
        optim.SGD(0.5)
    )
    found: list[list[tuple[bool, bool]]] = [[], []]
    for text, label in rows:
        found[0].append((bool(own.predict({"text": text}).label), label))
        own.learn({"text": text}, label, 1.0)
        found[1].append((bool(plain.predict_one(text)), label))
        plain.learn_one(text, label)
    assert _balanced(found[0]) >= _balanced(found[1]) > 0.92


@pytest.mark.data
@pytest.mark.parametrize(
    ("stream", "build", "accuracy"),
    [
        ("elec2", lambda: logistic(0.005), 0.8221),
        pytest.param("elec2", logistic, 0.8768, marks=pytest.mark.long),
        pytest.param("elec2", alma, 0.9064, marks=pytest.mark.long),
        pytest.param("insects", softmax, 0.7743, marks=pytest.mark.long),
    ],
    ids=["logistic .005", "logistic .05", "alma", "softmax"],
)
def test_plain_river_reproduces(stream: str, build: Callable[[], Any], accuracy: float) -> None:
    data = _real(stream)
    run = progressive(build(), data.rows)
    assert round(run.accuracy, 4) == accuracy
    assert len(run.probabilities) == data.n_rows


@pytest.mark.data
@pytest.mark.parametrize(("stream", "accuracy"), [("elec2", 0.8533), ("insects", 0.3659)])
def test_the_last_label_rule_reproduces(stream: str, accuracy: float) -> None:
    assert round(last_label(_real(stream).rows), 4) == accuracy


def worst_difference(
    plain: Any, model: Model, rows: Iterable[tuple[Features, Label]]
) -> tuple[float, int]:
    """Greatest difference of a probability from plain river's, merging every few rows; n."""
    values, worst, n = Blocks(), 0.0, 0
    for features, label in rows:
        expected = plain.predict_proba_one(features)
        got = model.predict(features).probabilities
        assert got is not None
        assert got.keys() == expected.keys()
        worst = max([worst, *(abs(p - got[k]) for k, p in expected.items())])
        plain.learn_one(features, label)
        model.learn(features, label, 1.0)
        n += 1
        if n % MERGE_EVERY == 0:
            touched = merge(values, model.cut())
            model.rebase(copy(select(values, touched)))
        if n % (100 * MERGE_EVERY) == 0:
            model.reset(copy(values))
    return worst, n


@pytest.mark.data
@pytest.mark.parametrize(
    ("stream", "build"),
    [("elec2", logistic), ("elec2", alma), ("insects", softmax)],
    ids=["logistic", "alma", "softmax"],
)
def test_adapters_answer_as_plain_river(stream: str, build: Callable[[], Any]) -> None:
    rows = itertools.islice(_real(stream).rows, ROWS)
    model: Model
    if build is alma:
        model = Opaque(build(), task="binary", key=b"k" * 32, why_not_mergeable="ALMA")
    else:
        model = Linear(build())
    worst, n = worst_difference(build(), model, rows)
    assert n == ROWS
    assert worst <= 1e-9


def test_adapters_answer_as_plain_river_on_bundled_streams() -> None:
    worst, n = worst_difference(logistic(), Linear(logistic()), open_stream("phishing").rows)
    assert n == 1250
    assert worst <= 1e-9
    worst, _ = worst_difference(
        softmax(), Linear(softmax()), itertools.islice(open_stream("image-segments").rows, 800)
    )
    assert worst <= 1e-9


def test_a_lossy_merge_is_noticed() -> None:
    """Negative control: one intercept step lost in each merge."""

    class Lossy(Linear):
        def cut(self) -> Blocks:
            blocks = super().cut()
            blocks.pop("intercept", None)
            return blocks

    worst, _ = worst_difference(logistic(), Lossy(logistic()), open_stream("bananas").rows)
    assert worst > 1e-3


@pytest.mark.data
def test_counters_give_the_same_scores_as_the_plain_runs() -> None:
    rows = list(itertools.islice(_real("elec2").rows, ROWS))
    run = progressive(logistic(), rows)
    counters: dict[str, float] = {}
    last: Label | None = None
    for (_, label), p in zip(rows, run.probabilities, strict=True):
        texts = {"false": p[False], "true": p[True]}
        predicted = max(p, key=p.__getitem__)
        for name, more in increments(
            "binary",
            label=label,
            predicted=predicted,
            probabilities=texts,
            no_change=last,
            majority=None,
        ).items():
            counters[name] = counters.get(name, 0) + more
        last = label
    metrics = summarise("binary", counters)
    assert metrics["accuracy"] == run.accuracy
    assert metrics["no_change"] == last_label(rows)
