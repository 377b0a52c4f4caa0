"""Contributions of features in mixtures of linear experts, from one pass over the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from online.models.auto import SeveralViews
from online.models.base import Prediction
from online.models.contributions.attribution import binary_factors, class_factors, log_odds
from online.models.experts.exponential_weights import Terms, logistic, mixed
from online.models.experts.linear import EXPERTS
from online.models.selfrate import Binary, Multiclass, Regression, SelfRateModel
from replay.example import Features, Label

_Contributed = tuple[Prediction, float, float, Any]
"""The answer, its base and output (see ``Terms``), and the factor of each expert's output."""


def explained(model: SelfRateModel, features: Features) -> tuple[Prediction, Terms | None]:
    """Predict a row with its features' contributions; None for these if no label is known."""
    words, numbers = _parted(model, features)
    row, views = model._views(words, numbers)
    nothing = model._read({}, learns=False)
    if isinstance(model, Binary):
        answer, base, output, worths = _of_two(model, row, nothing)
    elif isinstance(model, Regression):
        answer, base, output, worths = _of_number(model, row, nothing)
    else:
        assert isinstance(model, Multiclass)
        if not model._experts.labels:
            return model._answer(row), None
        answer, base, output, worths = _of_classes(model, row, nothing)
    added = dict.fromkeys(features, 0.0)
    for i, view in enumerate(views):
        if view is not None:
            own = worths[EXPERTS * i : EXPERTS * (i + 1)]
            experts = (
                model._experts_of(i, row) if isinstance(model, SeveralViews) else model._experts
            )
            experts.add_contributions(view, own, added)
    return answer, Terms(base, output, added)


def _parted(
    model: SelfRateModel, features: Features
) -> tuple[list[tuple[str, str]], dict[str, float]]:
    """Return feature and hashed key of each non-number, and the scaled numbers by name."""
    words: list[tuple[str, str]] = []
    numbers: dict[str, Any] = {}
    for name, value in features.items():
        if value is None or isinstance(value, (str, bool)):
            words += [(name, key) for key in model.words.keys(name, value)]
        else:
            numbers[name] = value
    scaler = model._rows.scaler
    return words, numbers if scaler is None else scaler.transform(numbers)


def _of_two(model: Binary, row: Any, nothing: Any) -> _Contributed:
    after, before = model._outputs(row), model._outputs(nothing)
    shares, votes = [logistic(z) for z in after], model._mixture.votes()
    answer = model._said(shares, mixed(votes, shares))
    return answer, *binary_factors(votes, before, after, shares, up=answer.label is True)


def _of_classes(model: Multiclass, row: Any, nothing: Any) -> _Contributed:
    """The correction by recent labels belongs to the base, since it is the same for all rows."""
    answer, plain = model._answer(row), model._answer(row, corrects=False).probabilities
    assert answer.label is not None
    assert answer.probabilities is not None
    assert plain is not None
    ends, shown = _ends(plain, answer.label), _ends(answer.probabilities, answer.label)
    before, after = (model._take(x, learns=False).outputs() for x in (nothing, row))
    column, votes = model._experts.labels[answer.label], np.array(model._mixture.votes())
    base, output, worths = class_factors(votes, before, after, column, ends)
    by = log_odds(*shown) - log_odds(*ends)
    return answer, base + by, output + by, worths


def _ends(shares: Mapping[Label, float], label: Label) -> tuple[float, float]:
    """Return the probabilities of the label and of all others."""
    return shares[label], sum([p for other, p in shares.items() if other != label])


def _of_number(model: Regression, row: Any, nothing: Any) -> _Contributed:
    """The newest label belongs to the base, since it is the same for all rows."""
    answer, votes, newest = model._answer(row), model._mixture.votes(), model._newest
    assert isinstance(answer.label, float)
    scale = model._spread() * (1.0 - newest.share)
    worths: Sequence[float] = [vote * scale for vote in votes]
    return answer, newest.mixed_in(mixed(votes, model._numbers(nothing))), answer.label, worths
