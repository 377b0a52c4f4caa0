"""Rewards of one model's choices: makes receipts from the bodies of requests.

A reward is a label.  If several rewards of a choice are learned as one, they are stored until the
choice's wait ends (:mod:`online.serving.choices.collecting`).
"""

from __future__ import annotations

import re
import uuid
from typing import Any, Final

import msgspec

from online.decide.reward_totals import PLAIN, weighed
from online.errors import invalid
from online.messages.choices import Reward, RewardRequest
from online.messages.structs import Event, FeedbackRequest, Receipt, Receipts
from online.rows.validator import Validator
from online.serving.choices.collecting import RewardCollector, Sent
from online.serving.feedback.receipts import HTTP
from online.serving.serving import Serving
from online.settings.choose import Choose
from online.settings.limits import Limits

_REWARD_MAX: Final = 1e9
"""Largest absolute value of a named reward, before its weight."""

_FIELD: Final = re.compile(r"events\[(\d+)\]\.(\w+)")


class RewardHandler:
    """Takes the rewards of one model."""

    def __init__(
        self, serving: Serving, validator: Validator, limits: Limits, settings: Choose
    ) -> None:
        self.serving, self._validator = serving, validator
        self._limits, self._settings = limits, settings
        self._collecting: RewardCollector | None = None
        if settings.aggregate != "earliest":
            self._collecting = RewardCollector(serving, settings)

    async def take(self, request: RewardRequest) -> tuple[int, Receipt | Receipts]:
        """Record one reward or many; return the HTTP status and the receipt or receipts."""
        many = request.rewards is not None
        if request.rewards is not None:
            if request != RewardRequest(rewards=request.rewards):
                raise invalid("rewards", "one reward and many in one body", "Put all into rewards")
            if not 1 <= len(request.rewards) <= self._limits.rows_max:
                hint = f"Send 1 to {self._limits.rows_max}, or raise limits.rows_max"
                raise invalid("rewards", f"{len(request.rewards)} rewards", hint)
            given = request.rewards
        elif request.id is None:
            raise invalid("id", "no id", "Send the id that the choice was answered with")
        else:
            one = Reward(
                request.id, request.reward, request.source, request.event_time, request.reward_id
            )
            given = [one]
        sent = [
            self._sent(x, f"rewards[{i}].reward" if many else "reward", many=many)
            for i, x in enumerate(given)
        ]
        if self._collecting is None:
            if many:
                events = FeedbackRequest(events=[x.event for x in sent])
                status, learned = await self.serving.feedback(events)
                assert isinstance(learned, Receipts)
                _name_as_sent(learned)
                return status, learned
            event = sent[0].event
            return await self.serving.feedback(FeedbackRequest(**msgspec.structs.asdict(event)))
        receipts = await self._collecting.take(sent, many=many)
        if many:
            return 200, Receipts(receipts, self.serving.name)
        receipt = receipts[0]
        return HTTP[_first(receipt)], receipt

    def check(self, reward: Any, field: str) -> None:
        """Raise RequestError if a reward can't be one of the model's."""
        self._sent(Reward("", reward), field, many=False)

    def _sent(self, one: Reward, field: str, *, many: bool) -> Sent:
        """Convert a reward into its label event and its named values.  Raises RequestError.

        Among ``many``, a number outside the range is refused later, with a receipt of its own.
        """
        values = self._values(one.reward, field)
        label = one.reward
        if values is not None:
            low, high = self._settings.reward_range
            label = min(max(weighed(values, self._settings.rewards), low), high)
        label = _number(label)
        if not many:
            label = self._validator.label(label, field)
        event = Event(label, one.id, source=one.source, event_time=one.event_time)
        nonce = "" if self._collecting is None else uuid.uuid4().hex[:12]
        return Sent(event, {PLAIN: label} if values is None else values, one.reward_id, nonce)

    def _values(self, reward: Any, field: str) -> dict[str, float] | None:
        """Check named rewards; None: it is a plain number, or will be refused as one."""
        known = self._settings.rewards
        if not isinstance(reward, dict):
            if known:
                hint = f"Send numbers by name: {', '.join(known)}"
                raise invalid(field, "a reward without a name", hint)
            return None
        values: dict[str, float] = {}
        for name, value in reward.items():  # msgpack has names that are no texts
            if name not in known:
                hint = f"Known here: {', '.join(known) or 'none'} (choose.rewards)"
                raise invalid(f"{field}.{str(name)[:80]}", "no reward of this name", hint)
            number = _number(value)
            if not isinstance(number, (int, float)) or not abs(number) <= _REWARD_MAX:
                hint = f"Send a number in ±{_REWARD_MAX:g}"
                raise invalid(f"{field}.{name}", "a number is needed", hint)
            values[name] = float(number)
        if not values:
            raise invalid(field, "no reward in it", f"Send some of: {', '.join(known) or 'none'}")
        return values


def _first(receipt: Receipt) -> str:
    """The status that decides the HTTP code: for a repeat, that of the first sending."""
    first = receipt.first_outcome
    repeats = receipt.status == "duplicate" and isinstance(first, str)
    return str(first) if repeats else receipt.status


def _name_as_sent(receipts: Receipts) -> None:
    """Name the fields of errors as they are in a body of rewards, in place."""
    for receipt in receipts.events:
        error = receipt.error
        if error is not msgspec.UNSET and (found := _FIELD.fullmatch(str(error["field"]))):
            name = "reward" if found[2] == "label" else found[2]
            receipt.error = {**error, "field": f"rewards[{found[1]}].{name}"}


def _number(reward: Any) -> Any:
    """Convert true and false into numbers."""
    return float(reward) if isinstance(reward, bool) else reward
