"""The service on three hosts, one of which is killed, cut off, or receives half of its packets.

The hosts are network namespaces (:mod:`benchmarks.fixtures.host_network`): a Ray head, two workers,
each with its own processes, address and name, and a fourth that has the journal's Redis server and
the clients.  Each client asks the balancer of one host, and of the next when it gets no answer.
As in :mod:`benchmarks.faults.exactly_once` the final weights say of each event how often it
was learned.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import psutil

from benchmarks.faults import exactly_once
from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.host_network import Host, Link, Network, Rule, fill, small_disk, sockets
from benchmarks.fixtures.redis_server import Server, need_binary
from benchmarks.fixtures.service import Running, own_environment, status, write_settings
from online.errors import StartRefused
from online.settings import config

Fault = Literal["none", "kill", "cut", "one-way", "delay", "loss", "full", "full-journal"]

_PORT: Final = 8000
_RAY_PORT: Final = 6379
_HEAD, _STORE = "head", "store"
_WORKERS: Final = ("worker1", "worker2")
_REPLICAS: Final = 3
_START_S: Final = 300.0
_CLIENT_S: Final = 3.0  # of a client's attempt
_PATIENT_S: Final = 20.0  # where all is slow, a client that gives up early only makes more work
_DISK_MB: Final = 256  # of a host that fills: Ray's logs and sockets are there
_JOURNAL_MB: Final = 32  # of the journal's server, if its disk is to fill
_SUPERVISE_S: Final = 1.0  # until that server is started again, as by systemd
_BACK_S: Final = 180.0  # of a host's replicas, after Ray had given it up
_STARTED: Final = "Ray runtime started"
_SUPERVISED: Final = "while :; do {start} --block; sleep 1; done"  # what systemd does


@dataclass(frozen=True, slots=True)
class Result:
    """A result says what became of the events in one run of the service on several hosts.

    ``lost`` and ``twice`` are event ids, ``acknowledged_during`` counts those of the fault.
    ``answered`` counts predictions by host and by when: before, ``during`` the fault and ``after``
    it.  ``resumed_s`` is the time after the fault's end until so many replicas as there should be
    had exchanged with the server within a second.
    """

    fault: Fault
    seconds: float
    hosts: dict[str, int]
    server_on: str
    acknowledged: int
    acknowledged_during: int
    unanswered: int
    lost: list[str]
    twice: list[str]
    strangers: list[str]
    fsck_good: bool
    adopted: int
    answered: dict[str, int]
    resumed_s: float
    statuses: dict[str, int]
    sockets: str = field(repr=False)

    @property
    def silent(self) -> list[str]:
        """Hosts that answered no prediction during the fault, of those whose clients reach them."""
        gone = {_WORKERS[-1]} if self.fault in ("kill", "cut", "one-way") else set()
        names = {name for name, n in self.hosts.items() if n} - gone
        return sorted(name for name in names if not self.answered.get(f"{name} during"))

    @property
    def good(self) -> bool:
        """Nothing lost, nothing twice, no host silent, and the digest agrees with the journal."""
        wrong = self.lost or self.twice or self.strangers or self.silent
        return not wrong and self.fsck_good


class Site:
    """The service on the hosts, from start to stop."""

    def __init__(self, folder: Path, network: Network) -> None:
        self._folder, self.network = folder, network
        self.token = secrets.token_hex(16)
        self._environment = {
            **own_environment(),
            "TMPDIR": str(network.shared),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
        }
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def alive(self) -> list[Host]:
        """Hosts of Ray whose first process lives."""
        found = [self.network.hosts[name] for name in (_HEAD, *_WORKERS)]
        return [host for host in found if host.init.is_running()]

    def start(self, journal: str) -> Running:
        """Start Ray on every host and the service on the head; returns when it is ready."""
        head = self.network.hosts[_HEAD]
        self._ray(head, "--head", f"--port={_RAY_PORT}", "--include-dashboard=false")
        deadline = time.monotonic() + _START_S
        address = f"{head.address}:{_RAY_PORT}"
        while self._joined() < 1:
            self._check(deadline, "Ray's head")
        for name in _WORKERS:
            self._ray(self.network.hosts[name], f"--address={address}")
        write_settings(self._folder, self._settings(journal, address))
        while self._joined() < 1 + len(_WORKERS):
            self._check(deadline, "a worker")
        log = (self._folder / "serve.log").open("w")
        command = [sys.executable, "-m", "online", "serve", str(self._folder / "online.yaml")]
        begun = time.monotonic()
        process = subprocess.Popen(
            head.within(command), stdout=log, stderr=subprocess.STDOUT, text=True,
            env=self._environment,
        )  # fmt: skip
        log.close()
        self._processes.append(process)
        while "/docs" not in (text := (self._folder / "serve.log").read_text()):
            if process.poll() is not None:
                raise StartRefused(f"online serve did not start:\n{text[-2000:]}", "See above")
            self._check(deadline, "the service")
        url = f"http://{head.address}:{_PORT}"
        return Running(
            self._folder, process, url, time.monotonic() - begun, text.splitlines(), self.token
        )

    def _check(self, deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            logs = "\n".join(f.read_text()[-1500:] for f in self._folder.glob("*.log"))
            raise StartRefused(f"{what} did not start:\n{logs}", "See above")
        time.sleep(0.1)

    def _settings(self, journal: str, address: str) -> dict[str, Any]:
        found = exactly_once.settings_of(_PORT, journal)
        return {
            **found,
            "host": "0.0.0.0",
            "replicas": _REPLICAS,
            "cluster": address,
            "snapshot_dir": f"file://{self._folder}/snapshots",
            "tokens": dict.fromkeys(("predict", "feedback", "admin"), self.token),
        }

    def _ray(self, host: Host, *words: str) -> None:
        start = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=2",
            f"--node-ip-address={host.address}", "--object-store-memory=100000000",
            f"--temp-dir={self.network.shared}/ray", *words,
        ]  # fmt: skip
        script = _SUPERVISED.format(start=" ".join(start))
        with (self._folder / f"{host.name}.log").open("w") as log:
            self._processes.append(
                subprocess.Popen(
                    host.within(["sh", "-c", script]),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=self._environment,
                )
            )

    def _joined(self) -> int:
        """Hosts whose Ray has started, as it says itself."""
        logs = [self._folder / f"{name}.log" for name in (_HEAD, *_WORKERS)]
        return sum(_STARTED in log.read_text() for log in logs if log.exists())

    def where(self) -> dict[str, list[str]]:
        """Titles of Ray's actors on each live host."""
        found: dict[str, list[str]] = {}
        for host in self.alive:
            titles = []
            for process in [p for p in host.init.children(recursive=True)] + self._entered(host):
                with contextlib.suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    if title.startswith("ray::"):
                        titles.append(title)
            found[host.name] = titles
        return found

    def _entered(self, host: Host) -> list[psutil.Process]:
        """Processes of the host whose parent is outside: those that entered it."""
        own = Path(f"/proc/{host.init.pid}/ns/pid").readlink()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == own:
                    found.append(process)
        return found

    def stop(self, running: Running | None) -> None:
        """SIGTERM to the service, then the end of all hosts."""
        head = self.network.hosts[_HEAD]
        if running is not None:
            for process in self._entered(head):
                with contextlib.suppress(psutil.Error):
                    if process.cmdline()[1:4] == ["-m", "online", "serve"]:
                        process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(30)
        for host in self.network.hosts.values():
            host.kill()
        for started in self._processes:
            started.wait(10)


class Asker(threading.Thread):
    """Asks one host for predictions and counts the answers, by phase."""

    def __init__(
        self, host: Host, token: str, stop: threading.Event, phase: Callable[[], str]
    ) -> None:
        super().__init__(daemon=True)
        self._host, self._token = host, token
        self._stop_event, self._phase = stop, phase
        self.answered: Counter[str] = Counter()

    def run(self) -> None:
        """Ask for predictions and count the answers until the stop event is set."""
        url = f"http://{self._host.address}:{_PORT}"
        while not self._stop_event.wait(0.02):
            client = Connection(url, timeout_s=2.0, token=self._token)
            with contextlib.closing(client), contextlib.suppress(Exception):
                code, _ = client.post("/v1/models/counting/predict", {"features": {"a": 1.0}})
                if code == 200:
                    self.answered[f"{self._host.name} {self._phase()}"] += 1


def rules(fault: Fault, host: str) -> tuple[Rule, ...]:
    """Return the rules that the switch follows while the fault lasts."""
    gone = Link(loss=1.0)
    return {
        "none": (),
        "kill": (),
        "full": (),
        "full-journal": (),
        "cut": (Rule(host, "*", gone), Rule("*", host, gone)),
        "one-way": (Rule(host, "*", gone),),
        "delay": (Rule("*", "*", Link(delay_s=0.2)),),
        "loss": (Rule("*", "*", Link(loss=0.2)),),
    }[fault]


def run(
    fault: Fault,
    *,
    seconds: float = 10.0,
    clients: int = 6,
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> Result:
    """One campaign: load, the fault for so many seconds, load again, and the reckoning.

    Raises StartRefused where there can be no such hosts: see
    :func:`benchmarks.fixtures.host_network.permitted`.
    """
    binary = need_binary()
    with tempfile.TemporaryDirectory(prefix="oh-") as name:
        folder = Path(name)
        names = (_HEAD, *_WORKERS, _STORE)
        disks = {_WORKERS[-1]: _DISK_MB} if fault == "full" else {}
        with Network(folder, names, seed, disks) as network:
            store = network.hosts[_STORE]
            campaign = _Campaign(folder, network, fault, seconds, clients, seed, progress)
            return store.inside(lambda: campaign.run(binary))


class _Campaign:
    def __init__(
        self,
        folder: Path,
        network: Network,
        fault: Fault,
        seconds: float,
        clients: int,
        seed: int,
        progress: Callable[[str], None],
    ) -> None:
        self._folder, self._network, self._fault = folder, network, fault
        self._seconds, self._clients, self._seed = seconds, clients, seed
        self._progress = progress
        self._phase, self._during = "before", 0
        self._server: Server | None = None
        self._sent, self._stop = exactly_once.Sent(), threading.Event()

    def run(self, binary: str) -> Result:
        """All of it, on the network of the store's host."""
        site = Site(self._folder, self._network)
        address = self._network.hosts[_STORE].address
        if self._fault == "full-journal":
            small_disk(self._folder / "redis", _JOURNAL_MB)
        server = Server(
            self._folder / "redis", binary, bind=f"127.0.0.1 {address}", protected_mode="no"
        )
        self._server = server
        running = None
        try:
            running = site.start(f"redis://{address}:{server.port}/0")
            self._progress(f"ready after {running.started_s:.1f} s")
            return self._load(site, running)
        finally:
            self._stop.set()
            site.stop(running)
            server.kill()

    def _load(self, site: Site, running: Running) -> Result:
        placed = site.where()
        hosts = {h: sum("Replica" in t for t in titles) for h, titles in placed.items()}
        server_on = next(
            (h for h, titles in placed.items() if any("ParameterServer" in t for t in titles)), "?"
        )
        self._progress(f"replicas: {hosts}, parameter server on {server_on}")
        patience = _PATIENT_S if self._fault in ("delay", "loss") else _CLIENT_S
        threads: list[exactly_once.Client] = []
        for i in range(self._clients):
            url = partial(_url, site, threads, i)
            threads.append(
                exactly_once.Client(
                    i, url, self._sent, self._stop, self._seed * 1000 + i,
                    token=site.token, timeout_s=patience,
                )
            )  # fmt: skip
        askers = [Asker(host, site.token, self._stop, lambda: self._phase) for host in site.alive]
        for thread in (*threads, *askers):
            thread.start()
        _until(lambda: len(self._sent.acknowledged) >= 50 * self._clients, 60, "answers")
        said = sockets(self._network.hosts[_HEAD])
        resumed = self._break(running)
        self._stop.set()
        for thread in (*threads, *askers):
            thread.join(150)
        found = exactly_once.judge(
            running, config.load(self._folder / "online.yaml", {}, {}), self._sent
        )
        answered: Counter[str] = Counter()
        for asker in askers:
            answered += asker.answered
        return Result(
            fault=self._fault,
            seconds=self._seconds,
            hosts=hosts,
            server_on=server_on,
            acknowledged=len(self._sent.acknowledged),
            acknowledged_during=self._during,
            unanswered=len(self._sent.unanswered),
            lost=found.lost,
            twice=found.twice,
            strangers=found.strangers,
            fsck_good=found.fsck_good,
            adopted=found.adopted,
            answered=dict(sorted(answered.items())),
            resumed_s=resumed,
            statuses=dict(self._sent.statuses),
            sockets=said,
        )

    def _break(self, running: Running) -> float:
        """Let the fault happen and end; seconds from its end until learning goes on everywhere."""
        victim = self._network.hosts[_WORKERS[-1]]
        before = len(self._sent.acknowledged)
        self._progress(f"fault: {self._fault} ({victim.name}), {before:,} acknowledged")
        self._phase = "during"
        self._network.rules(*rules(self._fault, victim.name))
        if self._fault == "kill":
            victim.kill()
        with self._full(victim):
            self._wait()
        self._network.rules()
        during = len(self._sent.acknowledged)
        self._during = during - before
        self._phase, ended = "after", time.monotonic()
        self._progress(f"over: {self._during:,} acknowledged meanwhile")
        _until(lambda: len(self._sent.acknowledged) > during + 50, 60, "answers after the fault")
        _until(lambda: _exchanging(running), _BACK_S, "all replicas to exchange")
        resumed = time.monotonic() - ended
        self._progress(f"all {_REPLICAS} replicas exchange {resumed:.1f} s after it")
        return resumed

    @contextlib.contextmanager
    def _full(self, victim: Host) -> Iterator[None]:
        """Fill the disk of a host, or of the journal's server, for the duration."""
        filler = self._network.shared / "filler"
        if self._fault == "full":
            said = victim.sh(f"cat /dev/zero > {filler}; df -h {filler.parent}")
            self._progress(said.strip())
            yield
            victim.sh(f"rm {filler}")
        elif self._fault == "full-journal":
            filler = self._folder / "redis" / "filler"
            fill(filler)
            yield
            filler.unlink()
            self._supervise()
        else:
            yield

    def _wait(self) -> None:
        """Wait for the fault's duration, and restart supervised processes that end."""
        over = time.monotonic() + self._seconds
        while (left := over - time.monotonic()) > 0:
            time.sleep(min(left, _SUPERVISE_S))
            if self._fault == "full-journal":
                fill(self._folder / "redis" / "filler")  # whatever its end has left room for
                self._supervise()

    def _supervise(self) -> None:
        assert self._server is not None
        if self._server.process.poll() is not None:
            with contextlib.suppress(StartRefused):  # again in a second
                self._server.start()


def _url(site: Site, clients: list[exactly_once.Client], number: int) -> str:
    """Return the URL of the host to ask: the next one each time that a client got no answer."""
    names = (_HEAD, *_WORKERS)
    host = site.network.hosts[names[(number + clients[number].failed) % len(names)]]
    return f"http://{host.address}:{_PORT}"


def _exchanging(running: Running) -> bool:
    """Whether so many replicas as were asked for have been heard of within a second."""
    with contextlib.suppress(Exception):
        found = status(running, "counting")
        fresh = [r for r in found["replicas"].values() if r["contact_age_s"] < 1.0]
        return found["server"] is not None and len(fresh) >= _REPLICAS
    return False


def _until(holds: Callable[[], bool], bound_s: float, what: str) -> None:
    deadline = time.monotonic() + bound_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {bound_s:g} s")
        time.sleep(0.1)


def faults() -> Iterator[tuple[Fault, float]]:
    """The table of `python -m benchmarks hosts`: each fault and its seconds."""
    yield "kill", 10.0
    yield "cut", 10.0
    yield "cut", 120.0
    yield "one-way", 10.0
    yield "delay", 20.0
    yield "loss", 20.0
    yield "full", 10.0
    yield "full-journal", 10.0


def fault(name: str) -> Fault:
    """The fault of that name.  Raises StartRefused with those that there are."""
    for known in get_args(Fault):
        if known == name:
            return cast("Fault", known)
    raise StartRefused(f"no fault {name!r}", f"Name one of: {', '.join(get_args(Fault))}")
