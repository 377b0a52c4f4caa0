"""Scores that were computed ahead of time, given by key; what is missing is scored now.

Requests that come while the store is asked are asked for together afterwards: one exchange with
the store answers all of them, from one run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from online.errors import RequestError, invalid
from online.rescore.errors import StoreFailed
from online.rescore.published import Run
from online.rescore.stores import Read, Score, Scores, SqliteScores
from online.serving.serving import Serving

_AT_ONCE: Final = 10_000  # largest number of keys in one read of the store
_FEW: Final = 16  # keys read on the event loop: a quarter of a millisecond
_KEY_CHARS_MAX: Final = 512

Source = Literal["batch", "live", "none"]


class ScoresRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Keys whose scores are requested."""

    keys: list[str]
    features: Annotated[
        dict[str, dict[str, Any]] | None,
        Meta(description="by key: features by which missing or expired scores are computed now"),
    ] = None


class Given(msgspec.Struct, omit_defaults=True):
    """A score.  ``source``: `batch`, `live` (scored now), or `none`: missing or expired."""

    key: str
    source: Source
    prediction: Any = msgspec.UNSET
    score: float | msgspec.UnsetType = msgspec.UNSET
    version: str | msgspec.UnsetType = msgspec.UNSET


class GivenOne(Given, omit_defaults=True):
    """The score of one key, with the model, run and time of its computation."""

    model: str = ""
    run: str = ""
    scored_at: float = 0.0


class GivenMany(msgspec.Struct):
    """Scores in the order of the keys; all with source `batch` are from one run.

    ``version`` and ``scored_at`` (POSIX seconds) are those of that run; null: nothing is published.
    """

    scores: list[Given]
    model: str
    run: str | None
    version: str | None
    scored_at: float | None


Decode: Final[Callable[[bytes], ScoresRequest]] = msgspec.json.Decoder(ScoresRequest).decode


Ask = Callable[[Sequence[str], float], Awaitable[Read]]
"""Reads scores at a time (POSIX seconds) without blocking the event loop.  Raises StoreFailed."""


def threaded(store: Scores, executor: Executor) -> Ask:
    """Make an :data:`Ask` that reads a blocking store on a thread, one call at a time."""

    async def ask(keys: Sequence[str], now_s: float) -> Read:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, store.get, keys, now_s)

    return ask


class Reader:
    """Reads the scores of one model, batching concurrent requests.

    Parameters:
        ask: Reads from the store; called again only after the previous call has ended.
        now_s: Wall clock in POSIX seconds, by which scores expire.
        near: The same store for direct reads of a few keys on the event loop: its files are mapped
            to memory, and a few pages take less time than switching to a thread and back.
    """

    def __init__(
        self, ask: Ask, now_s: Callable[[], float], near: SqliteScores | None = None
    ) -> None:
        self._exchange, self._now_s, self._near = ask, now_s, near
        self._waiting: list[tuple[Sequence[str], asyncio.Future[Read]]] = []
        self._asking: asyncio.Task[None] | None = None
        self.exchanges = 0

    async def get(self, keys: Sequence[str]) -> Read:
        """Return the scores of some keys, all from one run.  Raises StoreFailed."""
        if self._near is not None and len(keys) <= _FEW:
            return self._near.get(keys, self._now_s())
        future: asyncio.Future[Read] = asyncio.get_running_loop().create_future()
        self._waiting.append((keys, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await future

    async def _ask(self) -> None:
        try:
            while self._waiting:
                taken = self._take()
                keys = list(dict.fromkeys(key for some, _ in taken for key in some))
                self.exchanges += 1
                try:
                    read = await self._exchange(keys, self._now_s())
                except Exception as error:  # fails all requests of the batch
                    for _, future in taken:
                        if not future.done():
                            future.set_exception(error)
                    continue
                by_key = dict(zip(keys, read.scores, strict=True))
                for some, future in taken:
                    if not future.done():
                        future.set_result(Read(read.run, [by_key[key] for key in some]))
        finally:
            self._asking = None

    def _take(self) -> list[tuple[Sequence[str], asyncio.Future[Read]]]:
        taken: list[tuple[Sequence[str], asyncio.Future[Read]]] = []
        size = 0
        while self._waiting and (not taken or size + len(self._waiting[0][0]) <= _AT_ONCE):
            taken.append(self._waiting.pop(0))
            size += len(taken[-1][0])
        return taken


async def one(reader: Reader | None, serving: Serving, key: str) -> GivenOne:
    """Return the score of a key.

    Raises RequestError if it is missing or expired, nothing is published, or the store fails.
    """
    read = await _read(reader, serving.name, [_checked(key, "key")])
    run, score = _run(read, serving.name), read.scores[0]
    if score is None:
        hint = "Score it now: POST its key with its features to …/scores, or predict"
        message = f"no score of {key[:80]!r} in run {run.name}, or it has expired"
        raise RequestError(404, "unknown_key", message, "key", hint)
    given = GivenOne(key, "batch", _prediction(score), score[1], run.version)
    given.model, given.run, given.scored_at = run.model, run.name, run.scored_at
    return given


async def many(
    reader: Reader | None, serving: Serving, request: ScoresRequest, keys_max: int
) -> GivenMany:
    """Return the scores of many keys; missing ones are computed now if features are given.

    A repeated key is computed once; each computation takes its own turn of the event loop.

    Raises RequestError for invalid keys or features, or if the store fails.
    """
    keys = request.keys
    if not 1 <= len(keys) <= keys_max:
        raise invalid("keys", f"{len(keys)} keys", f"Send 1 to {keys_max}")
    for i, key in enumerate(keys):
        _checked(key, f"keys[{i}]")
    features, named = request.features or {}, set(keys)
    for key in features:
        if key not in named:
            raise invalid(f"features.{key[:80]}", "not among the keys", "Name it in keys")
    read = await _read(reader, serving.name, keys)
    out, live = list[Given](), dict[str, Given]()
    for key, score in zip(keys, read.scores, strict=True):
        if score is not None:
            out.append(Given(key, "batch", _prediction(score), score[1]))
        elif key in features:
            if key not in live:
                label, number, version = serving.score(features[key], f"features.{key[:80]}")
                prediction = msgspec.UNSET if label is None else label
                live[key] = Given(key, "live", prediction, number, version)
                await asyncio.sleep(0)
            out.append(live[key])
        else:
            out.append(Given(key, "none"))
    run = read.run
    if run is None:
        return GivenMany(out, serving.name, None, None, None)
    return GivenMany(out, serving.name, run.name, run.version, run.scored_at)


async def _read(reader: Reader | None, model: str, keys: Sequence[str]) -> Read:
    if reader is None:
        return Read(None, [None] * len(keys))
    try:
        return await reader.get(keys)
    except StoreFailed as error:
        hint = "Send it again after Retry-After, or predict"
        message = f"the store of {model}'s scores fails: {error.reason}"
        raise RequestError(503, "scores_unavailable", message, None, hint, 1) from error


def _run(read: Read, model: str) -> Run:
    if read.run is None:
        hint = "Publish some: online rescore --model M --input FILE --key COLUMN --store …"
        raise RequestError(404, "no_scores", f"no scores of {model} are published", None, hint)
    return read.run


def _prediction(score: Score) -> Any:
    return msgspec.UNSET if score[0] is None else score[0]


def _checked(key: str, field: str) -> str:
    if not 1 <= len(key) <= _KEY_CHARS_MAX:
        raise invalid(field, f"a key of {len(key)} characters", f"Send 1 to {_KEY_CHARS_MAX}")
    return key
