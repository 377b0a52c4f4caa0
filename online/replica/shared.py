"""The parts that the loops of one model's process share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from online.learning.base import BaseLearner
from online.replica.control_log import ControlLog
from online.replica.journal_threads import JournalThreads
from online.replica.pace import Pace
from online.replica.row_arrivals import RowArrivals
from online.replica.surroundings import Clocks, Identity
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.telemetry.trace import Crossing


class ChangeLock:
    """Blocks changes of the model while it is held; whoever changes the model awaits `unlocked`.

    Holders take turns.  If a change has waited, the next holder begins only after a pause as long
    as the last hold, so learning gets half of the time.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._over = asyncio.Event()
        self._over.set()
        self._waited = False
        self._due_s = 0.0

    @property
    def held(self) -> bool:
        """Whether the model must not be changed now."""
        return not self._over.is_set()

    async def unlocked(self) -> None:
        """Wait until the model may be changed, within the same turn of the loop."""
        while self.held:
            self._waited = True
            await self._over.wait()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold the model unchanged, after earlier holders and learning have had their time."""
        now_s = asyncio.get_running_loop().time
        async with self._turn:
            if (rest_s := self._due_s - now_s()) > 0.0:
                await asyncio.sleep(rest_s)
            begun_s = now_s()
            self._over.clear()
            try:
                yield
            finally:
                ended_s = now_s()
                self._due_s = ended_s + (ended_s - begun_s) * self._waited
                self._waited = False
                self._over.set()


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """The model, the store, and the signals between the loops.

    Attributes:
        learner: The local model.
        store: Runs the journal's operations on threads.
        control: The decisions about the model by the journal's control rows.
        counts: Counters by name, sent to the parameter server with each exchange.
        pace: Decides when the next exchange is due.
        arrivals: Waits for rows of the model's table that are not held.
        who, clocks: Identity of the process, and its clocks.
        crossing: Follows rows of traced requests to other replicas; None: tracing is off.
        wake: Set when there may be rows to learn.
        change_lock: Held while the model must not change.
    """

    settings: ModelSettings
    limits: Limits
    learner: BaseLearner
    store: JournalThreads
    control: ControlLog
    counts: Counter[str]
    pace: Pace
    arrivals: RowArrivals
    who: Identity
    clocks: Clocks
    crossing: Crossing | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    change_lock: ChangeLock = field(default_factory=ChangeLock)

    @property
    def followed(self) -> BaseLearner | None:
        """The local model if another process learns its rows; None: this process learns."""
        return None if self.who.learns else self.learner
