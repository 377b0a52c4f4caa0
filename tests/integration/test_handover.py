"""Scaled and replaced under constant feedback, and what ends when Ray's head dies."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from benchmarks.faults.exactly_once import CLOSED, Client, Sent, settings_of
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.service import Running, launch, settle, status, write_settings
from online.audit.checking import all_lines
from online.audit.log import entry_of
from online.rebuild.soundness import check_log
from online.service.processes import runs
from online.settings.config import load
from online.settings.places import open_journal

pytestmark = pytest.mark.ray

_SOURCE = Path(__file__).parents[2]
_EXIT_S = 240.0
QUEUED = "retried after 202"
LOST = f"retried after no answer {CLOSED}"
PAUSE_S = 0.02  # leaves room: a challenger learns with what the replicas leave of a core


class Predictor(threading.Thread):
    """Predicts over one keep-alive connection until told to stop, and never again what failed."""

    def __init__(self, url: str, stop: threading.Event, pause_s: float = 0.0) -> None:
        super().__init__(daemon=True)
        self._url, self._stop_event, self._pause_s = url, stop, pause_s
        self.seen: Counter[str] = Counter()
        self.errors: list[str] = []

    def run(self) -> None:
        body = {"features": {"a": 1.0}}
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self._stop_event.wait(self._pause_s):
                try:
                    answer = client.post("/v1/models/counting/predict", json=body)
                    self.seen[str(answer.status_code)] += 1
                except httpx.HTTPError as error:
                    self.seen[type(error).__name__] += 1
                    self.errors.append(str(error))


@contextlib.contextmanager
def service(settings: dict[str, Any], *, own_code: bool = False) -> Iterator[Running]:
    """A service; ``own_code``: on a copy of the packages, in the folder ``code``."""
    with tempfile.TemporaryDirectory(prefix="online-hand-") as name:
        write_settings(Path(name), settings)
        environment = {}
        if own_code:
            for package in ("online", "evaluation", "paramserver", "replay", "refusals"):
                shutil.copytree(
                    _SOURCE / package,
                    Path(name) / "code" / package,
                    ignore=shutil.ignore_patterns("__pycache__"),
                )
            environment = {"PYTHONPATH": str(Path(name) / "code")}
        with contextlib.chdir(name):  # -m looks into the folder where it is started first
            running = launch(Path(name), environment=environment)
        try:
            yield running
        finally:
            running.stop()


def reload(running: Running, last: str, change: Callable[[dict[str, Any]], Any]) -> str:
    """Change the settings file, send SIGHUP, wait for the last line of what is said."""
    path, log = running.folder / "online.yaml", running.folder / "serve.log"
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data))
    before = len(log.read_text())
    running.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 240
    while last not in (said := log.read_text()[before:]):
        assert time.monotonic() < deadline, said
        assert running.process.poll() is None, said
        time.sleep(0.02)
    return said


def partitions(running: Running) -> list[tuple[int, str, int]]:
    """Number, replica and whether it is sealed, of every partition."""
    with contextlib.closing(sqlite3.connect(running.state_dir / "journal.db")) as journal:
        return journal.execute("SELECT id, replica, sealed FROM partitions ORDER BY id").fetchall()


def sealed_of_stopped(running: Running, living: int) -> None:
    """Wait until so many replicas live, and see that every other partition is sealed."""
    deadline = time.monotonic() + 240
    while len(alive := running.replica_urls()) != living:
        assert time.monotonic() < deadline, f"{len(alive)} replicas live"
        time.sleep(0.05)
    for number, replica, sealed in partitions(running):
        lives = replica.partition(":")[2] in alive
        assert lives != bool(sealed), f"partition {number} of {replica}"


def nothing_adopted(running: Running) -> int:
    """See that no replica had to learn another's rows; how many replicas are known."""
    replicas = status(running, "counting")["replicas"]
    assert not any(report.get("adopted") for report in replicas.values()), replicas
    return len(replicas)


def acknowledged(sent: Sent, more: int) -> None:
    """Wait until so many more events are acknowledged."""
    wanted, deadline = len(sent.acknowledged) + more, time.monotonic() + 240
    while len(sent.acknowledged) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_scaled_and_replaced_under_feedback_nothing_is_lost_or_learned_twice() -> None:
    sent, stop = Sent(), threading.Event()
    # Whoever stops seals, however long a machine at work takes; nobody takes its rows before.
    settings = {**settings_of(0), "replicas": 3, "limits": {"adopt_s": 60}}
    with contextlib.ExitStack() as at_end, service(settings) as running:
        at_end.callback(stop.set)  # else a failure leaves threads that send to the next service
        predictors = [Predictor(running.url, stop, 0.01) for _ in range(2)]
        clients = [Client(i, lambda: running.url, sent, stop, i, pause_s=0.01) for i in range(8)]
        for thread in (*predictors, *clients):
            thread.start()
        acknowledged(sent, 200)

        reload(running, "replicas: 3 -> 1", lambda s: s.update(replicas=1))
        acknowledged(sent, 200)
        sealed_of_stopped(running, 1)
        assert nothing_adopted(running) == 3  # those that stopped are still known
        reload(running, "replicas: 1 -> 2", lambda s: s.update(replicas=2))
        acknowledged(sent, 200)
        kept = set(running.replica_urls())
        said = reload(
            running, "every replica", lambda s: s["models"][0]["sync"].update(interval_ms=30)
        )
        assert "models.counting.sync changed" in said
        acknowledged(sent, 200)
        sealed_of_stopped(running, 2)
        assert not kept & set(running.replica_urls())

        more = {"name": "more", "task": "binary", "learner": "logreg"}
        said = reload(running, "every replica", lambda s: s["models"].append(more))
        assert "model more is new" in said
        acknowledged(sent, 200)
        event = {"features": {"a": 1.0}, "label": True, "event_id": "first"}
        path = f"{running.url}/v1/models/more/feedback"
        assert httpx.post(path, json=event, timeout=120).json()["status"] == "learned"

        said = reload(running, "nothing was changed", lambda s: s.update(port=1, replicas=1))
        assert "port needs a restart" in said
        assert len(running.replica_urls()) == 2
        said = reload(running, "continues unchanged", lambda s: s.update(port=0, replicas="two"))
        assert "not reloaded: replicas" in said
        said = reload(running, "as they were", lambda s: s.update(replicas=2))

        stop.set()
        for thread in (*predictors, *clients):
            thread.join(240)
        nothing_adopted(running)
        findings = complete(running)
        # An event is a feature of its own, and the digest is of the set of events: all that were
        # acknowledged, each once, and perhaps some that never got an answer.
        extra = findings["learned"] - len(sent.acknowledged)
        assert 0 <= extra <= len(sent.unanswered)
        seen = sum((p.seen for p in predictors), Counter[str]())
        print(f"predictions: {dict(seen)}")
        only_closed(seen, len(predictors), stopped=4)
        killed_unnoticed(running)


def killed_unnoticed(running: Running) -> None:
    """A prediction that a killed replica has not begun to answer is answered by another one."""
    stop, killed = threading.Event(), next(iter(running.replica_urls()))
    predictors = [Predictor(running.url, stop) for _ in range(4)]
    for thread in predictors:
        thread.start()
    answered(predictors, 100)
    psutil.Process(int(killed.partition(":")[0])).kill()
    answered(predictors, 300)
    stop.set()
    for thread in predictors:
        thread.join(240)
    errors = [error for predictor in predictors for error in predictor.errors]
    assert all("complete message body" in error for error in errors), errors
    seen = sum((p.seen for p in predictors), Counter[str]())
    assert seen["200"] + len(errors) == seen.total(), seen


def answered(predictors: list[Predictor], more: int) -> None:
    """Wait until so many more predictions are answered."""
    wanted, deadline = sum(p.seen["200"] for p in predictors) + more, time.monotonic() + 240
    while sum(p.seen["200"] for p in predictors) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_replica_that_starts_without_the_server_takes_a_peers_copy() -> None:
    settings = settings_of(0)
    settings["limits"] |= {"standstill_s": None}
    with service({**settings, "replicas": 1}) as running:
        for i in range(20):
            learn(running.url, f"before {i}")
        settle(running, "counting", 20)
        (first,) = running.replica_urls().values()
        (server,) = running.named("ParameterServer")
        server.send_signal(signal.SIGSTOP)
        try:
            learn(first, "not pushed")
            reload(running, "replicas: 1 -> 2", lambda s: s.update(replicas=2))
            (second,) = set(running.replica_urls().values()) - {first}
            answer = predict(second, "before 3")
            assert answer["from_peer"] is True
            assert answer["updates_behind"] is None
            assert answer["age_ms"] > 1000, "since the server was heard of by anybody"
            assert answer["prediction"] == predict(first, "before 3")["prediction"] != 0.0
            assert answer["version"] == predict(first, "before 3")["version"]
            assert predict(second, "not pushed")["prediction"] == 0.0, "the peer's own row"
            learn(second, "meanwhile")
            assert predict(second, "meanwhile")["prediction"] != 0.0
        finally:
            server.send_signal(signal.SIGCONT)
        settle(running, "counting", 22)
        deadline = time.monotonic() + 240
        while not all(
            predict(url, event)["prediction"] != 0.0 and "from_peer" not in predict(url, event)
            for url in (first, second)
            for event in ("before 3", "not pushed", "meanwhile")
        ):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while True:  # each replica says so at its next exchange
            shown = status(running, "counting")["replicas"].values()
            if max(report["unserved_s"] for report in shown) < 5.0:
                break
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
        assert complete(running)["learned"] == 22
        ends_without_rays_head(running, "gcs_server")


def learn(url: str, event: str) -> None:
    """One event, learned there."""
    body = {"features": {event: 1.0}, "label": COUNT_LABEL, "event_id": event}
    answer = httpx.post(f"{url}/v1/models/counting/feedback", json=body, timeout=120)
    assert answer.json().get("status") == "learned", answer.text


def predict(url: str, event: str) -> dict[str, Any]:
    """What is answered there for the event's own feature, above what any other one has."""
    path = f"{url}/v1/models/counting/predict"
    rows = {"instances": [{event: 1.0}, {"never sent": 1.0}]}
    answer: dict[str, Any] = httpx.post(path, json=rows, timeout=120).json()
    mine, other = (row["prediction"] for row in answer["predictions"])
    return {**answer, "prediction": mine - other}


@pytest.mark.long  # in short: a roll-out, above, and a promotion, in one process
def test_new_code_and_a_new_model_and_a_move_fail_no_request() -> None:
    sent, settings = Sent(), settings_of(0)
    # Starts take turns with feedback at the journal; whoever is slow is not adopted meanwhile.
    settings["limits"] |= {"feedback_wait_s": 30, "adopt_s": 20}
    with service(settings, own_code=True) as running:
        first = status(running, "counting")
        with under_load(running, sent, first=0, stopped=6):
            file = running.folder / "code" / "online" / "__init__.py"
            file.write_text('"""Newer."""\n\n__version__ = "9.9.9"\n')
            said = reload(running, "every replica", lambda _: None)
            assert "the service's code changed" in said
            assert versions(running) == ["9.9.9", "9.9.9"]
            said = reload(running, "nothing was", lambda s: s["models"][0].update(learner="linreg"))
            assert "models.counting.learner needs a restart" in said
            assert "as a `challenger` that is promoted" in said

            def challenge(s: dict[str, Any]) -> None:
                s["models"] = settings_of(0)["models"]
                s["models"][0]["challenger"] = {"learner": "linreg", "delay": 0.2}

            reload(running, "every replica", challenge)
            assert "has not served before" in promote(running, "--back")
            assert "linreg serves, version" in promote(running, "--yes")
            acknowledged(sent, 100)
            promoted = status(running, "counting")
        assert promoted["spec"] != first["spec"]
        both_have(running, len(sent.acknowledged))
        assert complete(running)["learned"] == len(sent.acknowledged)
        running.stop()
        again = launch(moved(running))
        try:
            assert status(again, "counting")["spec"] == promoted["spec"], "whatever the file says"
            repeated = {
                "features": {"c0-0": 1.0},
                "label": COUNT_LABEL,
                "event_id": "c0-0",
                "source": "bench",
            }
            answer = httpx.post(
                f"{again.url}/v1/models/counting/feedback", json=repeated, timeout=120
            )
            assert answer.json()["status"] == "duplicate", answer.text
            assert "promoted by control row" in (again.folder / "serve.log").read_text()
            processes = set(again.replica_urls())
            with under_load(again, sent, first=4, stopped=0):
                assert "counting serves, version" in promote(again, "--back")
                acknowledged(sent, 100)
            back = status(again, "counting")
            assert set(again.replica_urls()) == processes, "they went over without a stop"
            psutil.Process(int(min(processes).partition(":")[0])).kill()
            assert served_everywhere(again, 2) == {back["spec"]}, "and so does a new one"
            assert back["spec"] == first["spec"]
            both_have(again, len(sent.acknowledged))
        finally:
            again.stop()
        assert {"start", "settings", "promote"} <= logged(again)
    epochs = [found["server"]["epoch"] for found in (first, promoted, back)]
    assert epochs == sorted(set(epochs)), "versions never go back"


def logged(running: Running) -> set[str]:
    """Kinds of acts in the log of decisions, which is as it was written."""
    settings = load(running.folder / "online.yaml", {"state_dir": str(running.state_dir)}, {})
    assert check_log(settings).faults == ()
    with contextlib.closing(open_journal(settings)) as journal:
        return {entry_of(line).act for line in all_lines(journal)}


def served_everywhere(running: Running, replicas: int) -> set[str]:
    """Specs of the model at each replica, once so many answer."""
    deadline = time.monotonic() + 240
    while True:
        with contextlib.suppress(httpx.HTTPError):
            urls = running.replica_urls().values()
            found = [httpx.get(f"{url}/v1/models/counting", timeout=120).json() for url in urls]
            if len(found) == replicas:
                return {one["spec"] for one in found}
        assert time.monotonic() < deadline, "the replica that died is not replaced"
        time.sleep(0.1)


def versions(running: Running) -> list[str]:
    """Of the code that each replica runs."""
    urls = running.replica_urls().values()
    return [httpx.get(f"{url}/v2", timeout=120).json()["version"] for url in urls]


def moved(running: Running) -> Path:
    """The folder of a service elsewhere, with what docs/deploy.md says is to be copied."""
    folder = running.folder / "elsewhere"
    state = folder / "state"
    state.mkdir(parents=True)
    shutil.copy(running.state_dir / "key", state)
    shutil.copytree(running.state_dir / "snapshots", state / "snapshots")
    old = sqlite3.connect(running.state_dir / "journal.db")
    new = sqlite3.connect(state / "journal.db")
    with contextlib.closing(old), contextlib.closing(new):
        old.backup(new)
    write_settings(folder, yaml.safe_load((running.folder / "online.yaml").read_text())
                   | {"state_dir": str(state)})  # fmt: skip
    return folder


def only_closed(seen: Counter[str], callers: int, stopped: int) -> None:
    """No prediction was answered with an error.

    HAProxy closes a connection that it had lent to a replica that stops; a client asks again, as
    after any such end.
    """
    closed = seen["RemoteProtocolError"] + seen["ReadError"]
    assert seen["200"] + closed == seen.total() > 100, seen
    assert closed <= callers * stopped, seen


@contextlib.contextmanager
def under_load(running: Running, sent: Sent, first: int, stopped: int = 2) -> Iterator[None]:
    """Predictions and feedback meanwhile, of which none may fail."""
    stop, lost, queued = threading.Event(), sent.statuses[LOST], sent.statuses[QUEUED]
    predictors = [Predictor(running.url, stop, 0.01) for _ in range(2)]
    clients = [
        Client(i, lambda: running.url, sent, stop, i, pause_s=PAUSE_S)
        for i in range(first, first + 4)
    ]
    for thread in (*predictors, *clients):
        thread.start()
    try:
        acknowledged(sent, 100)
        yield
    finally:
        stop.set()
        for thread in (*predictors, *clients):
            thread.join(240)
    seen = sum((p.seen for p in predictors), Counter[str]())
    print(f"predictions: {dict(seen)}, feedback: {dict(sent.statuses)}")
    only_closed(seen, len(predictors), stopped)
    # 202 is an answer: the row is durable, and its partition was sealed before it was learned
    # here.  Whoever asks again is told what became of it.  A client has one row under way, and two
    # replicas seal where none stops: they go over to another model.
    refused = {name for name in sent.statuses if name.startswith("retried")}
    assert not refused - {QUEUED, LOST}, sent.statuses
    lost = sent.statuses[LOST] - lost
    assert lost <= len(clients) * stopped, (lost, sent.statuses)  # as of predictions
    assert sent.statuses[QUEUED] - queued <= len(clients) * max(stopped, 2), sent.statuses


def both_have(running: Running, n: int) -> None:
    """Wait until champion and challenger have learned so many events, each once."""
    deadline = time.monotonic() + 240
    while True:
        found = status(running, "counting")
        have = found["learned"], (found["challenger"] or {}).get("learned")
        if have == (n, n):
            return
        assert time.monotonic() < deadline, (n, have, found, partitions(running))
        time.sleep(0.05)


def promote(running: Running, *arguments: str) -> str:
    """What the command says, whether it is refused or not; asked again while it is too early."""
    deadline = time.monotonic() + 240
    while True:
        done = subprocess.run(
            [sys.executable, "-m", "online", "promote", *arguments,
             "--config", str(running.folder / "online.yaml")],
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        early = ("is beginning", "is not there", "rows behind")
        if not any(text in done.stderr for text in early):
            return done.stdout + done.stderr
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.5)  # each try is a process of its own


def complete(running: Running) -> dict[str, Any]:
    """What fsck finds once a snapshot has every row, and that it is good."""
    deadline = time.monotonic() + 240
    while True:
        httpx.post(f"{running.url}/v1/models/counting/snapshots", timeout=120)
        of_all = {one["model"]: one for one in fsck(running)}
        assert all(one["good"] for one in of_all.values()), of_all
        findings = of_all["counting"]
        if findings["not_yet"] == 0:
            return findings
        assert time.monotonic() < deadline, findings


def fsck(running: Running) -> list[dict[str, Any]]:
    found = subprocess.run(
        [sys.executable, "-m", "online", "fsck", "--json",
         "--config", str(running.folder / "online.yaml")],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    findings: list[dict[str, Any]] = json.loads(found.stdout)
    return findings


@pytest.mark.long  # in short: the other process of the head, at the end of the test of peers
def test_without_rays_head_the_service_ends_and_leaves_nothing() -> None:
    with service({**settings_of(0), "replicas": 1}) as running:
        ends_without_rays_head(running, "raylet")


def ends_without_rays_head(running: Running, name: str) -> None:
    """A process of Ray's head is killed: the service ends, and leaves nothing."""
    private = running.facts["private"]
    whole = running.processes()
    (head,) = [p for p in whole if p.name() == name]
    begun = time.monotonic()
    head.kill()
    assert running.process.wait(_EXIT_S) == 2
    took = time.monotonic() - begun
    assert took < _EXIT_S
    print(f"{name}: exit after {took:.1f} s")
    assert not [p for p in whole if runs(p)]
    assert not Path(private).exists()
    assert not [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if any(private in part for part in p.info["cmdline"] or ())
    ]
    assert "Ray has stopped" in (running.folder / "serve.log").read_text()
