"""The facts of a row that the filters use: its label, the loss of its answer, and digests."""

from __future__ import annotations

import zlib
from math import log, log1p
from typing import Final

import msgspec

from paramserver.filters.base import Favour
from replay.example import Example, label_text

_SHARE_MIN: Final = 1e-15
_TWO: Final = {"true", "false"}
_encode: Final = msgspec.msgpack.Encoder().encode


def digests_of(example: Example) -> tuple[int | None, int | None]:
    """Return digests of the whole row and of its features, by which copies are detected.

    Both are None for a correction of an earlier row, and for a choice, since equal choices are
    not copies.
    """
    if example.corrects is not None or example.choice is not None:
        return None, None
    features = zlib.crc32(_encode(example.features))
    return zlib.crc32(label_text(example.sent_label).encode(), features), features


def reported_label(example: Example, *, numbers: bool) -> str | None:
    """Return the label as JSON text; with ``numbers``, prefixed by "+" or "-".

    The sign says whether the label is above or below the answer.  None for a number without an
    answer.
    """
    text = label_text(example.sent_label)
    if not numbers:
        return text
    error = _error_of(example)
    return None if error is None else ("+" if error > 0.0 else "-") + text


def _error_of(example: Example) -> float | None:
    """Return the label minus the answer; None if one of them is no number.

    Then one of them may be older than a change of the model's task.
    """
    answer, label = (example.score or {}).get(""), example.sent_label
    return None if answer is None or isinstance(label, bool | str) else label - answer


def unreported_label(example: Example, key: bytes, past: int) -> tuple[str, float] | None:
    """Draw one of the labels that the row does not report, and return it with its loss.

    The draw depends on the row's key and on ``past``, which the sender can't know: it may choose
    the key.  None unless there are at least two labels other than true and false.
    """
    score = example.score
    if score is None or len(score) < 2 or score.keys() == _TWO:
        return None
    reported = label_text(example.sent_label)
    others = [label for label in score if label != reported]
    label = others[zlib.crc32(key, past) % len(others)]
    return label, -log(min(max(score[label], _SHARE_MIN), 1.0)) + 0.0


def favour_of(example: Example, rewards: tuple[float, float] | None) -> Favour | None:
    """Return a reward with its action and expectation; None if the row is no rewarded choice."""
    if rewards is None or example.choice is None or not example.score or "" not in example.score:
        return None
    low, high = rewards
    rewarded = (float(example.label), example.score[""])
    reward, expected = (min(max((x - low) / (high - low), 0.0), 1.0) for x in rewarded)
    return Favour(zlib.crc32(str(example.features.get("@")).encode()), reward, expected)


def loss_of(example: Example, *, numbers: bool = False) -> float | None:
    """Return the loss of the answer given before the label was known; None without an answer.

    It is the log loss of a label; the absolute error if labels are ``numbers``; log(1 + absolute
    error) of a reward.  None also for a label that the model did not know.
    """
    score = example.score
    if not score:
        return None
    if "" in score:
        error = _error_of(example)
        if error is None:
            return None
        return abs(error) if numbers else log1p(abs(error))
    share = score.get(label_text(example.label))
    return None if share is None else -log(min(max(share, _SHARE_MIN), 1.0)) + 0.0
