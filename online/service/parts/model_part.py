"""The objects that serve one model in one process, grouped so that a promotion can swap them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from online.replica.replica import ModelReplica
from online.serving.choices.choosing import Choosing
from online.serving.defaults import Defaults
from online.serving.device_pushes import Pushes
from online.serving.serving import Serving
from paramserver.clients.client import Client
from replay.journal.base import Journal


class LearnerProcess(Protocol):
    """A separate process that learns the rows which a replica writes."""

    def start(self) -> None:
        """Start the process; returns at once."""

    async def stop(self) -> None:
        """End the process of the learner."""


@dataclass(frozen=True, slots=True)
class Part:
    """Everything that serves one model in this process: replica, journal, front ends and clients.

    Attributes:
        control: Client of the model's parameter server, for questions and commands.
        facts: Constant entries of the model's status.
        pushes: Accepts updates from devices; None: devices may not send any.
        learner: The process that learns this one's rows; None: this process learns them itself.
        swappable: Whether a promotion can swap the part without a restart of the process.
        choosing: Chooses among actions; None: the model's task is another one.
        defaults: Assigns default labels or rewards after their deadline; None: there are none.
    """

    replica: ModelReplica
    journal: Journal
    serving: Serving
    control: Client
    facts: dict[str, Any]
    pushes: Pushes | None
    learner: LearnerProcess | None
    swappable: bool
    choosing: Choosing | None = None
    defaults: Defaults | None = None
