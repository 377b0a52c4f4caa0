"""The scores of a choice's actions, and the notes of a choice, which travel in its token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from online.models.choices.action_counts import Counted
from online.models.experts.linear import Floats
from replay.example import NOTES_BYTES_MAX

_HALF: Final = np.dtype("<f2")
_HASH: Final = np.dtype("<u4")

CLIP: Final = 10.0
"""Bound on the importance weight (1 / propensity) of a row in estimates of policies."""


class Served(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The notes of a choice.

    Attributes:
        propensity: Probability with which the chosen action was drawn.
        answers: Each expert's expected reward of the chosen action, as half floats.
        allowed: Hashes of the allowed actions' ids, 32 bits each; empty: too many to store.
        tried: Probability of the chosen action under each candidate policy, by name.
    """

    propensity: float
    answers: bytes
    allowed: bytes = b""
    tried: dict[str, float] = {}

    def rivals(self, own: int) -> list[int] | None:
        """Return the hashes of the allowed actions; None if the notes do not have them."""
        if len(self.allowed) % _HASH.itemsize:
            return None
        hashes: list[int] = np.frombuffer(self.allowed, _HASH).tolist()
        return hashes if own in hashes else None

    def judged(self, experts: int) -> Floats | None:
        """Return the experts' answers; None if the notes do not have ``experts`` ones."""
        if len(self.answers) != experts * _HALF.itemsize:
            return None
        answers = np.frombuffer(self.answers, _HALF).astype(np.float64)
        return answers if np.isfinite(answers).all() else None

    def weighs(self, clip: float) -> float:
        """Return the importance weight 1 / propensity, at most ``clip``."""
        return min(1.0 / self.propensity, clip) if 0.0 < self.propensity <= 1.0 else 1.0

    def credits(self, y: float, expected: float) -> dict[str, float]:
        """Return the importance-weighted gain of each candidate policy, by name.

        The gain is that of reward ``y`` over the ``expected`` one.  The key ``""`` has the squared
        difference between the greatest and the least gain.
        """
        if not 0.0 < self.propensity <= 1.0 or not self.tried:
            return {}
        gain = (y - expected) * min(1.0 / self.propensity, CLIP)
        gains = {name: gain * min(max(p, 0.0), 1.0) for name, p in self.tried.items()}
        apart = max(gains.values()) - min(gains.values())
        return {**gains, "": apart * apart}


_NOTES: Final = msgspec.msgpack.Decoder(Served)


def served_of(notes: bytes) -> Served | None:
    """Decode the notes of a choice; None if they have another form."""
    try:
        return _NOTES.decode(notes)
    except (msgspec.MsgspecError, ValueError):
        return None


def unanswered(notes: bytes) -> bytes | None:
    """Return a choice's notes without the experts' answers; None if they have another form."""
    if (served := served_of(notes)) is None:
        return None
    return msgspec.msgpack.encode(msgspec.structs.replace(served, answers=b""))


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The expected rewards of the actions of one choice.

    Attributes:
        low, range: Least reward, and greatest − least.  Other rewards here are scaled to [0, 1].
        ids: Hashes of the actions' ids.
        answers: Expected reward by expert and action: shape (experts, actions).
        votes: Weight of each expert in the mixture; they sum to 1.
        shares: Expected reward of each action by the mixture.
        variances: Variance of each action's expected reward by its features, in logits; infinite if
            the actions have no features.
        arms: Reward counts of each action, whatever the context.
        context: Whether the context has any features.
        tried: Sums over past rewards by candidate policy, for the policies to interpret.
        of_model: By action, notes of another model that gave the scores; empty: there is none.
    """

    low: float
    range: float
    ids: Sequence[int]
    answers: Floats
    votes: Floats
    shares: Floats
    variances: Floats
    arms: Counted
    context: bool
    tried: Mapping[str, float]
    of_model: Sequence[bytes | None] = ()

    @property
    def means(self) -> Floats:
        """Return the expected reward of each action, in the unit of rewards."""
        means: Floats = self.low + self.range * self.shares
        return means

    def notes(
        self, chosen: int, propensity: float, allowed: Sequence[bool], tried: Mapping[str, float]
    ) -> bytes | None:
        """Return the notes that come back to the model with the chosen action's reward."""
        if self.of_model:
            return self.of_model[chosen]
        hashes = self.ids
        if not all(allowed):
            hashes = [one for one, free in zip(self.ids, allowed, strict=True) if free]
        served = Served(
            propensity,
            self.answers[:, chosen].astype(_HALF).tobytes(),
            np.array(hashes, _HASH).tobytes(),
            dict(tried),
        )
        packed = msgspec.msgpack.encode(served)
        if len(packed) > NOTES_BYTES_MAX:
            packed = msgspec.msgpack.encode(msgspec.structs.replace(served, allowed=b""))
        return packed
