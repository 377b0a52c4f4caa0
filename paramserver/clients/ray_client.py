"""Parameter servers as named, detached Ray actors that are always restarted, and their client.

A server has an actor of its own, or shares one with those of other small models
(:mod:`paramserver.clients.hosted`).  Which ones share it is a list in Ray's control store, which
the actor reads again after a restart.  :func:`find` returns a handle in both cases.

Ray retries no call (``max_task_retries=0``).  A replica that gets no reply sends the same pushes
again, and the server's clock recognises those that were applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, Final

import ray
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.experimental import internal_kv

from paramserver.clients.client import Client
from paramserver.clients.hosted import Given, ParameterServers
from paramserver.errors import ParamServerError, ServerUnavailable
from paramserver.process.actor import FindGone, ParameterServer, ServerSettings, identity
from paramserver.process.lineage import Lineage
from paramserver.process.local_socket import MESSAGE_MAX, LocalConnection
from paramserver.process.sharing import Shard
from paramserver.store import Store

NAMESPACE: Final = "online"
_SHARED: Final = "ParameterServers"  # name of the actor of several servers, and of their list
_CONCURRENCY: Final = 8
_CONCURRENCY_SHARED: Final = 64
_STATUS_S: Final = 10.0
_SNAPSHOT_S: Final = 60.0
_END_S: Final = 2.0  # for the names of servers that were ended; Ray needs some milliseconds
_SHARD_S: Final = 1.0
_NEAR_S: Final = 1.0  # timeout of connecting to the local socket
_NEAR_AGAIN_S: Final = 30.0  # between two attempts, as the server may be on another machine


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
    """Start the server of that name unless it runs; return a function that waits for its handle.

    If a running server has other code, spec, formats or settings, that function makes it publish a
    snapshot and replaces it.  It may block for about a minute; do not call it on an event loop.
    """
    given = Given(lineage, open_store, directory, settings, find_gone)
    made = partial(_create, name, namespace, given, shard)
    place = directory if shard is None else shard.place(directory)
    handle, wanted = made(), identity(lineage, place, settings)
    return lambda: _as_wanted(handle, wanted, made, partial(exists, name, namespace))


def _as_wanted(
    handle: Any, wanted: str, made: Callable[[], Any], exists: Callable[[], bool]
) -> Any:
    if _identity_of(handle, wanted) == wanted:
        return handle
    try:
        ray.get(handle.snapshot.remote(), timeout=_SNAPSHOT_S)
    except RayError:
        pass  # replicas push what it has not published again, or learn it again
    return _replaced(handle, made, exists)


def _replaced(handle: Any, made: Callable[[], Any], exists: Callable[[], bool]) -> Any:
    _kill(handle, exists)
    return made()


def _kill(handle: Any, exists: Callable[[], bool]) -> None:
    """End an actor; returns when its name is free, which is when Ray has seen the process end."""
    ray.kill(handle, no_restart=True)
    _wait_gone(exists, _SNAPSHOT_S)


def _wait_gone(exists: Callable[[], bool], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def start_shared(given: Mapping[str, Given]) -> Callable[[str], Any]:
    """Start servers in the shared process unless they run; return what waits for a server's handle.

    A server there whose code, spec, formats or settings are others publishes a snapshot and is
    replaced; if the process has other code, the process is.  That function may block for about a
    minute; do not call it on an event loop.

    Parameters:
        given: By the server's name.  Servers that share the process already go on.
    """
    _note_shared({**_shared(), **given})
    handle = _create_shared()

    @cache
    def current() -> Any:
        found = ray.get(handle.take.remote(), timeout=_SNAPSHOT_S)
        if all(found.get(name) == one.identity() for name, one in given.items()):
            return handle
        with contextlib.suppress(RayError):  # what is not published is pushed or learned again
            ray.get(handle.publish.remote(), timeout=_SNAPSHOT_S)
        other = _replaced(handle, _create_shared, partial(exists, _SHARED))
        ray.get(other.take.remote(), timeout=_SNAPSHOT_S)
        return other

    return lambda name: _Hosted(current(), name)


def shared() -> Collection[str]:
    """Return the names of the servers that share a process."""
    return _shared().keys()


def find(name: str, namespace: str = NAMESPACE) -> Any:
    """Return the handle of the server of that name.  Raises ValueError if there is none."""
    try:
        return ray.get_actor(name, namespace)
    except ValueError:
        if name not in _shared():
            raise
    return _Hosted(ray.get_actor(_SHARED, NAMESPACE), name)


def end(names: Collection[str]) -> None:
    """End the servers of these names, if they run; what they have not published is lost.

    Returns when their names are free, so that whoever starts one again gets a new one.
    """
    for name in names:
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, NAMESPACE), no_restart=True)
    _wait_gone(lambda: any(exists(name) for name in names), _END_S)
    before = _shared()
    after = {name: given for name, given in before.items() if name not in names}
    if len(after) == len(before):
        return
    _note_shared(after)
    with contextlib.suppress(ValueError, RayError):  # RayError includes timeouts
        handle = ray.get_actor(_SHARED, NAMESPACE)
        if after:
            ray.get(handle.take.remote(), timeout=_STATUS_S)
        else:
            _kill(handle, partial(exists, _SHARED))


class _Hosted:
    """A handle of one of several servers in the shared process, used like that of an actor."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor, self._name = actor, name

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=partial(self._actor.ask.remote, self._name, method))


def _shared() -> dict[str, Given]:
    """The servers that have to run in the shared process, by name, from Ray's control store."""
    noted = internal_kv._internal_kv_get(_SHARED.encode(), namespace=NAMESPACE.encode())
    return dict(cloudpickle.loads(noted)) if noted else {}


def _note_shared(given: Mapping[str, Given]) -> None:
    noted = cloudpickle.dumps(dict(given))
    internal_kv._internal_kv_put(_SHARED.encode(), noted, namespace=NAMESPACE.encode())


def _create_shared() -> Any:
    return _always(ParameterServers, _SHARED, NAMESPACE, _CONCURRENCY_SHARED).remote(_shared)


def ask_actor(names: Sequence[str], shard: int, method: str, *args: object) -> Any:
    """Call another shard's server, with a timeout of a second; may raise anything."""
    handle = ray.get_actor(names[shard], NAMESPACE)
    return ray.get(handle.shared.remote(method, *args), timeout=_SHARD_S)


def _create(name: str, namespace: str, given: Given, shard: Shard | None) -> Any:
    actor = _always(ParameterServer, name, namespace, _CONCURRENCY)
    return actor.remote(*given, **({} if shard is None else {"shard": shard}))


def _always(kind: type[Any], name: str, namespace: str, concurrency: int) -> Any:
    """A named actor that exists already or is made, and is restarted for ever."""
    return ray.remote(kind).options(
        name=name,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        num_cpus=0,
        max_concurrency=concurrency,
    )


def _identity_of(handle: Any, wanted: str) -> str:
    """Return the server's identity, or ``wanted`` if it has not computed it yet."""
    status = ray.get(handle.status.remote(), timeout=_STATUS_S * 3)
    return status["identity"] or wanted


def exists(name: str, namespace: str = NAMESPACE) -> bool:
    """Whether there is an actor of that name."""
    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True


class ParameterClient(Client):
    """A client of a server that is a Ray actor.  Use from one event loop.

    ``sync`` uses a local socket (:mod:`paramserver.process.local_socket`) if the server is on this
    machine and has answered one ``sync`` through Ray.  Other calls, and calls that fail on the
    socket, go through Ray.

    Parameters:
        name, namespace: Name of the actor.  Its handle is looked up when needed, and again after
            the actor died.
    """

    def __init__(self, name: str, namespace: str = NAMESPACE) -> None:
        super().__init__(name)
        self._namespace = namespace
        self._handle: Any = None
        self._connection: LocalConnection | None = None
        self._met, self._connect_due_s = False, 0.0

    @property
    def near(self) -> bool:
        """Whether the local socket is connected, so that the next ``sync`` uses it."""
        return self._connection is not None

    async def _call(self, method: str, args: tuple[object, ...]) -> Any:
        if method != "sync":
            return await self._by_ray(method, args)
        (request,) = args
        assert isinstance(request, bytes)
        if len(request) <= MESSAGE_MAX and (answer := await self._over_socket(request)):
            return answer
        answer = await self._by_ray(method, args)
        self._met = True
        return answer

    async def _over_socket(self, request: bytes) -> bytes:
        """Return the reply over the local socket; empty: use Ray."""
        connection, self._connection = self._connection, None  # one request at a time
        if connection is None and self._met and time.monotonic() >= self._connect_due_s:
            self._connect_due_s = time.monotonic() + _NEAR_AGAIN_S
            connection = await self._connected()
        if connection is None:
            return b""
        try:
            answer = await connection.ask(request)
        except BaseException as error:  # close, so that no later request reads this reply
            connection.close()
            self._met = False
            if isinstance(error, (OSError, EOFError)):
                return b""
            raise
        self._keep(connection)
        return answer

    def _keep(self, connection: LocalConnection) -> None:
        if self._connection is not None:  # another request has connected meanwhile
            self._connection.close()
        self._connection = connection

    async def _connected(self) -> LocalConnection | None:
        with contextlib.suppress(ParamServerError, OSError, EOFError):
            async with asyncio.timeout(_NEAR_S):  # TimeoutError is an OSError
                return await LocalConnection.to(*await self._by_ray("near", ()))
        return None

    async def _by_ray(self, method: str, args: tuple[object, ...]) -> Any:
        for last in (False, True):
            if self._handle is None:
                self._handle = await self._resolve()
            try:
                return await getattr(self._handle, method).remote(*args)
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, ServerUnavailable):
                    self._handle = None  # it has left the shared process
                if isinstance(cause, ParamServerError):
                    raise cause from None
                raise ServerUnavailable(self._name, f"it failed: {cause!r}") from error
            except ActorDiedError as error:
                self._handle = None  # a new actor may have the name by now
                if last:
                    raise ServerUnavailable(self._name, str(error)) from error
            except RayError as error:
                raise ServerUnavailable(self._name, f"{type(error).__name__}: {error}") from error
        raise AssertionError("the loop returns or raises")

    async def _resolve(self) -> Any:
        try:  # blocks on the cluster's control store, so not on the event loop
            return await asyncio.to_thread(find, self._name, self._namespace)
        except ValueError as error:
            raise ServerUnavailable(self._name, "no actor has that name") from error
        except RayError as error:
            raise ServerUnavailable(self._name, f"{type(error).__name__}: {error}") from error
