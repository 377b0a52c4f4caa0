"""Kill processes at random instants; every acknowledged event must be in the model exactly once.

The model counts: each event has a feature of its own and adds 2^-10 to that feature's weight,
whatever was learned before, so the final weights say of each event how often it was learned.
Clients repeat what was not answered, with the same ``event_id``, and now and then what was.  Every
fourth round kills every process at once, and with a journal in Redis every other one of these kills
that server, too.  A model may have several parameter servers, of which one is killed at a time.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from benchmarks.faults.server_counts import Wishes
from benchmarks.faults.settled import GIVES_UP_S, wait_complete
from benchmarks.fixtures import counting_table
from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.counting_table import Held
from benchmarks.fixtures.learners import ADDING_STEP, COUNT_LABEL
from benchmarks.fixtures.redis_server import Server, need_binary
from benchmarks.fixtures.service import Running, launch, status, write_settings
from online.rebuild import fsck
from online.service.processes import free_port
from online.settings.config import Settings, load
from online.settings.places import snapshots_path
from paramserver.core.shards import shard_place
from paramserver.snapshots.chain import read
from paramserver.snapshots.places import lineage_place, open_snapshots

STEP = 2.0**-10
_ALL_EVERY = 4
_PAUSE_S = (0.3, 2.0)  # between two kills
_ANSWERED = 25  # events a round at least, however slow the machine is

JournalKind = Literal["sqlite", "redis"]


@dataclass(slots=True)
class Sent:
    """The clients note here which events were acknowledged, and which never got an answer."""

    acknowledged: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one campaign; ``lost`` and ``twice`` are ids of events, and should be empty."""

    journal: JournalKind
    rounds: dict[str, int]
    in_flight_min: int
    acknowledged: int
    unanswered: int
    unanswered_learned: int
    lost: list[str]
    twice: list[str]
    strangers: list[str]
    fsck_good: bool
    servers: int
    wishes: dict[str, int]
    statuses: dict[str, int]
    adopted: int
    seconds: float

    @property
    def good(self) -> bool:
        """Nothing lost, nothing twice, and the digest agrees with the journal."""
        return not (self.lost or self.twice or self.strangers) and self.fsck_good


CLOSED: Final = "(closed)"
"""The connection ended before an answer came."""


class Client(threading.Thread):
    """Sends events one after the other until told to stop; repeats until each is answered."""

    unfinished: tuple[float, ...] = (1.0,)  # what an event may count that was never acknowledged
    _gives_up = 0.2  # of those that are not answered when it is told to stop
    _model = "counting"

    def __init__(
        self,
        number: int,
        url: Callable[[], str],
        sent: Sent,
        stop: threading.Event,
        seed: int,
        *,
        token: str | None = None,
        timeout_s: float = 20.0,
        pause_s: float = 0.0,
    ) -> None:
        super().__init__(daemon=True)
        self._pause_s = pause_s
        self._token, self._timeout_s = token, timeout_s
        self._number, self._url, self._sent, self._stop_event = number, url, sent, stop
        self._rng = random.Random(seed)
        self.in_flight = False
        self.failed = 0  # attempts without an answer, or with one that is none

    def run(self) -> None:
        """Send one event after the other until the stop event is set."""
        i = 0
        while not self._stop_event.is_set():
            event = f"c{self._number}-{i}"
            i += 1
            if self._pause_s:
                self._stop_event.wait(self._pause_s)
            self.send(event)
            if i == 1 or self._rng.random() < 0.05:  # a client that did not trust the answer
                self.send(event)

    def feature(self, event: str) -> str:
        """Name of the feature whose weight counts the event: one of its own."""
        return event

    def send(self, event: str) -> None:
        """Send it and again until it is acknowledged."""
        body = {
            "features": {self.feature(event): 1.0},
            "label": COUNT_LABEL,
            "event_id": event,
            "source": "bench",
        }
        with self._sent.lock:
            self._sent.unanswered.add(event)
        self._post(event, body)

    def call(self, action: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer of one request; 0 without one."""
        client = Connection(self._url(), self._timeout_s, self._token)
        try:
            self.in_flight = True
            return client.post(f"/v1/models/{self._model}/{action}", body)
        except (OSError, http.client.HTTPException) as lost:
            closed = isinstance(lost, (ConnectionResetError, BrokenPipeError))
            return 0, {"error": {"code": CLOSED}} if closed else {}
        finally:
            self.in_flight = False
            client.close()

    def _post(self, event: str, body: Mapping[str, Any], *, last: bool = True) -> None:
        """Send a body until it is answered; the ``last`` one of an event acknowledges it."""
        give_up, reasons = time.monotonic() + 120, set[str]()
        while time.monotonic() < give_up:
            code, answer = self.call("feedback", body)
            if code == 200:
                with self._sent.lock:
                    if last:
                        self._sent.acknowledged.add(event)
                        self._sent.unanswered.discard(event)
                    self._sent.statuses[answer["status"]] += 1
                return
            self.failed += 1
            with self._sent.lock:
                error = answer.get("error") or {}
                why = error.get("code", "")
                if why == "journal_held":
                    print(error["message"], flush=True)
                why = f"retried after {code or 'no answer'} {why}".strip()
                self._sent.statuses[why] += why not in reasons  # counted once an event
                reasons.add(why)
            if last and self._stop_event.is_set() and self._rng.random() < self._gives_up:
                return  # this one stays unanswered
            time.sleep(0.05)


class ChangingClient(Client):
    """Sends a provisional label of each event, and the final one some events, and kills, later.

    A weight counts 1 if the final lesson alone is in it: 5 if the provisional one stays, 6 if the
    final one is learned beside it or the first one twice, less than 1 if it is taken back twice.
    The provisional one stays rightly if the final one never came, as on a very busy machine.
    """

    unfinished = (1.0, 5.0)
    _gives_up = 0.0
    _behind: Final = 8

    def run(self) -> None:
        """Send events until told to stop; then the final labels that are left."""
        i, open_ = 0, list[str]()
        while open_ or not self._stop_event.is_set():
            if not self._stop_event.is_set():
                event = f"c{self._number}-{i}"
                i += 1
                self._label(event, 5.0, provisional=True)
                open_.append(event)
                if len(open_) <= self._behind:
                    continue
            event = open_.pop(0)
            self._label(event, 1.0)
            if self._rng.random() < 0.2:  # clients that do not trust the answer
                self._label(event, self._rng.choice((1.0, 5.0)), provisional=True)
                self._label(event, 1.0)

    def _label(self, event: str, times: float, *, provisional: bool = False) -> None:
        body = {
            "features": {event: 1.0},
            "label": times * STEP / (2.0 * ADDING_STEP),
            "event_id": event,
            "source": "bench",
            **({"provisional": True} if provisional else {}),
        }
        with self._sent.lock:
            if event not in self._sent.acknowledged:
                self._sent.unanswered.add(event)
        self._post(event, body, last=not provisional)


def settings_of(
    port: int,
    journal: str = "sqlite",
    *,
    embedded: bool = False,
    changing: bool = False,
    shards: int = 1,
) -> dict[str, Any]:
    """Two replicas of the counting model, exact sums, frequent snapshots.

    ``embedded``: one in the process of everything.  ``changing``: of a model that takes back.
    """
    return {
        "port": port,
        **({"cluster": "embedded"} if embedded else {"replicas": 2}),
        "journal": journal,
        "limits": {"adopt_s": 4, "names_max": 1_000_000},
        "models": [
            {
                "name": "counting",
                "task": "regression",
                "learner": f"benchmarks.fixtures.learners:{'adding' if changing else 'counting'}",
                "sync": {"merge": "sum"},
                "snapshots": {"interval_s": 1, "keep": 4},
                **({"shards": shards, "filters": "none"} if shards > 1 else {}),
            }
        ],
    }


class Site:
    """The service and its store, which are killed and started again on the same files."""

    def __init__(
        self, folder: Path, store: Server | None, environment: Mapping[str, str] | None
    ) -> None:
        self._folder, self._store, self._environment = folder, store, environment
        self._whole, self._rng = 0, random.Random(0)  # which of several servers is killed
        self.running = launch(folder, environment=environment)

    def targets(self) -> tuple[str, ...]:
        """Return what can be killed while the rest lives."""
        return ("replica", "server", "both", *(("store",) if self._store else ()))

    def kill(self, target: str) -> str:
        """Kill the target, and restart what nothing else restarts; return what was killed."""
        if target == "all":
            self._whole += 1
            _sigkill(self.running.processes())
            self.running.process.wait()
            with_store = self._store is not None and self._whole % 2 == 1
            if with_store:
                self._restart_store()
            self.running = launch(self._folder, environment=self._environment)
            return "all and the store" if with_store else "all"
        if target == "store":
            self._restart_store()
        victims = []
        if target in ("replica", "both"):
            victims += self.running.named("ServeReplica")[:1]
        if target in ("server", "both"):
            servers = self.running.named("ParameterServer")
            victims += self._rng.sample(servers, k=bool(servers))
        _sigkill(victims)
        return target

    def _restart_store(self) -> None:
        assert self._store is not None
        self._store.kill()
        self._store.start()

    def stop(self) -> None:
        """End the service as an operator does."""
        self.running.stop()


@contextlib.contextmanager
def _store(folder: Path, journal: JournalKind) -> Iterator[Server | None]:
    """The server of the journal, if it has one."""
    if journal == "sqlite":
        yield None
        return
    server = Server(folder, need_binary())
    try:
        yield server
    finally:
        server.kill()


def run(
    rounds: int,
    *,
    journal: JournalKind = "sqlite",
    seed: int = 0,
    clients: int = 12,
    environment: Mapping[str, str] | None = None,
    embedded: bool = False,
    changing: bool = False,
    shards: int = 1,
    wishing: bool = False,
    held: Held = "",
    progress: Callable[[str], None] = print,
) -> Result:
    """A campaign of ``rounds`` kills, every fourth of every process at once.

    ``embedded``: of a service that is one process, so each kill is of all.  ``changing``: with a
    provisional label of each event first.  ``wishing``: another number of servers is wished for
    before each kill.  ``held``: how replicas hold the model's table, if it has one.
    """
    rng, begun = random.Random(seed), time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="online-kill-") as name,
        _store(Path(name) / "store", journal) as store,
    ):
        folder = Path(name)
        place = store.url if store else journal
        given = settings_of(free_port(), place, embedded=embedded, changing=changing, shards=shards)
        given["models"][0] |= counting_table.settings_of(held)
        path = write_settings(folder, given)
        site, wishes = Site(folder, store, environment), Wishes(path, "counting", rng)
        sent, stop = Sent(), threading.Event()
        kind = ChangingClient if changing else Client
        threads = [
            kind(i, lambda: site.running.url, sent, stop, seed * 1000 + i) for i in range(clients)
        ]
        for thread in threads:
            thread.start()
        done, in_flight = Counter[str](), clients
        try:
            for i in range(rounds):
                whole = embedded or i % _ALL_EVERY == _ALL_EVERY - 1
                target = "all" if whole else rng.choice(site.targets())
                time.sleep(rng.uniform(*_PAUSE_S))
                wait_answered(sent, (i + 1) * _ANSWERED)
                if wishing:
                    wishes.wish(site.running)
                in_flight = min(in_flight, wait_in_flight(threads, min(8, clients)))
                killed = site.kill(target)
                done[killed] += 1
                answered = len(sent.acknowledged)
                progress(f"round {i + 1}/{rounds}: killed {killed}, {answered:,} answered")
            stop.set()
            for thread in threads:
                thread.join(150)
            wishes.settle()
            settings = load(path, {}, {})
            found = judge(site.running, settings, sent, kind)
            return _result(found, settings, sent, done, wishes.outcomes, in_flight, begun)
        finally:
            stop.set()
            site.stop()


def wait_answered(sent: Sent, wanted: int) -> None:
    """Until so many events are acknowledged: a busy machine has longer rounds, not smaller ones."""
    deadline = time.monotonic() + GIVES_UP_S
    while len(sent.acknowledged) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)


def wait_in_flight(threads: Sequence[Client], wanted: int) -> int:
    """Until so many requests are under way; how many are."""
    deadline = time.monotonic() + GIVES_UP_S
    while time.monotonic() < deadline:
        now = sum(thread.in_flight for thread in threads)
        if now >= wanted:
            return now
        time.sleep(0.001)
    return sum(thread.in_flight for thread in threads)


def _sigkill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Reckoning:
    """The fate of the events, computed from the final weights."""

    unanswered_learned: int
    lost: list[str]
    twice: list[str]
    strangers: list[str]
    fsck_good: bool
    servers: int
    adopted: int


def learned(
    running: Running, settings: Settings, known: Collection[str] = ()
) -> tuple[dict[str, float], fsck.Findings, dict[str, Any]]:
    """How often each feature's events were learned, what `fsck` finds, and the model's status.

    All are of a snapshot with every row of the journal.  ``known``: the features that were sent.
    """
    findings = wait_complete(running, settings, "counting")
    now = status(running, "counting")
    spec, weights = str(now["server"]["spec"]), dict[str, float]()
    for shard, one in enumerate((findings, *findings.shards)):
        place = lineage_place(shard_place(snapshots_path(settings), shard), "counting", spec)
        values = read(open_snapshots(place), str(one.snapshot)).values
        weights |= counting_table.weights_of(values, known)
    times = {name: round(weight / STEP, 6) for name, weight in weights.items()}
    return times, findings, now


def judge(
    running: Running, settings: Settings, sent: Sent, kind: type[Client] = Client
) -> Reckoning:
    """Compare what the clients, of this kind, know with what the model has learned."""
    known = sent.acknowledged | sent.unanswered
    times, findings, now = learned(running, settings, known)

    def allowed(event: str) -> tuple[float, ...]:
        return kind.unfinished if event in sent.unanswered else (1.0,)

    return Reckoning(
        unanswered_learned=sum(1 for e in sent.unanswered if times.get(e)),
        lost=sorted(e for e in sent.acknowledged if times.get(e, 0) < 1),
        twice=sorted(e for e, n in times.items() if n > 1 and n not in allowed(e)),
        strangers=sorted(e for e in times if e not in known),
        fsck_good=findings.good,
        servers=1 + len(findings.shards),
        adopted=int(sum(r.get("adopted", 0) for r in now["replicas"].values())),
    )


def _result(
    found: Reckoning,
    settings: Settings,
    sent: Sent,
    done: Counter[str],
    wishes: Counter[str],
    in_flight: int,
    begun: float,
) -> Result:
    return Result(
        journal="sqlite" if settings.journal == "sqlite" else "redis",
        rounds=dict(done),
        in_flight_min=in_flight,
        acknowledged=len(sent.acknowledged),
        unanswered=len(sent.unanswered),
        unanswered_learned=found.unanswered_learned,
        lost=found.lost,
        twice=found.twice,
        strangers=found.strangers,
        fsck_good=found.fsck_good,
        servers=found.servers,
        wishes=dict(wishes),
        statuses=dict(sent.statuses),
        adopted=found.adopted,
        seconds=time.monotonic() - begun,
    )
