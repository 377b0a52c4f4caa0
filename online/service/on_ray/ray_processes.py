"""Starts a local Ray without the processes that the service does not use: half of what Ray starts.

Ray has no settings for this.  With ``cluster: local`` there is no dashboard, no job submission, no
added node and no runtime environment, and the service has its own logs and metrics.  These
processes would cost seconds of CPU time at each start, and 400 MB of memory.  A cluster that is
joined keeps them.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, Final

_AGENTS: Final = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
_PORTS: Final = ("DASHBOARD_AGENT_LISTEN", "METRICS_AGENT", "METRICS_EXPORT", "RUNTIME_ENV_AGENT")
_NOT_IN_USE: Final = -1  # Ray's own agents write this instead of a port that they do not use
_PLACEHOLDER: Final = ("/bin/sh", "-c", "exec cat")
"""A placeholder for raylet's agents, because raylet ends when an agent does.

It ends with raylet, which holds the other end of its standard input.
"""


@contextlib.contextmanager
def fewest_processes() -> Iterator[None]:
    """Within this context `ray.init` starts only Ray's GCS and raylet."""
    from ray._private import services, utils
    from ray._private.node import Node

    start: Callable[..., Any] = services.start_ray_process

    def start_ray_process(command: list[str], *args: Any, **named: Any) -> Any:
        return start(without_agents(command), *args, **named)

    def nothing(self: Any, **_: Any) -> None:
        """Start no process of this kind."""

    changed: list[tuple[Any, str, Any]] = [
        (Node, "start_monitor", nothing),
        (Node, "start_api_server", nothing),
        (Node, "start_log_monitor", nothing),
        (services, "start_ray_process", start_ray_process),
        (utils, "get_dashboard_dependency_error", ImportError),  # the original imports them all
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in changed]
    for place, name, value in changed:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def without_agents(command: list[str]) -> list[str]:
    """Replace the agents in raylet's command by a placeholder; return other commands unchanged.

    Raylet waits for files in which its agents write their ports, so these are written here.
    """
    if not any(word.startswith(_AGENTS) for word in command):
        return command
    from ray import _raylet

    ports: Any = _raylet
    options = dict(
        word[2:].split("=", 1) for word in command if word.startswith("--") if "=" in word
    )
    for name in _PORTS:
        file = getattr(ports, f"{name}_PORT_NAME")
        ports.persist_port(options["session_dir"], options["node_id"], file, _NOT_IN_USE)
    placeholder = subprocess.list2cmdline(_PLACEHOLDER)
    return [
        f"{word.partition('=')[0]}={placeholder}" if word.startswith(_AGENTS) else word
        for word in command
    ]
