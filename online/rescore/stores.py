"""Stores of scores by key: SQLite files in a folder, or a Redis server.

Each run has its own namespace, which is complete before the pointer of the model refers to it.  A
namespace never changes afterwards.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from online.errors import ConfigError
from online.rescore import published
from online.rescore.errors import StoreFailed
from online.rescore.published import Current, Run
from online.settings.addresses import hidden
from refusals import installing
from replay.durable import sync

Score: TypeAlias = tuple[str | None, float]
"""Prediction of a classifier as text (None in regression), and score."""


@dataclass(frozen=True, slots=True)
class Part:
    """A shard's rows for a store: its name, and a function that reads keys and scores."""

    name: str
    read: Callable[[], list[tuple[str, str | None, float]]]


@dataclass(frozen=True, slots=True)
class Read:
    """Scores of some keys, all of one run; None for keys that it does not have (any more)."""

    run: Run | None
    scores: list[Score | None]


class SqliteScores:
    """A folder with one SQLite file per run, and the pointer as a file.

    A file is built aside and renamed when it is complete; readers open it as immutable, so they
    take no lock.  Use it from one thread at a time.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self._folder, self.url = folder / model, f"sqlite:{folder}"
        self._seen: tuple[int, int] | None = None
        self._current = Current()
        self._open: sqlite3.Connection | None = None

    def current(self) -> Current:
        """Read the pointer.  Raises StoreFailed."""
        try:
            return published.decode((self._folder / "current.json").read_bytes())
        except FileNotFoundError:
            return Current()
        except (OSError, msgspec.DecodeError) as error:
            raise StoreFailed(self.url, str(error)) from error

    def load(self, run: Run, parts: Iterable[Part]) -> int:
        """Write the run's namespace; returns rows written, 0 if it was complete.  StoreFailed."""
        target = self._folder / f"{run.name}.db"
        if target.exists():
            return 0
        temporary = target.with_suffix(".db.tmp")
        with self._failures():
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            try:
                rows = _fill(temporary, parts)
                sync(temporary)
                temporary.replace(target)
                sync(self._folder)
            except BaseException:  # a full disk, or Ctrl-C: remove the partial file
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
        return rows

    def point(self, change: Callable[[Current], Current]) -> Current:
        """Change the pointer atomically.  Raises what ``change`` raises, and StoreFailed."""
        made = change(self.current())
        with self._failures():
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / "current.json.tmp"
            temporary.write_bytes(published.encode(made))
            sync(temporary)
            temporary.replace(self._folder / "current.json")
            sync(self._folder)
        return made

    def remove(self, names: Iterable[str]) -> None:
        """Remove the namespaces of some runs."""
        with self._failures():
            for name in names:
                (self._folder / f"{name}.db").unlink(missing_ok=True)

    def get(self, keys: Sequence[str], now_s: float) -> Read:
        """Scores of some keys from the current run.  Raises StoreFailed."""
        with self._failures():
            run = self._refreshed().run
            if run is None or self._open is None or (run.expires_at or now_s) < now_s:
                return Read(run, [None] * len(keys))
            scores: dict[str, Score] = {}
            for begin in range(0, len(keys), 500):
                some = keys[begin : begin + 500]
                marks = ",".join("?" * len(some))
                rows = self._open.execute(
                    f"SELECT key, prediction, score FROM scores WHERE key IN ({marks})", some
                )
                scores.update((key, (prediction, score)) for key, prediction, score in rows)
            return Read(run, [scores.get(key) for key in keys])

    def _refreshed(self) -> Current:
        """The pointer, read again if its file was replaced; opens the run's file."""
        try:
            stat = (self._folder / "current.json").stat()
        except FileNotFoundError:
            return Current()
        seen = (stat.st_ino, stat.st_mtime_ns)
        if seen != self._seen:
            self._current, opened = self.current(), None
            if (run := self._current.run) is not None:
                uri = f"file:{self._folder / run.name}.db?mode=ro&immutable=1"
                opened = sqlite3.connect(uri, uri=True, check_same_thread=False)
                opened.execute("PRAGMA mmap_size=268435456")
            if self._open is not None:
                self._open.close()
            self._open, self._seen = opened, seen
        return self._current

    def close(self) -> None:
        """Close the run's file."""
        if self._open is not None:
            self._open.close()
            self._open = self._seen = None

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, msgspec.DecodeError) as error:
            raise StoreFailed(self.url, f"{type(error).__name__}: {error}") from error


def _fill(path: Path, parts: Iterable[Part]) -> int:
    rows = 0
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=OFF")  # the file is visible only when it is complete
        db.execute("PRAGMA synchronous=OFF")
        db.execute(
            "CREATE TABLE scores (key TEXT PRIMARY KEY, prediction TEXT, score REAL) WITHOUT ROWID"
        )
        for part in parts:
            some = part.read()
            db.executemany("INSERT INTO scores VALUES (?, ?, ?)", some)
            rows += len(some)
        db.commit()
    return rows


_pack = msgspec.msgpack.Encoder().encode
_texts = msgspec.json.Encoder().encode_lines
_decode = msgspec.json.Decoder(tuple[str | None, float]).decode
PREFIX: Final = "online:scores"
"""Prefix of the keys in Redis."""
_AT_ONCE: Final = 250  # keys per script, which blocks the server for half a millisecond
_PIPELINED: Final = 8
_SET_MANY: Final = """
local rows = cmsgpack.unpack(ARGV[1])
for i = 1, #rows, 2 do redis.call('SET', KEYS[1] .. rows[i], rows[i + 1], 'EX', ARGV[2]) end
"""


def _redis(url: str, timeout_s: float) -> tuple[Any, dict[str, Any]]:
    """The redis package, and client options without retries.  Raises StoreFailed."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        problem = f"a package is missing ({error}): {installing('redis')}"
        raise StoreFailed(url, problem) from error
    options = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    return redis, {**options, "retry": Retry(NoBackoff(), 0), "protocol": 2}


class RedisScores:
    """A Redis server with one key per score, and the pointer as a key.

    Parameters:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        ttl_s: Lifetime of a score; None: until its run is removed.

    Raises:
        StoreFailed: The package for Redis is missing.
    """

    def __init__(
        self, url: str, model: str, *, prefix: str = PREFIX, ttl_s: float | None = None,
        timeout_s: float = 5.0,
    ) -> None:  # fmt: skip
        self.url = hidden(url)
        redis, options = _redis(self.url, timeout_s)
        self._errors = (redis.RedisError, OSError)
        self._client: Any = redis.Redis.from_url(url, **options)
        self._base, self._ttl_s = f"{prefix}:{model}", ttl_s
        self._current, self._raw = Current(), b""

    def current(self) -> Current:
        """Read the pointer.  Raises StoreFailed."""
        with self._failures():
            raw = self._client.get(f"{self._base}:current")
        return Current() if raw is None else published.decode(raw)

    def load(self, run: Run, parts: Iterable[Part]) -> int:
        """Write the parts of the run's namespace that are missing; returns rows written.

        Raises StoreFailed: what was written stays, but nobody reads it.
        """
        rows, done = 0, f"{self._base}:{run.name}::parts"
        with self._failures():
            known = set(self._client.smembers(done))
            for part in parts:
                if part.name.encode() in known:
                    continue
                some = part.read()
                self._write(run, some)
                self._client.sadd(done, part.name)
                if self._ttl_s is not None:
                    self._client.expire(done, int(self._ttl_s))
                rows += len(some)
        return rows

    def _write(self, run: Run, rows: Sequence[tuple[str, str | None, float]]) -> None:
        base, ttl = f"{self._base}:{run.name}:", int(self._ttl_s or 0)
        for begin in range(0, len(rows), _AT_ONCE * _PIPELINED):
            with self._client.pipeline(transaction=False) as pipe:
                for first in range(begin, min(begin + _AT_ONCE * _PIPELINED, len(rows)), _AT_ONCE):
                    some = rows[first : first + _AT_ONCE]
                    flat: list[str] = [""] * (2 * len(some))
                    flat[1::2] = _texts([score for _, *score in some]).decode().split("\n")[:-1]
                    if ttl:
                        flat[::2] = [key for key, *_ in some]
                        pipe.execute_command("EVAL", _SET_MANY, 1, base, _pack(flat), ttl)
                    elif flat:
                        flat[::2] = [base + key for key, *_ in some]
                        pipe.execute_command("MSET", *flat)
                pipe.execute()

    def point(self, change: Callable[[Current], Current]) -> Current:
        """Change the pointer atomically.  Raises what ``change`` raises, and StoreFailed."""
        key = f"{self._base}:current"
        with self._failures():
            made: list[Current] = []

            def swap(pipe: Any) -> None:
                raw = pipe.get(key)
                made.append(change(Current() if raw is None else published.decode(raw)))
                pipe.multi()
                pipe.set(key, published.encode(made[-1]))

            self._client.transaction(swap, key)
        return made[-1]

    def remove(self, names: Iterable[str]) -> None:
        """Remove the namespaces of some runs, a thousand keys at a time."""
        with self._failures():
            for name in names:
                keys: list[bytes] = []
                for key in self._client.scan_iter(f"{self._base}:{name}:*", 1_000):
                    keys.append(key)
                    if len(keys) == 1_000:
                        self._client.unlink(*keys)
                        keys = []
                if keys:
                    self._client.unlink(*keys)

    def get(self, keys: Sequence[str], now_s: float) -> Read:
        """Scores of some keys of one run, in one round trip unless the pointer has changed.

        Raises StoreFailed.
        """
        with self._failures():
            while True:
                run = self._current.run
                with self._client.pipeline(transaction=False) as pipe:
                    pipe.get(f"{self._base}:current")
                    if run is not None and keys:
                        pipe.mget([f"{self._base}:{run.name}:{key}" for key in keys])
                    answers = pipe.execute()
                raw = answers[0] or b""
                if raw == self._raw:
                    break
                self._current = published.decode(raw) if raw else Current()
                self._raw = raw
        return _read(run, keys, answers[1] if len(answers) > 1 else (), now_s)

    def close(self) -> None:
        """Close the connection to Redis."""
        self._client.close()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (*self._errors, msgspec.DecodeError) as error:
            raise StoreFailed(self.url, f"{type(error).__name__}: {error}") from error


class RedisReads:
    """Async reader of the scores that :class:`RedisScores` writes, with the same parameters.

    Use it from one task at a time, in one event loop.
    """

    def __init__(
        self, url: str, model: str, *, prefix: str = PREFIX, timeout_s: float = 5.0
    ) -> None:
        self.url = hidden(url)
        redis, options = _redis(self.url, timeout_s)
        import redis.asyncio as waiting

        self._errors = (redis.RedisError, OSError, TimeoutError)
        self._client: Any = waiting.Redis.from_url(url, single_connection_client=True, **options)
        self._base = f"{prefix}:{model}"
        self._current, self._raw = Current(), b""

    async def get(self, keys: Sequence[str], now_s: float) -> Read:
        """Scores of some keys of one run, by one command unless the pointer has changed.

        The pointer and the scores are read by the same command, so they are consistent.

        Raises StoreFailed.
        """
        try:
            while True:
                run = self._current.run
                here = [] if run is None else [f"{self._base}:{run.name}:{key}" for key in keys]
                raw, *values = await self._client.mget([f"{self._base}:current", *here])
                if (raw or b"") == self._raw:
                    return _read(run, keys, values, now_s)
                self._current = published.decode(raw) if raw else Current()
                self._raw = raw or b""
        except (*self._errors, msgspec.DecodeError) as error:
            raise StoreFailed(self.url, f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Close the connection to Redis."""
        await self._client.aclose()


def _read(run: Run | None, keys: Sequence[str], values: Sequence[bytes | None], now_s: float) -> (
    Read
):  # fmt: skip
    if run is None or not keys or (run.expires_at or now_s) < now_s:
        return Read(run, [None] * len(keys))
    return Read(run, [None if value is None else _decode(value) for value in values])


Scores: TypeAlias = SqliteScores | RedisScores


def open_store(url: str, model: str, ttl_s: float | None = None) -> Scores:
    """Open the store of a model's scores: ``sqlite:FOLDER``, or ``redis://host:port/0``.

    Raises ConfigError.
    """
    if url.startswith("sqlite:"):
        path = url.removeprefix("sqlite:").removeprefix("//")
        if path:
            return SqliteScores(Path(path), model)
    elif url.startswith(("redis://", "rediss://", "unix://")):
        return RedisScores(url, model, ttl_s=ttl_s)
    remedy = "Give sqlite:FOLDER or redis://host:6379/0"
    raise ConfigError("--store", f"{hidden(url)!r} names no store", remedy)
