"""Distributes shards to a pool of Ray actors; the only module of this package that imports Ray.

A shard is one task, so a killed worker loses the work on one shard, which Ray assigns to the
restarted process.  Rows are not sent: actors read and write files themselves.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from online import processes
from online.errors import OnlineError, StartRefused
from online.rescore import errors
from online.rescore.plan import Plan, decode
from online.rescore.work import Done, MakeModel, Worker
from online.tables.layout import Shard
from online.tables.places import Folder, Location

_STORE_BYTES: Final = 100 << 20
_ACTORS_S: Final = 120
_LOOK_S: Final = 0.25

Deal = Callable[[Sequence[Shard]], Iterator[Done]]
"""Scores shards and yields the results in any order."""


@contextlib.contextmanager
def ray_for(
    address: str, owner: str, workers: int, lost: Callable[[OnlineError], None] | None = None
) -> Iterator[None]:
    """Start a local Ray (``local``) or join one (``auto`` or ``host:port``) for the context.

    Parameters:
        owner: Purpose of this Ray: leftovers of a killed driver with the same purpose are ended.
        lost: Called on a thread if a process of this Ray has died: the driver would wait for it for
            a minute, and then be ended by Ray.

    Raises:
        StartRefused, RayFailed: Ray can't be started or joined.
    """
    private = _private(owner)
    lock = processes.Owner(private)  # one driver per run
    try:
        if address == "local":
            processes.end(list(processes.leftovers(private / "run.json", private)))
            shutil.rmtree(private / "ray", ignore_errors=True)
            os.environ.update(_flags())
        import ray

        place: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": _QUIET}}
        if address == "local":
            place = {
                "address": "local", "num_cpus": workers, "include_dashboard": False,
                "object_store_memory": _STORE_BYTES, "_node_ip_address": "127.0.0.1",
                "_temp_dir": str(private / "ray"),
            }  # fmt: skip
        try:
            ray.init(namespace="online", logging_level=logging.ERROR, log_to_driver=False, **place)
            if address == "local":
                processes.note(private / "run.json", {})
            with _watched(lost if address == "local" else None):
                yield
        except OnlineError:
            raise
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
            last = (str(error).strip().splitlines() or [repr(error)])[-1]
            raise errors.RayFailed(last) from error
        finally:
            ray.shutdown()
            if address == "local":
                shutil.rmtree(private, ignore_errors=True)
    finally:
        lock.release()


@contextlib.contextmanager
def _watched(lost: Callable[[OnlineError], None] | None) -> Iterator[None]:
    """Call ``lost`` when a process dies that Ray can't do without."""
    if lost is None:
        yield
        return
    vital = [p for p in processes.own_processes() if p.name() in ("raylet", "gcs_server")]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            for process in vital:
                if not processes.runs(process):
                    lost(errors.RayFailed(f"its process {process.pid} has died"))
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


_QUIET: Final = {"OMP_NUM_THREADS": "1"}


def _flags() -> dict[str, str]:
    return {
        **_QUIET,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }


def _private(owner: str) -> Path:
    path = processes.private_dir(Path(owner).absolute())
    if not path.is_relative_to(tempfile.gettempdir()):
        raise StartRefused(f"{path} is no temporary folder", "Set TMPDIR")
    return path


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
