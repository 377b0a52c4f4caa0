"""Operating a real service: start, stop, kill, restart, changed code, commands, listeners."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from online.bench.service import Running, launch, settle, status, write_settings
from online.processes import runs

pytestmark = pytest.mark.ray

_MODEL = {
    "name": "clicks",
    "task": "binary",
    "learner": "logreg",
    "classes": {"negative": "no", "positive": "yes"},
}
_FILE_MODEL = {**_MODEL, "learner": "learner.py:build"}
_LEARNER = """
from river import linear_model, optim, preprocessing


def build():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD({rate}))
"""
_STOP_S = 5.0
_PROBES = [{"a": 0.25 * i, "b": 1.0 - i} for i in range(8)]


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="online-ops-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """Two replicas that have learned forty events."""
    with folder() as place:
        write_settings(place, {"replicas": 2, "models": [_MODEL]})
        running = launch(place)
        try:
            learn(running, 40)
            yield running
        finally:
            running.stop()


def learn(running: Running, n: int, first: int = 0) -> None:
    """Send ``n`` events, each of them acknowledged, and wait until every replica has them."""
    before = status(running, "clicks")["learned"]
    events = [
        {
            "features": {"a": float(i % 7), "b": (i % 5) - 1.5},
            "label": ("no", "yes")[i % 3 == 0],
            "event_id": str(i),
        }
        for i in range(first, first + n)
    ]
    answer = httpx.post(
        f"{running.url}/v1/models/clicks/feedback", json={"events": events}, timeout=20
    )
    assert answer.status_code == 200
    assert {event["status"] for event in answer.json()["events"]} == {"learned"}
    everywhere(running, before + n)


def everywhere(running: Running, learned: int) -> None:
    """Wait until every replica has so many events."""
    deadline = time.monotonic() + 30
    for url in running.replica_urls().values():
        while httpx.get(f"{url}/v1/models/clicks", timeout=20).json()["learned"] != learned:
            assert time.monotonic() < deadline, "a replica does not learn what others did"
            time.sleep(0.02)


def answers(running: Running) -> list[float]:
    """Probability of "yes" for each probe row."""
    url = f"{running.url}/v1/models/clicks/predict"
    body = httpx.post(url, json={"instances": _PROBES}, timeout=20).json()
    return [row["probabilities"]["yes"] for row in body["predictions"]]


def close_to(expected: Sequence[float]) -> Any:
    return pytest.approx(expected, rel=0, abs=1e-12)


def online(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """A command, as a shell would run it; whatever happens it shows no stack trace."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ONLINE_")}
    done = subprocess.run(
        [sys.executable, "-m", "online", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def refused(*arguments: str) -> str:
    """Standard error of a command that is refused."""
    done = online(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("online: ")
    return done.stderr


@dataclass(frozen=True)
class Traces:
    """What a service has on the machine while it runs."""

    processes: list[psutil.Process]
    private: str
    port: int

    @classmethod
    def of(cls, running: Running) -> Traces:
        port = urlsplit(running.url).port
        assert port is not None
        return cls(running.processes(), running.facts["private"], port)

    def left(self) -> list[str]:
        """What is still there."""
        out = [f"pid {p.pid} {p.name()}" for p in self.processes if runs(p)]
        for process in psutil.process_iter(["pid", "cmdline"]):
            if any(self.private in part for part in process.info["cmdline"] or ()):
                out.append(f"pid {process.info['pid']} names {self.private}")
        if Path(self.private).exists():
            out.append(self.private)
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", self.port)) == 0:
                out.append(f"port {self.port}")
        return out


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


def test_traces_are_found_while_it_runs(service: Running) -> None:
    """Control of the tests below: a running service is seen in every way."""
    left = "\n".join(Traces.of(service).left())
    for trace in (f"pid {service.process.pid} ", "names ", "port ", "haproxy", "raylet"):
        assert trace in left


def test_side_by_side_then_stop_kill_and_restart(service: Running) -> None:
    with folder() as place:
        (place / "learner.py").write_text(_LEARNER.format(rate=0.05))
        write_settings(place, {"replicas": 1, "models": [_FILE_MODEL]})
        other = launch(place)
        # side by side: each answers and learns, and knows only its own events
        count = status(service, "clicks")["learned"]
        learn(other, 30)
        learn(service, 3, first=2000)
        assert status(service, "clicks")["learned"] == count + 3
        assert service.process.poll() is None
        for running in (service, other):  # the port 52365 of Ray's agent is fixed: one gets none
            assert len(running.named("DashboardAgent")) == 1
        before = answers(other)
        assert before != answers(service)

        traces = Traces.of(other)
        begun = time.monotonic()
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(20) == 0
        assert time.monotonic() - begun < _STOP_S
        assert traces.left() == []
        assert answers(service), "the first one goes on"

        other = launch(place)
        assert answers(other) == close_to(before)
        assert status(other, "clicks")["learned"] == 30

        learn(other, 11, first=30)
        before = answers(other)
        traces = Traces.of(other)
        other.process.kill()
        other.process.wait(20)
        other = launch(place)
        assert any("left behind" in line for line in other.lines)
        assert not [p for p in traces.processes if runs(p)]
        assert settle(other, "clicks", 41)["learned"] == 41
        assert answers(other) == close_to(before)
        assert online("fsck", "--config", str(place / "online.yaml")).returncode == 0

        traces = Traces.of(other)
        other.process.send_signal(signal.SIGINT)
        while "stopping" not in (place / "serve.log").read_text():
            time.sleep(0.005)
        begun = time.monotonic()
        other.process.send_signal(signal.SIGINT)
        assert other.process.wait(20) == 130
        assert time.monotonic() - begun < 2.5
        assert traces.left() == []
        assert "Traceback" not in (place / "serve.log").read_text()
        found = json.loads(online("fsck", "--config", str(place / "online.yaml"), "--json").stdout)
        assert [model["good"] for model in found] == [True]


def test_a_start_that_is_given_up_leaves_nothing() -> None:
    with folder() as place:
        settings = write_settings(place, {"replicas": 1, "models": [_MODEL]})
        log = place / "serve.log"
        with log.open("w") as file:
            command = [sys.executable, "-m", "online", "serve", str(settings)]
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while "starting Serve" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        started = psutil.Process(process.pid).children(recursive=True)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130
        assert time.monotonic() - begun < _STOP_S
        assert len(started) >= 3
        assert not [p for p in started if runs(p)]
        assert "Traceback" not in log.read_text()
        assert not (place / "state" / "run.json").exists()


# -- changed code ----------------------------------------------------------------------------


def test_changed_model_code() -> None:
    with folder() as place:
        settings = write_settings(place, {"replicas": 1, "models": [_FILE_MODEL]})
        (place / "learner.py").write_text(_LEARNER.format(rate=0.05))
        running = launch(place)
        learn(running, 25)
        first = answers(running)
        traces = Traces.of(running)
        begun = time.monotonic()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(20) == 0
        assert time.monotonic() - begun < _STOP_S
        assert traces.left() == []

        (place / "learner.py").write_text(_LEARNER.format(rate=0.5))
        error = refused("serve", str(settings))
        assert "model clicks" in error
        assert "--relearn" in error
        assert "--fresh" in error
        assert "25 events" in error

        running = launch(place, "--relearn")
        try:
            assert any("learning 25 events" in line for line in running.lines)
            assert settle(running, "clicks", 25)["learned"] == 25
            second = answers(running)
            assert second != close_to(first), "learned with the new rate"
        finally:
            running.stop()

        (place / "learner.py").write_text(_LEARNER.format(rate=0.2))
        refused("serve", str(settings))
        running = launch(place, "--fresh")
        try:
            assert status(running, "clicks")["learned"] == 0
            assert answers(running) == [0.5] * len(_PROBES)
            learn(running, 4, first=100)
            assert status(running, "clicks")["learned"] == 4
        finally:
            running.stop()


def test_copies_of_a_model_that_does_not_merge_are_refused() -> None:
    with folder() as place:
        (place / "learner.py").write_text(
            "from river import tree\n\n\ndef build():\n    return tree.HoeffdingTreeClassifier()\n"
        )
        settings = write_settings(place, {"replicas": 2, "models": [_FILE_MODEL]})
        error = refused("serve", str(settings))
        assert "HoeffdingTreeClassifier" in error
        assert "Set replicas: 1" in error
        checked = online("config", "check", str(settings))
        assert checked.returncode == 0
        assert "replicas: 1" in checked.stdout


# -- commands --------------------------------------------------------------------------------


def test_status(service: Running) -> None:
    at = ("--state-dir", str(service.state_dir))
    data = json.loads(_good("status", *at, "--json"))
    assert data["url"] == service.url
    assert [model["model"] for model in data["models"]] == ["clicks"]
    assert data["models"][0]["server"]["state"] == "serving"
    text = _good("status", *at)
    assert "clicks" in text
    assert "parameter server: serving" in text


def test_snapshots(service: Running) -> None:
    at = ("--state-dir", str(service.state_dir))
    made = json.loads(_good("snapshot", "create", *at))
    listed = json.loads(_good("snapshot", "list", *at, "--json"))
    names = [snapshot["name"] for snapshot in listed]
    assert made["name"] in names
    assert "snapshot" in _good("snapshot", "list", *at)
    for off, pinned in ((), True), (("--off",), False):
        _good("snapshot", "pin", made["name"], *off, *at)
        listed = json.loads(_good("snapshot", "list", *at, "--json"))
        assert [s["pinned"] for s in listed if s["name"] == made["name"]] == [pinned]
    assert "no snapshot" in refused("snapshot", "pin", "none", *at)
    (file,) = service.state_dir.glob(f"snapshots/clicks/*/{made['name']}*")
    shown = json.loads(_good("snapshot", "show", str(file)))
    assert shown["model"] == "clicks"
    assert {"weights", "scaler0", "digest"} <= shown["blocks"].keys()
    damaged = service.folder / "damaged"
    damaged.write_bytes(file.read_bytes()[:-1])
    assert "corrupt" in refused("snapshot", "show", str(damaged))
    assert "none" in refused("snapshot", "show", str(service.folder / "none"))


def test_stream(service: Running) -> None:
    at = ("--state-dir", str(service.state_dir))
    before = status(service, "clicks")["learned"]
    played = json.loads(_good("stream", "phishing", "--rows", "50", "--rate", "max", "--json", *at))
    assert (played["stream"].lower(), played["rows"]) == ("phishing", 50)
    assert 0 <= played["accuracy"] <= 1
    assert {"majority", "no_change", "kappa_m", "kappa_t"} <= played.keys()
    everywhere(service, before + 50)
    assert "row     50/50" in _good("stream", "phishing", "--rows", "50", "--rate", "max", *at)
    everywhere(service, before + 100)
    assert "--rate" in refused("stream", "phishing", "--rate", "0", *at)
    assert "no-such-stream" in refused("stream", "no-such-stream", *at)
    assert "--model" in refused("stream", "phishing", "--model", "none", *at)


def test_commands_without_a_service(tmp_path: Path) -> None:
    at = ("--state-dir", str(tmp_path / "state"))
    for command in (("status",), ("snapshot", "list"), ("snapshot", "create"),
                    ("snapshot", "pin", "x"), ("stream", "phishing")):  # fmt: skip
        error = refused(*command, *at)
        assert "no service runs on" in error
        assert "online serve" in error
    bad = tmp_path / "bad.yaml"
    bad.write_text("replica: 3\n")
    for command in (("config", "check"), ("config", "show"), ("serve",)):
        assert "Did you mean `replicas`?" in refused(*command, str(bad))
    assert "Name an existing file" in refused("serve", str(tmp_path / "none.yaml"))
    bad.write_text("models: [{name: m, task: binary, learner: lograg}]\n")
    assert "Did you mean `logreg`?" in refused("config", "check", str(bad))
    for command in (("status", "--no-such-option"), ("no-such-command",), ("serve", "--port", "x"),
                    ("snapshot", "pin")):  # fmt: skip
        assert online(*command).returncode == 2
    assert yaml_of(_good("config", "show"))["replicas"] == 2
    assert "good" in _good("config", "check")
    assert _good("--version").strip()


def test_commands_when_the_service_was_killed(tmp_path: Path) -> None:
    """Its facts are still there, and nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (tmp_path / "run.json").write_text(json.dumps({"url": f"http://127.0.0.1:{port}"}))
    for command in (("status",), ("snapshot", "list"), ("stream", "phishing")):
        assert "does not answer" in refused(*command, "--state-dir", str(tmp_path))


def _good(*arguments: str) -> str:
    done = online(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def yaml_of(text: str) -> dict[str, Any]:
    import yaml

    data: dict[str, Any] = yaml.safe_load(text)
    return data


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
    ("monitor.py", "any"): "figures of Ray's autoscaler",
    ("dashboard.py", "any"): "figures of Ray's dashboard, which is off",
    ("ray::DashboardAgent", "loopback"): "Ray's jobs, with the token",
    ("ray::DashboardAgent", "any"): "Ray's jobs and figures, with the token",
    ("ray::RuntimeEnvAgent", "any"): "Ray's runtime environments, with the token",
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
    deadline = time.monotonic() + 30
    with httpx.Client(base_url=service.url, timeout=20) as client:
        while True:
            for _ in range(10):
                answer = client.post("/v1/models/clicks/predict", json={"features": _PROBES[0]})
                assert answer.status_code == 200
                body = answer.json()
                assert body["probabilities"]["yes"] == pytest.approx(before[0], abs=1e-12)
                ages.append(body["age_ms"])
            now = client.get("/v1/models/clicks").json()["server"]
            if now and now["state"] == "serving" and now["pid"] != server["pid"]:
                break
            assert time.monotonic() < deadline, "the parameter server does not come back"
        peak = max(ages)
        while max(ages[-6:]) > min(peak / 2, 250.0):
            assert time.monotonic() < deadline, "the age does not fall"
            answer = client.post("/v1/models/clicks/predict", json={"features": _PROBES[0]})
            ages.append(answer.json()["age_ms"])
    assert peak > 300.0, "the age grew meanwhile"
    assert ages[0] < peak
    assert now["epoch"] > server["epoch"]
    everywhere(service, learned)
    assert answers(service) == close_to(before)
    learn(service, 4, first=3000)


# -- what is read ----------------------------------------------------------------------------


def test_metrics_of_both_replicas(service: Running) -> None:
    deadline = time.monotonic() + 20
    while True:
        answer = httpx.get(f"{service.url}/metrics", timeout=20)
        assert answer.headers["content-type"].startswith("text/plain")
        families = {f.name: f for f in text_string_to_metric_families(answer.text)}
        replicas = {s.labels["replica"] for s in families["online_behind_rows"].samples}
        if len(replicas) >= 2:
            break
        assert time.monotonic() < deadline, replicas
    assert len(replicas) == 2
    assert families["online_behind_rows"].type == "gauge"
    assert {s.labels["model"] for s in families["online_learned_events"].samples} == {"clicks"}
    assert families["online_learned_events"].samples[0].value > 0
    assert families["online_server_up"].samples[0].value == 1
    assert "accuracy" in {s.labels["metric"] for s in families["online_prequential"].samples}


class _References(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loads = {"script": "src", "link": "href", "img": "src", "iframe": "src"}
        self.found += [value or "" for name, value in attrs if name == loads.get(tag)]


_ELSEWHERE = re.compile(r"cdn\.|unpkg|jsdelivr|googleapis|gstatic|tiangolo")


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc"])
def test_pages_work_offline(service: Running, path: str) -> None:
    page = httpx.get(service.url + path, timeout=20)
    assert page.status_code == 200
    assert not _ELSEWHERE.search(page.text)
    references = _References(page.text).found
    if path == "/docs":
        assert any(reference.endswith(".js") for reference in references)
    for reference in references:
        if reference.startswith("data:"):
            continue
        url = urljoin(service.url + path, reference)
        assert url.startswith(service.url), reference
        asset = httpx.get(url, timeout=20)
        assert asset.status_code == 200, reference
        if reference.endswith(".css"):
            assert not re.search(r"url\(['\"]?https?:|@import", asset.text)


def test_openapi(service: Running) -> None:
    document = httpx.get(f"{service.url}/openapi.json", timeout=20).json()
    assert document["openapi"].startswith("3.")
    for action, statuses in ("predict", {"200", "422"}), ("feedback", {"200", "409", "410"}):
        operation = document["paths"][f"/v1/models/{{model}}/{action}"]["post"]
        assert statuses <= operation["responses"].keys()
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        properties = resolve(document, schema["$ref"])["properties"]
        assert {"features"} <= properties.keys()
    references = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)))
    assert len(references) >= 5
    for reference in references:
        assert resolve(document, reference)
    assert {"/livez", "/readyz", "/metrics", "/v1/models"} <= document["paths"].keys()


def resolve(document: dict[str, Any], reference: str) -> dict[str, Any]:
    assert reference.startswith("#/")
    node = document
    for part in reference[2:].split("/"):
        node = node[part]
    return node


# -- last: it ends ---------------------------------------------------------------------------


def test_a_parameter_server_that_hangs_does_not_hold_up_the_end(service: Running) -> None:
    """Nobody takes the last pushes, and no last snapshot is written: the journal has the rows."""
    learned = status(service, "clicks")["learned"]
    for process in service.named("ParameterServer"):
        process.suspend()
    body = {"features": _PROBES[0], "label": "no", "event_id": "last"}
    answer = httpx.post(f"{service.url}/v1/models/clicks/feedback", json=body, timeout=20)
    assert (answer.status_code, answer.json()["status"]) == (200, "learned")
    traces = Traces.of(service)
    begun = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(20) == 0
    assert time.monotonic() - begun < _STOP_S
    assert traces.left() == []
    again = launch(service.folder)
    try:
        assert settle(again, "clicks", learned + 1)["learned"] == learned + 1
    finally:
        again.stop()
