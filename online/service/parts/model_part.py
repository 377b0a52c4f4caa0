"""One model in one process: everything that answers for it, and that a promotion exchanges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from online.replica.replica import ModelReplica
from online.serving.choosing import Choosing
from online.serving.defaults import Defaults
from online.serving.device_pushes import Pushes
from online.serving.serving import Serving
from paramserver.clients.client import Client
from replay.journal.base import Journal


class LearnerProcess(Protocol):
    """Learns in a process of its own what a replica writes."""

    def start(self) -> None:
        """Begin; returns at once."""

    async def stop(self) -> None:
        """End the process of the learner."""


@dataclass(frozen=True, slots=True)
class Part:
    """One model in this process: what learns it, what answers for it, and its ways to others.

    Attributes:
        control: The way to the model's parameter server, for questions and commands.
        facts: What a status says of the model that does not change.
        pushes: Takes what devices have learned; None: devices may not send anything.
        learner: The process that learns what this one writes; None: this one learns itself.
        exchangeable: Whether a promotion can exchange the part while the process goes on.
        choosing: Chooses among actions; None: the model is no such one.
        defaults: Gives what has waited for its label, or reward, a default; None: nothing waits.
    """

    replica: ModelReplica
    journal: Journal
    serving: Serving
    control: Client
    facts: dict[str, Any]
    pushes: Pushes | None
    learner: LearnerProcess | None
    exchangeable: bool
    choosing: Choosing | None = None
    defaults: Defaults | None = None
