"""The middleware that Ray Serve puts in front of each replica and of its proxy.

Serve imports this module in each of its processes, so it imports nothing heavy.
"""

from __future__ import annotations

from starlette.middleware import Middleware

from online.http.absent import Replicas
from online.http.ingress import Ingress


def replicas() -> Replicas:
    """Ask Ray Serve's controller how many replicas run, and why another one does not start.

    It takes some 20 ms.  Raises what Ray raises.
    """
    from ray import serve

    from online.service import origin, rollout

    deployment = serve.status().applications[origin.APP].deployments["Replica"]
    said = deployment.message
    reason = rollout.reason(said) if "failed to start" in said else None
    return Replicas(deployment.replica_states.get("RUNNING", 0), reason)


def middlewares() -> list[Middleware]:
    """Return the middlewares that Ray Serve asks for."""
    return [Middleware(Ingress, look=replicas)]
