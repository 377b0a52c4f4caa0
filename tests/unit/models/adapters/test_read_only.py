"""River's estimators that change when they are asked: asked without a trace, and the same."""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from river import (
    base,
    compose,
    ensemble,
    facto,
    feature_extraction,
    linear_model,
    preprocessing,
    rules,
    stats,
    utils,
)
from typer.testing import CliRunner

from evaluation.streams import open_stream
from online.commands.cli import app
from online.models.adapters.opaque import Opaque
from online.models.adapters.read_only import ReadOnlyUnpickler, surface
from online.models.errors import NotAnswered
from replay.example import Features, Label

Rows = list[tuple[Features, Label]]


def people(n: int = 200) -> Rows:
    """A person's group and what they pay, which depends on the group."""
    groups = ("Rom", "Bonn", "Oslo")
    return [
        (
            {"city": groups[i * i % 3], "age": float(i % 7), "card": f"c{i % 5}"},
            float(i * i % 3 + i % 7),
        )
        for i in range(n)
    ]


def labelled(rows: Rows) -> Rows:
    return [(x, float(y) > 3.0) for x, y in rows]


def real() -> Rows:
    return list(itertools.islice(open_stream("phishing").rows, 200))


def aggregates() -> Any:
    fx = feature_extraction
    return (
        (
            compose.Select("age")
            + fx.Agg("age", "city", stats.Mean())
            + fx.Agg("age", ["city", "card"], utils.Rolling(stats.Mean, 5))
            + fx.TargetAgg("card", stats.BayesianMean(2.0, 3.0))
        )
        | preprocessing.StandardScaler()
        | linear_model.LinearRegression()
    )


def groups() -> Any:
    scaled = compose.Select("age") | preprocessing.StandardScaler()
    return compose.Grouper(scaled, by="city") | linear_model.LinearRegression()


MODELS: dict[str, tuple[Callable[[], Any], str, Callable[[], Rows]]] = {
    "aggregates": (aggregates, "regression", people),
    "aggregates, ensemble": (
        lambda: ensemble.BaggingRegressor(aggregates(), n_models=2, seed=1), "regression", people,
    ),
    "groups, ensemble": (
        lambda: ensemble.BaggingRegressor(groups(), n_models=2, seed=1), "regression", people,
    ),
    "bayesian": (
        linear_model.BayesianLinearRegression, "regression",
        lambda: [({n: float(v) for n, v in x.items()}, float(y)) for x, y in real()],  # type: ignore[arg-type]
    ),
    "fm": (lambda: facto.FMRegressor(3, seed=1), "regression", people),
    "ffm": (lambda: facto.FFMRegressor(3, seed=1), "regression", people),
    "fwfm": (lambda: facto.FwFMRegressor(3, seed=1), "regression", people),
    "hofm": (lambda: facto.HOFMRegressor(3, 3, seed=1), "regression", people),
    "fm, classes": (lambda: facto.FMClassifier(3, seed=1), "binary", lambda: labelled(people())),
    "ffm, classes": (lambda: facto.FFMClassifier(3, seed=1), "binary", lambda: labelled(people())),
    "fm, real": (lambda: facto.FMClassifier(3, seed=1), "binary", real),
}  # fmt: skip


def served(estimator: Any, task: Any) -> Opaque:
    return Opaque(estimator, task=task, key=bytes(32), why_not_mergeable="x")


def answer(estimator: Any, x: Features) -> Any:
    """What river itself answers."""
    if isinstance(estimator, base.Classifier):
        return estimator.predict_proba_one(dict(x))
    return estimator.predict_one(dict(x))


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_and_answers_as_river_does(name: str) -> None:
    """Asked, then taught, row by row; of rows whose names it has met it answers the same."""
    make, task, rows = MODELS[name]
    plain, model = make(), served(make(), task)
    for i, (x, y) in enumerate(rows()):
        wanted = answer(plain, x) if i > 50 else None
        found = model.predict(x)
        if wanted is not None:
            shown = found.label if task == "regression" else found.probabilities
            assert shown == pytest.approx(wanted, abs=1e-9), i
        plain.learn_one(dict(x), y)
        model.learn(x, y, 1.0)
    for x, _ in rows()[:20]:
        shown = model.predict(x)
        assert (shown.label if task == "regression" else shown.probabilities) == pytest.approx(
            answer(plain, x), abs=1e-9
        )


@pytest.mark.parametrize("name", MODELS)
def test_asking_leaves_every_byte_as_it_was(name: str) -> None:
    make, task, rows = MODELS[name]
    model = served(make(), task)
    strange: list[Features] = [{}, {"city": "Kyiv"}, {"age": 3.0}, {"never": 1.0, "met": "x"}]
    strange += [{**x, "never": 1.0, "card": "new"} for x, _ in rows()[:5]]
    if "aggregates" in name or "groups" in name:  # river's Select and Grouper raise without them
        strange = [x for x in strange if {"age", "city"} <= x.keys() or name == "aggregates"]
        strange = [x for x in strange if "age" in x]
    for asked in ("before", "after"):
        before = pickle.dumps(model)
        for x in strange:
            assert model.predict(x).label is not None
        assert pickle.dumps(model) == before, asked
        for x, y in rows():
            model.learn(x, y, 1.0)


def test_without_that_they_would_change() -> None:
    """The control: river's own way of asking leaves a trace in each."""
    for name in ("aggregates", "bayesian", "fm", "ffm", "fwfm", "hofm"):
        make, _, rows = MODELS[name]
        estimator = make()
        for x, y in rows():
            estimator.learn_one(dict(x), y)
        before = pickle.dumps(estimator)
        new = {n: "new" if isinstance(v, str) else v for n, v in rows()[0][0].items()}
        answer(estimator, new)
        assert pickle.dumps(estimator) != before, name


def test_a_name_that_is_new_adds_nothing() -> None:
    machine = facto.FMRegressor(3, seed=1)
    for x, y in people():
        machine.learn_one(dict(x), y)
    known, _ = people()[0]
    model = served(machine, "regression")
    assert model.predict({**known, "new": 5.0}).label == model.predict(known).label
    assert surface(machine).weights is machine.weights, "what was learned is shared"


def test_rules_take_numbers_only(tmp_path: Path) -> None:
    assert served(rules.AMRules(), "regression").numeric_only
    assert not served(facto.FMRegressor(3), "regression").numeric_only


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            "a,t,label\n" + "1,x,2.5\n2,y,3.5\n3,y,1.25\n" * 60,
            "no splitter for texts: leave them out",
        ),
        ("a,b,label\n" + "1,3,2.5\n2,4,2.5\n" * 60, "variance of the labels of a leaf"),
    ],
)
def test_the_check_explains_their_errors(tmp_path: Path, rows: str, says: str) -> None:
    (tmp_path / "model.py").write_text(
        "from river import rules\n\ndef build():\n    return rules.AMRules(n_min=20)\n"
    )
    (tmp_path / "rows.csv").write_text(rows)
    done = CliRunner().invoke(
        app,
        ["models", "check", f"{tmp_path}/model.py:build", "--task", "regression",
         "--stream", f"{tmp_path}/rows.csv"],
    )  # fmt: skip
    assert done.exit_code == 1, done.output
    assert says in " ".join(done.output.split()), done.output


@pytest.mark.parametrize("name", ["aggregates, ensemble", "groups, ensemble"])
def test_an_ensemble_is_not_copied_for_an_answer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would take as long as it has groups: 0.13 s with three times 5,000."""
    make, task, rows = MODELS[name]
    model = served(make(), task)
    for x, y in rows():
        model.learn(x, y, 1.0)
    other = served(make(), task)
    other.reset(model.cut())  # the state of another process

    monkeypatch.setattr("online.models.adapters.read_only._READ_ONLY", {})
    plain = served(make(), task)

    def refused(_: Any) -> Any:
        raise AssertionError("copied")

    monkeypatch.setattr("copy.deepcopy", refused)
    for one in (model, other):
        assert one.predict(rows()[0][0]).label is not None
    with pytest.raises(NotAnswered, match="copied"):  # the control
        plain.predict(rows()[0][0])


def test_a_state_of_river_s_own_classes_is_read_only_when_it_is_read() -> None:
    stored = pickle.dumps((aggregates(), groups()))
    made = ReadOnlyUnpickler(io.BytesIO(stored)).load()
    text = pickle.dumps(made)
    for kind in (b"ReadOnlyAgg", b"ReadOnlyTargetAgg", b"ReadOnlyGrouper"):
        assert kind in text
        assert kind not in stored
