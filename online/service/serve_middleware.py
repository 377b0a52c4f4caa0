"""The middleware that Ray Serve puts in front of each replica and of its proxy.

Serve imports this module in each of its processes, so it imports nothing heavy.
"""

from __future__ import annotations

from importlib.util import find_spec

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS

from online.http.absent import Replicas
from online.http.ingress import Ingress


class Looks:
    """Asks Ray Serve's controller how many replicas run, and why another one does not start.

    Serve has one message, which the next event replaces: a failed health check, or a start that
    takes long.  So the reason is remembered until Serve says that nothing is wrong.  Where the
    service's own process has found one, it is that.
    """

    def __init__(self) -> None:
        self._reason: str | None = None

    def __call__(self) -> Replicas:
        """Ask it, which takes some 20 ms.  Raises what Ray raises."""
        from ray import serve

        from online.service import origin, rollout

        found = serve.status().applications[origin.APP].deployments["Replica"]
        noted = rollout.noted_absence()
        self._reason = rollout.absent(found.status, found.message, noted or self._reason)
        reason = self._reason and (noted or self._reason)
        return Replicas(found.replica_states.get("RUNNING", 0), reason)


def middlewares() -> list[Middleware]:
    """Return the middlewares that Ray Serve asks for, before it starts its server.

    That reads heads by :mod:`online.service.known_heads` then: Serve names no protocol of its own.
    """
    if find_spec("httptools") is not None:
        HTTP_PROTOCOLS["auto"] = "online.service.known_heads:Known"
    return [Middleware(Ingress, look=Looks())]
