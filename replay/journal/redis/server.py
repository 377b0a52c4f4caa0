"""A connection to a Redis or Valkey server that verifies durability and never retries.

This is the only module that imports the package ``redis`` (optional extra ``redis``).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool, parse_url
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError
from redis.retry import Retry

from replay.errors import JournalNotDurable, JournalUnavailable, ServerFull

_parse: Callable[[str], dict[str, Any]] = parse_url

Durability = Literal["checked", "assumed"]

_LOOK_S = 1.0
_MB = 1 << 20
_SHARE_FOR_ROWS = 0.9  # of maxmemory; the rest is for control rows, heads and partitions

_SETTINGS = (
    ("appendonly", "yes", "set it in the server's configuration, or CONFIG SET appendonly yes"),
    ("appendfsync", "always", "CONFIG SET appendfsync always"),
    # With "yes" nothing is synced while the file is rewritten, also under "always".
    ("no-appendfsync-on-rewrite", "no", "CONFIG SET no-appendfsync-on-rewrite no"),
    # Evicting a stream loses rows; evicting a hash of ids makes rows be learned twice.
    ("maxmemory-policy", "noeviction", "CONFIG SET maxmemory-policy noeviction"),
)


class RedisServer:
    """Sends commands and scripts to one server, each at most once.

    Parameters:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout_s: Timeout of connecting and of each reply; after it the outcome is unknown.
        durability: ``"checked"``: the server's settings must be readable.  ``"assumed"``: settings
            that cannot be read are assumed to be safe; readable ones are checked all the same.
        accept_loss: Accept a server with replicas, or one of a cluster.  Replication is
            asynchronous, so a failover can lose acknowledged rows.
        memory_mb_max: Use of memory above which new rows are refused (MB of 2^20 bytes); by default
            90 % of the server's ``maxmemory``, if that is set.
        monotonic_s: A monotonic clock in seconds; the server is checked at most once a second.

    Raises:
        JournalNotDurable: Definite: the server could lose acknowledged rows.
        JournalUnavailable: The server does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        durability: Durability,
        accept_loss: bool,
        memory_mb_max: float | None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if durability not in ("checked", "assumed"):
            raise ValueError(f"durability is {durability!r}; give 'checked' or 'assumed'")
        options: dict[str, Any] = {
            **_parse(url),
            # By default the client retries after a timeout; here the caller must decide on that.
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "decode_responses": False,
            "protocol": 2,
        }
        self._client = redis.Redis(connection_pool=ConnectionPool(**options))
        self._send: Callable[..., Any] = self._client.execute_command
        self._shas: dict[str, str] = {}
        self._closed = False
        self._assumed = durability == "assumed"
        self._memory_mb_max = memory_mb_max
        self._monotonic_s = monotonic_s
        self._held: JournalNotDurable | ServerFull | None = None
        self._looked_s = monotonic_s()
        try:
            info = self._ask(self._client.info)
            _check_topology(info, accept_loss)
            self._check_settings(info)
            self._held = self._full(info)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections; later calls raise JournalUnavailable.  Idempotent."""
        self._closed = True
        self._client.connection_pool.disconnect()

    def command(self, *words: str | bytes | int) -> Any:
        """Return the reply to one command, as the client decodes it.

        Raises:
            ServerFull: Definite: the server refused the first write.
            JournalUnavailable: Indefinite.
        """
        return self._ask(lambda: self._send(*words))

    def run(self, script: str, key: bytes, *words: str | bytes | int) -> Any:
        """Return the reply of a script with one key.  Errors as :meth:`command`."""
        sha = self._shas.get(script)
        if sha is None:
            sha = self._shas[script] = hashlib.sha1(script.encode()).hexdigest()

        def once() -> Any:
            try:
                return self._send("EVALSHA", sha, 1, key, *words)
            except NoScriptError:  # nothing was run; the server is new or was restarted
                return self._send("EVAL", script, 1, key, *words)

        return self._ask(once)

    def held(self) -> JournalNotDurable | ServerFull | None:
        """Return why the server must get no new rows now, or None; checked once a second."""
        now_s = self._monotonic_s()
        if now_s - self._looked_s >= _LOOK_S:
            info = self._ask(self._client.info)
            self._held = self._full(info)
            try:
                self._check_settings(info)
            except JournalNotDurable as error:  # changed while running
                self._held = error
            self._looked_s = now_s
        return self._held

    def _ask(self, call: Callable[[], Any]) -> Any:
        if self._closed:
            raise JournalUnavailable("the journal is closed")
        try:
            return call()
        except OutOfMemoryError as error:
            raise ServerFull(f"OOM {error}") from error
        except ResponseError as error:
            # OOM and MISCONF (it cannot write its files) occur at a script's first write, after it
            # has looked up every key, so nothing was written and the refusal is definite.
            # "-OOM" is how servers before version 7 quote an error from within a script.
            if any(word in str(error) for word in ("MISCONF ", "-OOM ")):
                raise ServerFull(str(error)) from error
            # All others are indefinite.  Even if this call wrote nothing (READONLY, LOADING, BUSY,
            # NOAUTH), the server has not looked up the keys, or is a replica that may be behind:
            # an earlier attempt whose reply was lost may have been written.
            raise JournalUnavailable(str(error)) from error
        except (RedisError, OSError) as error:
            raise JournalUnavailable(f"{type(error).__name__}: {error}") from error

    def memory(self) -> tuple[int, int | None]:
        """Return the memory in use in bytes, and the bound for rows (None: no bound)."""
        return self._memory(self._ask(lambda: self._client.info("memory")))

    def _memory(self, info: dict[str, Any]) -> tuple[int, int | None]:
        bound = int(info.get("maxmemory", 0) * _SHARE_FOR_ROWS) or None
        if self._memory_mb_max is not None:
            bound = int(self._memory_mb_max * _MB)
        return int(info["used_memory"]), bound

    def _full(self, info: dict[str, Any]) -> ServerFull | None:
        used, bound = self._memory(info)
        if bound is None or used <= bound:
            return None
        return ServerFull(f"{used / _MB:.0f} MB of memory used, rows may use {bound / _MB:.0f} MB")

    def _check_settings(self, info: dict[str, Any]) -> None:
        for setting, needed, remedy in _SETTINGS:
            value = self._setting(setting)
            if value is None and setting == "maxmemory-policy":
                value = info.get("maxmemory_policy")  # known without CONFIG, too
            if value is None and not self._assumed:
                raise JournalNotDurable(
                    setting, "unreadable", needed,
                    "let the service's user run CONFIG GET, or, if you know that the server is "
                    "durable, give durability: assumed",
                )  # fmt: skip
            if value is not None and value != needed:
                raise JournalNotDurable(setting, value, needed, remedy)

    def _setting(self, name: str) -> str | None:
        """Return a setting's value, or None if it cannot be read."""

        def once() -> Any:
            try:
                return self._client.config_get(name)
            except ResponseError:  # no such command or no permission, as on hosted servers
                return {}

        value = self._ask(once).get(name)
        return None if value is None else str(value)


def _check_topology(info: dict[str, Any], accept_loss: bool) -> None:
    mode = info.get("redis_mode", info.get("server_mode", "standalone"))
    if mode == "sentinel":
        raise JournalNotDurable("mode", mode, "standalone", "give the server's own address")
    if info["role"] != "master":
        raise JournalNotDurable("role", info["role"], "master", "give the address of its master")
    if accept_loss:
        return
    remedy = "use a server that nothing takes over from, or give accept_loss: true"
    if mode == "cluster" or info.get("cluster_enabled"):
        raise JournalNotDurable("mode", "cluster", "standalone", remedy)
    if followers := info.get("connected_slaves", 0):
        raise JournalNotDurable("connected replicas", str(followers), "0", remedy)
