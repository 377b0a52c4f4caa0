"""Which processes of a service are ended because they stand still, and whose end is noticed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from online.service.processes import runs
from online.service.state import children
from online.service.state.children import Children

WORKER = "ray::ParameterServer"
FORKS = (
    "import subprocess; subprocess.Popen(['ray::forked', '600'], executable='/bin/sleep').wait()"
)


class World:
    """Real processes, a clock that is set, and what was said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now_s = folder, 0.0
        self.begun: list[subprocess.Popen[bytes]] = []
        self.processes: list[psutil.Process] = []
        self.said: list[str] = []
        self.children = Children(self.said.append, lambda: self.processes, lambda: self.now_s)
        self.bound_s: float | None = 10.0

    def start(self, name: str = WORKER) -> psutil.Process:
        """A process that sleeps, with this name on its command line."""
        self.begun.append(subprocess.Popen([name, "600"], executable="/bin/sleep"))
        self.processes.append(psutil.Process(self.begun[-1].pid))
        return self.processes[-1]

    def look(self, times: int = 1, replicas: int = 2) -> bool:
        """Look each second; whether a replica was missed."""
        missed = False
        for _ in range(times):
            self.now_s += 1.0
            missed |= self.children.once(self.folder, replicas, self.bound_s)
        return missed


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for process in made.begun:
        process.kill()
        process.wait()


def stop(process: psutil.Process) -> None:
    """Stop it; returns when the kernel says so."""
    process.send_signal(signal.SIGSTOP)
    while process.status() != psutil.STATUS_STOPPED:
        pass


def end(world: World, process: psutil.Process) -> None:
    """Kill it; returns when it has ended."""
    process.kill()
    next(one for one in world.begun if one.pid == process.pid).wait()


def test_a_process_that_is_stopped_is_ended_at_the_bound_and_others_never(world: World) -> None:
    other, balancer = world.start(), world.start()
    world.look()
    stop(balancer)
    world.look(10)
    assert runs(balancer)
    world.look()
    assert not runs(balancer)
    assert world.said[0].startswith(f"ended process {balancer.pid} (")
    world.look(30)
    assert runs(other)
    assert len(world.said) == 1


def test_one_that_goes_on_is_counted_anew(world: World) -> None:
    balancer = world.start()
    world.look()
    for _ in range(3):
        stop(balancer)
        world.look(9)
        balancer.resume()
        while balancer.status() == psutil.STATUS_STOPPED:
            pass
        world.look()
    assert runs(balancer)


def test_time_that_was_not_ours_is_not_counted(world: World) -> None:
    balancer = world.start()
    world.look()
    stop(balancer)
    world.look()
    world.now_s += 86_400.0
    world.look(8)
    assert runs(balancer)
    world.look()
    assert not runs(balancer)


def test_nobody_is_ended_while_the_disk_stalls_or_without_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    balancer = world.start()
    world.look()
    stop(balancer)
    with monkeypatch.context() as patched:
        patched.setattr(children, "writes", lambda folder: False)
        world.look(30)
        assert runs(balancer)
    world.bound_s = None  # the setting may change while the service runs
    world.look(30)
    assert runs(balancer)
    world.bound_s = 10.0
    world.look(10)
    assert runs(balancer)
    world.look()
    assert not runs(balancer)


def test_one_that_is_stopped_often_and_never_for_long_runs(world: World) -> None:
    """A tracer, or a program that limits its share of a core: each look finds it stopped."""
    balancer = world.start()
    world.look()
    for _ in range(30):
        stop(balancer)
        world.look()
        balancer.resume()
        while balancer.status() == psutil.STATUS_STOPPED:
            pass
    assert runs(balancer)


@pytest.mark.parametrize("name", ["/usr/lib/raylet", "gcs_server", "cat", "python train.py"])
def test_what_nothing_starts_again_is_named_once_and_left_alone(world: World, name: str) -> None:
    """Raylet, what stands in for its agents (raylet ends with it), a process of a model's own."""
    alone = world.start(name)
    world.look()
    stop(alone)
    world.look(40)
    assert runs(alone)
    (line,) = world.said
    assert f"process {alone.pid} (" in line
    assert f"`kill -CONT {alone.pid}`" in line


def test_what_a_worker_has_forked_is_no_worker(world: World) -> None:
    world.begun.append(subprocess.Popen([WORKER, "-c", FORKS], executable=sys.executable))
    worker = psutil.Process(world.begun[-1].pid)
    while not (forked := worker.children()) or forked[0].name() != "sleep":
        pass
    world.processes = [worker, *forked]
    world.look()
    stop(forked[0])
    world.look(40)
    assert runs(forked[0])
    forked[0].kill()
    assert len(world.said) == 1


def test_a_replica_that_has_gone_is_missed_once(world: World) -> None:
    one, _other = world.start("ray::ServeReplica:a"), world.start("ray::ServeReplica:b")
    assert not world.look(10)
    end(world, one)
    world.processes.remove(one)
    assert world.look()
    assert not world.look(10)


def test_one_that_scales_down_is_not_missed(world: World) -> None:
    one, _other = world.start("ray::ServeReplica:a"), world.start("ray::ServeReplica:b")
    assert not world.look(10, replicas=1)
    end(world, one)
    world.processes.remove(one)
    assert not world.look(10, replicas=1)
