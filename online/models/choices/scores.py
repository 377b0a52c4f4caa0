"""The scores of the actions of a choice, and what its notes keep of them."""

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
"""The most that one row weighs as evidence for a policy: 1 / propensity, cut."""


class Served(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The notes of a choice.

    Attributes:
        propensity: Probability with which the chosen action was drawn.
        answers: What each expert expected of it, as half floats.
        allowed: Hashes of the allowed actions' ids, 32 bits each; empty: too many.
        tried: By candidate policy, its probability of the chosen action.
    """

    propensity: float
    answers: bytes
    allowed: bytes = b""
    tried: dict[str, float] = {}

    def rivals(self, own: int) -> list[int] | None:
        """Hashes of the allowed actions; None if the notes do not say them."""
        if len(self.allowed) % _HASH.itemsize:
            return None
        found: list[int] = np.frombuffer(self.allowed, _HASH).tolist()
        return found if own in found else None

    def judged(self, experts: int, otherwise: Floats) -> Floats:
        """Return what the experts answered; ``otherwise`` if these are not so many answers."""
        if len(self.answers) != experts * _HALF.itemsize:
            return otherwise
        answers = np.frombuffer(self.answers, _HALF).astype(np.float64)
        return answers if np.isfinite(answers).all() else otherwise

    def weighs(self, clip: float) -> float:
        """Return 1 / propensity, at most ``clip``."""
        return min(1.0 / self.propensity, clip) if 0.0 < self.propensity <= 1.0 else 1.0

    def credits(self, y: float, expected: float) -> dict[str, float]:
        """Return what the reward adds to what is known of each candidate, by name.

        Importance-weighted gains over what was expected, and under ``""`` the square of how far
        apart they are.
        """
        if not 0.0 < self.propensity <= 1.0 or not self.tried:
            return {}
        gain = (y - expected) * min(1.0 / self.propensity, CLIP)
        found = {name: gain * min(max(p, 0.0), 1.0) for name, p in self.tried.items()}
        apart = max(found.values()) - min(found.values())
        return {**found, "": apart * apart}


_NOTES: Final = msgspec.msgpack.Decoder(Served)


def served_of(notes: bytes) -> Served | None:
    """Read a choice's notes; None if they are not ours."""
    try:
        return _NOTES.decode(notes)
    except (msgspec.MsgspecError, ValueError):
        return None


def unanswered(notes: bytes) -> bytes | None:
    """A choice's notes without what the experts expected; None if they are not ours."""
    if (served := served_of(notes)) is None:
        return None
    return msgspec.msgpack.encode(msgspec.structs.replace(served, answers=b""))


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Expectations of the actions of one choice.

    Attributes:
        low, range: Least reward, and the greatest one less it; all else is in shares of the range.
        ids: Hashes of the actions' ids.
        answers: What each expert expects of each action: shape (experts, actions).
        votes: Each expert's vote in the mixture; they sum to 1.
        shares: The mixture: expected reward of each action.
        met: Variance of what is expected of each action by its features, in logits; infinite if it
            has none.
        arms: Rewards of each action, whatever the context.
        context: Whether there is any feature of the context.
        tried: What is known of candidate policies: sums that the policies make sense of.
        of_model: Notes of another model's answers, by action; empty: the notes are our own.
    """

    low: float
    range: float
    ids: Sequence[int]
    answers: Floats
    votes: Floats
    shares: Floats
    met: Floats
    arms: Counted
    context: bool
    tried: Mapping[str, float]
    of_model: Sequence[bytes | None] = ()

    @property
    def means(self) -> Floats:
        """Expected reward of each action, in the reward's own unit."""
        means: Floats = self.low + self.range * self.shares
        return means

    def notes(
        self, chosen: int, propensity: float, allowed: Sequence[bool], tried: Mapping[str, float]
    ) -> bytes | None:
        """Return what the model wants to be told again with the chosen action's reward."""
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
