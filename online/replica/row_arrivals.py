"""Waits for rows of a model's table that are not held here and come from the parameter server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from online.learning.base import LEARNED, BaseLearner, why_not_taught
from online.settings.cache import Cache
from replay import codec
from replay.example import Example, Features
from replay.journal.base import Row

if TYPE_CHECKING:
    from online.replica.writer import Writer

_TOGETHER = 32  # events whose rows are requested together


class RowArrivals:
    """Waits for missing rows, within bounds, before events are learned or predictions answered.

    An event whose rows do not come in time is learned without them: what is learned, and in which
    order, must not depend on a server that is away.  After waiting in vain, nothing waits again
    until the server has answered.

    Parameters:
        settings: How long to wait.
        hurry: Has the next exchange with the server begin at once.
    """

    def __init__(self, learner: BaseLearner, settings: Cache, hurry: Callable[[], None]) -> None:
        self._learner, self._settings, self._hurry = learner, settings, hurry
        self._next = asyncio.Event()
        self._asked: Sequence[Row] = ()
        self._examples: dict[int, Example] = {}  # of these, by offset, until they are learned
        self._upto = 0  # rows before this one of _asked have been waited for
        self._in_vain = -1  # replies at the last wait in vain

    def arrived(self) -> None:
        """Note that an exchange is done."""
        self._next.set()
        self._next = asyncio.Event()

    def example(self, row: Row) -> Example | None:
        """Return the decoded payload of one of the events that were waited for, once."""
        mine = self._asked and self._asked[0].partition == row.partition
        return self._examples.pop(row.offset, None) if mine else None

    async def before(self, rows: Sequence[Row], at: int, writer: Writer) -> None:
        """Wait until the rows that the event at this place needs are here, and those of the next.

        All events of ``rows``, which are of one partition, are to be learned, in order.
        """
        cache = self._learner.cache
        if cache is None or (rows is self._asked and at < self._upto):
            return
        self._asked, self._upto = rows, at + _TOGETHER
        taught = [r for r in rows[at : self._upto] if r.verdict in LEARNED]
        known = writer.decoded if rows[at].partition == writer.partition else {}
        self._examples = {
            row.offset: known.get(row.offset) or codec.decode(row.payload)
            for row in taught
            if why_not_taught(row) is None
        }
        needed = [i for one in self._examples.values() for i in cache.ids_of(one.features)]
        cache.soon = dict.fromkeys(needed)
        await self._until(lambda: not cache.ask(cache.soon), self._settings.learn_wait_ms / 1e3)

    async def for_answer(self, asked: Sequence[Features]) -> None:
        """Wait until the rows that these predictions need are here."""
        cache = self._learner.cache
        if cache is not None and self._settings.wait_ms:
            needed = dict.fromkeys(i for features in asked for i in cache.ids_of(features))
            await self._until(lambda: not cache.ask(needed), self._settings.wait_ms / 1e3)

    async def _until(self, here: Callable[[], bool], seconds: float) -> None:
        cache = self._learner.cache
        if cache is None or here() or cache.replies == self._in_vain:
            return
        try:
            async with asyncio.timeout(seconds):
                while not here():
                    self._hurry()
                    await self._next.wait()
        except TimeoutError:
            self._in_vain = cache.replies
