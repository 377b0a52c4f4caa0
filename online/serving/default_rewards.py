"""Choices whose wait has ended: each is worth its rewards, or the default, once, whoever says so.

A choice is one half of a row in the journal until its reward takes its place.  Every replica looks
for those that have waited for ``choose.reward_wait``, and writes what its rewards come to
(:mod:`online.serving.collecting`), or the default, over exactly the half
that it has seen: if a reward, or the default of another replica, was faster, nothing is written.  A
reward that comes later is answered as another one for the same choice is.

Where nothing becomes of a choice it is removed, if its token has all of it: a reward that comes
all the same makes its half again.  Others stay for as long as any half does.  So that nobody reads
those each second, a look begins where the last one ended, and at the oldest only now and then.

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
from online.rows.prediction_ids import event_key
from online.settings.choose import Choose
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid, ReplayError
from replay.example import WaitingLabel
from replay.journal.base import NewRow, Stored, Verdict

log = logging.getLogger("online.default_rewards")

PAGE: Final = 128
SOURCE: Final = "default"
WHOLE_S: Final = 60.0
"""Seconds between looks at all that has waited: what comes late into an old half waits so long."""
OVERLAP_S: Final = 10.0
"""How far a look goes back behind the last one: halves are written after they are taken."""
_LOOK_S: Final = 1.0
_TURN: Final = 16
"""After so many choices others have a turn of the event loop."""


class DefaultRewards:
    """Default rewards of one model in one replica.

    Parameters:
        now_s, monotonic_s: POSIX seconds, and seconds since any time.
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
        self._seen = self._whole_at = float("-inf")

    async def give(self) -> int:
        """Give each choice its default that has waited long enough; how many.

        Raises RequestError and ReplayError: the journal takes none now.
        """
        wait_s, passed_s = self._settings.reward_wait, self._monotonic_s() - self._began_s
        if not self._settings.waits or passed_s < wait_s:
            return 0
        at = self._began_at + passed_s
        if at >= self._whole_at:
            self._seen, self._whole_at = float("-inf"), at + WHOLE_S
        given, after, store = 0, self._seen, self._replica.store
        while True:
            page = await store.read(
                store.journal.predicted, self._replica.settings.name, after, at - wait_s, PAGE
            )
            rows = []
            for i, (key, half) in enumerate(page.waiting):
                if i % _TURN == _TURN - 1:
                    await asyncio.sleep(0)
                if row := self._settled(key, half, at):
                    rows.append(row)
            if rows:
                recorded = await self._replica.writer.record(rows)
                given += sum(one.row is not None and not one.repeat for one in recorded)
            if page.upto is None:
                self._seen = min(after, at - wait_s - OVERLAP_S)
                self._replica.counts["rewards_defaulted"] += given
                return given
            after = page.upto

    def _settled(self, key: bytes, half: Stored, at: float) -> NewRow | None:
        """The row of a choice whose wait has ended, or what removes it; None: it stays."""
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
        elif choice.deferred:
            return None  # it may never have been used
        elif settings.default_reward is None:  # it teaches nothing
            return _removed(key, half) if key == event_key("token", half.event_id) else None
        else:
            reward, source, event_time = settings.default_reward, half.source or SOURCE, None
            told = pack(msgspec.structs.replace(choice, defaulted=True))
            made = msgspec.structs.replace(made, choice=told)
        label = WaitingLabel(reward, 1.0, event_time, source, half.event_id, at, ())
        return joined(key, made, label, at, half.payload)


def _removed(key: bytes, half: Stored) -> NewRow:
    """The empty half that takes the place of exactly this one, if it still stands."""
    return NewRow(
        key, half.event_id, half.source, Verdict.ACCEPTED, b"", half.at, half=half.half,
        over=half.payload,
    )  # fmt: skip


async def give_for_ever(models: Mapping[str, DefaultRewards]) -> None:
    """Look every second, for whatever models there are by then."""
    while True:
        await asyncio.sleep(_LOOK_S)
        for name, model in list(models.items()):
            try:
                await model.give()
            except (RequestError, ReplayError) as error:
                log.warning("default rewards of %s: %s", name, error)
