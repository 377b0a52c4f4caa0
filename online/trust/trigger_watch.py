"""The schedule of a replica's searches for triggers, and the report of their results."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from online.settings.model import Triggers
from online.trust.triggers import Trigger

log = logging.getLogger(__name__)

_LOOK_S: Final = 1.0  # seconds between two checks whether a search is due


class SearchResult(Protocol):
    """Result of one search, see :class:`online.service.on_ray.trigger_task.SearchResult`."""

    @property
    def triggers(self) -> Sequence[Trigger]:
        """Return the triggers that were found."""

    @property
    def forgotten(self) -> Sequence[str]:
        """Return the sources that were forgotten because of them."""

    @property
    def problem(self) -> str | None:
        """Return why a source could not be forgotten; None if there was no problem."""


class TriggerWatch:
    """Runs the searches of one model in one replica, one at a time.

    Parameters:
        model: The model's name.
        settings: How often to search.
        rows: Returns the number of learned rows of this replica.
        look: Runs a search in another process.
        counts: Counters of this replica, which are updated.
        monotonic_s: Returns a monotonic time in seconds.

    Attributes:
        incident: Text for an operator about the newest search's triggers; None if there are none.
    """

    def __init__(
        self,
        model: str,
        settings: Triggers,
        rows: Callable[[], int],
        look: Callable[[], Awaitable[SearchResult]],
        counts: Counter[str],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._model, self._settings = model, settings
        self._rows, self._look, self._counts = rows, look, counts
        self._monotonic_s = monotonic_s
        self._next = rows() + settings.every
        self._due_s = monotonic_s()
        self._known: frozenset[str] = frozenset()
        self.incident: str | None = None

    async def run(self) -> None:
        """Search whenever enough new rows were learned; never returns."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.once()

    async def once(self) -> None:
        """Search if a search is due."""
        if self._rows() < self._next or self._monotonic_s() < self._due_s:
            return
        taken = self._rows()
        try:
            looked = await self._look()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # by Ray, the disk or the model: it is retried later
            self._counts["trigger_searches_failed"] += 1
            log.warning("model %s: no search for triggers: %s", self._model, error)
            return
        finally:
            self._due_s = self._monotonic_s() + self._settings.pause
        self._next = taken + self._settings.every
        self._counts["trigger_searches"] += 1
        self._tell(looked)

    def _tell(self, looked: SearchResult) -> None:
        texts = [str(trigger) for trigger in looked.triggers]
        for text in texts:
            if text not in self._known:
                self._counts["triggers_found"] += 1
                log.warning("model %s: a trigger: %s", self._model, text)
        self._known = frozenset(texts)
        if not texts:
            self.incident = None
            return
        done = f"; forgotten: {', '.join(looked.forgotten)}" if looked.forgotten else ""
        failed = f"; not forgotten: {looked.problem}" if looked.problem else ""
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        self.incident = f"it may have a trigger: {texts[0]}{more}{done}{failed}"

    def report(self) -> dict[str, Any]:
        """Return gauges of this replica."""
        return {"triggers": float(len(self._known))}
