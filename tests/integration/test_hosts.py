"""The service on several hosts in one machine: network namespaces, and a switch that can fail.

The whole table, with longer cuts and more runs, is `online bench hosts`.
"""

from __future__ import annotations

import random

import pytest

from online.bench import ether, hosts, redis_server
from online.bench.ether import Link, Rule, Switch
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


# -- the switch, without a network ----------------------------------------------------------------


def frame(target: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, target)) + bytes(60)


ALL = b"\xff" * 6 + bytes(60)


def switch(*rules: Rule) -> Switch:
    found = Switch([1, 2, 3], random.Random(3))
    found.set(rules)
    return found


def test_frames_go_to_whom_they_are_for() -> None:
    assert switch().take(1, frame(2), 0.0) == [(2, frame(2))]
    assert [port for port, _ in switch().take(1, ALL, 0.0)] == [2, 3]
    assert switch().take(1, frame(9), 0.0) == []


def test_a_link_is_cut_in_one_direction() -> None:
    cut = switch(Rule("3", "*", Link(loss=1.0)))
    assert cut.take(3, frame(1), 0.0) == []
    assert cut.take(1, frame(3), 0.0) == [(3, frame(3))]
    assert [port for port, _ in cut.take(1, ALL, 0.0)] == [2, 3]


def test_a_frame_is_late_by_as_much_as_it_is_told() -> None:
    late = switch(Rule("*", "*", Link(delay_s=0.2)))
    assert late.take(1, frame(2), 5.0) == []
    assert late.wait_s(5.0) == pytest.approx(0.2)
    assert late.due(5.1) == []
    assert late.due(5.21) == [(2, frame(2))]
    assert late.wait_s(5.3) is None


def test_a_fifth_is_lost() -> None:
    lossy = switch(Rule("*", "*", Link(loss=0.2)))
    arrived = sum(len(lossy.take(1, frame(2), 0.0)) for _ in range(5000))
    assert 0.77 < arrived / 5000 < 0.83
