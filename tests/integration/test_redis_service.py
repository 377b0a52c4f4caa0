"""The service on a journal in Redis: start, refusals, an outage; and several nodes.

Kills on Redis are in ``test_exactly_once.py``; a server that comes back empty is in
``test_faults.py``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.faults.exactly_once import settings_of
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.redis_server import Server, find_binary
from benchmarks.fixtures.service import Running, launch, settle, status, write_settings
from online.errors import StartRefused
from online.service.state.check_state import Models
from online.settings.config import environment, load
from online.settings.places import open_journal

_BINARY = find_binary(environment())
_PASSWORD = "s3cr3t-of-the-test"

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(_BINARY is None, reason="no valkey-server or redis-server"),
]


@contextlib.contextmanager
def store(folder: Path, **settings: str) -> Iterator[Server]:
    assert _BINARY is not None
    server = Server(folder, _BINARY, **settings)
    try:
        yield server
    finally:
        server.kill()


def online(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, as a shell would run it; it shows neither a stack trace nor the password."""
    done = subprocess.run(
        [sys.executable, "-m", "online", *arguments], capture_output=True, text=True, timeout=240
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert _PASSWORD not in done.stdout + done.stderr
    return done


def feed(running: Running, event: str, timeout_s: float = 240.0) -> dict[str, Any]:
    """Send one event and again until it is acknowledged."""
    body = {"features": {event: 1.0}, "label": COUNT_LABEL, "event_id": event}
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.HTTPError):
            url = f"{running.url}/v1/models/counting/feedback"
            answer = httpx.post(url, json=body, timeout=timeout_s)
            if answer.status_code == 200:
                return dict(answer.json())
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_learned(receipt: dict[str, Any]) -> bool:
    """Whether it is, when it was sent again, too: a busy machine may answer too late at first."""
    return "learned" in (receipt["status"], receipt.get("first_outcome"))


def test_the_service_on_redis() -> None:
    with tempfile.TemporaryDirectory(prefix="online-redis-") as name:
        folder = Path(name)
        with store(folder / "redis", requirepass=_PASSWORD) as server:
            journal = server.url.replace("//", f"//:{_PASSWORD}@")
            settings = {**settings_of(0, journal, embedded=True), "limits": {"feedback_wait_s": 2}}
            path = write_settings(folder, settings)
            running = launch(folder)
            try:
                assert not (running.state_dir / "journal.db").exists()
                for i in range(10):
                    assert is_learned(feed(running, f"e{i}"))
                assert feed(running, "e0")["status"] == "duplicate"
                settle(running, "counting", 10)
                shown = online("config", "show", str(path)).stdout
                assert "redis://:***@" in shown
                assert online("status", "--state-dir", str(running.state_dir)).returncode == 0

                # Away for a moment: predictions go on, feedback is refused or waits, no event
                # is lost or learned twice.
                server.kill()
                predict = f"{running.url}/v1/models/counting/predict"
                for _ in range(20):
                    answer = httpx.post(predict, json={"features": {"a": 1.0}}, timeout=120)
                    assert answer.status_code == 200
                body = {"features": {"late": 1.0}, "label": COUNT_LABEL, "event_id": "late"}
                feedback = f"{running.url}/v1/models/counting/feedback"
                refused = httpx.post(feedback, json=body, timeout=120)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "journal_unavailable"
                assert _PASSWORD not in refused.text
                server.start()
                assert is_learned(feed(running, "late"))
                settle(running, "counting", 11)

                assert _PASSWORD not in json.dumps(status(running, "counting"))
            finally:
                running.stop()
            found = online("fsck", "--json", "--config", str(path))
            (findings,) = json.loads(found.stdout)
            assert findings["good"], findings
            # A machine at work may not be done with the last snapshot when the service has to end.
            assert findings["expected"] + findings["not_yet"] == 11
            assert _PASSWORD not in (folder / "serve.log").read_text()


@pytest.mark.parametrize(
    ("server", "settings", "says"),
    [
        ({"appendfsync": "everysec"}, {}, "CONFIG SET appendfsync always"),
        ({"maxmemory_policy": "allkeys-lru"}, {}, "noeviction is needed"),
        ({"appendfsync": "everysec"}, {"journal_durability": "assumed"}, "always"),
    ],
)
def test_a_redis_that_forgets_is_refused(
    tmp_path: Path, server: dict[str, str], settings: dict[str, str], says: str
) -> None:
    with store(tmp_path / "redis", **server) as forgets:
        path = write_settings(tmp_path, {**settings_of(0, forgets.url), **settings})
        with pytest.raises(StartRefused, match=says) as caught:
            Models(load(path, {}, {}), print).check(fresh=False, relearn=False)
        assert "journal_durability" in caught.value.remedy


def test_two_services_on_one_server_are_told_apart_by_their_prefix(tmp_path: Path) -> None:
    with store(tmp_path / "redis") as server:
        path = write_settings(tmp_path, settings_of(0, server.url))
        first = load(path, {}, {})
        other = load(path, {"journal_prefix": "other"}, {})
        with closing(open_journal(first)) as one, closing(open_journal(other)) as two:
            one.register("counting", "replica", "spec", 0.0)
            assert len(one.partitions("counting")) == 1
            assert two.partitions("counting") == ()


def test_a_redis_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write_settings(tmp_path, settings_of(0, f"redis://:{_PASSWORD}@127.0.0.1:1/0"))
    done = online("serve", str(path))
    assert done.returncode == 1
    assert "redis://:***@127.0.0.1:1/0" in done.stderr
    assert "Start that server" in done.stderr


_TWO_NODES = """
import sys, time
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.long  # in short: `check_nodes` with names of two nodes
def test_two_nodes_with_a_sqlite_journal_are_refused(tmp_path: Path) -> None:
    nodes = subprocess.Popen(
        [sys.executable, "-c", _TWO_NODES],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**environment(), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    try:
        assert nodes.stdout is not None
        address = nodes.stdout.readline().strip()
        assert address, "the cluster did not start"
        path = write_settings(tmp_path, {**settings_of(0), "cluster": address})
        done = subprocess.run(
            [sys.executable, "-m", "online", "serve", str(path)],
            capture_output=True, text=True, timeout=240,
            env={**environment(), "RAY_AUTH_MODE": "disabled"},
        )  # fmt: skip
        assert done.returncode == 1, done.stdout + done.stderr
        assert "the Ray cluster has 2 nodes" in done.stderr
        assert "journal: redis://" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        nodes.communicate(timeout=240)
