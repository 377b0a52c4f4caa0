"""Contributions of a row's features to its answer, by weights or by predictions for parts of it.

A *path* starts with the prediction for an empty row and adds the row's features one by one.  The
change of the prediction at a feature is its contribution on that path, so for any model the
contributions on a path and the start add up to the answer.  A model that is additive in log odds
(logistic regression, softmax, FTRL; a linear model in regression) has the same contributions on
every path, which one path and its reverse can show.  If contributions can be computed from the
weights, no predictions are made (:mod:`online.models.contributions.additive`); a mixture of such
models is attributed by its experts' weights (:mod:`online.models.contributions.attribution`).  For
any other model contributions are means over several paths and their reverses: an estimate of
Shapley values (Castro, Gómez and Tejada 2009, *Polynomial calculation of the Shapley value based on
sampling*).  A tree handles an absent feature in its own way; in a network it counts as its mean,
which is 0 after standardisation.

The paths are determined by the row, so the same row and model always give the same result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Sequence
from typing import Final, TypeVar

import msgspec

from evaluation.metrics import LOG_CLIP
from online.errors import OnlineError
from online.models.base import Model, Prediction
from online.models.contributions.additive import explained
from replay.example import Features, Label

EXACT: Final = 1e-9
"""Relative difference up to which the contributions of two paths count as equal."""

Ask = Callable[[Sequence[Features]], Sequence[Prediction]]
_T = TypeVar("_T")
Steps = Generator[None, int, _T]


class NotExplained(OnlineError):
    """The model can't predict a part of the row, or gives no number for it."""

    reason: str
    text = "this answer can't be explained: {reason}"


class Contributions(msgspec.Struct, frozen=True):
    """The contributions of a row's features to its answer.

    Attributes:
        base: The answer to an empty row: log odds of the label, or a number in regression.
        output: The answer to the row, in the same unit.
        added: Contribution of each feature; with ``base`` they add up to ``output``.
        exact: Whether they come from weights, or are the same for every order of the features.
        paths: Number of orders that were evaluated.
    """

    base: float
    output: float
    added: dict[str, float]
    exact: bool
    paths: int


def added_up(model: Model, features: Features) -> tuple[Prediction, Contributions] | None:
    """Predict a row with contributions from the model's weights; None if it is not additive.

    Raises NotExplained.
    """
    if (explanation := explained(model, features)) is None:
        return None
    answer, terms = explanation
    if terms is None:
        raise NotExplained("it knows no label yet")
    if not math.isfinite(sum(terms.added.values(), terms.base)):
        raise NotExplained("what it adds up is no number")
    return answer, Contributions(*terms, True, 0)


def contributions(
    ask: Ask,
    features: Features,
    label: Label | None,
    *,
    asks_max: int,
    in_time: Callable[[], bool] = lambda: True,
) -> Contributions:
    """Run all steps of :func:`explaining`."""
    steps = explaining(ask, features, label, asks_max=asks_max, in_time=in_time)
    next(steps)
    while True:
        try:
            steps.send(asks_max)
        except StopIteration as done:
            result: Contributions = done.value
            return result


def explaining(
    ask: Ask, features: Features, label: Label | None, *, asks_max: int, in_time: Callable[[], bool]
) -> Steps[Contributions]:
    """Compute contributions to the log odds of ``label`` (None: to the number) in steps.

    Send the number of rows for the next step into the generator.

    Parameters:
        ask: Predicts rows; it must use the same model throughout.
        features: The row.
        label: The label whose log odds are explained; None in regression.
        asks_max: Most rows to predict, at least twice the number of features.
        in_time: Called before each further pair of paths: whether there is time for it.

    Raises NotExplained.
    """
    names = list(features)
    draw = random.Random(len(names))
    orders, sums, exact = [names, names[::-1]], dict.fromkeys(names, 0.0), False
    base, output = yield from _outputs(ask, [{}, features], label)
    evaluations = paths = 0
    while True:
        pair: list[dict[str, float]] = []
        for order in orders:
            pair.append((yield from _path(ask, features, order, (base, output), label)))
        evaluations += len(orders) * (len(names) - 1)
        for gains in pair:
            paths += 1
            for name, gain in gains.items():
                sums[name] += gain
        if paths == len(orders):
            bound = EXACT * max(1.0, abs(base), abs(output))
            exact = all(abs(pair[0][name] - pair[1][name]) <= bound for name in names)
        if exact or evaluations + 2 * len(names) > asks_max or not in_time():
            break
        order = draw.sample(names, len(names))
        orders = [order, order[::-1]]
    added = pair[0] if exact else {name: total / paths for name, total in sums.items()}
    return Contributions(base, output, added, exact, paths)


def _path(
    ask: Ask,
    features: Features,
    order: Sequence[str],
    ends: tuple[float, float],
    label: Label | None,
) -> Steps[dict[str, float]]:
    """Return the contribution of each feature if they are added in this order."""
    part: Features = {}
    parts: list[Features] = []
    for name in order[:-1]:
        part = {**part, name: features[name]}
        parts.append(part)
    outputs = [ends[0], *(yield from _outputs(ask, parts, label)), ends[1]]
    steps = zip(order, outputs, outputs[1:], strict=False)
    return {name: after - before for name, before, after in steps}


def _outputs(ask: Ask, rows: Sequence[Features], label: Label | None) -> Steps[list[float]]:
    outputs: list[float] = []
    while len(outputs) < len(rows):
        n = yield
        try:
            answers = ask(rows[len(outputs) : len(outputs) + n])
        except Exception as error:  # a user's model may raise anything
            reason = f"{type(error).__name__}: {error}"[:200]
            raise NotExplained(f"it raises on a part of the row: {reason}") from error
        outputs += [_output(answer, label) for answer in answers]
    if not all(map(math.isfinite, outputs)):
        raise NotExplained("its answer to a part of the row is no number")
    return outputs


def _output(answer: Prediction, label: Label | None) -> float:
    """Return the log odds of the label, or the predicted number."""
    shares = answer.probabilities
    if shares is None:
        if label is None and isinstance(answer.label, float):
            return answer.label
        raise NotExplained("it answers labels without probabilities")
    if label is None or label not in shares:
        raise NotExplained("it gives a part of the row no probability of the label")
    p = shares[label]
    rest = sum([q for other, q in shares.items() if other != label])
    return math.log(max(p, LOG_CLIP)) - math.log(max(rest, LOG_CLIP))
