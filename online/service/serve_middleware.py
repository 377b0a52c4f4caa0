"""The middleware that Ray Serve puts in front of each replica and of its proxy.

Serve imports this module in each of its processes, so it imports nothing heavy.
"""

from __future__ import annotations

from importlib.util import find_spec

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS

from online.http.ingress import Ingress
from online.http.no_replica import Replicas


class Looks:
    """Asks Ray Serve's controller how many replicas run, and why others do not start.

    Serve keeps a single message, which the next event replaces: a failed health check, or a slow
    start.  The reason is therefore remembered until Serve reports a healthy state.  Where the
    service's own process has found one, it is that.
    """

    def __init__(self) -> None:
        self._reason: str | None = None

    def __call__(self) -> Replicas:
        """Query the controller, which takes about 20 ms.  Raises what Ray raises."""
        from ray import serve

        from online.service.on_ray import origin, rollout

        deployment = serve.status().applications[origin.APP].deployments["Replica"]
        noted = rollout.noted_absence()
        self._reason = rollout.absent(deployment.status, deployment.message, noted or self._reason)
        reason = self._reason and (noted or self._reason)
        return Replicas(deployment.replica_states.get("RUNNING", 0), reason)


def middlewares() -> list[Middleware]:
    """Return the middlewares that Ray Serve asks for, before it starts its server.

    The server then reads request heads with :mod:`online.service.parts.head_cache`, because Serve
    does not set a protocol class itself.
    """
    if find_spec("httptools") is not None:
        HTTP_PROTOCOLS["auto"] = "online.service.parts.head_cache:CachedHeads"
    return [Middleware(Ingress, look=Looks())]
