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

from benchmarks.fixtures.single_replica import NAME, SPEC, Row, Within
from evaluation.streams import open_stream
from online.settings.config import data_dir
from online.settings.model import Drift, ModelSettings
from online.settings.sync import Sync
from paramserver.core.rewrites import rolled_back_to
from replay.example import Features, Label

LIES: Final = 200
ALARM_MAX: Final = 100
BACK_S_MAX: Final = 5.0
POINTS: Final = 1.0
"""Lies; lies until the alarm; seconds from it to the old values; points apart from the twin."""

HARM: Final = 5.0

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
LIARS: Final = tuple(f"liar-{i}" for i in range(5))
_ROOT_ROWS: Final = 10
_ROOT_FROM: Final = 800
_ROWS: Final = 2_400
_ASKED: Final = 5
_GIVES_UP_S: Final = 10.0
_LEFT: Final = "its error has risen; left as it is"

Post = tuple[str, Features, Label]


@dataclass(frozen=True, slots=True)
class Undone:
    """One drill; accuracies in percent on rows that are held back, when the lies have ended.

    ``clean``: the twin's; ``harm``: if nothing goes back.  ``alarm``: lies until anything rang that
    a rollback follows, infinite if nothing did, and ``canary``: until the canary did, where nothing
    goes back.  ``rollbacks``: by themselves; ``back_s``: the longest, from the alarm until other
    values answer.  ``kept``: honest events in the model in the end, of ``sent``; ``left``: lies.
    ``needed``: lies did harm, of :data:`HARM` points and more; where they did not, nothing has to
    ring, but what was done must not do harm either.
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
    left: int
    needed: bool
    good: bool


@dataclass(frozen=True, slots=True)
class Course:
    """A course is what is sent, what is asked at the end, and the root set."""

    task: Any
    learner: str
    root: list[Row]
    asked: list[Row]
    posts: list[Post]

    @property
    def ended(self) -> int:
        """How many posts there are up to the last lie."""
        return max(i for i, (source, _, _) in enumerate(self.posts) if source in LIARS) + 1


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
            yield LIARS[draw.randrange(len(LIARS))], other, lie
        yield _HONEST[draw.randrange(len(_HONEST))], features, label


class _Drilled(Within):
    """One that goes back."""

    async def gone_back(self, rewrite: int) -> float | None:
        """Seconds until other values than those of ``rewrite`` answer; None: it was refused."""
        begun = time.perf_counter()
        while self.replica.learner.rewrite == rewrite:
            if any(said.startswith(_LEFT) for said in self.replica.incidents):
                return None
            if time.perf_counter() - begun > _GIVES_UP_S:
                return float("inf")
            await asyncio.sleep(0.001)
        return time.perf_counter() - begun

    def went_to(self) -> str | None:
        """Where the last rollback went."""
        with contextlib.closing(self.journal()) as journal:
            return rolled_back_to(journal.controls(NAME, 0), SPEC)

    async def undo(self, sources: Sequence[str], to: str) -> None:
        """Do what an operator does after the lies: ban, go back, learn the others again."""
        for source in sources:
            self.server.ban(source, True)
        await self.pushed()  # what the server lacks, it does not undo
        rewrite = self.replica.learner.rewrite
        self.server.rollback(to)
        await self.gone_back(rewrite)
        cursor = None
        while True:
            page = await self.kept.relearn(NAME, "undone", cursor, 200)
            cursor = page["cursor"]
            if cursor is None:
                return


@dataclass(slots=True)
class Played:
    """The outcome of one run until the lies had ended, and been undone."""

    accuracy: float = 0.0
    alarm: float = float("inf")
    by: str = "nothing"
    canary: float = float("inf")
    back_s: float = 0.0
    rollbacks: int = 0
    kept: int = 0
    sent: int = 0
    left: int = 0


async def _scene(folder: Path, given: Course, on_rise: str | None) -> Played:
    """``on_rise`` None: the clean twin."""
    settings = ModelSettings(
        name=NAME, task=given.task, learner=given.learner, filters="none",
        sync=Sync(interval_ms=5), drift=Drift(on_rise=on_rise or "tell"),
    )  # fmt: skip
    world, out = _Drilled(folder, settings, given.root), Played()
    await world.start()
    lies, alarms, first = 0, list[str](), None
    for source, features, label in given.posts[: given.ended]:
        lie = source in LIARS
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
        await world.undo(LIARS, first)
    out.accuracy, taught = world.accuracy(given.asked), world.taught()
    out.left = sum(taught[liar] for liar in LIARS)
    out.kept = taught.total() - out.left
    await world.replica.stop(5)
    return out


def drill(
    name: str, task: Any, learner: str, *, share: float, seed: int, rows: int = _ROWS
) -> Undone:
    """Run one stream without an attack, with alarms only, and with a rollback."""
    given = course(name, task, learner, share, seed, rows)
    runs = []
    for on_rise in (None, "tell", "rollback"):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(asyncio.run(_scene(Path(folder), given, on_rise)))
    clean, told, back = runs
    needed = told.accuracy <= clean.accuracy - HARM
    good = (
        back.alarm <= ALARM_MAX
        and back.rollbacks > 0
        and back.back_s <= BACK_S_MAX
        and back.accuracy >= clean.accuracy - POINTS
        and back.kept == back.sent
    )
    harmless = back.accuracy >= min(clean.accuracy, told.accuracy) - POINTS
    return Undone(
        f"{name}, {during(share)}", seed,
        clean.accuracy, told.accuracy, back.accuracy, back.alarm, back.by, told.canary,
        back.rollbacks, back.back_s, back.kept, back.sent, back.left, needed,
        good if needed else harmless,
    )  # fmt: skip


def during(share: float) -> str:
    """Say in words what else comes while lies do."""
    return "a third of arrivals" if share < 1 else "nothing else meanwhile"


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
