"""One Redis or Valkey server as a journal needs it: durable, evicting nothing, asked once.

The only module that imports the package ``redis`` (optional extra ``redis``).
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
_SHARE_FOR_ROWS = 0.9  # the rest of maxmemory is for control rows, heads and partitions

_SETTINGS = (
    ("appendonly", "yes", "set it in the server's configuration, or CONFIG SET appendonly yes"),
    ("appendfsync", "always", "CONFIG SET appendfsync always"),
    # With "yes" nothing is synced while the file is rewritten, also under "always".
    ("no-appendfsync-on-rewrite", "no", "CONFIG SET no-appendfsync-on-rewrite no"),
    # An evicted stream is lost rows; an evicted hash of ids is rows learned twice.
    ("maxmemory-policy", "noeviction", "CONFIG SET maxmemory-policy noeviction"),
)


class RedisServer:
    """Commands and scripts on one server; each is sent at most once.

    Parameters:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout_s: Bound for the connection and for each answer; after it the answer is uncertain.
        durability: ``"checked"``: the server's settings are read.  ``"assumed"``: a server whose
            settings can't be read is believed to be durable.  Settings that can be read are never
            assumed.
        accept_loss: Accept a server that a replica may take over from, or one of a cluster:
            replication is asynchronous, so that acknowledged rows can be lost then.
        memory_mb_max: New rows are held above this use of memory (MB of 2^20 bytes); by default
            above 90 % of the server's ``maxmemory``, if it has one.
        monotonic_s: A clock, for looking at most once a second.

    Raises:
        JournalNotDurable: Definite: the server forgets.
        JournalUnavailable: It does not answer.
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
            # By default the client sends again after a timeout.  Who sends again has to know.
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
        """Answer of one command, as the client decodes it.

        Raises:
            ServerFull: Definite: the server looked at its data and refused the first write.
            JournalUnavailable: Indefinite.
        """
        return self._ask(lambda: self._send(*words))

    def run(self, script: str, key: bytes, *words: str | bytes | int) -> Any:
        """Answer of a script with one key.  Errors as of :meth:`command`."""
        sha = self._shas.get(script)
        if sha is None:
            sha = self._shas[script] = hashlib.sha1(script.encode()).hexdigest()

        def once() -> Any:
            try:
                return self._send("EVALSHA", sha, 1, key, *words)
            except NoScriptError:  # nothing has run: a new or restarted server
                return self._send("EVAL", script, 1, key, *words)

        return self._ask(once)

    def held(self) -> JournalNotDurable | ServerFull | None:
        """Why the server should get no new rows now; looks at it at most once a second."""
        now_s = self._monotonic_s()
        if now_s - self._looked_s >= _LOOK_S:
            info = self._ask(self._client.info)
            self._held = self._full(info)
            try:
                self._check_settings(info)
            except JournalNotDurable as error:  # changed under us
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
            # OOM and MISCONF (it can't write its files) come at a script's first write: it has
            # looked up every key before and has written nothing, so the refusal is definite.
            # "-OOM" is how servers before version 7 quote an error from within a script.
            if any(word in str(error) for word in ("MISCONF ", "-OOM ")):
                raise ServerFull(str(error)) from error
            # All others are indefinite.  This call may have written nothing (READONLY, LOADING,
            # BUSY, NOAUTH), but the server has not looked, or is a replica that can be behind:
            # of an earlier try with a lost answer it says nothing.
            raise JournalUnavailable(str(error)) from error
        except (RedisError, OSError) as error:
            raise JournalUnavailable(f"{type(error).__name__}: {error}") from error

    def memory(self) -> tuple[int, int | None]:
        """Bytes of memory in use now, and the bound for rows (None: there is none)."""
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
            found = self._setting(setting)
            if found is None and setting == "maxmemory-policy":
                found = info.get("maxmemory_policy")  # known without CONFIG, too
            if found is None and not self._assumed:
                raise JournalNotDurable(
                    setting, "unreadable", needed,
                    "let the service's user run CONFIG GET, or, if you know that the server is "
                    "durable, give durability: assumed",
                )  # fmt: skip
            if found is not None and found != needed:
                raise JournalNotDurable(setting, found, needed, remedy)

    def _setting(self, name: str) -> str | None:
        """A setting's value, or None if it can't be read."""

        def once() -> Any:
            try:
                return self._client.config_get(name)
            except ResponseError:  # no such command or no permission, as on hosted servers
                return {}

        found = self._ask(once).get(name)
        return None if found is None else str(found)


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
