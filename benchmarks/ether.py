"""A network of hosts in one machine: network namespaces, joined by a switch that can fail.

Each host is a process that has network, names, processes and mounts of its own (``unshare``), and a
TAP device whose other end this process's child holds: every frame between two hosts passes through
a few lines of Python, which drop or delay it as they are told.  Killing the host's first process
ends everything in it without a last packet, as a power cut does.  All of it goes with its
processes: nothing is left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec
import psutil

from benchmarks.service import own_environment
from online.errors import StartRefused

T = TypeVar("T")

_TUNSETIFF: Final = 0x400454CA
_IFF_TAP_NO_PI: Final = 0x0002 | 0x1000
_CLONE_NEWNET: Final = 0x40000000
_CLONE_NEWNS: Final = 0x00020000
_TOOLS: Final = ("ip", "ss", "unshare", "nsenter", "setpriv")
_MTU: Final = 9000  # fewer frames for Python to carry
_FRAME_MAX: Final = _MTU + 64
_INIT: Final = "hostname {name} && {disk} {shared} && mount -t tmpfs tmpfs /dev/shm && "
_DISK: Final = "mount -t tmpfs -o size={mb}m tmpfs"
_WAIT: Final = "echo ready; while :; do sleep 3600 & wait $!; done"  # and reaps whoever is orphaned


class Link(msgspec.Struct, frozen=True):
    """A link says what happens to frames from one host to another.

    So large a share of them is lost, and the others are late by so much.
    """

    loss: float = 0.0
    delay_s: float = 0.0


class Rule(msgspec.Struct, frozen=True):
    """A link for the frames from one host to another; ``*`` is every host."""

    origin: str
    target: str
    link: Link


def address(number: int) -> str:
    """IP address of the n-th host (from 1)."""
    return f"10.77.0.{number}"


def _mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


class Host:
    """One of the hosts; ``number`` says its address.

    Parameters:
        own, shared: ``own`` is mounted over ``shared``, so that hosts use the same path for what is
            their own.
        disk_mb: Of a disk that is mounted there instead, and goes with the host; None: as large as
            ours.
    """

    def __init__(
        self, name: str, number: int, own: Path, shared: Path, disk_mb: int | None = None
    ) -> None:
        self.name, self.number, self.address = name, number, address(number)
        own.mkdir(parents=True, exist_ok=True)
        disk = f"mount --bind {own}" if disk_mb is None else _DISK.format(mb=disk_mb)
        setup = _INIT.format(name=name, disk=disk, shared=shared) + _WAIT
        self._starter = subprocess.Popen(
            # It ends with us, however we end; its child with it, and all else with that one.
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--ipc", "--pid",
             "--fork", "--mount-proc", "--kill-child", "bash", "-c", setup],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._starter.stdout is not None
        said = self._starter.stdout.readline()
        if said.strip() != "ready":
            self._starter.wait()
            raise StartRefused(f"no namespaces: {said.strip()}", "They need the right to make some")
        (self.init,) = psutil.Process(self._starter.pid).children()

    def within(self, command: Sequence[str]) -> list[str]:
        """The command, run in this host."""
        here = os.getcwd()
        return ["nsenter", "-t", str(self.init.pid), "-a", f"--wd={here}", *command]

    def sh(self, script: str) -> str:
        """Output of a short script in this host."""
        done = subprocess.run(
            self.within(["sh", "-c", script]), capture_output=True, text=True, timeout=30
        )
        return done.stdout + done.stderr

    def kill(self) -> None:
        """Kill every process of the host at once, as a power cut does."""
        with contextlib.suppress(psutil.Error):
            self.init.kill()
        self._starter.wait()

    def inside(self, work: Callable[[], T]) -> T:
        """Result of the work, done by a thread whose sockets and children are on this network."""
        found: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                with open(f"/proc/{self.init.pid}/ns/net") as file:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(file.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                found.append(work())
            except BaseException as error:  # it is raised again where the work was asked for
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]


class Network:
    """Hosts and the switch between them, as a context.  Needs the rights of root.

    ``disks``: megabytes of the disk of those hosts that have a small one.

    Raises StartRefused where namespaces or TAP devices are not permitted.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        seed: int = 0,
        disks: Mapping[str, int] | None = None,
    ) -> None:
        self._folder, self._seed, self._disks = folder, seed, disks or {}
        self.shared = Path("/mnt")  # short: sockets have length limits; each host has its own
        self.hosts: dict[str, Host] = {}
        self._names = names
        self._switch: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            for i, name in enumerate(self._names, start=1):
                self.hosts[name] = Host(
                    name, i, self._folder / str(i), self.shared, self._disks.get(name)
                )
            self._connect()
        except OSError as error:
            self.close()
            raise StartRefused(
                f"no network of hosts: {error}", "It needs root and iproute2"
            ) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        numbers = ",".join(str(host.number) for host in self.hosts.values())
        prefix = f"o{os.getpid() % 100_000}_"
        self._switch = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ether", prefix, numbers, str(self._seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=own_environment(),
        )  # fmt: skip
        assert self._switch.stdout is not None
        if (said := self._switch.stdout.readline().strip()) != "ready":
            raise StartRefused(f"no TAP devices: {said}", "They need /dev/net/tun and root")
        for host in self.hosts.values():
            device = f"{prefix}{host.number}"
            subprocess.run(
                ["ip", "link", "set", device, "netns", str(host.init.pid)], check=True, timeout=10
            )
            mac = ":".join(f"{b:02x}" for b in _mac(host.number))
            done = host.sh(
                f"ip link set lo up && ip link set {device} address {mac} mtu {_MTU} up && "
                f"ip addr add {host.address}/24 dev {device} && echo done"
            )
            if not done.endswith("done\n"):
                raise StartRefused(f"no address for {host.name}: {done}", "It needs iproute2")

    def rules(self, *rules: Rule) -> None:
        """Replace what happens to frames; without any, all of them arrive at once."""
        assert self._switch is not None
        assert self._switch.stdin is not None
        numbers: Mapping[str, str] = {name: str(h.number) for name, h in self.hosts.items()}
        said = [Rule(numbers.get(r.origin, "*"), numbers.get(r.target, "*"), r.link) for r in rules]
        self._switch.stdin.write(msgspec.json.encode(said).decode() + "\n")
        self._switch.stdin.flush()

    def close(self) -> None:
        """End every process of it."""
        for host in self.hosts.values():
            host.kill()
        if self._switch is not None:
            self._switch.kill()
            self._switch.wait()


# -- the switch, a process of its own -------------------------------------------------------------


class Switch:
    """Carries frames between ports as the rules say.  Time and randomness are arguments.

    A frame goes to the port whose address it has, and to all others if it is for several.
    """

    def __init__(self, ports: Sequence[int], rng: random.Random) -> None:
        self._ports, self._rng = ports, rng
        self._links: dict[tuple[int, int], Link] = {}
        self._late: list[tuple[float, int, int, bytes]] = []
        self._count = itertools.count()

    def set(self, rules: Sequence[Rule]) -> None:
        """Replace the rules; a later one counts more."""
        self._links = {}
        for rule in rules:
            for origin in self._ports:
                for target in self._ports:
                    if rule.origin in ("*", str(origin)) and rule.target in ("*", str(target)):
                        self._links[origin, target] = rule.link

    def take(self, origin: int, frame: bytes, now_s: float) -> list[tuple[int, bytes]]:
        """Take a frame that has come, and return what leaves at once because of it."""
        out = []
        for target in self._targets(origin, frame):
            link = self._links.get((origin, target))
            if link is None:
                out.append((target, frame))
            elif link.loss > 0 and self._rng.random() < link.loss:
                continue
            elif link.delay_s > 0:
                at = now_s + link.delay_s
                heapq.heappush(self._late, (at, next(self._count), target, frame))
            else:
                out.append((target, frame))
        return out

    def _targets(self, origin: int, frame: bytes) -> list[int]:
        if frame[0] & 1:
            return [port for port in self._ports if port != origin]
        return [port for port in self._ports if port != origin and _mac(port) == frame[:6]]

    def due(self, now_s: float) -> list[tuple[int, bytes]]:
        """Return the frames that were late and leave now."""
        out = []
        while self._late and self._late[0][0] <= now_s:
            _, _, target, frame = heapq.heappop(self._late)
            out.append((target, frame))
        return out

    def wait_s(self, now_s: float) -> float | None:
        """Until the next late frame is due; None without one."""
        return max(self._late[0][0] - now_s, 0.0) if self._late else None


def _open_tap(name: str) -> int:
    found = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(found, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP_NO_PI))
    return found


def _carry(taps: Mapping[int, int], switch: Switch) -> None:
    """Until the standard input, which rules come from, is closed."""
    files = {fd: port for port, fd in taps.items()}
    while True:
        ready, _, _ = select.select([*files, 0], [], [], switch.wait_s(time.monotonic()))
        leaving: list[tuple[int, bytes]] = []
        for fd in ready:
            if fd == 0:
                if not (line := sys.stdin.readline()):
                    return
                switch.set(msgspec.json.decode(line, type=list[Rule]))
                continue
            with contextlib.suppress(OSError):  # the host has gone, or there is no more
                for _ in range(64):
                    frame = os.read(fd, _FRAME_MAX)
                    leaving += switch.take(files[fd], frame, time.monotonic())
        for port, frame in [*leaving, *switch.due(time.monotonic())]:
            with contextlib.suppress(OSError):
                os.write(taps[port], frame)


def _main(words: Sequence[str]) -> None:
    prefix, numbers, seed = words
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: our end is our parent's
    ports = [int(number) for number in numbers.split(",")]
    try:
        taps = {port: _open_tap(f"{prefix}{port}") for port in ports}
    except OSError as error:
        print(error, flush=True)
        return
    print("ready", flush=True)
    _carry(taps, Switch(ports, random.Random(int(seed))))


def fill(file: Path) -> None:
    """Write to the file until the disk has no room left."""
    with contextlib.suppress(OSError), file.open("ab", buffering=0) as out:
        for size in (1 << 16, 1 << 12, 1 << 9, 1):
            with contextlib.suppress(OSError):
                while out.write(b"0" * size) == size:
                    pass


def small_disk(folder: Path, mb: int) -> None:
    """Mount a small disk there, for the calling thread and what it starts; it goes with them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    folder.mkdir(parents=True, exist_ok=True)
    for words in ("--make-rprivate /", f"-t tmpfs -o size={mb}m tmpfs {folder}"):
        subprocess.run(["mount", *words.split()], check=True, timeout=10)


def sockets(host: Host) -> str:
    """Return what `ss -tn` says in the host, or that the program is missing."""
    return host.sh("ss -tn")


def permitted() -> str | None:
    """Why there can be no such network here; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"missing: {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
    )
    return None if tried.returncode == 0 else f"unshare: {tried.stderr.strip()}"


if __name__ == "__main__":
    _main(sys.argv[1:])
