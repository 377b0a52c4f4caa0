"""Shards dealt to a pool of Ray actors: the only module here that imports Ray.

A shard is one task, so what a killed worker had under way is one shard, which Ray gives to the
process that follows it.  Rows never travel: actors read and write files themselves.
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
from online.tables.places import Folder, Place

_STORE_BYTES: Final = 100 << 20
_ACTORS_S: Final = 120
_LOOK_S: Final = 0.25

Deal = Callable[[Sequence[Shard]], Iterator[Done]]
"""Scores shards, in any order."""


@contextlib.contextmanager
def ray_for(
    address: str, owner: str, workers: int, lost: Callable[[OnlineError], None] | None = None
) -> Iterator[None]:
    """A Ray of its own (``local``), or one that runs (``auto`` or ``host:port``), until the end.

    Parameters:
        owner: Whatever this Ray is for: what a killed driver for the same has left behind is ended.
        lost: Told, in a thread, that a process of this Ray has died: its driver would wait for it
            for a minute, and is then ended by Ray.

    Raises StartRefused, RayFailed.
    """
    private = _private(owner)
    lock = processes.Owner(private)  # one driver a run
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
    """Tell of the death of a process that Ray can't live without."""
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
    """An actor that scores one shard a call."""

    def __init__(self, output: str, run: str, make: MakeModel) -> None:
        # Read here: what travels with an actor's making should be small, so that it stays at hand.
        self._plan = decode(Folder(Place(output)).read(f"runs/{run}/plan.json"))
        self._worker = Worker(self._plan, output, make, time.monotonic)

    def ready(self) -> None:
        """Answered once it can score."""

    def score(self, number: int) -> str:
        """Score the shard of this number, and return what became of it, as JSON."""
        try:
            return msgspec.json.encode(self._worker.score(self._plan.shards[number])).decode()
        except OnlineError as error:  # Ray would make it a wall of text
            return json.dumps({"error": type(error).__name__, "args": error.args})


def deal(plan: Plan, output: str, make: MakeModel, workers: int) -> Deal:
    """Return a function that scores shards of the plan on the Ray that runs.

    Iterating over what that function returns raises OnlineError.
    """

    def dealt(shards: Sequence[Shard]) -> Iterator[Done]:
        import ray
        from ray.util import ActorPool

        made = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(Scoring)
        actors = [made.remote(output, plan.run, make) for _ in range(min(workers, len(shards)))]
        try:
            asked = {actor.ready.remote(): actor for actor in actors}
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ACTORS_S)
            if not ready:
                raise errors.RayFailed(f"none of {len(actors)} workers came up in {_ACTORS_S} s")
            ray.get(ready)  # raises what a worker could not be made for
            pool = ActorPool([asked[one] for one in ready])
            numbers = [shard.number for shard in shards]
            for said in pool.map_unordered(lambda actor, n: actor.score.remote(n), numbers):
                yield _heard(said)
        finally:
            for actor in actors:
                ray.kill(actor)

    return dealt


def _heard(said: str) -> Done:
    answer = json.loads(said)
    if "error" not in answer:
        return msgspec.convert(answer, Done)
    raise getattr(errors, answer["error"], errors.RayFailed)(*answer["args"])
