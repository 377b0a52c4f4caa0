"""The reaction to a rise of a model's error: none, freeze, roll back, or relearn.

It runs as a step of the replica's exchange with the parameter server, without blocking it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from evaluation.drift.alarm import Alarm
from online.learning.base import BaseLearner
from online.settings.model import Drift
from paramserver.errors import ParamServerError, RollbackRefused

log = logging.getLogger(__name__)

Ask = Callable[..., Awaitable[Any]]
Relearn = Callable[[int, float], Awaitable[str]]
"""Trains a fresh model in another process, given the number of the newest rewrite and the POSIX
time of the first rows; returns the outcome as text.  A newer rewrite cancels it."""

_WAITS: Final = 2  # a fresh model is trained after 1 / _WAITS of relearn_rows were learned


class Rise:
    """The newest rise of one model's error, and the reaction to it.

    Parameters:
        model: The model's name.
        settings: Which reaction is chosen.
        learner: The replica's learner.
        ask: Sends a request by name to the parameter server; None: there is no reaction.
        relearn: Trains a fresh model; None: this process can't.

    Attributes:
        pending: Whether the reaction is not finished.
        incident: What was done, for an operator; None: nothing.
    """

    def __init__(
        self,
        model: str,
        settings: Drift,
        learner: BaseLearner,
        ask: Ask | None,
        relearn: Relearn | None,
    ) -> None:
        self._model, self._settings, self._learner = model, settings, learner
        self._ask, self._relearn = ask, relearn
        self._rewrite, self._since = 0, 0.0  # newest rewrite at the alarm; a time before the rise
        self._learned = 0  # rows in the model at the alarm
        self._work: asyncio.Task[str] | None = None
        self.pending = False
        self.incident: str | None = None

    def rang(self, alarm: Alarm, since: float) -> None:
        """Start a reaction to an alarm; ``since`` (POSIX seconds) is a time before the rise."""
        action = self._settings.on_rise
        if action == "tell" or self._learner.frozen or self.pending or self._ask is None:
            return
        log.warning("model %s: %s, its error has risen: %s", self._model, action, alarm)
        self._rewrite, self._since = self._learner.rewrite, since
        self._learned, self.pending = self._learner.tally.digest[0], True

    async def act(self) -> None:
        """Do the next step of a pending reaction; returns soon."""
        if not self.pending or self._ask is None:
            return
        try:
            self.pending = not await self._acted(self._ask)
        except RollbackRefused as error:
            self.incident, self.pending = f"its error has risen; left as it is: {error}", False
        except ParamServerError:
            return  # retried at the next step

    async def _acted(self, ask: Ask) -> bool:
        """Do the next step, and return whether the reaction is finished."""
        if self._settings.on_rise == "relearn":
            return await self._taught(ask)
        if self._settings.on_rise == "freeze":
            await ask("freeze")
            return True
        done: Mapping[str, Any] = await ask("retreat", self._rewrite, self._since)
        if done["snapshot"] is not None:
            self.incident = (
                f"its error had risen: back to snapshot {done['snapshot']}, "
                f"{done['undone']} rows undone (online rollback --undone)"
            )
        return True

    async def _taught(self, ask: Ask) -> bool:
        if self._work is not None:
            if not self._work.done():
                return False
            work, self._work = self._work, None
            try:
                self.incident = work.result()
            except Exception as error:  # by Ray, the disk or the model; the next alarm retries
                self.incident = f"its error has risen; no fresh model was taught: {error}"
            log.warning("model %s: %s", self._model, self.incident)
            return True
        if self._relearn is None or self._learner.rewrite != self._rewrite:
            return True
        come = self._learner.tally.digest[0] - self._learned
        if come * _WAITS < self._settings.relearn_rows:
            return False
        if not await ask("may_relearn", self._rewrite, self._settings.relearn_pause):
            return True
        self._work = asyncio.create_task(_plain(self._relearn(self._rewrite, self._since)))
        return False

    async def stop(self) -> None:
        """Cancel a training in progress, which changes nothing until it is decided."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)


async def _plain(work: Awaitable[str]) -> str:
    return await work
