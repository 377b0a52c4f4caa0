"""Computes how many replicas the load needs, for Ray Serve, if `replicas` is a range.

Serve calls the policy once a second.  Serve's own measure does not help: most requests bypass its
counter (:mod:`online.http.ingress`) and take about a millisecond.  A replica answers and learns on
one thread, so the scarce resource is that thread's time: the CPU share of its process.

Serve's controller imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from online.settings.replicas import ReplicaRange

BUSY: Final = 0.6
"""CPU share that replicas may have on average; above it, answers begin to queue."""

_METRIC: Final = "busy"


def wanted(shares: Sequence[float]) -> int:
    """Number of replicas for the sum of CPU shares; at least 1."""
    return max(math.ceil(sum(shares) / BUSY), 1)


def policy(context: Any) -> tuple[int, dict[str, Any]]:
    """Return the wanted number of replicas to Serve, which calls this.

    Serve applies the range, and waits `up_s` or `down_s` before it follows a change.
    """
    shares = list(context.aggregated_metrics.get(_METRIC, {}).values())
    # A replica has not reported yet.  While it starts it takes CPU time from the others, which look
    # less busy for that on a full machine; it must not be removed before it has answered.
    if len(shares) < max(context.current_num_replicas, context.target_num_replicas):
        return context.target_num_replicas, {}
    return wanted(shares), {}


class Busy:
    """CPU share of this process since the last call, in the form that Serve records."""

    def __init__(self, cpu_s: Callable[[], float], monotonic_s: Callable[[], float]) -> None:
        self._cpu_s, self._monotonic_s = cpu_s, monotonic_s
        self._last = cpu_s(), monotonic_s()

    def __call__(self) -> dict[str, float]:
        now = self._cpu_s(), self._monotonic_s()
        cpu, elapsed = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return {_METRIC: cpu / elapsed if elapsed > 0 else 0.0}


def options(replicas: int | ReplicaRange) -> dict[str, Any]:
    """Return the deployment's options for a fixed number of replicas or a range."""
    if isinstance(replicas, int):
        return {"num_replicas": replicas}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.min,
            "max_replicas": replicas.max,
            "upscale_delay_s": replicas.up_s,
            "downscale_delay_s": replicas.down_s,
            "metrics_interval_s": 1.0,
            "look_back_period_s": replicas.up_s,
            "policy": {"policy_function": "online.service.on_ray.scaling:policy"},
        }
    }
