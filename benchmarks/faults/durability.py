"""A trace of system calls: the journal's sync has returned before an acknowledgement leaves.

A replica of a running service is traced.  In the trace the first write into the journal's log
that holds an event's id, the next sync of the log, and the answer with that id are found.  A
traced call is reported when it begins and when it returns, in that order, so the order of the
lines is the order of what happened.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.service import Running, launch, write_settings
from online.errors import StartRefused

_WRITES = ("write", "writev", "pwrite64", "sendto", "sendmsg")
_READS = ("read", "recvfrom")
_SYNCS = ("fdatasync", "fsync")
_SOCKETS = ("socket:", "TCP:", "TCPv6:", "UNIX:")
_TEXT_MAX = 65_536  # bytes of a call's data that are shown: more than a page, more than an answer
_ATTACH_S = 20.0
_EVENT = re.compile(r"trace-\d{6}")
_BEGUN = re.compile(r"(\d+) +(\d+\.\d+) (\w+)\((\d+)<([^\n]*?)>(?=[,) ])(.*)")
_RESUMED = re.compile(r"(\d+) +(\d+\.\d+) <\.\.\. (\w+) resumed>(.*)")
_TOOK = re.compile(r"<(\d+\.\d+)>$")


@dataclass(slots=True)
class Call:
    """One system call on a file or socket.  ``begun`` and ``returned`` count lines of the trace.

    ``at_s`` is when it began and ``until_s`` when it returned, in POSIX seconds.
    """

    name: str
    target: str
    data: str
    begun: int
    at_s: float
    returned: int | None = None
    until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof sums up a trace: whether each answered event was on the disk before.

    Attributes:
        answered: Events with a 200 in the trace.
        uncovered: Those of them that no sync of the log covers which returned before the 200.
        syncs, group_max: Syncs that cover an event, and most events that one of them covers.
        sync_ms: Median length of these syncs (traced: longer than without).
        lead_ms: Shortest time from the return of the sync to the beginning of the answer.
    """

    answered: int
    uncovered: list[str]
    syncs: int
    group_max: int
    sync_ms: float
    lead_ms: float

    @property
    def good(self) -> bool:
        """Every answered event was on disk before."""
        return self.answered > 0 and not self.uncovered


@dataclass(frozen=True, slots=True)
class Result:
    """Proofs of events sent one at a time and of events sent at once."""

    single: Proof
    group: Proof

    @property
    def good(self) -> bool:
        """Both hold, and there was a group."""
        return self.single.good and self.group.good and self.group.group_max > 1


def parse(lines: Iterable[str]) -> list[Call]:
    """Calls of a trace made with ``-f -ttt -T -y``, in the order of their beginnings."""
    calls: list[Call] = []
    open_calls: dict[str, Call] = {}
    for number, line in enumerate(lines):
        if match := _RESUMED.match(line):
            thread, at, _, rest = match.groups()
            call = open_calls.pop(thread, None)
            if call is not None:
                call.data += rest
                call.returned, call.until_s = number, float(at)
        elif match := _BEGUN.match(line):
            thread, at, name, _, target, rest = match.groups()
            call = Call(name, target, rest, number, float(at))
            calls.append(call)
            if rest.endswith("<unfinished ...>"):
                open_calls[thread] = call
            elif took := _TOOK.search(rest):
                call.returned, call.until_s = number, call.at_s + float(took[1])
    return calls


def prove(calls: Sequence[Call], log: str, answers: Mapping[str, Call]) -> Proof:
    """For each answered event: was the log synced after the event's write, before the answer?

    Parameters:
        log: End of the log file's name.
        answers: The call that sent the answer (or its beginning), by event.
    """
    written = _first_writes(calls, log)
    syncs = [c for c in calls if c.name in _SYNCS and c.target.endswith(log)]
    covers: Counter[int] = Counter()
    lengths, leads, uncovered = {}, [], []
    for event, sent in answers.items():
        write = written.get(event)
        after = () if write is None else (s for s in syncs if s.begun > write.begun)
        sync = next(iter(after), None)
        if sync is None or sync.returned is None or sync.returned >= sent.begun:
            uncovered.append(event)
            continue
        covers[sync.begun] += 1
        lengths[sync.begun] = (sync.until_s - sync.at_s) * 1e3
        leads.append((sent.at_s - sync.until_s) * 1e3)
    return Proof(
        answered=len(answers),
        uncovered=uncovered,
        syncs=len(covers),
        group_max=max(covers.values(), default=0),
        sync_ms=statistics.median(lengths.values()) if lengths else 0.0,
        lead_ms=min(leads, default=0.0),
    )


def _first_writes(calls: Sequence[Call], log: str) -> dict[str, Call]:
    """The first write into the log by event: a later one only copies the page that has it."""
    found: dict[str, Call] = {}
    for call in calls:
        if call.name in _WRITES and call.target.endswith(log):
            for event in _EVENT.findall(call.data):
                found.setdefault(event, call)
    return found


def http_answers(calls: Sequence[Call]) -> dict[str, Call]:
    """The beginning of the first answer 200 by the event that it names."""
    found: dict[str, Call] = {}
    heads: dict[str, Call] = {}
    for call in calls:
        if call.name not in _WRITES or not call.target.startswith(_SOCKETS):
            continue
        if "HTTP/1.1 " in call.data:
            heads.pop(call.target, None)
        if "HTTP/1.1 200" in call.data:
            heads[call.target] = call
        if (head := heads.get(call.target)) is not None:
            for event in _EVENT.findall(call.data):
                found.setdefault(event, head)
    return found


def redis_answers(calls: Sequence[Call]) -> dict[str, Call]:
    """Return, by event, the Redis server's next write to the socket that brought the event."""
    found: dict[str, Call] = {}
    asked: dict[str, set[str]] = {}
    for call in calls:
        if not call.target.startswith(_SOCKETS):
            continue
        if call.name in _READS:
            asked.setdefault(call.target, set()).update(_EVENT.findall(call.data))
        elif call.name in _WRITES:
            for event in asked.pop(call.target, ()):
                found.setdefault(event, call)
    return found


@contextlib.contextmanager
def traced(pid: int, file: Path) -> Iterator[None]:
    """Trace a process and its threads into ``file``.  Raises StartRefused if that can't be."""
    binary = shutil.which("strace")
    if binary is None:
        raise StartRefused("strace is missing", "Install the system's package strace")
    calls = ",".join((*_WRITES, *_READS, *_SYNCS))
    command = [binary, "-f", "-ttt", "-T", "-y", "-s", str(_TEXT_MAX), "-e", f"trace={calls}"]
    said = file.with_suffix(".said")
    with said.open("w") as errors:
        tracer = subprocess.Popen([*command, "-o", str(file), "-p", str(pid)], stderr=errors)
    try:
        deadline = time.monotonic() + _ATTACH_S
        while "attached" not in said.read_text():
            if tracer.poll() is not None or time.monotonic() > deadline:
                raise StartRefused(f"strace: {said.read_text()}", "Allow ptrace for this user")
            time.sleep(0.01)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(_ATTACH_S)


def run(
    *, single: int = 20, clients: int = 16, each: int = 10, embedded: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Result:  # fmt: skip
    """Trace one of two replicas while it takes ``single`` events, then ``clients · each`` at once.

    ``embedded``: the one process of everything instead.  ``environment`` is the service's, beside
    the process's own.
    """
    model = {
        "name": "counting",
        "task": "regression",
        "learner": "benchmarks.fixtures.learners:counting",
    }
    with tempfile.TemporaryDirectory(prefix="online-trace-") as name:
        folder = Path(name)
        form = {"cluster": "embedded"} if embedded else {"replicas": 2}
        write_settings(folder, {**form, "models": [model]})
        running = launch(folder, environment=environment)
        try:
            return _trace(running, folder, single, clients, each)
        finally:
            running.stop()


def _trace(running: Running, folder: Path, single: int, clients: int, each: int) -> Result:
    replica, url = min(running.replica_urls().items())
    pid = int(replica.partition(":")[0] or running.process.pid)
    proofs = []
    first = 0
    for lanes, count in ((1, single), (clients, each)):
        file = folder / f"{lanes}.strace"
        numbers = [range(first + i * count, first + (i + 1) * count) for i in range(lanes)]
        first += lanes * count
        with traced(pid, file), ThreadPoolExecutor(lanes) as pool:
            list(pool.map(_send, [url] * lanes, numbers))
        calls = parse(file.read_text(errors="replace").splitlines())
        proofs.append(prove(calls, "-wal", http_answers(calls)))
    return Result(*proofs)


def _send(url: str, numbers: range) -> None:
    with contextlib.closing(Connection(url)) as client:
        for i in numbers:
            event = f"trace-{i:06d}"
            body = {"features": {"x": 1.0}, "label": COUNT_LABEL, "event_id": event}
            status, answer = client.post("/v1/models/counting/feedback", body)
            if status != 200:
                raise RuntimeError(f"{event} was answered {status}: {answer}")
