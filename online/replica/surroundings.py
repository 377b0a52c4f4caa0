"""The environment of one model's process: its identity, its clocks and the services it calls."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from online.replica.host_tables import HostTables
from online.telemetry.trace import Crossing
from online.trust.trigger_watch import SearchResult
from online.watch.on_rise import Relearn
from paramserver.core.wire import SyncReply, SyncRequest
from replay.journal.base import Journal


class ParameterServerClient(Protocol):
    """The connection to the parameter server."""

    async def sync(self, request: SyncRequest, timeout_s: float) -> SyncReply:
        """Push and pull in one step.  Raises ParamServerError, which says if it is definite."""


@dataclass(frozen=True)
class Clocks:
    """The clocks of a process; tests pass their own.

    Attributes:
        now_s: Wall clock, POSIX seconds.  It may be set back; the process's time never goes back.
        monotonic_s: Monotonic clock, in seconds.
        cpu_s: Processor clock that measures serializing and loading a model; None: use the
            monotonic clock.
    """

    now_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic
    cpu_s: Callable[[], float] | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of one process of one model.

    Attributes:
        replica: Its name, new at each start.
        spec: Hash of its model's spec.
        learns: False: another process learns what is written here.
        alone: No other process pulls what is learned here.
    """

    replica: str
    spec: str
    learns: bool = True
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Services:
    """The services that a process calls; None: not available.

    Attributes:
        journal: The store.
        client: The parameter server.
        peers: Other replicas, asked for values at a start while the server is unreachable.
        ask: Requests a named action (``recover``, ``freeze``) of the parameter server, when the
            model has diverged (:mod:`online.watch.divergence`) or its error has risen.
        relearn: Teaches a fresh model recent rows (:mod:`online.rebuild.relearn`).
        search: Searches for triggers (:mod:`online.service.on_ray.trigger_task`).
        crossing: Follows rows of traced requests to other replicas.
        tables: Tables that the parameter server of this host publishes.
    """

    journal: Journal
    client: ParameterServerClient
    peers: ParameterServerClient | None = None
    ask: Callable[..., Awaitable[Mapping[str, Any]]] | None = None
    relearn: Relearn | None = None
    search: Callable[[], Awaitable[SearchResult]] | None = None
    crossing: Crossing | None = None
    tables: HostTables | None = None
