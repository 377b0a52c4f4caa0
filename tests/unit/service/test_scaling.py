"""How many replicas a load needs, and what Serve is told of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from online.service.on_ray import scaling
from online.service.on_ray.scaling import BUSY, Busy, policy, wanted
from online.settings.replicas import ReplicaRange


@pytest.mark.parametrize(
    ("shares", "replicas"),
    [([0.0], 1), ([BUSY], 1), ([1.0], 2), ([0.3, 0.2], 1), ([0.5, 0.5], 2), ([1.0, 1.0], 4)],
)
def test_the_work_of_all_is_shared(shares: list[float], replicas: int) -> None:
    assert wanted(shares) == replicas


def asked(shares: dict[str, float], running: int, target: int) -> int:
    metrics = {"busy": shares} if shares else {}
    context: Any = SimpleNamespace(
        aggregated_metrics=metrics, current_num_replicas=running, target_num_replicas=target
    )
    return policy(context)[0]


def test_nothing_is_decided_before_every_replica_has_said_how_busy_it_is() -> None:
    assert asked({}, 2, 2) == 2
    assert asked({"a": 0.1}, 2, 2) == 2, "the other one may be busy"
    assert asked({"a": 0.1, "b": 0.1}, 2, 2) == 1


def test_a_replica_that_is_still_starting_is_not_sent_away() -> None:
    """Its start takes time from the others: they look less busy, and are not."""
    assert asked({"a": 0.4}, 1, 2) == 2
    assert asked({"a": 0.4}, 1, 1) == 1, "the control: nothing was wanted"


def test_what_is_said_does_not_oscillate() -> None:
    """The load that made two of one does not make one of two: it is as much as before."""
    for load in (0.61, 0.8, 1.0):
        n = asked({"a": load}, 1, 1)
        assert asked({"a": load / n, "b": load / n}, n, n) == n


def test_a_share_is_of_the_time_since_the_last_question() -> None:
    times = iter([(0.0, 0.0), (1.0, 2.0), (1.0, 4.0)])
    now = [0.0, 0.0]

    def step() -> None:
        now[:] = next(times)

    step()
    busy = Busy(lambda: now[0], lambda: now[1])
    step()
    assert busy() == {"busy": 0.5}
    step()
    assert busy() == {"busy": 0.0}
    assert busy() == {"busy": 0.0}, "no time has passed"


def test_serve_takes_it_and_finds_the_policy() -> None:
    from ray import serve
    from ray.serve.config import AutoscalingConfig

    assert scaling.options(3) == {"num_replicas": 3}
    found = scaling.options(ReplicaRange(min=1, max=4, up_s=2, down_s=30))["autoscaling_config"]
    config = AutoscalingConfig(**found)
    assert config.policy.policy_function == f"{policy.__module__}:{policy.__name__}"
    assert (config.min_replicas, config.max_replicas) == (1, 4)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (2, 30)
    serve.deployment(type("D", (), {}), **scaling.options(ReplicaRange(max=2)))
