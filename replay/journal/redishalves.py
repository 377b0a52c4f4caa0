"""Halves of stored joins that a Redis journal keeps, listed by when they were taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replay.journal import redisscripts as scripts
from replay.journal.base import Half, Predicted, Stored


def predicted(
    run: Callable[..., Any], model: str, after: float, before: float, n: int
) -> Predicted:
    """Predictions that wait for their label: see :class:`replay.journal.base.Journal`."""
    found, upto = run(scripts.PREDICTED, model, repr(float(after)), repr(float(before)), n)
    waiting = tuple(
        (key, Stored(Half(half.decode()), named.decode(), source.decode(), payload, float(at)))
        for key, half, named, source, payload, at in found
    )
    return Predicted(waiting, float(upto) if upto else None)
