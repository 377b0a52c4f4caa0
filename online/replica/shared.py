"""The parts that the loops of one model's process share."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from online.learning.base import BaseLearner
from online.replica.change_lock import ChangeLock
from online.replica.control_log import ControlLog
from online.replica.journal_threads import JournalThreads
from online.replica.pace import Pace
from online.replica.row_arrivals import RowArrivals
from online.replica.surroundings import Clocks, Identity
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.telemetry.trace import Crossing


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
