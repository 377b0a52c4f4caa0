"""A row is told to the filters by its label, what the answer to it lost, and digests of it."""

from __future__ import annotations

import zlib
from math import log, log1p
from typing import Final

from paramserver.filters.base import Favour
from replay import codec
from replay.example import Example, label_text

_SHARE_MIN: Final = 1e-15
_TWO: Final = {"true", "false"}


def digests_of(example: Example) -> tuple[int | None, int | None]:
    """Digests of the whole row, and of its features.

    None of one that was there before, nor of a choice: it has one reward, and others like it are
    not the same again.
    """
    if example.corrects is not None or example.choice is not None:
        return None, None
    features = zlib.crc32(codec.encode(Example(example.features, "")))
    return zlib.crc32(label_text(example.sent_label).encode(), features), features


def said_of(example: Example, *, numbers: bool) -> str | None:
    """Return the label's JSON text, behind its side of the answer if labels are ``numbers``.

    None: such a number to which there was no answer.
    """
    text, score = label_text(example.sent_label), example.score
    if not numbers:
        return text
    if not score or "" not in score:
        return None
    return ("+" if float(example.sent_label) > score[""] else "-") + text


def other_of(example: Example, key: bytes, past: int) -> tuple[str, float] | None:
    """Return one of several labels that the row does not say, with the loss of it.

    Drawn by its key and the ``past``, of which the sender knows nothing: it may choose the key.
    """
    score = example.score
    if score is None or len(score) < 2 or score.keys() == _TWO:
        return None
    said = label_text(example.sent_label)
    others = [label for label in score if label != said]
    label = others[zlib.crc32(key, past) % len(others)]
    return label, -log(min(max(score[label], _SHARE_MIN), 1.0)) + 0.0


def favour_of(example: Example, rewards: tuple[float, float] | None) -> Favour | None:
    """Return what a reward says of its action; None if it is none, or of no choice."""
    if rewards is None or example.choice is None or not example.score or "" not in example.score:
        return None
    low, high = rewards
    rewarded = (float(example.label), example.score[""])
    reward, expected = (min(max((x - low) / (high - low), 0.0), 1.0) for x in rewarded)
    return Favour(zlib.crc32(str(example.features.get("@")).encode()), reward, expected)


def loss_of(example: Example, *, numbers: bool = False) -> float | None:
    """Return the loss of the answer given before the label was known; None if none was given.

    Log loss; the error where labels are ``numbers``, so that nothing hangs on their unit; the log
    of 1 + the error of a reward.  A label that the model did not know is no surprise.
    """
    score = example.score
    if not score:
        return None
    if "" in score:
        error = abs(score[""] - float(example.sent_label))
        return error if numbers else log1p(error)
    share = score.get(label_text(example.label))
    return None if share is None else -log(min(max(share, _SHARE_MIN), 1.0)) + 0.0
