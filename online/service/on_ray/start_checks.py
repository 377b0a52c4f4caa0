"""Checks of settings against the machine and the cluster, before a service on Ray starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Final

from online.errors import StartRefused
from online.service import processes
from online.settings.config import Settings
from online.settings.places import snapshots_path
from refusals import installing

_FILES_MIN: Final = 512  # fewer do not suffice for HAProxy's least number of connections


def check_nodes(settings: Settings, nodes: Sequence[str]) -> None:
    """Check that the settings work on a cluster of several nodes.

    Parameters:
        nodes: Host name of each live node.

    Raises:
        StartRefused: The journal or the snapshots would be local to one node; with the remedy.
    """
    if len(nodes) < 2:
        return
    among = f"the Ray cluster has {len(nodes)} nodes ({', '.join(sorted(set(nodes)))})"
    if settings.journal == "sqlite":
        raise StartRefused(
            f"{among}, and a SQLite journal is a file of one of them",
            "Put `journal: redis://host:6379/0` into the settings, and `snapshot_dir` on storage "
            "that every node sees",
        )
    if "://" not in snapshots_path(settings):
        raise StartRefused(
            f"{among}, and the snapshots go to {snapshots_path(settings)}: a parameter server that "
            "is restarted on another node would not find them there",
            "Put `snapshot_dir: s3://bucket/prefix` into the settings, or file:///path for a "
            "folder that every node mounts",
        )


def check_machine(settings: Settings) -> None:
    """Check files, port and packages before anything is started.  Raises StartRefused."""
    check_files()
    check_port(settings)
    check_scores(settings)


def check_port(settings: Settings) -> None:
    """Check that the service can listen on its port.  Raises StartRefused."""
    at = f"port {settings.port} of {settings.host}"
    try:
        free = not settings.port or processes.is_free(settings.host, settings.port)
    except OSError as error:
        problem = f"{at} can't be listened on: {error.strerror or error}"
        raise StartRefused(
            problem, "Give an address of this machine, and a port above 1023"
        ) from None
    if not free:
        raise StartRefused(
            f"{at} is taken{processes.listener(settings.port)}",
            "Stop what listens there, or give another: --port 8001, ONLINE_PORT=8001, 0: any",
        )


def check_files() -> None:
    """Check that HAProxy, which raises its own limit, may open enough files.

    Raises StartRefused: the start would end minutes later without naming the cause.
    """
    processes.check_files(1, _FILES_MIN)


def check_scores(settings: Settings) -> None:
    """Check that the Redis client is installed if `scores` needs it.  Raises StartRefused."""
    if settings.scores != "sqlite" and importlib.util.find_spec("redis") is None:
        raise StartRefused(
            "`scores` names a Redis server, and the package for it is missing", installing("redis")
        )
