"""A Ray of the service's own, without the processes that nobody asks: half of what Ray starts.

Ray has no settings for them.  With ``cluster: local`` there is no dashboard, no job is submitted,
no node is added and no environment is made, and the service has logs and metrics of its own, so
that they would cost seconds of a core at each start, and 400 MB.  A cluster that is joined has
them.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, Final

_AGENTS: Final = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
_PORTS: Final = ("DASHBOARD_AGENT_LISTEN", "METRICS_AGENT", "METRICS_EXPORT", "RUNTIME_ENV_AGENT")
_NOT_IN_USE: Final = -1  # in the place of a port, as Ray's own agents write it
_NOBODY: Final = ("/bin/sh", "-c", "exec cat")
"""Stands where raylet ends if an agent does; it ends when raylet does, whose end of its pipe is
closed then."""


@contextlib.contextmanager
def fewest_processes() -> Iterator[None]:
    """While this lasts `ray.init` starts Ray's store of names and its raylet alone."""
    from ray._private import services, utils
    from ray._private.node import Node

    start: Callable[..., Any] = services.start_ray_process

    def start_ray_process(command: list[str], *args: Any, **named: Any) -> Any:
        return start(without_agents(command), *args, **named)

    def nothing(self: Any, **_: Any) -> None:
        """Start none of the kind."""

    changed: list[tuple[Any, str, Any]] = [
        (Node, "start_monitor", nothing),
        (Node, "start_api_server", nothing),
        (Node, "start_log_monitor", nothing),
        (services, "start_ray_process", start_ray_process),
        (utils, "get_dashboard_dependency_error", ImportError),  # else it imports them to know
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
    """The command that starts raylet, with nobody in the place of its agents; others as they are.

    Raylet waits for the files in which agents write their ports, so these are written here.
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
    nobody = subprocess.list2cmdline(_NOBODY)
    return [
        f"{word.partition('=')[0]}={nobody}" if word.startswith(_AGENTS) else word
        for word in command
    ]
