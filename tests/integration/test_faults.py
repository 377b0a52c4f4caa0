"""What a real service does while its disk, its store, its server or its clock is at fault.

The model counts: each event has a feature of its own, whose weight says how often it was learned.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.faults.exactly_once import STEP
from benchmarks.fixtures import redis_server
from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.service import Running, form, launch, status, write_settings
from online.rebuild import fsck
from online.settings import config

pytestmark = pytest.mark.ray

PATH = "/v1/models/counting"
MODEL = {
    "name": "counting",
    "task": "regression",
    "learner": "benchmarks.fixtures.learners:counting",
    "sync": {"merge": "sum"},
    "snapshots": {"interval_s": 1, "keep": 4},
}
WAIT_S = 2.0  # limits.feedback_wait_s: how soon feedback that can't be written is answered 503


@contextlib.contextmanager
def service(
    folder: Path, environment: dict[str, str] | None = None, **settings: Any
) -> Iterator[Running]:
    """Two replicas of the counting model."""
    # Servers are stopped here for longer than the bound at which the service would end them.
    limits = {"feedback_wait_s": WAIT_S, "adopt_s": 4, "standstill_s": None}
    limits |= settings.pop("limits", {})
    write_settings(folder, {"replicas": 2, "models": [MODEL], "limits": limits, **settings})
    running = launch(folder, environment=environment)
    try:
        yield running
    finally:
        running.stop()


def post(url: str, path: str, body: Any, timeout_s: float = 60.0) -> tuple[int, Any]:
    """One request; status 0 if no answer came."""
    with contextlib.closing(Connection(url, timeout_s)) as client:
        try:
            return client.post(path, body)
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error)


def send(running: Running, event: str) -> tuple[int, Any]:
    """Feedback of one event."""
    body = {"features": {event: 1.0}, "label": COUNT_LABEL, "event_id": event}
    return post(running.url, f"{PATH}/feedback", body)


def learn(running: Running, events: Iterable[str]) -> None:
    """Feedback of events, each sent until it is answered 200."""
    for event in events:
        until(f"{event} is learned", partial(_learned, running, event))


def _learned(running: Running, event: str) -> bool:
    return send(running, event)[0] == 200


def until(
    what: str, holds: Callable[[], Any], bound_s: float = 240.0, saw: Callable[[], Any] = str
) -> Any:
    """Ask until it holds; what it gave.  ``saw`` tells what there is instead, if it never does."""
    deadline = time.monotonic() + bound_s
    while not (given := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {bound_s:g} s; {saw()}"
        time.sleep(0.1)
    return given


def predicted(url: str, events: Iterable[str]) -> list[float]:
    """How often each event is in the model that answers, as its weight says."""
    names = [*events, "never-sent"]
    code, answer = post(url, f"{PATH}/predict", {"instances": [{name: 1.0} for name in names]})
    assert code == 200, answer
    *rest, none = (row["prediction"] for row in answer["predictions"])
    return [(value - none) / STEP for value in rest]


def each_once(running: Running, events: Iterable[str]) -> None:
    """Every replica has each of the events once, and the journal agrees with the model."""
    names = list(events)
    for url in running.replica_urls().values():
        until("each event is learned", partial(_all, url, names))
        assert Counter(predicted(url, names)) == {1.0: len(names)}
    settings = config.load(running.folder / "online.yaml", {}, {})

    def complete() -> fsck.Findings | None:
        post(running.url, f"{PATH}/snapshots", None)
        findings = fsck.check(settings, "counting", served=True)
        return None if findings.not_yet else findings

    assert until("a snapshot has every row", complete).good


def _all(url: str, names: list[str]) -> bool:
    return min(predicted(url, names)) >= 1


def incident(running: Running) -> str:
    """What any replica tells an operator to look at."""
    found = ""
    for url in running.replica_urls().values():
        with contextlib.closing(Connection(url)) as client, contextlib.suppress(OSError):
            found += client.get(PATH)[1].get("incident") or ""
    return found


# -- the disk ------------------------------------------------------------------------------------


@contextlib.contextmanager
def small(disk: Path) -> Iterator[str]:
    """A folder as a disk of 64 MB; yields why it is none, if it can't be."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True)
    try:
        yield done.stderr.strip()
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The state folder as a small disk."""
    with small(tmp_path / "state") as missing:
        if missing:
            pytest.skip(f"no small disk can be mounted: {missing}")
        yield tmp_path / "state"


def fill(disk: Path, leave_mb: int) -> Path:
    """A file that leaves so much room on the disk."""
    free = shutil.disk_usage(disk).free - (leave_mb << 20)
    file = disk / "filler"
    # Nothing is kept for the close, which would raise what the writes raise.
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
        for _ in range(-(-free // (1 << 16))):
            out.write(bytes(1 << 16))
    return file


def test_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    before = [f"before-{i}" for i in range(20)]
    one_process = {"cluster": "embedded", "replicas": 1}  # two replicas meet the next one
    with service(tmp_path, limits={"disk_low_mb": 16}, **one_process) as running:
        learn(running, before)
        each_once(running, before)
        filler = fill(small_disk, leave_mb=8)
        code, answer = send(running, "refused")
        assert (code, answer["error"]["code"]) == (503, "journal_full")
        assert "free" in answer["error"]["message"]
        assert "Nothing was recorded" in answer["error"]["hint"]
        assert predicted(running.url, before) == [1.0] * 20
        assert post(running.url, f"{PATH}/snapshots", None)[0] == 200, "within the reserve"
        assert "low-water" in incident(running)
        filler.unlink()
        after = [f"after-{i}" for i in range(20)]
        learn(running, [*after, "refused"])
        each = running.replica_urls().values()
        for i, url in enumerate(each):  # a replica's next good commit ends its incident
            learn(Running(running.folder, running.process, url, 0.0), [f"each-{i}"])
        each_once(running, [*before, *after, "refused", *(f"each-{i}" for i in range(len(each)))])
        until("it is over", lambda: not incident(running), saw=lambda: incident(running))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service for faults that pass; the names of a test's events are its own.

    Its state lies on a small disk.  A file ``read-only`` in its folder makes the state so, one
    named ``clock`` sets the clock.
    """
    folder = tmp_path_factory.mktemp("faults")
    (folder / "sitecustomize.py").write_text(SET_BACK)
    environment = {"PYTHONPATH": str(folder), "TEST_CLOCK": str(folder / "clock")}
    if compiler := shutil.which("cc"):
        source, library = Path(__file__).with_name("readonly.c"), folder / "readonly.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        environment |= {
            "LD_PRELOAD": str(library),
            "TEST_READ_ONLY": str(folder / "state"),
            "TEST_READ_ONLY_FLAG": str(folder / "read-only"),
        }
    with (
        small(folder / "state"),
        service(folder, environment, limits={"disk_low_mb": 0}) as running,
    ):
        yield running


def test_a_disk_without_a_byte(shared: Running) -> None:
    """The low-water mark is off: what SQLite and the snapshots meet is a real ENOSPC."""
    if not shared.state_dir.is_mount():
        pytest.skip("no small disk can be mounted")
    before = [f"before-{i}" for i in range(20)]
    learn(shared, before)
    each_once(shared, before)
    filler = fill(shared.state_dir, leave_mb=0)
    filled = [f"filled-{i}" for i in range(400)]
    codes = Counter[int]()

    def refused() -> bool:
        code, answer = send(shared, filled[sum(codes.values())])
        codes[code] += 1
        assert code == 200 or answer["error"]["code"].startswith("journal_"), answer
        return code == 503

    try:
        until("the disk refuses", refused)
        assert predicted(shared.url, before) == [1.0] * 20
    finally:
        filler.unlink()
    sent = [*before, *filled[: sum(codes.values())], "after"]
    learn(shared, sent[20:])
    each_once(shared, sent)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_read_only_disk(shared: Running) -> None:
    """A disk with open files can't be mounted read-only: the C library's calls say EROFS."""
    before = [f"read-{i}" for i in range(20)]
    learn(shared, before)
    each_once(shared, before)
    flag = shared.folder / "read-only"
    flag.touch()
    try:
        begun = time.monotonic()
        code, answer = send(shared, "unwritten")
        took_s = time.monotonic() - begun
        assert (code, answer["error"]["code"]) == (503, "journal_unavailable")
        assert "repeat it with the same id" in answer["error"]["hint"], "indefinite"
        assert took_s < WAIT_S + 60
        for url in shared.replica_urls().values():
            assert predicted(url, before) == [1.0] * 20
        assert post(shared.url, f"{PATH}/snapshots", None)[0] in (200, 503)
    finally:
        flag.unlink()
    after = [f"written-{i}" for i in range(20)]
    learn(shared, ["unwritten", *after])
    each_once(shared, [*before, *after, "unwritten"])


# -- the parameter server ------------------------------------------------------------------------

READY_WHEN_EMPTY = """
import online.learning.merged as module

class Hasty(module.Learner):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ready = True

module.Learner = Hasty
"""


def answers_of_a_new_replica(
    running: Running, seconds: float, answers_within_s: float = 2.0
) -> tuple[list[Any], list[Any]]:
    """Stop the server, kill a replica, and ask whatever listens instead of it for ``seconds``.

    Then the server goes on.  What the new replica answered while the server stood still, and what
    it answered first after that, if it had not answered before.
    """
    (server,) = (p for p in running.named("ParameterServer") if "ray::" in p.cmdline()[0])
    until("both replicas listen", lambda: len(running.replica_urls()) == 2)
    before = running.replica_urls()
    victim = psutil.Process(int(min(before).partition(":")[0]))

    def ask() -> list[Any]:
        new = [url for name, url in running.replica_urls().items() if name not in before]
        body = {"features": {"known": 1.0}}
        given = [post(url, f"{PATH}/predict", body, answers_within_s) for url in new]
        return [answer for code, answer in given if code == 200]

    during = list[Any]()
    server.send_signal(signal.SIGSTOP)
    try:
        victim.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not during:
            during = ask()
            time.sleep(0.05)
    finally:
        server.send_signal(signal.SIGCONT)
    return during, [] if during else until("the new replica answers", ask)


def test_a_new_replica_never_answers_from_an_empty_model(shared: Running) -> None:
    learn(shared, ["known"])
    each_once(shared, ["known"])
    with contextlib.closing(Connection(shared.url)) as client:
        expected = client.post(f"{PATH}/predict", {"features": {"known": 1.0}})[1]
    assert expected["prediction"] > 0
    during, after = answers_of_a_new_replica(shared, 10)
    (first, *_) = during or after  # the other replica may have given it its values
    assert first["prediction"] == expected["prediction"]
    each_once(shared, ["known"])


@pytest.mark.long  # in short: in one process, in `tests/unit/replica/test_peers.py`
def test_a_replica_that_does_not_wait_is_found(tmp_path: Path) -> None:
    """Control: without the wait it answers, and from an empty model."""
    (tmp_path / "sitecustomize.py").write_text(READY_WHEN_EMPTY)
    with service(tmp_path, {"PYTHONPATH": str(tmp_path)}) as running:
        learn(running, ["known"])
        during, _ = answers_of_a_new_replica(running, 600, answers_within_s=60)
        assert [answer["prediction"] for answer in during] == [0]


# -- the clock -----------------------------------------------------------------------------------

SET_BACK = """
import os
import time

_real, _file = time.time, os.environ["TEST_CLOCK"]

def _time():
    try:
        return _real() + float(open(_file).read())
    except (OSError, ValueError):
        return _real()

time.time = _time
"""


def test_a_clock_that_is_set_back_an_hour(shared: Running) -> None:
    """In every Python process of the service, while it runs; and forward again."""
    before = [f"clock-{i}" for i in range(20)]
    learn(shared, before)
    code, given = post(shared.url, f"{PATH}/predict", {"features": {"token-0": 1.0}})
    assert code == 200
    each_once(shared, before)
    newest = status(shared, "counting")["server"]
    clock = shared.folder / "clock"
    clock.write_text("-3600")
    assert status(shared, "counting")["server"]["snapshot_age_s"] < 0, "the clock is back"
    late = {"id": given["id"], "label": COUNT_LABEL}
    labelled(shared, late)
    assert post(shared.url, f"{PATH}/feedback", late)[1]["status"] == "duplicate"
    code, again = post(shared.url, f"{PATH}/predict", {"features": {"token-1": 1.0}})
    labelled(shared, {"id": again["id"], "label": COUNT_LABEL})
    for event in before:
        assert send(shared, event)[1]["status"] == "duplicate"
    after = [f"later-{i}" for i in range(20)]
    learn(shared, after)
    sent = [*before, *after, "token-0", "token-1"]
    each_once(shared, sent)
    kept = {row["name"] for row in snapshots(shared)}
    head = status(shared, "counting")["server"]["snapshot"]
    assert head != newest["snapshot"]
    assert head in kept, "the newest by version, not by the clock"
    for process in shared.named("ParameterServer"):
        process.kill()
    until("another server", lambda: restored(shared, newest["epoch"]))
    learn(shared, ["last"])
    each_once(shared, [*sent, "last"])
    clock.unlink()
    learn(shared, ["forward"])
    each_once(shared, [*sent, "last", "forward"])


def labelled(running: Running, body: dict[str, Any]) -> None:
    """Send a label by its token until it is learned, then or by a time that had no answer."""
    said: list[Any] = []

    def learned() -> bool:
        said.append(post(running.url, f"{PATH}/feedback", body)[1])
        return "learned" in (said[-1].get("status"), said[-1].get("first_outcome"))

    until("the label is learned", learned, saw=lambda: said[-3:])


def snapshots(running: Running) -> list[dict[str, Any]]:
    with contextlib.closing(Connection(running.url)) as client:
        rows: list[dict[str, Any]] = client.get(f"{PATH}/snapshots")[1]["snapshots"]
    return rows


def restored(running: Running, epoch: int) -> bool:
    server = status(running, "counting")["server"]
    return bool(server and server["state"] == "serving" and server["epoch"] > epoch)


# -- the Redis server ----------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[redis_server.Server]:
    binary = redis_server.find_binary(os.environ)
    if binary is None:
        pytest.skip("no valkey-server or redis-server")
    server = redis_server.Server(tmp_path / "redis", binary)
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_redis_server_is_gone_for_a_while_and_then_comes_back_empty(
    tmp_path: Path, redis: redis_server.Server, replicas: int
) -> None:
    before = [f"before-{i}" for i in range(20)]
    with service(tmp_path, journal=redis.url, **{"replicas": 1, **form(replicas)}) as running:
        learn(running, before)
        each_once(running, before)
        redis.kill()
        refused: list[str] = []
        while len(refused) < 3:  # each after its wait
            refused.append(f"gone-{len(refused)}")
            code, answer = send(running, refused[-1])
            assert code == 503, answer
            what, hint = answer["error"]["code"], answer["error"]["hint"]
            if refused == ["gone-0"] or what != "journal_held":  # else no commit has begun with it
                assert what == "journal_unavailable"
                assert "repeat it with the same id" in hint
            for url in running.replica_urls().values():
                assert predicted(url, before) == [1.0] * 20
        redis.start()
        learn(running, [*refused, "after"])
        each_once(running, [*before, *refused, "after"])
        empty(running, redis, before)


def empty(running: Running, redis: redis_server.Server, before: list[str]) -> None:
    """The server loses everything: nothing is taken from then on, and predictions go on."""
    redis.kill()
    shutil.rmtree(redis.folder)
    redis.start()
    for i in range(10):
        code, answer = send(running, f"lost-{i}")
        assert (code, answer["error"]["code"]) == (503, "journal_refused"), answer
        assert "the journal is older than its writer" in answer["error"]["message"]
        assert "put the newer file back" in answer["error"]["message"]
    assert "the journal is older than its writer" in incident(running)
    assert predicted(running.url, before) == [1.0] * 20
    (victim, *_) = running.replica_urls()
    if not victim:
        return  # one process: whoever starts it again is refused
    os.kill(int(victim.partition(":")[0]), signal.SIGKILL)
    # From its first answer on: its partition is new, but the store has lost its values' epoch.
    until("feedback is refused", lambda: still_refused(running))
    until("a server that refuses", lambda: still_refused(running) and _refuses(running))
    assert predicted(running.url, before) == [1.0] * 20


def still_refused(running: Running) -> bool:
    """Whether feedback is; some answers are about what the one just killed was answering."""
    code, answer = send(running, "lost")
    assert code in (0, 500, 502, 503), f"a new replica begins with an empty model: {answer}"
    return code == 503 and answer["error"]["code"] != "replica_ended"


def _refuses(running: Running) -> bool:
    server = None
    with contextlib.suppress(OSError, KeyError):  # the replica that was asked has just been killed
        server = status(running, "counting")["server"]
    return bool(
        server
        and server["state"] == "refused"
        and "is older than the snapshots" in server["reason"]
    )
