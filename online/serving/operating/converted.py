"""Reports what became of predictions that wait for a label, for the model's status."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from online.replica.replica import ModelReplica
from online.sure.views import delays_in
from replay.errors import ReplayError

_AHEAD_S: Final = 1e9  # includes halves whose clock was ahead
_OLDEST: Final = 64  # halves that are searched for the oldest prediction


async def conversions(
    replica: ModelReplica, journal: Mapping[str, Any] | None, read: Callable[..., Awaitable[Any]]
) -> dict[str, Any] | None:
    """Return the summary of late labels and waiting predictions; None: the model has no window.

    ``read`` runs an operation of the journal, which may not answer.
    """
    if (delays := delays_in(replica.learner.tally.views)) is None:
        return None
    waiting = None if journal is None else journal["waiting"]
    name, now_s, oldest_s = replica.settings.name, replica.now_s(), None
    with contextlib.suppress(ReplayError, TimeoutError):
        step = replica.store.journal.predicted
        halves = (await read(name, step, name, -1.0, now_s + _AHEAD_S, _OLDEST)).waiting
        oldest_s = max(now_s - halves[0][1].at, 0.0) if halves else None
    return {**delays.summary(), "waiting": waiting, "oldest_s": oldest_s}
