"""A Ray of the service's own, without the processes that nobody asks: half of what Ray starts.

Ray has no settings for them.  With ``cluster: local`` there is no dashboard, no job is submitted,
no node is added and no environment is made, and the service has logs and metrics of its own, so
that they would cost seconds of a core at each start, and 400 MB.  A cluster that is joined has
them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

_AGENTS: Final = ("--dashboard_agent_command=", "--runtime_env_agent_command=")


@contextlib.contextmanager
def fewest_processes() -> Iterator[None]:
    """While this lasts `ray.init` starts Ray's store of names and its raylet alone."""
    from ray._private import services
    from ray._private.node import Node

    start: Callable[..., Any] = services.start_ray_process

    def start_ray_process(command: list[str], *args: Any, **named: Any) -> Any:
        return start([word for word in command if not word.startswith(_AGENTS)], *args, **named)

    def nothing(self: Any, **_: Any) -> None:
        """Start none of the kind."""

    changed: list[tuple[Any, str, Any]] = [
        (Node, "start_monitor", nothing),
        (Node, "start_api_server", nothing),
        (Node, "start_log_monitor", nothing),
        (services, "start_ray_process", start_ray_process),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in changed]
    for place, name, value in changed:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
