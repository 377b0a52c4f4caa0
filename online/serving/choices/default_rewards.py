"""Default rewards: what a choice is worth when its wait has ended.

A choice gets the sum of the rewards stored until then (:mod:`.collecting`), or the default.  A
choice that teaches nothing is removed if its token carries all of it; a reward that arrives later
makes its half again.  A reward after a default is answered like a second reward of the same
choice.
"""

from __future__ import annotations

import msgspec

from online.decide.record import RecordInvalid, pack, unpack
from online.decide.reward_totals import total
from online.rows.joins import joined
from online.rows.prediction_ids import event_key
from online.serving.defaults import SOURCE
from online.settings.choose import Choose
from replay.example import PredictionHalf, WaitingLabel
from replay.journal.base import NewRow, Stored, Verdict


class DefaultRewards:
    """Default rewards of one model, for choices whose wait has ended."""

    counted = "rewards_defaulted"

    def __init__(self, settings: Choose) -> None:
        self._settings = settings
        self.wait_s = settings.reward_wait
        self.leftovers = not settings.waits

    def settled(self, key: bytes, half: Stored, made: PredictionHalf, at: float) -> NewRow | None:
        """The row of a choice whose wait has ended, or what removes it; None: it stays."""
        if made.choice is None:
            return None
        try:
            choice = unpack(made.choice)
        except RecordInvalid:  # a damaged choice must not block others
            return None
        settings = self._settings
        late = None
        if given := choice.rewards:
            reward = total(given, settings.aggregate, settings.rewards, settings.reward_range)
            source, event_time = given[0].source, given[-1].event_time
        elif choice.deferred:
            return None  # it may never have been shown
        elif settings.default_reward is None:  # without a reward it teaches nothing
            of_token = event_key("token", half.event_id)[4:] == key[4:]  # in either form of keys
            return _removed(key, half) if of_token else None
        else:
            reward, source, event_time = settings.default_reward, half.source or SOURCE, None
            late = 1.0  # no source is judged by it, and none follows
            record = pack(msgspec.structs.replace(choice, defaulted=True))
            made = msgspec.structs.replace(made, choice=record)
        label = WaitingLabel(reward, 1.0, event_time, source, half.event_id, at, ())
        return joined(key, made, label, at, half.payload, late=late)


def _removed(key: bytes, half: Stored) -> NewRow:
    """The empty half that replaces exactly this one, if it is still stored."""
    return NewRow(
        key, half.event_id, half.source, Verdict.ACCEPTED, b"", half.at, half=half.half,
        over=half.payload,
    )  # fmt: skip
