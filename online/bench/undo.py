"""R6: lies are learned unfiltered, the canary rings, the model goes back, and honest rows stay.

A replica, its journal and its parameter server in this process, or a whole service over HTTP.
Fifteen honest sources send a real stream; from the middle on five others send rows with wrong
labels, 200 in all, and no filter judges them.  ``drift.on_rise: rollback`` goes back by itself.
When the lies have ended the five are banned, what of them was learned since is rolled back too,
and the honest rows that went with it are learned again.  Beside it runs a clean twin, which never
saw them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evaluation.streams import open_stream
from online.canary import Canary
from online.config import Limits, data_dir
from online.kept import Kept
from online.learner import Learner
from online.local import score_of
from online.model_settings import Drift, ModelSettings, Sync
from online.models.load import load
from online.replica import ModelReplica
from online.tokens import event_key
from paramserver import wire
from paramserver.actor import ParameterServer, ServerSettings
from paramserver.lineage import Lineage
from paramserver.rewrites import rolled_back_to
from replay import codec
from replay.example import Example, Features, Label
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite import SqliteJournal

LIES: Final = 200
ALARM_MAX: Final = 100
BACK_S_MAX: Final = 5.0
POINTS: Final = 1.0
"""Lies; lies until the alarm; seconds from it to the old values; points apart from the twin."""

STREAMS: Final = (
    ("phishing", "binary", "logreg"),
    ("image_segments", "multiclass", "softmax"),
    ("insects", "multiclass", "softmax"),
    ("gas", "multiclass", "softmax"),
    ("elec2", "binary", "logreg"),
    ("bananas", "binary", "logreg"),
)
SHARES: Final = (1.0, 1 / 3)
"""Of arrivals that are lies while they come."""

_HONEST: Final = tuple(f"user-{i:02}" for i in range(15))
_LIARS: Final = tuple(f"liar-{i}" for i in range(5))
_ROOT_ROWS: Final = 10
_ROOT_FROM: Final = 800
_ROWS: Final = 2_400
_ASKED: Final = 5
_SNAPSHOT_ROWS: Final = 50
_GIVES_UP_S: Final = 10.0
_NAME: Final = "m"
_SPEC: Final = "f" * 64
_KEY: Final = bytes(32)

Row = tuple[Features, Label]
Post = tuple[str, Features, Label]


@dataclass(frozen=True, slots=True)
class Undone:
    """One drill; accuracies in percent on rows that are held back, when the lies have ended.

    ``clean``: the twin's; ``harm``: if nothing goes back.  ``alarm``: lies until anything rang that
    a rollback follows, infinite if nothing did, and ``canary``: until the canary did, where nothing
    goes back.  ``rollbacks``: by themselves; ``back_s``: the longest, from the alarm until other
    values answer.  ``kept``: events in the model in the end, of ``sent`` honest ones.
    ``needed``: lies did harm, more than the points that are asked.
    """

    what: str
    seed: int
    clean: float
    harm: float
    recovered: float
    alarm: float
    by: str
    canary: float
    rollbacks: int
    back_s: float
    kept: int
    sent: int
    needed: bool
    good: bool


@dataclass(frozen=True, slots=True)
class Course:
    """What is sent, what is asked at the end, and the root set."""

    task: Any
    learner: str
    root: list[Row]
    asked: list[Row]
    posts: list[Post]

    @property
    def ended(self) -> int:
        """How many posts there are up to the last lie."""
        return max(i for i, (source, _, _) in enumerate(self.posts) if source in _LIARS) + 1


def course(name: str, task: Any, learner: str, share: float, seed: int, rows: int) -> Course:
    """Honest rows in their order, and lies among them from half of them on."""
    stream = [row for _, row in zip(range(rows), open_stream(name, data_dir()).rows, strict=False)]
    root, counts = [], dict[Label, int]()
    for row in stream[:_ROOT_FROM]:
        counts[row[1]] = counts.get(row[1], 0) + 1
        if counts[row[1]] <= _ROOT_ROWS:
            root.append(row)
    vouched = set(map(id, root))
    stream = [row for row in stream if id(row) not in vouched]
    sent = [row for i, row in enumerate(stream) if i % _ASKED]
    return Course(task, learner, root, stream[::_ASKED], list(_posts(sent, share, seed)))


def _posts(sent: Sequence[Row], share: float, seed: int) -> Iterator[Post]:
    draw, lies = random.Random(seed), 0
    labels = sorted({label for _, label in sent}, key=str)
    for n, (features, label) in enumerate(sent):
        while n >= len(sent) // 2 and lies < LIES and draw.random() < share:
            other, really = sent[draw.randrange(len(sent) // 2)]
            lie = labels[(labels.index(really) + 1) % len(labels)]
            lies += 1
            yield _LIARS[draw.randrange(len(_LIARS))], other, lie
        yield _HONEST[draw.randrange(len(_HONEST))], features, label


class _Client:
    """The parameter server in this process, as a replica calls it."""

    def __init__(self, server: ParameterServer) -> None:
        self._server = server

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        await asyncio.sleep(0)
        return wire.decode_reply(self._server.sync(wire.encode(request)))


class Within:
    """One replica with its journal and its parameter server, in this process."""

    def __init__(self, folder: Path, given: Course, on_rise: Any) -> None:
        self._folder, self._given = folder, given
        self.settings = ModelSettings(
            name=_NAME, task=given.task, learner=given.learner, filters="none",
            sync=Sync(interval_ms=5), drift=Drift(on_rise=on_rise),
        )  # fmt: skip
        self.server = ParameterServer(
            Lineage(_NAME, _SPEC, "{}", "compensated"), self._journal, str(folder / "snapshots"),
            ServerSettings(interval_s=86_400.0), background=False,
        )  # fmt: skip
        self.server.restore()

    def _journal(self) -> SqliteJournal:
        return SqliteJournal(self._folder / "journal.db", disk_low_mb=0)

    async def start(self) -> None:
        """Returns when it answers."""
        loaded = load(
            self.settings.learner, {}, task=self.settings.task, classes=None, key=_KEY,
            base_dir=Path(),
        )  # fmt: skip

        async def ask(question: str, *args: Any) -> Any:
            return getattr(self.server, question)(*args)

        learner = Learner(
            loaded.build, task=self.settings.task, spec=_SPEC, retain_bytes=1 << 20, rows_max=64
        )
        journal = self._journal()
        self.replica = ModelReplica(
            self.settings, Limits(feedback_wait_s=30), learner, journal, _Client(self.server),
            replica="r", spec=_SPEC, ask=ask,
            canary=Canary(self._given.root, lambda: learner.serving),
        )  # fmt: skip
        self.kept = Kept({_NAME: self.replica}, {_NAME: journal}, lambda name: {})
        await self.replica.start()
        self.n = 0

    async def send(self, source: str, features: Features, label: Label) -> None:
        """One event, answered first."""
        self.n += 1
        score = score_of(self.settings.task, self.replica.learner.predict(features))
        payload = codec.encode(Example(features, label, score=score))
        key = event_key("event", source, str(self.n))
        row = NewRow(key, str(self.n), source, Verdict.ACCEPTED, payload, time.time())
        await self.replica.writer.record([row])
        if self.n % _SNAPSHOT_ROWS == 0:
            self.server.snapshot()

    @property
    def alarms(self) -> list[str]:
        """Detectors that have said that the model got worse, in order."""
        assert self.replica.judge is not None
        newest = self.replica.judge.shown()["newest"]
        return [x["detector"] for x in newest[::-1] if x["signal"] == "error" and not x["recovery"]]

    async def gone_back(self, rewrite: int) -> float | None:
        """Seconds until other values than those of ``rewrite`` answer; None: it was refused."""
        begun = time.perf_counter()
        while self.replica.learner.rewrite == rewrite:
            if (self.replica.incident or "").startswith("its error has risen; left as it is"):
                return None
            if time.perf_counter() - begun > _GIVES_UP_S:
                return float("inf")
            await asyncio.sleep(0.001)
        return time.perf_counter() - begun

    def went_to(self) -> str | None:
        """Where the last rollback went."""
        with contextlib.closing(self._journal()) as journal:
            return rolled_back_to(journal.controls(_NAME, 0), _SPEC)

    async def undo(self, sources: Sequence[str], to: str) -> None:
        """What an operator does when the lies have ended: ban, go back, learn the others again."""
        for source in sources:
            self.server.ban(source, True)
        partition, learner = self.replica.writer.partition, self.replica.learner
        while learner.clock.get(partition, 0) < self.n:  # what the server lacks, nothing undoes
            await asyncio.sleep(0.001)
        rewrite = self.replica.learner.rewrite
        self.server.rollback(to)
        await self.gone_back(rewrite)
        cursor = None
        while True:
            page = await self.kept.relearn(_NAME, "undone", cursor, 200)
            cursor = page["cursor"]
            if cursor is None:
                return

    def accuracy(self) -> float:
        """Of the rows that are held back, in percent."""
        asked, learner = self._given.asked, self.replica.learner
        return 100.0 * sum(learner.predict(x).label == y for x, y in asked) / len(asked)


@dataclass(slots=True)
class Played:
    """What became of one run until the lies had ended, and been undone."""

    accuracy: float = 0.0
    alarm: float = float("inf")
    by: str = "nothing"
    canary: float = float("inf")
    back_s: float = 0.0
    rollbacks: int = 0
    kept: int = 0
    sent: int = 0


async def _scene(folder: Path, given: Course, on_rise: str | None) -> Played:
    """``on_rise`` None: the clean twin."""
    world, out = Within(folder, given, on_rise or "tell"), Played()
    await world.start()
    lies, alarms, first = 0, list[str](), None
    for source, features, label in given.posts[: given.ended]:
        lie = source in _LIARS
        if lie and on_rise is None:
            continue
        rewrite = world.replica.learner.rewrite
        await world.send(source, features, label)
        lies, out.sent = lies + lie, out.sent + (not lie)
        new, alarms = world.alarms[len(alarms) :], world.alarms
        if new and lies:
            if out.alarm == float("inf"):
                out.alarm, out.by = lies, new[-1]
            if "canary" in new:
                out.canary = min(out.canary, lies)
        if new and on_rise == "rollback" and (spent := await world.gone_back(rewrite)) is not None:
            out.back_s, out.rollbacks = max(out.back_s, spent), out.rollbacks + 1
            first = first if first is not None or not lies else world.went_to()
    if first is not None:
        await world.undo(_LIARS, first)
    out.accuracy, out.kept = world.accuracy(), world.replica.learner.tally.digest[0]
    await world.replica.stop(5)
    return out


def drill(
    name: str, task: Any, learner: str, *, share: float, seed: int, rows: int = _ROWS
) -> Undone:
    """One stream: the clean twin, what only tells, and what goes back."""
    given = course(name, task, learner, share, seed, rows)
    runs = []
    for on_rise in (None, "tell", "rollback"):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(asyncio.run(_scene(Path(folder), given, on_rise)))
    clean, told, back = runs
    needed = told.accuracy < clean.accuracy - POINTS
    good = (
        back.alarm <= ALARM_MAX
        and back.rollbacks > 0
        and back.back_s <= BACK_S_MAX
        and back.accuracy >= clean.accuracy - POINTS
        and back.kept == back.sent
    )
    return Undone(
        f"{name}, {'a third of arrivals' if share < 1 else 'nothing else meanwhile'}", seed,
        clean.accuracy, told.accuracy, back.accuracy, back.alarm, back.by, told.canary,
        back.rollbacks, back.back_s, back.kept, back.sent, needed, good or not needed,
    )  # fmt: skip


def run(
    seeds: Sequence[int] = (0,),
    streams: Sequence[tuple[str, str, str]] = STREAMS,
    rows: int = _ROWS,
    progress: Callable[[str], None] = lambda line: None,
) -> Iterator[Undone]:
    """Each stream with each share of lies and each seed."""
    for name, task, learner in streams:
        for share in SHARES:
            for seed in seeds:
                line = drill(name, task, learner, share=share, seed=seed, rows=rows)
                progress(str(line))
                yield line
