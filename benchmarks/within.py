"""A replica with its journal and its parameter server in this process: the real ones, no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from online.learning.merged import Learner
from online.learning.scores import score_of
from online.models.load import load
from online.replica.memory_settings import memory_for
from online.replica.replica import ModelReplica
from online.replica.surroundings import Outside, Who
from online.rows.history import Decisions
from online.rows.prediction_ids import event_key
from online.serving.held_events import HeldEvents
from online.settings.config import Limits
from online.settings.model import ModelSettings
from online.trust.filtering import filtering_for
from online.watch.canary import Canary
from paramserver.core import wire
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from replay import codec
from replay.example import Example, Features, Label
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite import SqliteJournal

SPEC: Final = "f" * 64
NAME: Final = "m"
_KEY: Final = bytes(32)
_SNAPSHOT_ROWS: Final = 50
_RULE: Final = "compensated"
_SOURCES_MAX: Final = 1_000
_ROWS_MAX: Final = 1_000_000

Row = tuple[Features, Label]


class Direct:
    """Asks the parameter server of this process, as a replica does."""

    def __init__(self, server: ParameterServer) -> None:
        self._server = server

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        await asyncio.sleep(0)
        return wire.decode_reply(self._server.sync(wire.encode(request)))


class Within:
    """One replica of a model called :data:`NAME`; a snapshot every fifty events.

    Parameters:
        folder: Of journal and snapshots.
        root: Rows that the canary watches; none: it is off.

    Attributes:
        n: Events sent.
        server, replica, kept: The parts; the latter two once it has started.
    """

    replica: ModelReplica
    kept: HeldEvents

    def __init__(self, folder: Path, settings: ModelSettings, root: Sequence[Row] = ()) -> None:
        self._folder, self._settings, self._root = folder, settings, root
        self.n = 0
        self.server = ParameterServer(
            Lineage(NAME, SPEC, "{}", _RULE), self.journal, str(folder / "snapshots"),
            ServerSettings(interval_s=86_400.0), background=False,
        )  # fmt: skip
        self.server.restore()

    def journal(self) -> SqliteJournal:
        """The journal once more."""
        return SqliteJournal(self._folder / "journal.db", disk_low_mb=0)

    async def start(self) -> None:
        """Returns when it answers."""
        settings = self._settings
        loaded = load(
            settings.learner, settings.params, task=settings.task, classes=None, key=_KEY,
            base_dir=Path(),
        )  # fmt: skip
        learner = Learner(
            loaded.build, task=settings.task, spec=SPEC, retain_bytes=1 << 20, rows_max=64,
            memory=memory_for(settings, loaded.model, _RULE),
        )  # fmt: skip

        async def ask(question: str, *args: Any) -> Any:
            return getattr(self.server, question)(*args)

        journal = self.journal()
        self.replica = ModelReplica(
            settings, Limits(feedback_wait_s=30), learner, Who("r", SPEC),
            Outside(journal, Direct(self.server), ask=ask),
            filters=filtering_for(settings, learner, None, sources_max=_SOURCES_MAX, vouched=True),
            canary=Canary(self._root, lambda: learner.serving) if self._root else None,
        )  # fmt: skip
        self.kept = HeldEvents({NAME: self.replica}, {NAME: journal}, lambda name: {})
        await self.replica.start()

    async def send(self, source: str, features: Features, label: Label) -> bytes:
        """One event, answered before; its key."""
        self.n += 1
        score = score_of(self._settings.task, self.replica.learner.predict(features))
        payload = codec.encode(Example(features, label, score=score))
        key = event_key("event", source, str(self.n))
        row = NewRow(key, str(self.n), source, Verdict.ACCEPTED, payload, time.time())
        await self.replica.writer.record([row])
        if self.n % _SNAPSHOT_ROWS == 0:
            self.server.snapshot()
        return key

    async def pushed(self) -> None:
        """Returns when the server has all rows."""
        partition, learner = self.replica.writer.partition, self.replica.learner
        while learner.clock.get(partition, 0) < self.n:
            await asyncio.sleep(0.001)

    def taught(self) -> Counter[str]:
        """How many events of each source are in the model, by what is decided."""
        decisions = Decisions(SPEC)
        with contextlib.closing(self.journal()) as journal:
            decisions.read(journal, NAME)
            rows = journal.follow(NAME, 0, _ROWS_MAX).rows
        return Counter(row.source for row in rows if decisions.learned(row))

    def accuracy(self, asked: Sequence[Row]) -> float:
        """Return the share of these rows that is answered right, in percent."""
        learner = self.replica.learner
        return 100.0 * sum(learner.predict(x).label == y for x, y in asked) / len(asked)

    @property
    def alarms(self) -> list[str]:
        """Detectors that have said that the model got worse, in order; the newest ones."""
        assert self.replica.judge is not None
        newest = self.replica.judge.summary()["newest"]
        return [
            x["detector"] for x in newest[::-1] if x["signal"] == "error" and x["direction"] == "up"
        ]
