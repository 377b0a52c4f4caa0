"""Distributes shards to a pool of Ray actors; the only module of this package that imports Ray.

A shard is one task, so a killed worker loses the work on one shard, which Ray assigns to the
restarted process.  Rows are not sent: actors read and write files themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from online.errors import OnlineError
from online.rescore import errors
from online.rescore.plan import Plan, decode
from online.rescore.work import Done, MakeModel, Worker
from online.tables.layout import Shard
from online.tables.places import Folder, Location

_ACTORS_S: Final = 120

Deal = Callable[[Sequence[Shard]], Iterator[Done]]
"""Scores shards and yields the results in any order."""


class Scoring:
    """An actor that scores one shard per call."""

    def __init__(self, output: str, run: str, make: MakeModel) -> None:
        # Read here, because arguments of an actor's constructor should be small.
        self._plan = decode(Folder(Location(output)).read(f"runs/{run}/plan.json"))
        self._worker = Worker(self._plan, output, make, time.monotonic)

    def ready(self) -> None:
        """Return once the actor can score."""

    def score(self, number: int) -> str:
        """Score the shard of this number; returns the result or the error as JSON."""
        try:
            return msgspec.json.encode(self._worker.score(self._plan.shards[number])).decode()
        except OnlineError as error:  # Ray would wrap it in a long traceback
            return json.dumps({"error": type(error).__name__, "args": error.args})


def deal(plan: Plan, output: str, make: MakeModel, workers: int) -> Deal:
    """Return a function that scores shards of the plan on the running Ray.

    Iterating over its result raises OnlineError.
    """

    def scored(shards: Sequence[Shard]) -> Iterator[Done]:
        import ray
        from ray.util import ActorPool

        made = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(Scoring)
        actors = [made.remote(output, plan.run, make) for _ in range(min(workers, len(shards)))]
        try:
            pending = {actor.ready.remote(): actor for actor in actors}
            ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=_ACTORS_S)
            if not ready:
                raise errors.RayFailed(f"none of {len(actors)} workers came up in {_ACTORS_S} s")
            ray.get(ready)  # raises if a worker could not be created
            pool = ActorPool([pending[one] for one in ready])
            numbers = [shard.number for shard in shards]
            for reply in pool.map_unordered(lambda actor, n: actor.score.remote(n), numbers):
                yield _result_of(reply)
        finally:
            for actor in actors:
                ray.kill(actor)

    return scored


def _result_of(reply: str) -> Done:
    answer = json.loads(reply)
    if "error" not in answer:
        return msgspec.convert(answer, Done)
    raise getattr(errors, answer["error"], errors.RayFailed)(*answer["args"])
