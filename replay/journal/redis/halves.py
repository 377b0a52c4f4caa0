"""Lists stored halves of a Redis journal by their time of receipt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replay.journal.base import Half, Predicted, Stored
from replay.journal.redis import scripts


def predicted(
    run: Callable[..., Any], model: str, after: float, before: float, n: int
) -> Predicted:
    """Return predictions that wait for their label, see :class:`replay.journal.base.Journal`."""
    entries, upto, now = run(scripts.PREDICTED, model, repr(float(after)), repr(float(before)), n)
    waiting = tuple(
        (key, Stored(Half(half.decode()), named.decode(), source.decode(), payload, float(at)))
        for key, half, named, source, payload, at, _ in entries
    )
    ran_ms = tuple(max(int(now) - int(one[6]), 0) if one[6] else 0 for one in entries)
    return Predicted(waiting, float(upto) if upto else None, ran_ms)
