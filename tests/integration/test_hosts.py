"""The service on several hosts in one machine: network namespaces, and a switch that can fail.

The whole table, with longer cuts and more runs, is `online bench hosts`.
"""

from __future__ import annotations

import pytest

from online.bench import ether, hosts, redis_server
from online.config import environment

_WHY_NOT = ether.permitted()
if redis_server.find_binary(environment()) is None:
    _WHY_NOT = "no valkey-server or redis-server"


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))
def test_a_host_is_killed_and_nothing_is_lost() -> None:
    result = hosts.run("kill", seconds=5.0, seed=1)
    print(result.sockets)
    assert set(result.hosts.values()) == {1}, "a replica on each host"
    for address in ("10.77.0.2", "10.77.0.3"):
        assert address in result.sockets, "hosts talk to each other over the network"
    assert result.good, result
    assert result.acknowledged > 300
    assert result.acknowledged_during > 0, "the others go on"
    assert result.adopted >= 1, "what the killed host had written is learned by another"
    for host in ("head", "worker1"):
        assert result.answered[f"{host} during"] > 0, "predictions go on where clients can ask"
    assert "worker2 after" not in result.answered
