"""The guard rails of a real service: tokens, bounds, slow callers, thousands of idle ones, ports.

One service with one replica, tokens in files, and a stream that `serve --play` plays meanwhile.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from benchmarks.fixtures.service import Running, launch, write_settings
from online.settings.tokens import ROLES

pytestmark = pytest.mark.ray

TOKENS: Final = {role: f"{role}-0123456789abcdefghijkl" for role in ROLES}
ONGOING_MAX, SLOW = 220, 200
BODY_BYTES_MAX: Final = 50_000
LEARNER: Final = '''
class Fragile:
    """A model that can't answer one row."""

    def predict_one(self, x):
        if "boom" in x:
            raise RuntimeError("the model has no answer")
        return 0.0
'''
PAGE: Final = Path(__file__).parents[2] / "docs" / "architecture.md"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="online-guards-") as name:
        folder = Path(name)
        for role, token in TOKENS.items():
            path = folder / f"{role}.token"
            path.touch(0o600)
            path.write_text(f"{token}\n")
        (folder / "learner.py").write_text(LEARNER)
        models = [
            {"name": "m", "task": "binary", "learner": "logreg", "learn": "background"},
            {"name": "fragile", "task": "regression", "learner": "learner.py:Fragile"},
        ]
        limits = {
            "ongoing_max": ONGOING_MAX, "body_wait_s": 5, "body_bytes_max": BODY_BYTES_MAX,
        }  # fmt: skip
        settings = {
            "replicas": 1,
            "models": models,
            "limits": limits,
            "tokens": {f"{role}_file": f"{role}.token" for role in ROLES},
        }
        write_settings(folder, settings)
        service = launch(folder, "--play", "phishing", "--rate", "20")
        try:
            yield service
        finally:
            service.stop()


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """As many open files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def bearer(role: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[role]}"}


def ask(running: Running, method: str, path: str, role: str | None, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {}) | (bearer(role) if role else {})
    return httpx.request(method, running.url + path, headers=headers, timeout=120, **more)


PREDICT: Final = "/v1/models/m/predict"
ROW: Final = {"features": {"a": 1.0, "b": -2.0}}
HEAD: Final = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKENS['predict']}\r\n"
TEACHES: Final = HEAD.replace("/predict", "/feedback").replace(
    TOKENS["predict"], TOKENS["feedback"]
)


def failures(running: Running, n: int) -> list[str]:
    """What went wrong with ``n`` predictions, half of them on connections of their own."""
    out = []
    with httpx.Client(base_url=running.url, headers=bearer("predict"), timeout=60) as kept:
        for i in range(n):
            try:
                answer = kept.post(PREDICT, json=ROW) if i % 2 else ask(
                    running, "POST", PREDICT, "predict", json=ROW
                )  # fmt: skip
                if answer.status_code != 200:
                    out.append(f"{answer.status_code} {answer.text}")
            except httpx.HTTPError as error:
                out.append(repr(error))
    return out


class Crowd:
    """Many connections to the service's port."""

    def __init__(self, running: Running, n: int) -> None:
        parts = urlsplit(running.url)
        self.sockets = [
            socket.create_connection((parts.hostname or "", parts.port or 0), 120) for _ in range(n)
        ]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *error: object) -> None:
        for one in self.sockets:
            one.close()

    def send(self, data: bytes) -> None:
        """Send to those that are still open."""
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.sendall(data)

    def receive(self) -> list[bytes]:
        """What each gets next, at most 2,000 bytes; b"" if it was closed."""
        out = []
        for one in self.sockets:
            try:
                out.append(one.recv(2000))
            except ConnectionError:
                out.append(b"")
        return out

    def open(self) -> int:
        """How many have neither been closed nor been told anything."""
        count = 0
        for one in self.sockets:
            one.setblocking(False)
            try:
                one.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                count += 1
            except ConnectionError:
                pass
        return count

    @contextlib.contextmanager
    def dribbling(self, piece: bytes) -> Iterator[None]:
        """Each sends the piece again and again, twice a second."""
        stop = threading.Event()

        def dribble() -> None:
            while not stop.wait(0.5):
                self.send(piece)

        thread = threading.Thread(target=dribble, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(240)


def statuses(answers: list[bytes]) -> Counter[int]:
    """Statuses in what connections got; 0 for those that were closed without."""
    return Counter(int(a[9:12]) if a.startswith(b"HTTP/1.1 ") else 0 for a in answers)


# -- tokens and ids --------------------------------------------------------------------------


def test_tokens_refuse_and_allow_at_the_port(running: Running) -> None:
    wanted = {
        ("POST", PREDICT): {"predict", "admin"},
        ("POST", "/v1/models/m/feedback"): {"feedback", "admin"},
        ("POST", "/v2/models/m/infer"): {"predict", "admin"},
        ("POST", "/v2/models/m/feedback"): {"feedback", "admin"},
        ("GET", "/v1/models"): {"predict", "admin"},
        ("GET", "/metrics"): {"predict", "admin"},
        ("GET", "/v1/models/m/snapshots"): {"admin"},
        ("POST", "/v1/models/m/rollback"): {"admin"},
        ("GET", "/nothing"): {"admin"},
        ("GET", "/"): {*ROLES, None},
        ("GET", "/docs"): {*ROLES, None},
        ("GET", "/readyz"): {*ROLES, None},
    }
    ports = [running.url, *running.replica_urls().values()]
    assert len(ports) == 2, "the balancer's, and the replica's own behind it"
    for url in ports:
        for (method, path), allowed in wanted.items():
            for role in (*ROLES, None):
                headers = bearer(role) if role else {}
                answer = httpx.request(method, url + path, headers=headers, timeout=120)
                place = (url, method, path, role, answer.status_code)
                refused = answer.status_code in (401, 403)
                assert refused == (role not in allowed), place
                assert not refused or "www-authenticate" in answer.headers, place


def test_what_serve_plays_is_sent_with_a_token(running: Running) -> None:
    deadline = time.monotonic() + 240
    while ask(running, "GET", "/v1/models/m", "admin").json()["learned"] < 20:
        assert time.monotonic() < deadline, (running.folder / "serve.log").read_text()
    log = (running.folder / "serve.log").read_text()
    assert "playing stopped" not in log
    assert not any(token in log for token in TOKENS.values())


def test_commands_send_a_token(running: Running) -> None:
    def run(*arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ONLINE_")}
        if token is not None:
            environment["ONLINE_TOKEN"] = token
        command = [sys.executable, "-m", "online", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=240, env=environment, check=False
        )

    known = ["--config", str(running.folder / "online.yaml")]
    assert run("status", *known).returncode == 0
    assert run("snapshot", "list", "--model", "m", *known).returncode == 0
    place = ["--state-dir", str(running.state_dir)]
    done = run("status", *place)
    assert done.returncode == 1
    assert "ONLINE_TOKEN" in done.stderr
    assert run("status", *place, token=TOKENS["predict"]).returncode == 0
    done = run("snapshot", "list", "--model", "m", *place, token=TOKENS["predict"])
    assert done.returncode == 1
    assert "admin" in done.stderr
    played = ["stream", "phishing", "--model", "m", "--rate", "max", "--rows", "20"]
    done = run(*played, "--url", running.url, token=TOKENS["admin"])
    assert done.returncode == 0, done.stderr
    done = run(*played, *known)
    assert done.returncode == 0, done.stderr
    assert run(*played, "--url", running.url, token=TOKENS["feedback"]).returncode == 1


def test_a_request_id_comes_back_and_leads_to_the_log(running: Running) -> None:
    for path, content in ((PREDICT, ROW), ("/v1/models", None), ("/livez", None)):
        method = "GET" if content is None else "POST"
        answer = ask(running, method, path, "admin", json=content)
        assert answer.headers.get_list("x-request-id")[0], path
        answer = ask(running, method, path, "admin", json=content, headers={"x-request-id": "a-1"})
        assert answer.headers.get_list("x-request-id") == ["a-1"], path
    boom, old = {"features": {"boom": 1.0}}, {**ROW, "max_age_ms": 0}
    wanted = {
        "lost-422": ("/v1/models/fragile/predict", boom, 422),
        "lost-503": (PREDICT, old, 503),
        "lost-op": ("/v1/models/fragile/rollback", {"to": "9-9"}, 422),
    }
    for name, (path, body, status) in wanted.items():
        answer = ask(running, "POST", path, "admin", json=body, headers={"x-request-id": name})
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, name), answer.text
    logs = Path(running.facts["private"]) / "ray" / "session_latest" / "logs"
    text = "".join(path.read_text() for path in logs.glob("worker-*.err"))
    assert "request lost-422" in text
    assert "the model has no answer" in text
    assert "request lost-503" in text
    assert not any(token in text for token in TOKENS.values())


# -- bounds ----------------------------------------------------------------------------------


def too_large(running: Running) -> float:
    """Bodies that were refused for their length so far."""
    text = ask(running, "GET", "/metrics", "predict").text
    found = re.findall(r'^online_predict_refused_total{.*code="too_large".*} (\S+)$', text, re.M)
    return sum(map(float, found))


def test_a_body_without_a_length_is_counted_as_it_comes(running: Running) -> None:
    before = too_large(running)
    parts = urlsplit(running.url)
    sent = 0
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 * BODY_BYTES_MAX:
            sent += 10_000
            yield b" " * 10_000

    with contextlib.closing(connection), contextlib.suppress(BrokenPipeError, ConnectionError):
        connection.request("POST", PREDICT, endless(), bearer("predict"), encode_chunked=True)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    with contextlib.closing(connection):
        body = iter([b" " * 10_000] * (BODY_BYTES_MAX // 10_000 + 1))
        connection.request("POST", PREDICT, body, bearer("predict"), encode_chunked=True)
        assert connection.getresponse().status == 413
    deadline = time.monotonic() + 240
    while too_large(running) < before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not failures(running, 4)


def test_beyond_its_bound_a_replica_says_when_to_come_again(running: Running) -> None:
    with Crowd(running, ONGOING_MAX + 30) as crowd:
        # The balancer itself waits for the whole of what only asks.
        crowd.send(f"{TEACHES}Content-Length: 100\r\n\r\n{{".encode())
        refused = ask(running, "POST", PREDICT, "predict", json=ROW)
        late = time.monotonic() + 240
        while refused.status_code != 429:  # not all of them have arrived there yet, or too slowly
            assert time.monotonic() < late, "there is room for all of them"
            crowd.send(b"")
            refused = ask(running, "POST", PREDICT, "predict", json=ROW)
        assert refused.json()["error"]["code"] == "busy"
        assert refused.headers["retry-after"] == "1"
        # After a second; those that nobody asks to give way are ended by their own bound, of five.
        late = time.monotonic() + int(refused.headers["retry-after"]) + 3
        while ask(running, "POST", PREDICT, "predict", json=ROW).status_code != 200:
            assert time.monotonic() < late, "the slowest bodies do not give way"
    assert not failures(running, 20)


# -- slow and idle callers -------------------------------------------------------------------


def test_heads_that_dribble_leave_predictions_alone(running: Running) -> None:
    with Crowd(running, SLOW) as crowd:
        crowd.send(HEAD.encode())
        with crowd.dribbling(b"x-a: b\r\n"):
            assert not failures(running, 200)
            answers = crowd.receive()  # after ten seconds
        assert statuses(answers) == {408: SLOW}


def test_bodies_that_dribble_leave_predictions_alone(running: Running) -> None:
    with Crowd(running, SLOW) as crowd:
        crowd.send(f"{HEAD}Content-Length: 40000\r\n\r\n".encode())
        with crowd.dribbling(b" "):
            assert not failures(running, 200)
            answers = crowd.receive()  # after limits.body_wait_s
        assert statuses(answers) == {408: SLOW}


def test_thousands_of_idle_connections_leave_predictions_alone(running: Running) -> None:
    (settings,) = Path(running.facts["private"]).rglob("haproxy.cfg")
    found = re.search(r"^\s*maxconn (\d+)$", settings.read_text(), re.M)
    assert found is not None
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    n = min(10_000, int(found[1]) - 100, files - 500)
    with Crowd(running, n) as crowd:
        crowd.send(b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert statuses(crowd.receive()) == {200: n}
        bad = failures(running, 200)
        held = crowd.open()
    print(f"{held:,} idle connections, {len(bad)} of 200 predictions failed")
    assert not bad
    assert held == n
    if n < 10_000:
        warnings.warn(
            f"{n:,} idle connections, not 10,000: {files:,} files may be open", stacklevel=1
        )


def test_more_connections_than_may_be_held_give_way(running: Running) -> None:
    (settings,) = Path(running.facts["private"]).rglob("haproxy.cfg")
    found = re.search(r"^\s*maxconn (\d+)$", settings.read_text(), re.M)
    assert found is not None
    assert "timeout http-request 10s" in settings.read_text()
    assert "timeout client 60s" in settings.read_text()
    if int(found[1]) + 600 > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        pytest.skip("this process may not open so many files")
    with httpx.Client(base_url=running.url, headers=bearer("predict"), timeout=60) as early:
        assert early.post(PREDICT, json=ROW).status_code == 200
        with Crowd(running, int(found[1]) + 50):  # they say nothing
            for _ in range(100):
                assert early.post(PREDICT, json=ROW).status_code == 200
            answer = ask(running, "POST", PREDICT, "predict", json=ROW)  # once they are given up
            assert answer.status_code == 200
    assert not failures(running, 20)


# -- ports -----------------------------------------------------------------------------------

ANYWHERE: Final = "all interfaces"


def documented() -> Counter[tuple[str, str]]:
    """How many listeners each kind of process may have on each kind of address, of two models."""
    table = PAGE.read_text().split("## Listeners")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w:]+)` \| ([^|]+?) \| (\d+) \| ([^|]*)", table, re.M)
    known: Counter[tuple[str, str]] = Counter()
    for process, where, n, what in rows:
        known[process, where] += int(n) * (1 + ("each model" in what))
    return known


def title_of(process: psutil.Process) -> str:
    """Its name; of one that Python runs, the script's."""
    words = process.cmdline()
    if process.name().startswith("python"):
        return next((Path(word).name for word in words if word.endswith(".py")), words[0])
    return process.name()


def listeners(running: Running) -> Counter[tuple[str, str]]:
    """Those of the service's processes, by the process and where they can be reached from."""
    mine = {process.pid: process for process in running.processes()}
    found: Counter[tuple[str, str]] = Counter()
    for one in psutil.net_connections("tcp"):
        if one.pid not in mine or one.status != psutil.CONN_LISTEN:
            continue
        title = "online" if one.pid == running.process.pid else title_of(mine[one.pid])
        place = one.laddr.ip
        if place in ("0.0.0.0", "::"):
            where = ANYWHERE
        else:
            where = "loopback" if place in ("127.0.0.1", "::1") else "the machine's address"
        found[":".join(title.split(".")[0].split(":")[:3]), where] += 1
    return found


def test_every_listener_is_documented(running: Running) -> None:
    found = listeners(running)
    assert found["haproxy", "loopback"] == 1
    assert dict(found - documented()) == {}, "a port that docs/architecture.md does not list"
    with socket.create_server(("127.0.0.1", 0)):  # of no process of the service
        assert not listeners(running) - documented()


def test_a_new_listener_is_found() -> None:
    known = documented()
    assert len(known) > 8
    for where in ("loopback", ANYWHERE):
        assert (
            Counter({("ray::ServeReplica", where): 1 + known["ray::ServeReplica", where]}) - known
        )
        assert Counter({("ray::New", where): 1}) - known


def test_ray_asks_for_its_token(running: Running) -> None:
    for process in (*running.named("raylet"), *running.named("gcs_server")):
        environment = process.environ()
        assert environment["RAY_AUTH_MODE"] == "token", process
        assert len(environment["RAY_AUTH_TOKEN"]) == 64, process
    raylet = running.named("raylet")[0].cmdline()
    address = next(part.partition("=")[2] for part in raylet if part.startswith("--gcs-address"))
    code = f"""
import ray, sys
try:
    ray.init(address={address!r}, log_to_driver=False)
except Exception as error:
    print(repr(error))
    sys.exit(3)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "uthenticat" in done.stdout + done.stderr, done.stdout
