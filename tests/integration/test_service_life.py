"""The life of a real service: start, stop, kill, restart, changed code, listeners."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import operated
import psutil
import pytest

from benchmarks.fixtures.service import Running, launch, settle, status, write_settings
from online.service.processes import runs

pytestmark = pytest.mark.ray


FILE_MODEL: Any = operated.FILE_MODEL
LEARNER: Any = operated.LEARNER
MODEL: Any = operated.MODEL
PROBES: Any = operated.PROBES
stop_s: Any = operated.stop_s
Traces: Any = operated.Traces
answers: Any = operated.answers
close_to: Any = operated.close_to
everywhere: Any = operated.everywhere
folder: Any = operated.folder
learn: Any = operated.learn
online: Any = operated.online
refused: Any = operated.refused


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with operated.serving() as running:
        yield running


# -- one folder, one service -----------------------------------------------------------------


def test_a_second_service_on_the_folder_is_refused(service: Running) -> None:
    before = answers(service)
    error = refused("serve", str(service.folder / "online.yaml"))
    assert f"pid {service.process.pid}" in error
    assert str(service.state_dir) in error
    assert "--state-dir" in error
    assert service.process.poll() is None
    assert answers(service) == close_to(before)
    assert service.facts["url"] == service.url
    learn(service, 5, first=1000)


def test_a_foreign_page_is_refused_by_every_process_that_answers(service: Running) -> None:
    """The balancer's port and the replicas' own; hot routes past Serve's wrapper and the rest."""
    count = status(service, "clicks")["learned"]
    event = '{"features":{"a":1},"label":"yes"}'
    lines = {"content-type": "application/x-ndjson"}
    origin, name = {"origin": "http://evil.example"}, {"host": "evil.example"}
    for url in (service.url, *service.replica_urls().values()):
        model = f"{url}/v1/models/clicks"
        with httpx.Client(timeout=120) as client:
            for headers, code in ((origin, "foreign_origin"), (name, "foreign_host")):
                tried = [
                    client.post(f"{model}/feedback", content=event, headers=headers),
                    client.post(f"{model}/feedback", content=event, headers=headers | lines),
                    client.post(f"{model}/predict", content=event, headers=headers),
                    client.post(f"{model}/freeze", headers=headers),
                    client.post(f"{model}/edge/deltas", content="{}", headers=headers),
                    client.get(model, headers=headers),
                ]
                assert {a.json()["error"]["code"] for a in tried} == {code}
                infer = client.post(f"{url}/v2/models/clicks/infer", headers=headers)
                assert infer.status_code == 403
            for probe in ("livez", "readyz"):
                pod = {"host": "10.244.1.7:8000"}
                assert client.get(f"{url}/{probe}", headers=pod).status_code == 200
    assert status(service, "clicks")["learned"] == count


def test_what_it_makes_is_its_owners_alone(service: Running) -> None:
    """Started with no umask at all, by every process: journal, snapshots, notes, locks, edge."""
    online("edge", "keygen", "--config", str(service.folder / "online.yaml"))
    assert online("fsck", "--config", str(service.folder / "online.yaml")).returncode == 0
    places = [service.state_dir, *service.state_dir.rglob("*")]
    names = {place.name for place in places}
    assert {"run.json", "key", "journal.db", "journal.db-wal", "snapshots"} <= names
    with contextlib.suppress(FileNotFoundError):  # files that come and go
        assert {str(p): oct(p.stat().st_mode) for p in places if p.stat().st_mode & 0o077} == {}
    assert not any("is open to others" in line for line in service.lines)


def test_traces_are_found_while_it_runs(service: Running) -> None:
    """Control of the tests below: a running service is seen in every way."""
    left = "\n".join(Traces.of(service).left())
    for trace in (f"pid {service.process.pid} ", "names ", "port ", "haproxy", "raylet"):
        assert trace in left


def test_side_by_side_then_stop_kill_restart_and_changed_code(service: Running) -> None:
    with folder() as place:
        (place / "learner.py").write_text(LEARNER.format(rate=0.05))
        write_settings(place, {"replicas": 1, "models": [FILE_MODEL]})
        other = launch(place)
        # side by side: each answers and learns, and knows only its own events
        count = status(service, "clicks")["learned"]
        learn(other, 30)
        learn(service, 3, first=2000)
        assert status(service, "clicks")["learned"] == count + 3
        assert service.process.poll() is None
        for running in (service, other):  # each has a Ray of its own
            assert [p.name() for p in running.processes()].count("raylet") == 1
        before = answers(other)
        assert before != answers(service)

        learn(other, 11, first=30)
        before = answers(other)
        traces = Traces.of(other)
        # Ray's processes end by themselves, sooner or later: this one does not.
        waits = [sys.executable, "-c", "import sys; sys.stdin.read()", other.facts["private"]]
        left = subprocess.Popen(waits, stdin=subprocess.PIPE)
        other.process.kill()
        other.process.wait(240)
        other = launch(place)
        assert any("left over from a crash" in line for line in other.lines)
        assert left.wait(240) == -signal.SIGKILL
        assert not [p for p in traces.processes if runs(p)]
        assert settle(other, "clicks", 41)["learned"] == 41
        assert answers(other) == close_to(before)
        assert online("fsck", "--config", str(place / "online.yaml")).returncode == 0

        ended(other, signal.SIGINT)
        assert answers(service), "the first one goes on"
        changed_code(place, 41, before)


def ended(running: Running, number: int) -> None:
    """One signal ends it in time, and nothing is left."""
    traces = Traces.of(running)
    begun = time.monotonic()
    running.process.send_signal(number)
    assert running.process.wait(240) == 0
    assert time.monotonic() - begun < stop_s(running.started_s)
    assert traces.left() == []


def changed_code(place: Path, learned: int, first: list[float]) -> None:
    """Refused; then learned again with the new code; then, changed once more, from nothing.

    From here on in one process, which starts in a second.
    """
    settings = str(write_settings(place, {"cluster": "embedded", "models": [FILE_MODEL]}))
    (place / "learner.py").write_text(LEARNER.format(rate=0.5))
    error = refused("serve", settings)
    assert "model clicks" in error
    assert "--relearn" in error
    assert "--fresh" in error
    assert f"{learned} events" in error

    running = launch(place, "--relearn")
    try:
        assert any(f"learning {learned} events" in line for line in running.lines)
        assert settle(running, "clicks", learned)["learned"] == learned
        assert answers(running) != close_to(first), "learned with the new rate"
    finally:
        running.stop()

    (place / "learner.py").write_text(LEARNER.format(rate=0.2))
    refused("serve", settings)
    running = launch(place, "--fresh")
    try:
        assert status(running, "clicks")["learned"] == 0
        assert answers(running) == [0.5] * len(PROBES)
        learn(running, 4, first=100)
        assert status(running, "clicks")["learned"] == 4
    finally:
        running.stop()
    found = json.loads(online("fsck", "--config", settings, "--json").stdout)
    assert [model["good"] for model in found] == [True]


def test_a_start_that_is_given_up_leaves_nothing() -> None:
    with folder() as place:
        settings = write_settings(place, {"replicas": 1, "models": [MODEL]})
        log = place / "serve.log"
        with log.open("w") as file:
            command = [sys.executable, "-m", "online", "serve", str(settings)]
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        launched = time.monotonic()
        while "starting Serve" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        started = psutil.Process(process.pid).children(recursive=True)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 130, log.read_text()
        assert time.monotonic() - begun < stop_s(3 * (begun - launched))
        assert len(started) >= 3
        assert not [p for p in started if runs(p)]
        assert "Traceback" not in log.read_text()
        assert not (place / "state" / "run.json").exists()


def test_the_settings_say_who_learns_a_model_that_does_not_merge() -> None:
    with folder() as place:
        (place / "learner.py").write_text(
            "from river import tree\n\n\ndef build():\n    return tree.HoeffdingTreeClassifier()\n"
        )
        for learn, merge in (("inline", "ordered"), ("background", "lagging")):
            model = {**FILE_MODEL, "learn": learn}
            settings = write_settings(place, {"replicas": 2, "models": [model]})
            checked = online("config", "check", str(settings))
            assert checked.returncode == 0
            assert f"merge: {merge}" in checked.stdout


# -- listeners -------------------------------------------------------------------------------

_LISTENERS = {
    ("haproxy", "loopback"): "the HTTP port",
    ("haproxy", "any"): "HAProxy's own figures, read only",
    ("ray::ServeReplica:online:Replica", "loopback"): "a replica's HTTP port",
    ("ray::ServeReplica:online:Replica", "any"): "calls between Ray's workers, with the token",
    ("ray::ProxyActor", "loopback"): "takes over when no replica is up",
    ("ray::ProxyActor", "any"): "calls between Ray's workers, with the token",
    ("ray::HAProxyManager", "any"): "calls between Ray's workers, with the token",
    ("ray::ServeController", "any"): "calls between Ray's workers, with the token",
    ("ray::ParameterServer", "any"): "calls between Ray's workers, with the token",
    ("ray::IDLE", "any"): "calls between Ray's workers, with the token",
    ("online serve", "any"): "calls between Ray's workers, with the token",
    ("gcs_server", "any"): "Ray's table of actors, with the token",
    ("raylet", "any"): "Ray's node, with the token",
}
"""Every role that listens: process and reach (any: other than loopback), and what for."""


def role(process: psutil.Process) -> str:
    command = process.cmdline()
    if command and command[0].startswith("ray::"):
        return command[0].split()[0].split(".")[0]  # without the method that runs now
    scripts = [Path(part).name for part in command if part.endswith(".py")]
    if scripts:
        return scripts[0]
    return "online serve" if "online" in command and "serve" in command else process.name()


def listeners(processes: Sequence[psutil.Process]) -> list[tuple[str, str, int]]:
    """Role, reach and port of everything that listens."""
    out = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    ip = connection.laddr.ip
                    reach = "loopback" if ip.startswith("127.") or ip == "::1" else "any"
                    out.append((role(process), reach, connection.laddr.port))
    return out


def test_only_known_roles_listen(service: Running) -> None:
    found = listeners(service.processes())
    assert {entry[:2] for entry in found} <= _LISTENERS.keys()
    ray = {"gcs_server", "raylet", "cat", "haproxy", "online serve"}
    names = {role(process) for process in service.processes()}
    assert {name for name in names if not name.startswith("ray::")} <= ray, "and no agents"
    http = [port for name, reach, port in found if (name, reach) == ("haproxy", "loopback")]
    assert http == [urlsplit(service.url).port]
    assert sum(entry[:2] == ("haproxy", "any") for entry in found) <= 2
    first, last = service.facts["replica_ports"]
    replica = "ray::ServeReplica:online:Replica"
    ports = [port for name, reach, port in found if (name, reach) == (replica, "loopback")]
    assert len(ports) == 2
    assert all(first <= port <= last for port in ports)
    in_range = [entry for entry in found if first <= entry[2] <= last]
    assert len(in_range) == 2, "nothing else takes the replicas' ports"


def test_a_new_listener_is_found() -> None:
    """Control: one more socket, in a process with another role."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        found = listeners([psutil.Process()])
        assert s.getsockname()[1] in {port for _, _, port in found}
    assert not {entry[:2] for entry in found} <= _LISTENERS.keys()


# -- the parameter server dies ---------------------------------------------------------------


def test_predictions_go_on_while_the_parameter_server_is_gone(service: Running) -> None:
    before = answers(service)
    learned = status(service, "clicks")["learned"]
    server = status(service, "clicks")["server"]
    assert server["pid"] in {p.pid for p in service.named("ParameterServer")}
    os.kill(server["pid"], signal.SIGKILL)
    ages: list[float] = []
    deadline = time.monotonic() + 240
    with httpx.Client(base_url=service.url, timeout=120) as client:
        while True:
            for _ in range(10):
                answer = client.post("/v1/models/clicks/predict", json={"features": PROBES[0]})
                assert answer.status_code == 200
                body = answer.json()
                assert body["probabilities"]["yes"] == pytest.approx(before[0], abs=1e-12)
                ages.append(body["age_ms"])
            now = client.get("/v1/models/clicks").json()["server"]
            if now and now["state"] == "serving" and now["pid"] != server["pid"]:
                break
            assert time.monotonic() < deadline, "the parameter server does not come back"
        peak = max(ages)
        while max(ages[-6:]) > peak / 2:
            assert time.monotonic() < deadline, "the age does not fall"
            answer = client.post("/v1/models/clicks/predict", json={"features": PROBES[0]})
            ages.append(answer.json()["age_ms"])
    assert peak > 300.0, "the age grew meanwhile"
    assert ages[0] < peak
    assert now["epoch"] > server["epoch"]
    everywhere(service, learned)
    assert answers(service) == close_to(before)
    learn(service, 4, first=3000)


# -- last: it ends ---------------------------------------------------------------------------


def test_a_parameter_server_that_hangs_does_not_hold_up_the_end(service: Running) -> None:
    """Nobody takes the last pushes, and no last snapshot is written: the journal has the rows."""
    learned = status(service, "clicks")["learned"]
    for process in service.named("ParameterServer"):
        process.suspend()
    body = {"features": PROBES[0], "label": "no", "event_id": "last"}
    answer = httpx.post(f"{service.url}/v1/models/clicks/feedback", json=body, timeout=120)
    assert (answer.status_code, answer.json()["status"]) == (200, "learned")
    ended(service, signal.SIGTERM)
    settings = str(service.folder / "online.yaml")
    (found,) = json.loads(online("fsck", "--config", settings, "--json").stdout)
    assert found["good"]
    assert found["expected"] + found["not_yet"] == learned + 1
