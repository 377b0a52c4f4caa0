"""A replica's reactions to what it observes: a rise of the error, divergence, trigger searches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

from evaluation.drift.alarm import Alarm
from online.learning.base import BaseLearner
from online.replica.surroundings import Clocks, Services
from online.settings.model import ModelSettings
from online.trust.trigger_watch import TriggerWatch
from online.watch.divergence import Watch
from online.watch.on_rise import Rise

_WATCH_S = 1.0  # between two checks whether the model has diverged


class Reactions:
    """The actions on one model that its replica requests from other services.

    Parameters:
        outside: The services; an action without its service is disabled.
        counts: Its ``learned`` count decides when triggers are searched next.

    Attributes:
        rise: The newest rise of the error, and the action taken.
        watch: Detects whether the model has diverged; None: not watched.
    """

    def __init__(
        self,
        settings: ModelSettings,
        learner: BaseLearner,
        outside: Services,
        counts: Counter[str],
        clocks: Clocks,
    ) -> None:
        self._monotonic_s = clocks.monotonic_s
        self.rise = Rise(settings.name, settings.drift, learner, outside.ask, outside.relearn)
        self._triggers: TriggerWatch | None = None
        if outside.search is not None and settings.triggers.every:
            self._triggers = TriggerWatch(
                settings.name, settings.triggers, lambda: counts["learned"], outside.search,
                counts, clocks.monotonic_s,
            )  # fmt: skip
        self.watch: Watch | None = None
        self._watch_due_s = 0.0
        guarded = settings.training.guard and getattr(learner.serving, "halves", False)
        if outside.ask is not None and guarded and learner.recovers:
            recover = partial(outside.ask, "recover")
            self.watch = Watch(settings.task, learner, recover, clocks.now_s)

    @property
    def loops(self) -> list[Callable[[], Awaitable[None]]]:
        """Loops to run for the life of the replica."""
        return [] if self._triggers is None else [self._triggers.run]

    def rang(self, alarm: Alarm, since: float) -> None:
        """Handle a rise of the error; ``since``: a time before the rise (POSIX seconds)."""
        self.rise.rang(alarm, since)

    async def act(self) -> None:
        """Take the actions that are due; returns soon."""
        await self.rise.act()
        if self.watch is not None and self._monotonic_s() >= self._watch_due_s:
            self._watch_due_s = self._monotonic_s() + _WATCH_S
            await self.watch.look()

    async def stop(self) -> None:
        """Cancel the actions under way."""
        await self.rise.stop()

    @property
    def incidents(self) -> list[str]:
        """The newest action of each kind, for an operator."""
        watched = None if self.watch is None else self.watch.incident
        searched = None if self._triggers is None else self._triggers.incident
        return [
            incident for incident in (watched, self.rise.incident, searched) if incident is not None
        ]

    def report(self) -> dict[str, float]:
        """Gauges of the trigger searches; empty if there are none."""
        return {} if self._triggers is None else self._triggers.report()
