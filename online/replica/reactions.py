"""A replica does something about what it notices: a rise of the error, divergence, triggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

from evaluation.drift.alarm import Alarm
from online.learning.base import BaseLearner
from online.replica.surroundings import Clocks, Outside
from online.settings.model import ModelSettings
from online.trust.trigger_watch import TriggerWatch
from online.watch.divergence import Watch
from online.watch.on_rise import Rise

_WATCH_S = 1.0  # between two looks whether the model has diverged


class Reactions:
    """The actions on one model that its replica asks others for.

    Parameters:
        outside: Who is asked; nothing is done that nobody is there for.
        counts: ``learned`` of it tells when triggers are searched for next.

    Attributes:
        rise: The newest rise of the error, and what was done about it.
        watch: It sees whether the model has diverged; None: nothing does.
    """

    def __init__(
        self,
        settings: ModelSettings,
        learner: BaseLearner,
        outside: Outside,
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
        """Loops that run as long as the replica does."""
        return [] if self._triggers is None else [self._triggers.run]

    def rang(self, alarm: Alarm, since: float) -> None:
        """The error has risen; a row was taken at ``since`` (POSIX seconds), before it rose."""
        self.rise.rang(alarm, since)

    async def act(self) -> None:
        """Do what is to be done now; returns soon."""
        await self.rise.act()
        if self.watch is not None and self._monotonic_s() >= self._watch_due_s:
            self._watch_due_s = self._monotonic_s() + _WATCH_S
            await self.watch.look()

    async def stop(self) -> None:
        """End what is under way."""
        await self.rise.stop()

    @property
    def incidents(self) -> list[str]:
        """The newest action of each kind, for an operator."""
        watched = None if self.watch is None else self.watch.incident
        searched = None if self._triggers is None else self._triggers.incident
        return [said for said in (watched, self.rise.incident, searched) if said is not None]

    def report(self) -> dict[str, float]:
        """Gauges of the searches for triggers; none without them."""
        return {} if self._triggers is None else self._triggers.report()
