"""Choices whose wait has ended: each is worth its rewards, or the default, once, whoever says so.

A choice is one half of a row in the journal until its reward takes its place.  Every replica looks
for those that have waited for ``choose.reward_wait``, and writes what its rewards come to
(:mod:`online.serving.collecting`), or the default, over exactly the half
that it has seen: if a reward, or the default of another replica, was faster, nothing is written.  A
reward that comes later is answered as another one for the same choice is.

The wall clock may be wrong, so time is counted from the start of the process: what was chosen
before it waits anew.  A default may be late, and never comes before its time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from online.decide.collected import total
from online.decide.record import RecordInvalid, pack, unpack
from online.errors import RequestError
from online.replica.replica import ModelReplica
from online.rows.joins import joined
from online.settings.choose import Choose
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid, ReplayError
from replay.example import WaitingLabel
from replay.journal.base import NewRow, Stored

log = logging.getLogger("online.default_rewards")

PAGE: Final = 128
SOURCE: Final = "default"
_LOOK_S: Final = 1.0


class DefaultRewards:
    """Default rewards of one model in one replica.

    Parameters
    ----------
    now_s, monotonic_s
        POSIX seconds, and seconds since any time.
    """

    def __init__(
        self,
        replica: ModelReplica,
        settings: Choose,
        now_s: Callable[[], float],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._replica, self._settings, self._monotonic_s = replica, settings, monotonic_s
        self._began_at, self._began_s = now_s(), monotonic_s()

    async def give(self) -> int:
        """Give each choice its default that has waited long enough; how many.

        Raises RequestError and ReplayError: the journal takes none now.
        """
        wait_s, passed_s = self._settings.reward_wait, self._monotonic_s() - self._began_s
        if not self._settings.waits or passed_s < wait_s:
            return 0
        at = self._began_at + passed_s
        given, after, store = 0, float("-inf"), self._replica.store
        while True:
            page = await store.read(
                store.journal.predicted, self._replica.settings.name, after, at - wait_s, PAGE
            )
            rows = [row for key, half in page.waiting if (row := self._settled(key, half, at))]
            if rows:
                recorded = await self._replica.writer.record(rows)
                given += sum(one.row is not None and not one.repeat for one in recorded)
            if page.upto is None:
                self._replica.counts["rewards_defaulted"] += given
                return given
            after = page.upto

    def _settled(self, key: bytes, half: Stored, at: float) -> NewRow | None:
        """The row of a choice whose wait has ended; None: nothing becomes of it."""
        try:
            made = codec.decode_prediction(half.payload)
            if made.choice is None:
                return None
            choice = unpack(made.choice)
        except (PayloadFormat, PayloadInvalid, RecordInvalid):  # others do not wait for it
            return None
        settings = self._settings
        if given := choice.rewards:
            reward = total(given, settings.aggregate, settings.rewards, settings.reward_range)
            source, event_time = given[0].source, given[-1].event_time
        elif choice.deferred or settings.default_reward is None:
            return None  # it may never have been used, or teaches nothing
        else:
            reward, source, event_time = settings.default_reward, half.source or SOURCE, None
            told = pack(msgspec.structs.replace(choice, defaulted=True))
            made = msgspec.structs.replace(made, choice=told)
        label = WaitingLabel(reward, 1.0, event_time, source, half.event_id, at, ())
        return joined(key, made, label, at, half.payload)


async def give_for_ever(models: Mapping[str, DefaultRewards]) -> None:
    """Look every second, for whatever models there are by then."""
    while True:
        await asyncio.sleep(_LOOK_S)
        for name, model in list(models.items()):
            try:
                await model.give()
            except (RequestError, ReplayError) as error:
                log.warning("default rewards of %s: %s", name, error)
