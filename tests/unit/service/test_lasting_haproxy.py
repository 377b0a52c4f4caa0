"""A HAProxy that dies is started again at once; one whose manager died is adopted."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from online.service import lasting_haproxy, processes, worker_setup
from online.service.lasting_haproxy import lasting

WAIT_S = 240


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: a socket's path has at most 97 letters."""
    with tempfile.TemporaryDirectory(prefix="hap-") as name:
        yield Path(name)


def api(folder: Path, kind: type[Any], port: int) -> Any:
    from ray.serve._private import haproxy
    from ray.serve.config import HTTPOptions

    config = haproxy.HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(folder / "s"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        metrics_port=processes.free_port(),
        stats_port=processes.free_port(),
    )
    return kind(config, config_file_path=str(folder / "haproxy.cfg"))


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def until(step: Any) -> Any:
    async with asyncio.timeout(WAIT_S):
        while not (found := await step()):
            await asyncio.sleep(0.02)
        return found


def plain() -> type[Any]:
    from ray.serve._private import haproxy

    found: type[Any] = haproxy.HAProxyApi
    return found


@pytest.mark.parametrize("again", [True, False])
def test_it_is_started_again_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """The negative control is Serve's own class, whose manager has to be replaced."""
    monkeypatch.setattr(lasting_haproxy, "_LIVED_S", 0.0)

    async def scene() -> None:
        port = processes.free_port()
        one = api(folder, lasting(plain()) if again else plain(), port)
        await one.start()
        try:
            assert await listens(port)
            first = one._proc
            first.kill()
            await first.wait()
            if not again:
                assert one._proc is first
                return

            async def another() -> bool:
                return one._proc is not first

            await until(another)
            assert await listens(port)
            await one.reload()  # Serve's next change of the replicas finds a living process
            assert one._proc.pid not in (first.pid, None)
        finally:
            last = one._proc
            await one.stop()
        assert not psutil.pid_exists(last.pid)
        await asyncio.sleep(0)
        assert one._proc is None, "a stop is no death"

    asyncio.run(scene())


@pytest.mark.parametrize("allowed", [True, False])
def test_the_next_manager_adopts_it_with_all_that_it_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """Where the kernel does not allow that, it is replaced by another one."""

    def forbidden(pid: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    if not allowed:
        monkeypatch.setattr(os, "pidfd_open", forbidden)
    port = processes.free_port()

    async def begin() -> int:
        one = api(folder, plain(), port)
        await one.start()
        return int(one._proc.pid)

    async def scene(pid: int) -> None:
        two = api(folder, lasting(plain()), port)
        await two.start()
        assert (two._proc.pid == pid) is allowed
        assert two._proc.returncode is None
        if allowed:  # at once, too: it has lived, under another manager
            two._proc.kill()

            async def another() -> bool:
                return bool(two._proc.pid != pid)

            await until(another)
        await two.reload()
        assert two._proc.pid != pid
        assert await listens(port)
        await two.stop()

    asyncio.run(scene(asyncio.run(begin())))


def test_one_that_does_not_answer_is_not_adopted_but_ended(folder: Path) -> None:
    """Beside it the new one would get half of the connections.  A reader of its file goes on."""
    port = processes.free_port()

    async def scene() -> None:
        one = api(folder, plain(), port)
        await one.start()
        os.kill(one._proc.pid, signal.SIGSTOP)
        text = "import sys; sys.stdin.read()"
        reader = subprocess.Popen(
            [sys.executable, "-c", text, str(folder / "haproxy.cfg")], stdin=subprocess.PIPE
        )
        two = api(folder, lasting(plain()), port)

        async def silent() -> None:
            return None

        two._get_running_pid = silent  # without the seconds of its own bound
        start = asyncio.create_task(two.start())
        await one._proc.wait()
        assert reader.poll() is None
        del two._get_running_pid
        await start
        assert await listens(port)
        await two.stop()
        reader.communicate()

    asyncio.run(scene())


def test_an_adopted_process_is_like_a_child() -> None:
    async def scene() -> None:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        found = lasting_haproxy.Adopted(child.pid, "x")
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        many = min(1024, most - 8)  # files that the process has opened already
        found._file = fcntl.fcntl(found._file, fcntl.F_DUPFD, many)
        assert found.returncode is None
        waiting = [asyncio.create_task(found.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        found.kill()
        assert await asyncio.gather(*waiting) == [-1, -1]
        assert found.returncode == -1
        child.communicate()
        found.kill()  # it has ended: nothing

    asyncio.run(scene())


JOINED = worker_setup.passed_on({})["worker_process_setup_hook"]


@pytest.mark.parametrize("hook", [worker_setup.HOOK, JOINED, None])
def test_each_process_of_ray_has_it(hook: str | None) -> None:
    """On a cluster that was joined nobody would end one that has outlived its manager."""
    script = f"import online.service.worker_setup\n{hook}()\n" if hook else ""
    script += (
        "import ray.serve._private.haproxy as found, asyncio, os\n"
        "async def begin():\n"
        "    started = await found.asyncio.create_subprocess_exec('sleep', '60')\n"
        "    print(os.getsid(started.pid) == os.getsid(0), found.HAProxyApi.__name__)\n"
        "    started.kill()\n"
        "asyncio.run(begin())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    with_manager, name = done.stdout.split()
    assert name == ("LastingHAProxy" if hook else "HAProxyApi"), done.stderr
    assert with_manager == str(hook != worker_setup.HOOK), "raylet ends it with its manager"


def test_another_version_of_ray_is_left_alone() -> None:
    class Module:
        class HAProxyApi: ...

    was = Module.HAProxyApi
    assert not lasting_haproxy.change(Module)
    assert Module.HAProxyApi is was
