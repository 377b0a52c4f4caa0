"""Starts or joins a Ray for one run of re-scoring, beside or without a service."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from online.errors import OnlineError, StartRefused
from online.rescore.errors import RayFailed
from online.service import processes

_STORE_BYTES: Final = 100 << 20
_LOOK_S: Final = 0.25


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
            raise RayFailed(last) from error
        finally:
            ray.shutdown()
    finally:
        if address == "local" or not (private / "run.json").exists():  # else a killed driver's Ray
            shutil.rmtree(private, ignore_errors=True)
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
                    lost(RayFailed(f"its process {process.pid} has died"))
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
