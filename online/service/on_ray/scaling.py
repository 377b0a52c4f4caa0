"""How many replicas the load needs: what Ray Serve asks, once a second, if `replicas` is a range.

Serve's own measure is of no use here: hot requests come past its count
(:mod:`online.http.ingress`), and are over in a millisecond.  A replica answers and learns on one
thread, so what runs out is that thread's time: the share of a core that its process takes.

Serve imports this module in its controller, so it imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from online.settings.replicas import ReplicaRange

BUSY: Final = 0.6
"""Share of a core that a replica may take on average; above it, answers begin to wait."""

_METRIC: Final = "busy"


def wanted(shares: Sequence[float]) -> int:
    """Replicas for the work of all: one that has nothing to do counts as none of it."""
    return max(math.ceil(sum(shares) / BUSY), 1)


def policy(context: Any) -> tuple[int, dict[str, Any]]:
    """Tell Serve, which calls this, how many replicas are wanted.

    Serve keeps to the range, and waits `up_s` or `down_s` with what it is told.
    """
    shares = list(context.aggregated_metrics.get(_METRIC, {}).values())
    # One has not said yet how busy it is.  While it starts it takes time from the others, which on
    # a full machine look less busy for that: it is not sent away before it has answered.
    if len(shares) < max(context.current_num_replicas, context.target_num_replicas):
        return context.target_num_replicas, {}
    return wanted(shares), {}


class Busy:
    """Share of a core that this process took since it was last asked, as Serve records it."""

    def __init__(self, cpu_s: Callable[[], float], monotonic_s: Callable[[], float]) -> None:
        self._cpu_s, self._monotonic_s = cpu_s, monotonic_s
        self._last = cpu_s(), monotonic_s()

    def __call__(self) -> dict[str, float]:
        now = self._cpu_s(), self._monotonic_s()
        cpu, elapsed = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return {_METRIC: cpu / elapsed if elapsed > 0 else 0.0}


def options(replicas: int | ReplicaRange) -> dict[str, Any]:
    """Return the deployment's options: how many replicas, or what decides it."""
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
