"""The service on several hosts in one machine: network namespaces, and a switch that can fail.

The whole table, with longer cuts and more runs, is `python -m benchmarks hosts`.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.faults import hosts
from benchmarks.fixtures import host_network, redis_server
from benchmarks.fixtures.host_network import Link, Network, Rule
from online.settings.config import environment

_WHY_NOT = host_network.permitted()
_BINARY = redis_server.find_binary(environment())

needed = pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))


@pytest.mark.ray
@pytest.mark.long
@needed
@pytest.mark.skipif(_BINARY is None, reason="no valkey-server or redis-server")
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


_NETWORK = """
import sys
from pathlib import Path
from benchmarks.fixtures.host_network import Network
with Network(Path(sys.argv[1]), ["a", "b"]) as network:
    print(*(host.init.pid for host in network.hosts.values()), flush=True)
    sys.stdin.read()
"""


@needed
def test_hosts_are_apart_and_reach_each_other(tmp_path: Path) -> None:
    with Network(tmp_path, ["a", "b"]) as network:
        a, b = network.hosts.values()
        assert b.sh("hostname").strip() == "b"
        assert a.sh("ps ax").count("\n") < 10, "its own processes only"
        listening = b.inside(lambda: socket.create_server((b.address, 5000)))

        def reaches(timeout_s: float) -> bool:
            try:
                a.inside(lambda: socket.create_connection((b.address, 5000), timeout_s).close())
            except OSError:
                return False
            return True

        with listening:
            assert reaches(60)
            network.rules(Rule("b", "*", Link(loss=1.0)))
            told = time.monotonic() + 30.0  # the switch, another process, hears it a bit later
            while reaches(0.3) and time.monotonic() < told:
                pass
            assert not reaches(0.3), "it hears, and is not heard"
            network.rules()
            assert reaches(60)
        b.kill()
        assert not b.init.is_running()


@needed
def test_whoever_is_killed_leaves_no_host_behind(tmp_path: Path) -> None:
    script = [sys.executable, "-c", _NETWORK, str(tmp_path)]
    process = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    hosts_of = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert len(hosts_of) == 2
    process.kill()
    process.communicate()
    assert psutil.wait_procs(hosts_of, timeout=240)[1] == []
