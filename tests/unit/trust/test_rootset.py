"""Gradients of rows, and the root set that they are compared with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from online.errors import StartRefused
from online.models.adapters.linear import Linear
from online.models.base import Model
from online.models.gradients import HasGradient
from online.models.loading.load import logreg, mlp, softmax
from online.rows.validator import Validator
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.trust.filtering import filtering_for
from online.trust.root_set import RootSet, read

SURPRISE = (
    *(f"surprise{of}" for of in ("", " at true", " at false", " about true", " about false")),
    "unlikely",
)


def test_slopes_are_those_of_the_loss() -> None:
    """Answer less target, by each weight's number."""
    linear = Linear(softmax(scale=False))
    linear.learn({"a": 1.0, "b": 2.0}, 1, 1.0)
    linear.learn({"a": -1.0, "b": 2.0}, 0, 1.0)
    slope = linear.slope({"a": 1.0, "b": 3.0}, 1, None)
    shares = linear.predict({"a": 1.0, "b": 3.0}).probabilities
    assert shares is not None
    expected = sorted([shares[1] - 1, 3 * (shares[1] - 1), shares[0], 3 * shares[0]])
    assert sorted(slope[slope.nonzero()]) == pytest.approx(expected, rel=1e-6)
    made = mlp(inputs=["a", "b"], hidden=3, outputs=2, scale=False).model_for("multiclass")
    assert isinstance(made, HasGradient)
    network: Any = made
    x = {"a": 0.5, "b": -1.0}
    found = network.slope(x, 1, None)
    assert found is not None
    assert found.shape == (network.slope_size,)
    answer = network.predict(x).probabilities
    assert answer is not None
    bias = found.reshape(2, 4)[:, 3]
    assert bias == pytest.approx([answer[0], answer[1] - 1], rel=1e-5)
    assert network.slope(x, 9, None) is None


def validator() -> Validator:
    settings = ModelSettings(name="m", task="binary", learner="logreg")
    return Validator(settings, Limits(), numeric_only=True)


def root_of(path: Path, text: str, model: Model | None = None) -> RootSet:
    path.write_text(text)
    model = model or Linear(logreg())
    return RootSet(path, read(path, validator(), 40), lambda: model)


def test_root_sets_are_read_or_refused(tmp_path: Path) -> None:
    csv = tmp_path / "root.csv"
    good = "a,b,label\n" + "".join(f"{i},{i / 2},{i % 2}\n" for i in range(40))
    found = root_of(csv, good)
    assert found.problem is None
    assert found.summary()["classes"] == {"false": 20, "true": 20}
    assert root_of(csv, "\ufefflabel,a\n1,2\n").summary()["rows"] == 1  # as Excel writes it
    lines = tmp_path / "root.jsonl"
    assert root_of(lines, '{"features": {"a": 1}, "label": true}\n' * 2).summary()["rows"] == 2
    for text, why in (
        (good + "1,2,1\n", "more than 40 rows"),
        ("a,b\n1,2\n", "label"),
        ("a,label\nx,1\n", "row 1.a: a number is needed"),
        ("a,label\n1,3\n", "row 1"),
        ("a,label\n", "no rows"),
    ):
        with pytest.raises(StartRefused, match=why):
            root_of(csv, text)
    with pytest.raises(StartRefused, match="No such file"):
        read(tmp_path / "none.csv", validator(), 40)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a,label\n" + "1,1\n" * 20, "1 classes"),
        ("a,label\n1,1\n", "1 rows"),
        ("a,label\n" + "1,1\n" * 20 + "2,0\n", "only one row of class"),
    ],
)
def test_a_root_set_that_can_not_score_says_so(tmp_path: Path, text: str, why: str) -> None:
    found = root_of(tmp_path / "root.csv", text)
    assert why in str(found.problem)
    learner: Any = SimpleNamespace(serving=Linear(logreg()), clock={}, version=(1, 0))
    settings = ModelSettings(name="m", task="binary", learner="logreg")
    made = filtering_for(settings, learner, found, sources_max=100, vouched=False)
    assert made is not None
    assert made.summary()["tests"] == ["schema", "samples", *SURPRISE]
    assert why in made.summary()["root_set"]["problem"]


def test_which_tests_are_asked(tmp_path: Path) -> None:
    learner: Any = SimpleNamespace(serving=Linear(logreg()), clock={}, version=(1, 0))
    root = root_of(tmp_path / "r.csv", "a,label\n" + "".join(f"{i},{i % 2}\n" for i in range(40)))

    def tests(filters: Any, root: RootSet | None, *, vouched: bool) -> list[str]:
        settings = ModelSettings(name="m", task="binary", learner="logreg", filters=filters)
        made = filtering_for(settings, learner, root, sources_max=100, vouched=vouched)
        assert made is not None
        return list(made.summary()["tests"])

    assert tests("default", None, vouched=False) == ["schema", "samples", *SURPRISE]
    assert tests("default", None, vouched=True) == ["schema", "rate", "samples", *SURPRISE]
    every = ["schema", "rate", "samples", "norm", "direction", *SURPRISE]
    assert tests("default", root, vouched=True) == every
    assert tests(["surprise", "rate"], root, vouched=False) == ["schema", "rate", *SURPRISE]
