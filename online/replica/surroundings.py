"""One model's process is given these by whoever starts it: a name, clocks, and whom to ask."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from online.tracing.trace import Crossing
from online.trust.trigger_watch import SearchResult
from online.watch.on_rise import Relearn
from paramserver.core.wire import SyncReply, SyncRequest
from replay.journal.base import Journal


class ParameterServerClient(Protocol):
    """The way to the parameter server."""

    async def sync(self, request: SyncRequest, timeout_s: float) -> SyncReply:
        """Push and pull in one step.  Raises ParamServerError, which says if it is definite."""


@dataclass(frozen=True)
class Clocks:
    """The clocks of a process; a test hands in its own.

    Attributes:
        now_s: Wall clock, POSIX seconds.  It may be set back: the process's time goes on.
        monotonic_s: Clock in seconds that is never set.
        cpu_s: It tells what writing down and loading a model costs; None: the monotonic clock does.
    """

    now_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic
    cpu_s: Callable[[], float] | None = None


@dataclass(frozen=True, slots=True)
class Who:
    """One process of one model, as others know it.

    Attributes:
        replica: Its name; a new one a start.
        spec: Hash of its model's spec.
        learns: False: another process learns what is written here.
    """

    replica: str
    spec: str
    learns: bool = True


@dataclass(frozen=True, slots=True)
class Outside:
    """All that a process asks beyond itself; what is None nobody does.

    Attributes:
        journal: The store.
        client: The parameter server.
        peers: Other replicas, asked for values by one that starts while the server can't be
            reached.
        ask: Has the parameter server do what it is asked by name (``recover``, ``freeze``) when the
            model has diverged (:mod:`online.watch.divergence`) or its error has risen.
        relearn: Has a fresh model taught by recent rows (:mod:`online.rebuild.relearn`).
        search: Has triggers searched for (:mod:`online.service.trigger_task`).
        crossing: Follows rows of traced requests to other replicas.
    """

    journal: Journal
    client: ParameterServerClient
    peers: ParameterServerClient | None = None
    ask: Callable[..., Awaitable[Mapping[str, Any]]] | None = None
    relearn: Relearn | None = None
    search: Callable[[], Awaitable[SearchResult]] | None = None
    crossing: Crossing | None = None
