"""The parameter server as a Ray actor: detached, named, restarted for ever, never retried.

Ray repeats no call (``max_task_retries=0``): whoever gets no answer sends the same pushes again,
and the server's clock knows them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from paramserver.actor import FindGone, ParameterServer, ServerSettings, identity
from paramserver.client import Client
from paramserver.errors import ParamServerError, ServerUnavailable
from paramserver.lineage import Lineage
from paramserver.sharing import Shard
from paramserver.store import Store

NAMESPACE: Final = "online"
_CONCURRENCY: Final = 8
_STATUS_S: Final = 10.0
_SNAPSHOT_S: Final = 60.0
_SHARD_S: Final = 1.0


def start_or_get(
    name: str,
    lineage: Lineage,
    open_store: Callable[[], Store],
    directory: str,
    settings: ServerSettings,
    find_gone: FindGone | None = None,
    *,
    shard: Shard | None = None,
    namespace: str = NAMESPACE,
) -> Callable[[], Any]:
    """The server of that name, which begins to start if there is none; a way to its handle.

    What is returned waits for the server, and gives its handle.  A running server of other code,
    spec, formats or settings publishes a snapshot and is replaced then.  It blocks for up to about
    a minute; not for an event loop.
    """
    given = lineage, open_store, directory, settings, find_gone
    made = partial(_create, name, namespace, given, shard)
    place = directory if shard is None else shard.place(directory)
    handle, wanted = made(), identity(lineage, place, settings)
    return lambda: _as_wanted(handle, wanted, made, partial(_exists, name, namespace))


def _as_wanted(
    handle: Any, wanted: str, made: Callable[[], Any], exists: Callable[[], bool]
) -> Any:
    if _identity_of(handle, wanted) == wanted:
        return handle
    try:
        ray.get(handle.snapshot.remote(), timeout=_SNAPSHOT_S)
    except RayError:
        pass  # what it has not published is sent again by the replicas, or learned again
    ray.kill(handle, no_restart=True)
    deadline = time.monotonic() + _SNAPSHOT_S
    while exists() and time.monotonic() < deadline:
        time.sleep(0.05)  # the name is free once Ray has seen the process end
    return made()


def ask_actor(names: Sequence[str], shard: int, method: str, *args: object) -> Any:
    """Ask another shard's server, for a second at most; raises whatever comes."""
    handle = ray.get_actor(names[shard], NAMESPACE)
    return ray.get(handle.shared.remote(method, *args), timeout=_SHARD_S)


def _create(name: str, namespace: str, given: tuple[Any, ...], shard: Shard | None) -> Any:
    actor = ray.remote(ParameterServer).options(
        name=name,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        num_cpus=0,
        max_concurrency=_CONCURRENCY,
    )
    return actor.remote(*given, **({} if shard is None else {"shard": shard}))


def _identity_of(handle: Any, wanted: str) -> str:
    """Identity that the server reports; ``wanted`` while it has not got so far itself."""
    status = ray.get(handle.status.remote(), timeout=_STATUS_S * 3)
    return status["identity"] or wanted


def _exists(name: str, namespace: str) -> bool:
    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True


class ParameterClient(Client):
    """A replica's way to a server that is an actor.  Use from one event loop.

    Parameters:
        name, namespace: Of the actor.  Its handle is looked up when needed, and again after the
            actor died.
    """

    def __init__(self, name: str, namespace: str = NAMESPACE) -> None:
        super().__init__(name)
        self._namespace = namespace
        self._handle: Any = None

    async def _call(self, method: str, args: tuple[object, ...]) -> Any:
        for last in (False, True):
            if self._handle is None:
                self._handle = await self._resolve()
            try:
                return await getattr(self._handle, method).remote(*args)
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, ParamServerError):
                    raise cause from None
                raise ServerUnavailable(self._name, f"it failed: {cause!r}") from error
            except ActorDiedError as error:
                self._handle = None  # a new actor may have the name
                if last:
                    raise ServerUnavailable(self._name, str(error)) from error
            except RayError as error:
                raise ServerUnavailable(self._name, f"{type(error).__name__}: {error}") from error
        raise AssertionError("the loop returns or raises")

    async def _resolve(self) -> Any:
        try:  # asks the cluster's control store: not on the event loop
            return await asyncio.to_thread(ray.get_actor, self._name, self._namespace)
        except ValueError as error:
            raise ServerUnavailable(self._name, "no actor has that name") from error
        except RayError as error:
            raise ServerUnavailable(self._name, f"{type(error).__name__}: {error}") from error
