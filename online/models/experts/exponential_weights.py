"""Exponential weights: experts are mixed by their discounted losses.

The method is that of Littlestone and Warmuth 1994 (see :mod:`online.models.selfrate`), with two
discount factors: two thirds of each expert's weight follow from its recent losses, one third from
its long-run losses.  Recent losses mislead where labels are late; long-run losses mislead after a
change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from struct import pack, unpack
from typing import Final, NamedTuple

import numpy as np

from online.models.experts.linear import Floats
from paramserver.core.blocks import LOCAL, Block, Blocks, array_bytes, array_of
from replay.example import Example, label_text

FADE: Final = 0.995
"""Discount factor of the recent losses at each label: a window of 1 / (1 − FADE) = 200 labels."""

LONG: Final = 1.0 - 1.0 / 3_000.0
"""Discount factor of the long-run losses: a window of 3,000 labels."""

LONG_SHARE: Final = 1.0 / 3.0
"""Share of each weight that follows from the long-run losses, unless these say more."""

ERROR_MAX: Final = 4.0
"""Most that an expert's error counts, in median errors of the experts."""

UNANSWERED: Final = b"?"
"""Notes of an answer of several classes that was given before any label was known."""

_LOSSES: Final = "losses"
_LASTING: Final = "lasting"
_HALF: Final = np.dtype("<f2")
_LEAST: Final = -700.0  # the exponential of more than its negative is infinite
_WHOLE: Final = 1.01  # probabilities sum to 1 within rounding


class NotedClasses(NamedTuple):
    """The answers to a row of several classes, by class in the order of the row's score.

    Attributes:
        shares: Each expert's probability of each class.
        answer: The mixture's; None: the row has no valid score, or nothing to compare it with.
        corrected: The corrected answer (:mod:`online.models.experts.label_shift`); None: none.
        own: Index of the row's label; None: it was unknown then.
    """

    shares: Floats
    answer: Floats | None
    corrected: Floats | None
    own: int | None


class NotesFormat:
    """The ``struct`` formats of notes, which hold the experts' answers, by their size in bytes.

    Probabilities are stored as half floats, which is exact enough to compute losses.  With several
    classes the factors of the correction may follow, negative if the answer was corrected; with
    numbers two that :mod:`online.models.experts.newest_label` notes.
    """

    def __init__(self, *experts: int) -> None:
        self.experts = experts
        self.halves = {2 * n: f"<{n}e" for n in experts}
        self.doubles = {8 * n: f"<{n}d" for few in experts for n in (few, few + 2)}

    def probabilities(self, row: Example | None) -> Sequence[float] | None:
        """Return the experts' noted probabilities of True; None if the row has none."""
        return _unpack(self.halves, row)

    def of_classes(self, row: Example | None) -> NotedClasses | None:
        """Return what was answered to a row of several classes; None: nothing is noted."""
        if row is None or not row.score or row.notes is None:
            return None
        labels, text = list(row.score), label_text(row.label)
        rows, left = divmod(len(row.notes), len(labels) * _HALF.itemsize)
        if left or not {rows, rows - 1}.intersection(self.experts):
            return None
        shares = np.frombuffer(row.notes, _HALF).reshape(rows, -1).astype(np.float64)
        own = labels.index(text) if text in row.score else None
        if rows == self.experts[0]:  # of them alone no answer is judged
            return NotedClasses(shares, None, None, own)
        score = np.array([*row.score.values()])
        valid = bool(score.min() >= 0.0 and 0.0 < score.sum() <= _WHOLE)
        answer: Floats | None = score if valid else None
        corrected: Floats | None = None
        if rows not in self.experts:
            *_, factors = shares
            shares = shares[:-1]
            if valid and factors.all():
                if factors[0] > 0.0:
                    corrected = _whole(score * factors)
                else:
                    answer, corrected = _whole(score / -factors), score
        return NotedClasses(shares, answer, corrected, own)

    def of_numbers(self, numbers: Sequence[float]) -> bytes:
        """Return the notes with these numbers, for :meth:`numbers`."""
        return pack(self.doubles[8 * len(numbers)], *numbers)

    def numbers(self, row: Example | None) -> Sequence[float] | None:
        """Return the noted numbers, those of the experts first; None if the row has none."""
        return _unpack(self.doubles, row)


def class_losses(shares: Floats, own: int | None) -> Floats:
    """Return the loss of each row of probabilities; ``own`` is the true class, None: not there."""
    p = 0.0 if own is None else shares[:, own]
    brier = (shares * shares).sum(axis=1) + 1.0 - 2.0 * p
    losses: Floats = (2.0 * (p < shares.max(axis=1)) + brier) / 3.0
    return losses


def number_losses(errors: Sequence[float]) -> list[float]:
    """Return each expert's loss for its absolute error: relative to the median, from 0 to 1."""
    half, ordered = len(errors) // 2, sorted(errors)
    typical = (ordered[half - 1] + ordered[half]) / 2.0 + 1e-9
    return [min(error / typical, ERROR_MAX) / ERROR_MAX for error in errors]


def _whole(shares: Floats) -> Floats:
    """Return the probabilities divided by their sum."""
    whole: Floats = shares / shares.sum()
    return whole


def _unpack(forms: Mapping[int, str], row: Example | None) -> Sequence[float] | None:
    if row is None or (notes := row.notes) is None or len(notes) not in forms:
        return None
    return unpack(forms[len(notes)], notes)


class Mixture:
    """The discounted losses of the experts, and the weights that follow from them.

    Parameters:
        experts: Number of experts.
        sharp: Factor of the losses in the exponent: how strongly differences count.
        lasting: Discount factor of the long-run losses.

    Attributes:
        losses: Recent discounted loss of each expert.
        long: Long-run discounted loss of each expert.
    """

    def __init__(self, experts: int, sharp: float = 1.0, lasting: float = LONG) -> None:
        self.losses = [0.0] * experts
        self.long = [0.0] * experts
        self._sharp, self._lasting = sharp, lasting
        self._judged = False  # whether a loss was added since the cut

    def votes(self) -> list[float]:
        """Return the weight of each expert; they sum to 1."""
        return shares_of(self.losses, self.long, self._sharp)

    def of(self, answers: Sequence[float]) -> float:
        """Return the weighted mean of the experts' answers."""
        return mixed(self.votes(), answers)

    def judge(self, losses: Sequence[float], weight: float) -> None:
        """Add the experts' losses at a label.  A weight of w counts as w labels of weight 1."""
        lasting = self._lasting
        if weight == 1.0:
            self.losses = _faded(self.losses, losses, FADE)
            self.long = _faded(self.long, losses, lasting)
        else:
            self.losses = _weighed(self.losses, losses, weight, FADE)
            self.long = _weighed(self.long, losses, weight, lasting)
        self._judged = True

    def apart(self) -> Mixture:
        """Return a copy, for labels that may be discarded."""
        made = Mixture(0, self._sharp, self._lasting)
        made.take(self)
        return made

    def has_same_experts(self, other: Mixture) -> bool:
        """Return whether the other mixture uses the same experts."""
        return True

    def take(self, other: Mixture) -> None:
        """Set the losses to those of the other mixture."""
        self.losses, self.long, self._judged = other.losses, other.long, True

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        if not self._judged:
            return {}
        self._judged = False
        return {
            name: Block(LOCAL, array_bytes(np.array(losses)))
            for name, losses in ((_LOSSES, self.losses), (_LASTING, self.long))
        }

    def rebase(self, values: Blocks) -> None:
        """Take new values, unless labels were judged since the cut."""
        if not self._judged and (block := values.get(_LOSSES)) is not None:
            self.losses = array_of(block.data).tolist()
            always = values.get(_LASTING, block)  # older versions have no long-run losses
            self.long = array_of(always.data).tolist()


def shares_of(
    losses: Sequence[float], long: Sequence[float], sharp: float, share: float = LONG_SHARE
) -> list[float]:
    """Return the weights for recent losses and long-run losses; they sum to 1.

    ``share`` of each weight follows from the long-run losses.
    """
    exp = math.exp
    least, lowest = min(losses), min(long)
    if len(losses) == 4:  # unrolled: each answer of a linear model runs it
        a, b, c, d = losses
        a, b, c, d = (
            exp(sharp * (least - a)), exp(sharp * (least - b)),
            exp(sharp * (least - c)), exp(sharp * (least - d)),
        )  # fmt: skip
        e, f, g, h = long
        e, f, g, h = (
            exp(sharp * (lowest - e)), exp(sharp * (lowest - f)),
            exp(sharp * (lowest - g)), exp(sharp * (lowest - h)),
        )  # fmt: skip
        p, q = (1.0 - share) / (a + b + c + d), share / (e + f + g + h)
        return [p * a + q * e, p * b + q * f, p * c + q * g, p * d + q * h]
    lately = [exp(sharp * (least - loss)) for loss in losses]
    always = [exp(sharp * (lowest - loss)) for loss in long]
    a, b = (1.0 - share) / sum(lately), share / sum(always)
    return [a * x + b * y for x, y in zip(lately, always, strict=True)]


def _faded(kept: Sequence[float], losses: Sequence[float], z: float) -> list[float]:
    """Return the discounted losses after a label of weight 1."""
    if len(kept) == 4:
        (a, b, c, d), (e, f, g, h) = kept, losses
        return [z * a + e, z * b + f, z * c + g, z * d + h]
    return [z * s + x for s, x in zip(kept, losses, strict=True)]


def _weighed(
    kept: Sequence[float], losses: Sequence[float], weight: float, fade: float
) -> list[float]:
    """Return the discounted losses after a label of this weight."""
    whole = fade**weight
    part = (1.0 - whole) / (1.0 - fade)
    return [whole * s + part * x for s, x in zip(kept, losses, strict=True)]


def mixed(votes: Sequence[float], answers: Sequence[float]) -> float:
    """Return the weighted mean of the experts' answers."""
    return sum([v * a for v, a in zip(votes, answers, strict=True)])


def logistic(x: float) -> float:
    """Return the probability of True for its log odds."""
    if x > _LEAST:
        return 1.0 / (1.0 + math.exp(-x))
    power = math.exp(x)  # NaN too
    return power / (1.0 + power)


def softmax(outputs: Floats) -> Floats:
    """Return each expert's probability of each class: shape (experts, classes)."""
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def beside_unknown(outputs: Floats) -> Floats:
    """Return each expert's probability of each class beside an unknown class of output 0.

    Gradients are taken at these: by itself a class that is the only one known would have the
    probability 1, and nothing would be learned from its rows.
    """
    top = np.maximum(outputs.max(axis=-1, keepdims=True), 0.0)
    powers = np.exp(outputs - top)
    shares: Floats = powers / (powers.sum(axis=-1, keepdims=True) + np.exp(-top))
    return shares


def towards(shares: Floats, column: int) -> Floats:
    """Return the gradient at each output if the class of ``column`` is the true one."""
    slopes = shares.copy()
    slopes[:, column] -= 1.0
    return slopes


class Terms(NamedTuple):
    """An answer as a sum: ``output`` = ``base`` + Σ ``added``, the contributions by feature.

    The terms are log odds of the answered label, or in regression parts of the predicted number.
    """

    base: float
    output: float
    added: dict[str, float]
