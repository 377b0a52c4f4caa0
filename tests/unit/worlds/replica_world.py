"""Replicas in one process: real journal, real server, no Ray and no HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from river import linear_model, optim

from evaluation.metrics import Task
from online.learning.base import BaseLearner
from online.learning.cached_rows import cache_for
from online.learning.merged import Learner
from online.learning.ordered import OrderedLearner
from online.learning.overlay import OverlayLearner
from online.models.adapters.linear import Linear
from online.replica.pending import Recorded
from online.replica.replica import ModelReplica
from online.replica.surroundings import Clocks, Identity, Services
from online.rows.prediction_ids import EventKeys, Keys, Nonces, Tokens
from online.rows.validator import Validator
from online.serving.serving import Serving
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.settings.sync import Sync
from online.sure.views import views_of
from online.trust.filtering import Filtering
from paramserver.core import wire
from paramserver.errors import ServerUnavailable
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from replay import codec
from replay.example import Example
from replay.journal.base import Appended, NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

SPEC = "f" * 64
KEYS = EventKeys(near=True)
"""Those of a new journal."""
PATIENCE_S = 60.0
IN_VAIN_S = 5.0  # where a mutant keeps what is waited for from coming


def counting() -> Linear:
    step = 2.0**-10
    return Linear(
        linear_model.LinearRegression(
            optimizer=optim.SGD(step), intercept_lr=step, loss=optim.losses.Absolute()
        )
    )


def row(
    event: str, *, label: float = 1e9, feature: str | None = None, source: str = "test"
) -> NewRow:
    example = Example({feature or event: 1.0}, label)
    key = KEYS.event(source, event)
    return NewRow(key, event, source, Verdict.ACCEPTED, codec.encode(example), 1.0)


class Picky(Linear):
    """A linear model that fails at the feature ``bad``."""

    def learn(self, features: Any, label: Any, weight: float) -> None:
        super().learn(features, label, weight)
        if "bad" in features:
            raise ValueError("it is bad")


class Held(SqliteJournal):
    """Appends wait for ``open``."""

    open = threading.Event()
    appends = 0

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        Held.appends += 1
        assert self.open.wait(240)
        return super().append(partition, known, rows, epoch)


class Clock:
    """Seconds that only pass when they are told to."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


class Client:
    """Calls the server directly; ``down`` makes it unreachable."""

    def __init__(self, server: ParameterServer) -> None:
        self.server, self.down = server, False
        self.met = 0

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        await asyncio.sleep(0)
        if self.down:
            raise ServerUnavailable("m", "it is down")
        self.met += 1
        return wire.decode_reply(self.server.sync(wire.encode(request)))


class Peers:
    """Asks another replica in the server's place."""

    def __init__(self, other: ModelReplica) -> None:
        self.other, self.kinds = other, list[str]()

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        await asyncio.sleep(0)
        told = await self.other.answer_peer(wire.encode(request))
        if told is None:
            raise ServerUnavailable("a peer", "nothing")
        reply = wire.decode_reply(told)
        self.kinds.append(reply.kind)
        return reply


class World:
    """A folder with a journal and a server, and replicas on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = ParameterServer(
            Lineage("m", SPEC, "{}", "sum"),
            self.journal,
            str(folder / "snapshots"),
            ServerSettings(),
            background=False,
        )
        assert self.server.restore()
        self.client = Client(self.server)

    async def replica(
        self,
        name: str = "r",
        *,
        build: Callable[[], Any] = counting,
        journal: SqliteJournal | None = None,
        limits: Limits | None = None,
        now_s: Callable[[], float] = time.time,
        learns: bool = True,
        ordered: bool = False,
        overlay: bool = False,
        ask: Any = None,
        relearn: Any = None,
        filters: Callable[[Any], Filtering] | None = None,
        client: Any = None,
        peers: Any = None,
        crossing: Any = None,
        tables: Callable[[Any], Any] | None = None,
        task: Task = "regression",
        **settings: Any,
    ) -> ModelReplica:
        limits = limits or Limits(feedback_wait_s=60)
        model = ModelSettings(
            name="m", task=task, learner="linreg", sync=Sync(interval_ms=5), **settings
        )
        learner: BaseLearner
        if overlay:
            learner = OverlayLearner(build, task=task, spec=SPEC, rows_max=64, own_rows=learns)
        elif ordered:
            learner = OrderedLearner(build, task=task, spec=SPEC, rows_max=64)
        else:
            learner = Learner(build, task=task, spec=SPEC, retain_bytes=1 << 20, rows_max=64)
        learner.tally.views = views_of(model)
        learner.cache = cache_for(model.cache.rows, lambda: learner.serving)
        journal = journal or self.journal()
        replica = ModelReplica(
            model,
            limits,
            learner,
            Identity(name, SPEC, learns),
            Services(
                journal,
                client or self.client,
                peers,
                ask,
                relearn,
                crossing=crossing,
                tables=None if tables is None else tables(learner),
            ),
            clocks=Clocks(now_s),
            filters=None if filters is None else filters(learner),
        )
        await replica.start()
        return replica

    def serving(self, replica: ModelReplica) -> Serving:
        """Predict and feedback of a replica, with the same key in each."""
        validator = Validator(replica.settings, replica.limits, numeric_only=True)
        nonces = Nonces(replica.replica.encode()[:6].ljust(6))
        tokens = Tokens(Keys([bytes(32)]), "m", nonces)
        return Serving(replica, validator, tokens, replica.limits, SPEC)

    def journal(self) -> SqliteJournal:
        """The journal, for looking at it and for adding to it."""
        return SqliteJournal(self.folder / "journal.db", disk_low_mb=0)

    def weight(self, replica: ModelReplica, feature: str) -> float:
        """How often the event with this feature was learned, as the local model says."""
        values = replica.learner.serving.predict({feature: 1.0}).label
        base = replica.learner.serving.predict({"never": 1.0}).label
        assert isinstance(values, float)
        assert isinstance(base, float)
        return (values - base) * 2**10


async def until(condition: Callable[[], bool], timeout_s: float | None = None) -> None:
    async with asyncio.timeout(timeout_s or PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


def play(folder: Path, scene: Callable[[World], Awaitable[None]]) -> None:
    asyncio.run(scene(World(folder)))


def statuses(recorded: Sequence[Recorded]) -> list[tuple[str, bool]]:
    return [(r.status, r.repeat) for r in recorded]
