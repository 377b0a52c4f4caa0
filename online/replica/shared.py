"""The parts that the loops of one model's process have in common."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from online.learning.base import BaseLearner
from online.replica.journal_threads import JournalThreads
from online.replica.pace import Pace
from online.replica.surroundings import Clocks, Who
from online.replica.writer import Writer


@dataclass(frozen=True, slots=True)
class Shared:
    """The model, the store, and what tells the loops of each other.

    Attributes
    ----------
    learner
        The local model.
    writer
        It writes this process's partition.
    store
        The journal's steps on threads.
    counts
        Counters by name, sent to the parameter server with each exchange.
    pace
        It says when the next exchange is due.
    who, clocks
        Name of the process, and its time.
    """

    learner: BaseLearner
    writer: Writer
    store: JournalThreads
    counts: Counter[str]
    pace: Pace
    who: Who
    clocks: Clocks
