"""Experts vote by how each one did of late.

The exponential weights of Littlestone and Warmuth 1994, see :mod:`online.models.selfrate`, with two
memories: two thirds of each vote are by the losses of late, a third is by those of a long time.
What is true of late is not so any more where labels come late; what always was may be over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from online.models.experts.linear import Floats
from paramserver.core.blocks import LOCAL, Block, Blocks, array_bytes, array_of

FADE: Final = 0.995
"""Of the losses at each label: a window of 1 / (1 − FADE) = 200 labels."""

LONG: Final = 1.0 - 1.0 / 3_000.0
"""The same of the long memory, a window of 3,000 labels."""

_LONG_SHARE: Final = 1.0 / 3.0  # of each vote

_LOSSES: Final = "losses"
_LASTING: Final = "lasting"


class Noted:
    """Notes have what so many experts answered: here is their form by its size in bytes.

    Half floats are exact enough to judge probabilities by.
    """

    def __init__(self, *experts: int) -> None:
        self.experts = experts
        self.halves = {2 * n: f"<{n}e" for n in experts}
        self.doubles = {8 * n: f"<{n}d" for n in experts}


class Mixture:
    """How the experts did of late, and what follows for their answers.

    ``sharp``: how much a difference of their losses counts.
    ``losses``, ``long``: each expert's of late, and those that fade by ``lasting`` at a label.
    """

    def __init__(self, experts: int, sharp: float = 1.0, lasting: float = LONG) -> None:
        self.losses = [0.0] * experts
        self.long = [0.0] * experts
        self._sharp, self._lasting = sharp, lasting
        self._judged = False  # since the cut

    def votes(self) -> list[float]:
        """Each expert's share in the answer."""
        return shares_of(self.losses, self.long, self._sharp)

    def of(self, answers: Sequence[float]) -> float:
        """The experts' answers mixed."""
        return mixed(self.votes(), answers)

    def judge(self, losses: Sequence[float], weight: float) -> None:
        """A label came.  One of weight w counts as w labels of weight 1."""
        lasting = self._lasting
        if weight == 1.0:
            self.losses = _faded(self.losses, losses, FADE)
            self.long = _faded(self.long, losses, lasting)
        else:
            self.losses = _weighed(self.losses, losses, weight, FADE)
            self.long = _weighed(self.long, losses, weight, lasting)
        self._judged = True

    def apart(self) -> Mixture:
        """A copy, to be judged by labels that may not count."""
        made = Mixture(0, self._sharp, self._lasting)
        made.take(self)
        return made

    def heard_as(self, other: Mixture) -> bool:
        """Whether the same experts have votes there."""
        return True

    def take(self, other: Mixture) -> None:
        """Labels came after which all is as in the other one."""
        self.losses, self.long, self._judged = other.losses, other.long, True

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
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
            always = values.get(_LASTING, block)  # versions before have kept no others
            self.long = array_of(always.data).tolist()


def shares_of(losses: Sequence[float], long: Sequence[float], sharp: float) -> list[float]:
    """Return votes of experts with these losses, of late and of a long time; they sum to 1."""
    exp = math.exp
    least, lowest = min(losses), min(long)
    if len(losses) == 4:  # written out: each answer of a linear model asks it
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
        p, q = (1.0 - _LONG_SHARE) / (a + b + c + d), _LONG_SHARE / (e + f + g + h)
        return [p * a + q * e, p * b + q * f, p * c + q * g, p * d + q * h]
    lately = [exp(sharp * (least - loss)) for loss in losses]
    always = [exp(sharp * (lowest - loss)) for loss in long]
    a, b = (1.0 - _LONG_SHARE) / sum(lately), _LONG_SHARE / sum(always)
    return [a * x + b * y for x, y in zip(lately, always, strict=True)]


def _faded(kept: Sequence[float], losses: Sequence[float], z: float) -> list[float]:
    """Return what is kept after a label."""
    if len(kept) == 4:
        (a, b, c, d), (e, f, g, h) = kept, losses
        return [z * a + e, z * b + f, z * c + g, z * d + h]
    return [z * s + x for s, x in zip(kept, losses, strict=True)]


def _weighed(
    kept: Sequence[float], losses: Sequence[float], weight: float, fade: float
) -> list[float]:
    """Return what is kept after a label of this weight."""
    whole = fade**weight
    part = (1.0 - whole) / (1.0 - fade)
    return [whole * s + part * x for s, x in zip(kept, losses, strict=True)]


def mixed(votes: Sequence[float], answers: Sequence[float]) -> float:
    """The experts' answers mixed."""
    return sum([v * a for v, a in zip(votes, answers, strict=True)])


def logistic(x: float) -> float:
    """Return the probability of True for its log odds."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    power = math.exp(x)  # NaN too
    return power / (1.0 + power)


def softmax(outputs: Floats) -> Floats:
    """Return the probability that each expert gives each class: shape (experts, classes)."""
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


class Terms(NamedTuple):
    """Terms are what an answer begins with and what each feature adds: together its output.

    ``base`` and ``output`` are log odds of the answered label, or numbers in regression.
    """

    base: float
    output: float
    added: dict[str, float]
