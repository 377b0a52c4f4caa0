"""What holds the journal and stands still: a replica, somebody else's program, the disk.  And
replicas that can't come back.

Each event has a feature of its own, whose weight says how often it was learned.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_faults import MODEL, PATH, each_once, learn, post, predicted, send, service, until

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.service import Running, status
from online.service import processes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs Linux's list of locks"),
]

STANDSTILL_S = 2.0
STOPS_IN_A_COMMIT = """
import os
import signal

import replay.journal.sqlite.append as module

_write, _flag = module.Batch.write, os.environ["TEST_STAND"]

def write(self, rows):
    out = _write(self, rows)
    if any(row.event_id.startswith("stand-") for row in rows):
        try:
            os.unlink(_flag)
        except OSError:
            return out
        os.kill(os.getpid(), signal.SIGSTOP)
    return out

module.Batch.write = write
"""
STALLS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static void stall(void) {
    const char *flag = getenv("TEST_STALL");
    while (flag && !access(flag, F_OK)) usleep(20000);
}
#define SYNC(name) int name(int fd) { stall(); \\
    return ((int (*)(int))dlsym(RTLD_NEXT, #name))(fd); }
SYNC(fsync)
SYNC(fdatasync)
"""
LEARNER = "from benchmarks.fixtures.learners import counting\n"
HOLDS = """
import fcntl, os, signal, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("standing")
    (folder / "sitecustomize.py").write_text(STOPS_IN_A_COMMIT)
    environment = {"PYTHONPATH": str(folder), "TEST_STAND": str(folder / "stand")}
    if compiler := shutil.which("cc"):
        source, library = folder / "stall.c", folder / "stall.so"
        source.write_text(STALLS)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        environment |= {"LD_PRELOAD": str(library), "TEST_STALL": str(folder / "stall")}
    (folder / "learner.py").write_text(LEARNER)
    settings = {
        "limits": {"standstill_s": STANDSTILL_S},
        "models": [{**MODEL, "learner": "learner.py:counting"}],
    }
    with service(folder, environment, **settings) as made:
        yield made


def log(running: Running) -> str:
    return (running.folder / "serve.log").read_text()


def stands(running: Running, said: str) -> int | None:
    """Pid of the replica that is stopped, if there is one, or was ended since the log ``said``."""
    for replica in running.replica_urls():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(replica.partition(":")[0]))
            if process.status() == psutil.STATUS_STOPPED:
                return process.pid
    ended = re.search(r"ended process (\d+)", log(running)[len(said) :])
    return None if ended is None else int(ended[1])


def held_by(running: Running, pid: int) -> str:
    """How the process is, and which processes the journal's lock names."""
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        status = "gone"
    inode = (running.state_dir / "journal.db.lock").stat().st_ino
    locks = [x for x in Path("/proc/locks").read_text().splitlines() if f":{inode} " in x]
    return f"process {pid} is {status}; locks: {locks}"


def held(url: str, event: str) -> tuple[int, Any] | None:
    """What feedback is answered; None if the machine was too busy to look who holds the journal."""
    body = {"features": {event: 1.0}, "label": COUNT_LABEL, "event_id": event}
    code, answer = post(url, f"{PATH}/feedback", body)
    if code == 200 or (code == 503 and answer["error"]["code"] == "journal_held"):
        return code, answer
    assert code == 503, answer
    assert answer["error"]["code"] == "journal_unavailable", answer
    return None


def stop_one(running: Running, name: str) -> None:
    """One replica stops inside a commit; the others are not held up for long, nothing is lost."""
    before = [f"{name}-before-{i}" for i in range(10)]
    learn(running, before)
    replicas, said = running.replica_urls(), log(running)
    (running.folder / "stand").touch()
    sending = threading.Thread(target=send, args=(running, f"stand-{name}"))
    sending.start()
    holder = until("a replica stands", lambda: stands(running, said))
    (other,) = (url for n, url in replicas.items() if not n.startswith(f"{holder}:"))
    code, answer = until("it is named", lambda: held(other, f"{name}-refused"))
    if code != 200:  # else it was ended by then
        assert f"process {holder} " in answer["error"]["message"]
        assert "Nothing was recorded" in answer["error"]["hint"]
    assert predicted(other, before) == [1.0] * 10, "predictions go on"
    until(  # by Serve, where the machine gives the service's own process too little time
        "it is ended",
        lambda: f"ended process {holder}" in log(running) or not psutil.pid_exists(holder),
        saw=lambda: f"{held_by(running, holder)}; the log:\n{log(running)[-4_000:]}",
    )  # fmt: skip
    after = [f"{name}-after-{i}" for i in range(10)]
    learn(running, [f"stand-{name}", f"{name}-refused", *after])
    sending.join()
    until("another one takes its place", lambda: len(running.replica_urls()) == 2)
    each_once(running, [*before, f"stand-{name}", f"{name}-refused", *after])


def test_a_replica_that_stops_inside_a_commit_is_ended(running: Running) -> None:
    stop_one(running, "once")


@pytest.mark.long
def test_ten_replicas_that_stop_inside_a_commit(running: Running) -> None:
    for i in range(10):
        stop_one(running, f"time-{i}")


def test_somebody_elses_program_is_named_and_never_ended(running: Running) -> None:
    replicas, said = set(running.replica_urls()), log(running)
    lock = running.state_dir / "journal.db.lock"
    program = subprocess.Popen([sys.executable, "-c", HOLDS, lock], stdout=subprocess.PIPE)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == b"held\n"
        begun = time.monotonic()
        while time.monotonic() < begun + 3 * STANDSTILL_S:
            code, answer = send(running, "behind-a-backup")
            assert (code, answer["error"]["code"]) == (503, "journal_held"), answer
            assert f"process {program.pid} " in answer["error"]["message"]
        assert program.poll() is None
    finally:
        os.kill(program.pid, signal.SIGKILL)
        program.communicate()
    learn(running, ["behind-a-backup"])
    each_once(running, ["behind-a-backup"])
    assert set(running.replica_urls()) == replicas
    assert "ended process" not in log(running)[len(said) :]


def stall_disk(running: Running, for_s: float) -> None:
    """No sync returns for so long."""
    replicas, said = set(running.replica_urls()), log(running)
    before = [f"stall-{for_s:g}-{i}" for i in range(10)]
    learn(running, before)
    flag = running.folder / "stall"
    flag.touch()
    try:
        begun = time.monotonic()
        while time.monotonic() < begun + for_s:
            code, answer = send(running, f"stall-{for_s:g}-during")
            assert code == 503, answer
            assert answer["error"]["code"] in ("journal_held", "journal_unavailable"), answer
            for url in running.replica_urls().values():
                assert predicted(url, before) == [1.0] * 10, "predictions go on"
    finally:
        flag.unlink()
    learn(running, [f"stall-{for_s:g}-during"])
    each_once(running, [*before, f"stall-{for_s:g}-during"])
    assert set(running.replica_urls()) == replicas, "nobody was ended"
    assert "ended process" not in log(running)[len(said) :]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_disk_that_stalls_ends_nobody(running: Running) -> None:
    stall_disk(running, 4 * STANDSTILL_S)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_disk_that_stalls_for_a_minute_ends_nobody(running: Running) -> None:
    stall_disk(running, 60.0)


def test_a_balancer_that_stands_still_is_ended(running: Running) -> None:
    """HAProxy has no lock, and holds all callers."""
    learn(running, ["balanced"])
    said = log(running)
    balancer = max(running.named("haproxy.cfg"), key=psutil.Process.create_time)
    balancer.send_signal(signal.SIGSTOP)
    until("it is ended", lambda: f"ended process {balancer.pid} " in log(running)[len(said) :])
    learn(running, ["balanced-again"])
    each_once(running, ["balanced", "balanced-again"])
    assert balancer.pid not in [process.pid for process in running.named("haproxy.cfg")]


def test_a_balancer_outlives_its_manager_and_is_back_when_it_dies(running: Running) -> None:
    """Serve ended it with its manager, and nobody listened until there was another one."""
    (manager,) = running.named("HAProxyManager")
    balancer = max(running.named("haproxy.cfg"), key=psutil.Process.create_time)
    manager.kill()
    until("the manager is gone", lambda: not processes.runs(manager))
    learn(running, ["unmanaged"])
    (other,) = until("another manager begins", lambda: running.named("HAProxyManager"))
    assert processes.runs(balancer)
    until("it has taken over", lambda: running.named("haproxy.cfg"))  # by the first reload
    balancer = max(running.named("haproxy.cfg"), key=psutil.Process.create_time)
    balancer.kill()
    learn(running, ["balanced-anew"])
    each_once(running, ["unmanaged", "balanced-anew"])
    assert processes.runs(other), "nobody waits for another one"


def test_replicas_whose_model_can_not_be_loaded_say_why(running: Running) -> None:
    """Not for ever waited for: callers, probes and `status` get the reason."""
    learn(running, ["loaded"])
    learner = running.folder / "learner.py"
    learner.write_text("raise RuntimeError('broken on purpose')\n")
    one, other = running.named("ServeReplica")
    one.kill()

    def reason() -> str | None:
        code, answer = post(running.url, f"{PATH}/predict", {"features": {"loaded": 1.0}})
        return answer["error"]["message"] if code == 503 and "no_replica" in str(answer) else None

    said: dict[str, None] = {}

    def incident() -> str:
        with suppress(OSError, HTTPException, KeyError):
            shown = status(running, "counting")
            said[f"{shown['answered_by']}: {shown['incident']}"] = None
            return str(shown["incident"])
        return ""

    def saw() -> str:
        lines = "\n".join(log(running).splitlines()[-30:])
        return f"incidents: {[*said]}; the log:\n{lines}"

    until("status says it", lambda: "broken on purpose" in incident(), saw=saw)
    other.kill()
    until("callers are told", lambda: "broken on purpose" in (reason() or ""), saw=saw)
    with closing(Connection(running.url, 20.0)) as client:
        code, answer = client.get("/readyz")
    assert (code, answer["error"]["code"]) == (503, "no_replica")
    learner.write_text(LEARNER)
    until("they come back", lambda: len(running.replica_urls()) == 2, saw=saw)
    learn(running, ["mended"])
    each_once(running, ["loaded", "mended"])
